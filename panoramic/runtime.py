"""A loaded model that classifies batches and explains each answer, in one forward pass: what callers rely on.

`panoramic.runtime_torch.Classifier` is the reference, and `panoramic.runtime_choice.load_runtime` finds the fastest
that gives the reference's answers.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from panoramic.classification import Classification
from panoramic.model_file import Model


class Runtime(ABC):
    """A model made ready to run on some device by some library.

    Attributes:
        model: The model that answers, from `panoramic.model_file.load_model`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def warm_up(self) -> None:
        """Run once on an empty picture, so that the first radiograph does not pay for allocation and set-up."""
        self.classify(np.zeros((1, 3, *self.model.manifest.input_size), np.float32))

    @abstractmethod
    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain pictures from `panoramic.preprocess.prepare`, (N, 3, h, w); one answer each, in order.

        **The diagnosis is the finding if its probability reaches the model's threshold; otherwise it is the most
        probable of the other classes.** With two classes and a threshold of 0.5 that is the larger logit, as in the
        predecessor (save for an exact tie, which counts as the finding). With more classes it is not always the
        largest probability, on purpose: a threshold chosen for its sensitivity must mean the same in every result.

        Raises:
            ValueError: The batch is not of the model's input size, or not of finite float32.
            PanoramicError: The network put out something infinite or not a number, or there is no room for the batch.
            Exception: Whatever else the library raises when it or the device fails: the next batch would fail as well.
        """
