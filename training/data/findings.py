"""What can be wrong with a data set, each as a sentence and the pictures that it is about."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from panoramic.radiograph import ImageWarning
from training.data.dataset import Dataset
from training.data.duplicates import Alike, find_identical, find_near_identical
from training.data.examine import Examined, Unreadable
from training.data.shortcut_aucs import LEAST_PATIENTS, ShortcutAuc

#: Folds of the usual cross-validation: each tests on one patient of every class at least.
FOLDS: Final = 5

#: Warnings of the reader that mean the wrong picture, or one that is not as the network should see it.
SERIOUS_WARNINGS: Final = frozenset(
    {
        ImageWarning.FOR_PROCESSING,
        ImageWarning.OTHER_BODY_PART,
        ImageWarning.POLARITY_INVERTED,
        ImageWarning.ROUGH,
        ImageWarning.UPSIDE_DOWN,
    }
)


class FindingCode(StrEnum):
    """Which fault or remark it is."""

    UNREADABLE = "unreadable"
    """Files that training would refuse."""
    IDENTICAL = "identical"
    """Pictures with the same grey levels, whatever their files."""
    NEAR_IDENTICAL = "near_identical"
    """Pictures that show the same up to encoding, size, brightness or a flip."""
    PATIENT_IN_SEVERAL_CLASSES = "patient_in_several_classes"
    SHORTCUT = "shortcut"
    """Something other than the radiograph's content gives the class away."""
    SHORTCUTS_NOT_JUDGED = "shortcuts_not_judged"
    """Too few patients to tell."""
    FEW_PATIENTS = "few_patients"
    """A class has fewer patients than there are folds."""
    READER_WARNING = "reader_warning"
    """The reader remarked on pictures that it took all the same."""
    LEFT_OUT = "left_out"
    """Folders whose pictures take no part."""
    PATIENTS_UNKNOWN = "patients_unknown"
    """Nothing was said of who is on which picture."""


@dataclass(frozen=True)
class Finding:
    """A fault of the data set, or a remark on it.

    Attributes:
        code: Which one.
        wrong: Whether it should be put right before training; otherwise it is good to know.
        message: What it is and what to do, without the pictures' names.
        pictures: Names of those concerned, in groups where they belong together, each group sorted.
    """

    code: FindingCode
    wrong: bool
    message: str
    pictures: tuple[tuple[str, ...], ...] = ()


def find_faults(
    dataset: Dataset,
    examined: Sequence[Examined],
    unreadable: Sequence[Unreadable],
    *,
    shortcuts: Sequence[ShortcutAuc] | None,
) -> tuple[Finding, ...]:
    """Everything that is wrong, then everything else that is good to know.

    Args:
        dataset: The data set.
        examined: Its pictures that can be used.
        unreadable: Its files that cannot.
        shortcuts: Measures judged as classifiers, None if there are too few patients.
    """
    found = [
        *_unreadable(dataset, unreadable),
        *_alike(examined),
        *_patients(dataset, examined),
        *_shortcuts(dataset, shortcuts),
        *_warnings(examined),
        *_left_out(dataset),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.wrong))


def _unreadable(dataset: Dataset, unreadable: Sequence[Unreadable]) -> Iterator[Finding]:
    if unreadable:
        yield Finding(
            FindingCode.UNREADABLE,
            True,
            f"{len(unreadable)} of {len(dataset.pictures)} files cannot be used, and training refuses a data set that "
            "holds such files: export them again or take them away",
            tuple((file.picture.name,) for file in unreadable),
        )


def _alike(examined: Sequence[Examined]) -> Iterator[Finding]:
    identical = find_identical([one.digest for one in examined])
    yield from _groups(FindingCode.IDENTICAL, "identical pictures", examined, identical)
    # One of each: what is identical is near-identical to the same pictures.
    first_of: dict[str, int] = {}
    for index, one in enumerate(examined):
        first_of.setdefault(one.digest, index)
    chosen = list(first_of.values())
    near = [
        Alike(tuple(chosen[member] for member in group.members), group.flipped)
        for group in find_near_identical([examined[index].thumbnail for index in chosen])
    ]
    yield from _groups(FindingCode.NEAR_IDENTICAL, "near-identical pictures", examined, near)


