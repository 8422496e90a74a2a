"""What a report is told besides the predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.report.bootstrap import RESAMPLES


@dataclass(frozen=True, eq=False)
class CaseImages:
    """A picture and what the network's answer rests on.

    Attributes:
        original: (H, W) grey levels.
        overlay_png: The picture with its heat map, as a PNG file.
    """

    original: NDArray[np.uint8]
    overlay_png: bytes


@dataclass(frozen=True)
class ReportContext:
    """What a report is told besides the predictions; nothing in it may name a patient.

    Attributes:
        title: Heading of the page.
        facts: Rows by section, such as "Data", "Model", "Training", "Software"; the checklists are answered from them.
            If the page shall say when it was made, a row says it: nothing else in a report depends on the clock.
        threshold_rule: How the threshold was chosen, in words or as the rule's name.
        shortcuts: Scores of baselines by name, (N,) each, out of fold as the network's.
        explain: Gives the pictures of a case by its index into the predictions; None leaves pictures out.
        notes: Sentences that a reader must see first, after what the report itself says of phantoms.
        phantoms: How many of the pictures are synthetic.
        patients_known: Whether it was said who is on which picture; otherwise each is a patient of its own.
        training_known: Whether it is known which pictures had a part in the saved model, or in the weights that a
            cross-validation began with, and none of them is here.
        pretrained: Whether a cross-validation began with weights that had been trained on radiographs.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """

    title: str
    facts: Mapping[str, Mapping[str, str]]
    threshold_rule: str
    shortcuts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    explain: Callable[[int], CaseImages] | None = None
    notes: Sequence[str] = ()
    phantoms: int = 0
    patients_known: bool = False
    training_known: bool = False
    pretrained: bool = False
    seed: int = 0
    resamples: int = RESAMPLES
