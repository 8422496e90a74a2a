"""What a model says of pictures of the feed, by the very runtime that the worker uses."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from panoramic.runtime import Runtime
from training.data.augment import Augmentation
from training.data.batches import loader
from training.fit.train import Feed


def probabilities(
    runtime: Runtime, feed: Feed, indices: Sequence[int], *, batch_size: int, workers: int = 0
) -> NDArray[np.float64]:
    """Probabilities of the classes.

    Args:
        runtime: A loaded model of the feed's input size.
        feed: The pictures.
        indices: Which of them, N.
        batch_size: How many at once.
        workers: Processes that read pictures.

    Returns:
        (N, C) in the order of the indices.
    """
    part = feed.part(indices, augmentation=Augmentation.NONE, seed=0)
    found = np.zeros((len(indices), len(runtime.model.manifest.classes)))
    batches = loader(part, batch_size=batch_size, shuffle=False, seed=0, epoch=0, workers=workers)
    for x, _, places in batches:  # (n, 3, h, w), (n,), (n,)
        for place, answer in zip(places.tolist(), runtime.classify(x.numpy()), strict=True):
            found[place] = list(answer.probabilities.values())
    return found