def _groups(code: FindingCode, what: str, examined: Sequence[Examined], alike: Sequence[Alike]) -> Iterator[Finding]:
    across_classes, across_patients, within = [], [], []
    for group in alike:
        pictures = [examined[member].picture for member in group.members]
        if len({picture.class_index for picture in pictures}) > 1:
            across_classes.append(group)
        elif len({picture.patient for picture in pictures}) > 1:
            across_patients.append(group)
        else:
            within.append(group)
    for groups, wrong, consequence in (
        (across_classes, True, "stand in different classes, of which one must be wrong: find out which"),
        (
            across_patients,
            True,
            "count as different patients: take the copies away, or say whose they are with --patients",
        ),
        (within, code is FindingCode.IDENTICAL, "are of one patient and count more than once: keep one of each"),
    ):
        if groups:
            flips = sorted({flip for group in groups for flip in group.flipped})
            some = f" (some of them {' or '.join(flips)})" if flips else ""
            yield Finding(
                code,
                wrong,
                f"{_count(len(groups), 'group')} of {what}{some} {consequence}",
                tuple(tuple(examined[member].picture.name for member in group.members) for group in groups),
            )


def _patients(dataset: Dataset, examined: Sequence[Examined]) -> Iterator[Finding]:
    names: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, set[int]] = defaultdict(set)
    for picture in dataset.pictures:
        names[picture.patient].append(picture.name)
        classes[picture.patient].add(picture.class_index)
    torn = [patient for patient, found in classes.items() if len(found) > 1]
    if torn:
        yield Finding(
            FindingCode.PATIENT_IN_SEVERAL_CLASSES,
            True,
            f"{_count(len(torn), 'patient')} with pictures in more than one class: see whether the classes or the "
            "patients are mistaken",
            tuple(tuple(names[patient]) for patient in torn),
        )
    counts = Counter(
        class_index for _, class_index in {(one.picture.patient, one.picture.class_index) for one in examined}
    )
    for index, cls in enumerate(dataset.classes):
        if counts[index] < FOLDS:
            yield Finding(
                FindingCode.FEW_PATIENTS,
                True,
                f"class {cls.name} has {_count(counts[index], 'patient')} with a usable picture, but {FOLDS} folds "
                f"need at least {FOLDS}: add patients, or take fewer folds",
            )
    if all(picture.patient == picture.name for picture in dataset.pictures):
        yield Finding(
            FindingCode.PATIENTS_UNKNOWN,
            False,
            "each picture counts as a patient of its own: if a patient has several, say whose they are with --patients",
        )


def _shortcuts(dataset: Dataset, shortcuts: Sequence[ShortcutAuc] | None) -> Iterator[Finding]:
    finding = dataset.classes[dataset.finding_index].name
    if shortcuts is None:
        yield Finding(
            FindingCode.SHORTCUTS_NOT_JUDGED,
            False,
            f"whether brightness, size and the like give the class away is not judged: that takes {LEAST_PATIENTS} "
            f"patients with {finding} and {LEAST_PATIENTS} without",
        )
    for shortcut in shortcuts or ():
        if shortcut.tells:
            yield Finding(
                FindingCode.SHORTCUT,
                True,
                f"{shortcut.name} ({shortcut.description}) tells {finding} from the rest with an AUC of "
                f"{shortcut.auc:.2f} (95 % interval {shortcut.low:.2f} to {shortcut.high:.2f}; chance is 0.50): a "
                "network can score without looking at bone. Balance the classes in it",
            )


def _warnings(examined: Sequence[Examined]) -> Iterator[Finding]:
    for code in ImageWarning:
        names = [one.picture.name for one in examined if code in one.warnings]
        if names:
            yield Finding(
                FindingCode.READER_WARNING,
                code in SERIOUS_WARNINGS,
                f"{_count(len(names), 'picture')} with the reader's warning {code}",
                tuple((name,) for name in names),
            )


def _left_out(dataset: Dataset) -> Iterator[Finding]:
    inner = [
        f"{folder}/{entry.name}"
        for cls in dataset.classes
        for folder in cls.folders
        for entry in sorted((dataset.root / folder).iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    left_out = (*dataset.left_out, *inner)
    if left_out:
        yield Finding(
            FindingCode.LEFT_OUT,
            False,
            f"{_count(len(left_out), 'folder')} taking no part: only files directly in the folder of a chosen class do",
            tuple((name,) for name in left_out),
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
