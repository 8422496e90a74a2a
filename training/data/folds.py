"""Cross-validation: who is trained on, who steers the training and who is tested, decided by patient and by seed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from training.errors import DatasetError, RunError
from training.files import write_whole

#: The parts of a fold, as `Fold` and the file of folds call them.
PARTS: Final = ("train", "validation", "test")

_SCHEMA_VERSION = 1
#: The stratified draw is greedy: it can leave a part without one of the classes, and then another draw may not.
_ATTEMPTS = 20


@dataclass(frozen=True)
class Fold:
    """One round of the cross-validation; the parts have no patient in common and are all pictures together.

    Attributes:
        index: Counted from 0.
        train: Indices of the pictures whose labels the weights may see, ascending.
        validation: Of those that may steer the learning rate, the stopping, the temperature and the threshold.
        test: Of those that are looked at once, at the end.
    """

    index: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def united_patients(patients: Sequence[str], digests: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Which patients share identical pictures, and so count as one when folds are drawn; worth telling the user.

    Args:
        patients: (N,) whose each picture is.
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture.

    Returns:
        Groups of two patients or more, everything in alphabetical order.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for patient, group in zip(patients, patient_groups(patients, digests), strict=True):
        members[group].add(patient)
    return tuple(sorted(tuple(sorted(names)) for names in members.values() if len(names) > 1))


def draw_folds(
    truths: Sequence[int] | NDArray[np.int64],
    patients: Sequence[str],
    *,
    folds: int,
    seed: int,
    validation_share: float = 0.2,
    digests: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Draw folds in which no patient is in two parts and every class is in every part, in about equal shares.

    Every picture is in the test part of exactly one fold. The same arguments give the same folds.

    Args:
        truths: (N,) class indices.
        patients: (N,) whose each picture is.
        folds: Number of folds, 2 or more.
        seed: 0 or more.
        validation_share: Share of the pictures outside the test part that steer the training, above 0 and up to 0.5;
            taken to the nearest 1/k.
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture: patients with identical pictures then count
            as one, see `united_patients`.
        class_names: What messages call the classes.

    Raises:
        DatasetError: One class only, too few patients of a class, or no such folds found.
        ValueError: A number is out of its range, or the lengths differ.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}; at least 2 are needed: one to test on, the others to train on")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if not 0 < validation_share <= 0.5:
        raise ValueError(f"validation_share is {validation_share}; it must be above 0 and at most 0.5")
    if len(truths) != len(patients) or (digests is not None and len(digests) != len(patients)):
        raise ValueError(
            f"there are {len(truths)} truths, {len(patients)} patients and "
            f"{'no' if digests is None else len(digests)} digests; each picture needs one of each"
        )
    labels = np.asarray(truths, np.int64)
    groups = np.asarray(patients if digests is None else patient_groups(patients, digests), np.str_)
    require_patients(labels, groups, folds=folds, class_names=class_names)
    for attempt in range(_ATTEMPTS):
        states = np.random.SeedSequence([seed, attempt]).generate_state(folds + 1).tolist()
        drawn = _draw(labels, groups, states, round(1 / validation_share))
        if drawn is not None:
            return drawn
    raise DatasetError(
        f"{_ATTEMPTS} draws of {folds} folds from {len(np.unique(groups))} patients gave none with every class in "
        "every part, since few patients hold most of a class's pictures; use fewer folds or add patients"
    )


def require_patients(
    truths: Sequence[int] | NDArray[np.int64],
    patients: Sequence[str] | NDArray[np.str_],
    *,
    folds: int,
    class_names: Sequence[str] | None = None,
) -> None:
    """Refuse what `draw_folds` can never split; no digest is needed for that, and so no picture.

    Args:
        truths: As in `draw_folds`, and so are the others.
        patients: Patients that count as one for their identical pictures can only make it worse.
        folds: Number of folds.
        class_names: What messages call the classes.

    Raises:
        DatasetError: One class only, or too few patients of a class.
    """
    labels, groups = np.asarray(truths, np.int64), np.asarray(patients, np.str_)
    classes = np.unique(labels).tolist()
    if len(classes) < 2:
        raise DatasetError(
            f"the {len(labels)} pictures are of {len(classes)} class; at least 2 are needed to train a classifier"
        )
    # One patient in each fold's test part, and two outside it: one to train on and one to validate on.
    needed = max(folds, 4 if folds == 2 else 3)
    for cls in classes:
        found = len(np.unique(groups[labels == cls]))
        if found < needed:
            name = class_names[cls] if class_names else f"number {cls}"
            raise DatasetError(
                f"class {name} has pictures of {found} patients, but {folds} folds, each with a validation part, need "
                f"at least {needed}; use fewer folds or add patients"
            )


def require_classes(
    folds: Sequence[Fold], truths: Sequence[int] | NDArray[np.int64], *, path: Path, class_names: Sequence[str]
) -> None:
    """Refuse folds of a file that lack a class in some part, as folds drawn for other classes may.

    Args:
        folds: From `read_folds`.
        truths: (N,) class indices.
        path: Of the file.
        class_names: What messages call the classes.

    Raises:
        RunError: A part has no picture of a class.
    """
    for fold in folds:
        for part in PARTS:
            there = {int(truths[index]) for index in getattr(fold, part)}
            missing = [name for index, name in enumerate(class_names) if index not in there]
            if missing:
                raise RunError(
                    f"folds {path} have no picture of class {missing[0]} in the {part} part of fold {fold.index}; draw "
                    "new folds, or give the classes that they were drawn for"
                )


def write_folds(path: Path, folds: Sequence[Fold], names: Sequence[str], digests: Sequence[str]) -> None:
    """Write folds as JSON by the pictures' names, so that another run can use them; the file appears whole.

    Args:
        path: Of the file.
        folds: From `draw_folds`.
        names: (N,) each picture's path inside the data set.
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture.

    Raises:
        ResourcesError: The file cannot be written.
    """
    content = {
        "schema_version": _SCHEMA_VERSION,
        "digests": dict(zip(names, digests, strict=True)),
        "folds": [
            {"index": fold.index, **{part: [names[i] for i in getattr(fold, part)] for part in PARTS}} for fold in folds
        ],
    }
    write_whole(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_folds(
    path: Path, names: Sequence[str], digests: Sequence[str] | None = None, *, patients: Sequence[str] | None = None
) -> tuple[Fold, ...]:
    """Read folds of the same pictures, in whatever order they are now, and check that nothing leaks between parts.

    Args:
        path: What `write_folds` wrote.
        names: (N,) each picture's path inside the data set.
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture; without them everything else is checked,
            before any picture is read.
        patients: (N,) whose each picture is, where folds of another run are used again: its patients may have been
            other ones.

    Raises:
        RunError: No such file, damaged, of other pictures, or with a patient or identical pictures in two parts.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION:
            raise RunError(f"folds {path} have schema {content['schema_version']!r}, but this program reads 1")
        written = content["digests"]
        there = [written.get(name) for name in names] if digests is None else digests
        _require_same_pictures(path, written, dict(zip(names, there, strict=True)))
        place = {name: index for index, name in enumerate(names)}
        folds = tuple(
            Fold(number, *(tuple(sorted(place[name] for name in fold[part])) for part in PARTS))
            for number, fold in enumerate(content["folds"])
        )
    except OSError as exc:
        raise RunError(f"folds {path} cannot be read: {exc.strerror}; name a folds.json of a run") from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise RunError(f"folds {path} are damaged; draw new ones, or name the folds.json of another run") from exc
    everything = list(range(len(names)))
    if sorted(index for fold in folds for index in fold.test) != everything or any(
        sorted((*fold.train, *fold.validation, *fold.test)) != everything
        or not (fold.train and fold.validation and fold.test)
        for fold in folds
    ):
        raise RunError(
            f"folds {path} are damaged: every picture must be in one part of each fold and tested once, and no part "
            "may be empty; draw new ones"
        )
    for what, whose in (("identical pictures", digests or ()), ("a patient", patients or ())):
        if any(_shared(fold, whose) for fold in folds):
            raise RunError(f"folds {path} have {what} in two parts of a fold; draw new folds")
    return folds


