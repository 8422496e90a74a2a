"""A data set's fingerprint, and what is wrong with it, before hours are spent on it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from panoramic.manifest import RESEARCH_USE
from panoramic.view import View
from training.data.dataset import Dataset, dataset_digest
from training.data.examine import Examined, Unreadable, examine
from training.data.findings import Finding, find_faults
from training.data.folds import patient_groups
from training.data.shortcut_aucs import ShortcutAuc, enough_patients, shortcut_aucs

_SCHEMA_VERSION = 1
_Key = TypeVar("_Key", str, int)


@dataclass(frozen=True)
class ClassCount:
    """What a class holds.

    Attributes:
        name: Of the class.
        finding: Whether the screening looks for it.
        folders: That make it up.
        files: In these folders.
        pictures: Files that can be used.
        patients: With such a file.
    """

    name: str
    finding: bool
    folders: tuple[str, ...]
    files: int
    pictures: int
    patients: int


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of a quantity, in pixels."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True)
class Fingerprint:
    """What a data set consists of; files that cannot be used have no part in it, except in `ClassCount.files`.

    Attributes:
        digest: `training.data.dataset.dataset_digest`.
        view: What the pictures show.
        classes: In the order of the network's outputs.
        patients: In all classes together.
        heights_px: None if no picture can be used.
        widths_px: Likewise.
        sizes: How many different sizes there are.
        formats: Pictures by file format.
        bit_depths: Pictures by bits a sample.
        warnings: Pictures by code of the reader's warning.
    """

    digest: str
    view: View
    classes: tuple[ClassCount, ...]
    patients: int
    heights_px: Spread | None
    widths_px: Spread | None
    sizes: int
    formats: dict[str, int]
    bit_depths: dict[int, int]
    warnings: dict[str, int]


@dataclass(frozen=True)
class Check:
    """The answer of `check_dataset`.

    Attributes:
        fingerprint: What the data set consists of.
        shortcuts: Measures judged as classifiers, most telling first; None if there are too few patients.
        unreadable: Files that cannot be used, and why.
        findings: Faults, then remarks.
    """

    fingerprint: Fingerprint
    shortcuts: tuple[ShortcutAuc, ...] | None
    unreadable: tuple[Unreadable, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> bool:
        """Whether anything should be put right before training."""
        return any(finding.wrong for finding in self.findings)

    def as_document(self) -> dict[str, Any]:
        """The same for programs, ready for `json.dumps`."""
        return {
            "schema_version": _SCHEMA_VERSION,
            "wrong": self.wrong,
            "fingerprint": asdict(self.fingerprint),
            "findings": [asdict(finding) for finding in self.findings],
            "unreadable": [{"name": file.picture.name, "reason": file.reason} for file in self.unreadable],
            "shortcuts": None if self.shortcuts is None else [asdict(shortcut) for shortcut in self.shortcuts],
            "intended_use": RESEARCH_USE,
        }


def check_dataset(
    dataset: Dataset,
    *,
    view: View = View.FULL,
    processes: int | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> Check:
    """Read every picture once and say what the data set consists of and what is wrong with it.

    Args:
        dataset: As `training.data.dataset.find_dataset` lists it.
        view: What the pictures should show.
        processes: How many to read with; by default one a core.
        on_done: Called after each picture, from several threads.

    Raises:
        PanoramicError: The decoder does not start.
    """
    answers = examine(dataset.pictures, view=view, processes=processes, on_done=on_done)
    examined = [answer for answer in answers if isinstance(answer, Examined)]
    unreadable = tuple(answer for answer in answers if isinstance(answer, Unreadable))
    shortcuts = _judge_shortcuts(dataset, examined)
    return Check(
        fingerprint=_fingerprint(dataset, examined, view),
        shortcuts=shortcuts,
        unreadable=unreadable,
        findings=find_faults(dataset, examined, unreadable, shortcuts=shortcuts),
    )


def _fingerprint(dataset: Dataset, examined: Sequence[Examined], view: View) -> Fingerprint:
    files = dataset.counts()
    classes = []
    for index, cls in enumerate(dataset.classes):
        here = [one for one in examined if one.picture.class_index == index]
        patients = len({one.picture.patient for one in here})
        classes.append(ClassCount(cls.name, cls.finding, cls.folders, files[cls.name], len(here), patients))
    return Fingerprint(
        digest=dataset_digest((dataset.classes[one.picture.class_index].name, one.digest) for one in examined),
        view=view,
        classes=tuple(classes),
        patients=len({one.picture.patient for one in examined}),
        heights_px=_spread([one.size_px[0] for one in examined]),
        widths_px=_spread([one.size_px[1] for one in examined]),
        sizes=len({one.size_px for one in examined}),
        formats=_counted(one.format for one in examined),
        bit_depths=_counted(one.bit_depth for one in examined),
        warnings=_counted(code for one in examined for code in one.warnings),
    )


def _judge_shortcuts(dataset: Dataset, examined: Sequence[Examined]) -> tuple[ShortcutAuc, ...] | None:
    positives = np.array([one.picture.class_index == dataset.finding_index for one in examined], np.bool_)
    # Patients with identical pictures count as one, as they do in folds and in the report.
    patients = patient_groups([one.picture.patient for one in examined], [one.digest for one in examined])
    if not enough_patients(positives, patients):
        return None
    return shortcut_aucs([one.measures for one in examined], positives, patients, others=_of_the_files(examined))


def _of_the_files(examined: Sequence[Examined]) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Measures that depend on the file and reach the network through its traces, such as JPEG's blocks."""
    others = {}
    depths = np.array([one.bit_depth for one in examined], np.float64)
    if len(np.unique(depths)) > 1:
        others["bit depth"] = ("bits a sample in the file", depths)
    formats = _counted(one.format for one in examined)
    # Of two formats, one says what the other says.
    for kind in list(formats)[: len(formats) if len(formats) > 2 else len(formats) - 1]:
        others[kind] = (f"whether the file is {kind}", np.array([one.format == kind for one in examined], np.float64))
    return others


def _counted(values: Iterable[_Key]) -> dict[_Key, int]:
    return dict(sorted(Counter(values).items()))


def _spread(values: Sequence[int]) -> Spread | None:
    return Spread(min(values), float(np.median(values)), max(values)) if values else None