def patient_groups(patients: Sequence[str], digests: Sequence[str]) -> list[str]:
    """(N,) each picture's group: its patient, or the alphabetically first of those joined by identical pictures.

    Args:
        patients: (N,) whose each picture is.
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture.
    """
    leader = {patient: patient for patient in patients}

    def find(patient: str) -> str:
        while leader[patient] != patient:
            leader[patient] = leader[leader[patient]]
            patient = leader[patient]
        return patient

    first: dict[str, str] = {}
    for patient, digest in zip(patients, digests, strict=True):
        low, high = sorted((find(patient), find(first.setdefault(digest, patient))))
        leader[high] = low
    return [find(patient) for patient in patients]


def _draw(
    labels: NDArray[np.int64], groups: NDArray[np.str_], states: Sequence[int], validation_parts: int
) -> tuple[Fold, ...] | None:
    """One draw, or None if a part lacks a class."""
    classes = np.unique(labels)
    folds = []
    for index, (rest, test) in enumerate(_split(labels, groups, len(states) - 1, states[0])):
        if len(np.unique(labels[test])) < len(classes):
            return None
        patients = min(len(np.unique(groups[rest][labels[rest] == cls])) for cls in classes)
        if patients < 2:
            return None
        parts = _split(labels[rest], groups[rest], max(2, min(validation_parts, patients)), states[index + 1])
        for train, validation in ((rest[a], rest[b]) for a, b in parts):
            if all(len(np.unique(labels[part])) == len(classes) for part in (train, validation)):
                folds.append(Fold(index, *(tuple(np.sort(part).tolist()) for part in (train, validation, test))))
                break
        else:
            return None
    return tuple(folds)


def _split(
    labels: NDArray[np.int64], groups: NDArray[np.str_], parts: int, state: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=state)
    yield from splitter.split(np.empty(len(labels)), labels, groups)


def _require_same_pictures(path: Path, written: Mapping[str, Any], there: Mapping[str, str]) -> None:
    changed = {name for name in written.keys() & there.keys() if written[name] != there[name]}
    for what, names in (
        ("names pictures that the data set does not hold", written.keys() - there.keys()),
        ("does not name every picture of the data set", there.keys() - written.keys()),
        ("was written when these pictures had other contents", changed),
    ):
        if names:
            raise RunError(f"folds {path}: the file {what}: {_some(names)}; draw new folds")


def _shared(fold: Fold, whose: Sequence[str]) -> bool:
    """Whether two parts of a fold share a value; nothing to share counts as no."""
    if not whose:
        return False
    train, validation, test = ({whose[index] for index in getattr(fold, part)} for part in PARTS)
    return bool(train & validation or train & test or validation & test)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
