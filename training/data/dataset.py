"""A data set on disk, in the predecessor's layout: one sub-folder a class, pictures in it, no split by hand."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.classes import TrainingClass, choose_classes
from training.data.patients import OnePicturePerPatient, PatientRule
from training.errors import DatasetError


@dataclass(frozen=True)
class Picture:
    """One file of a data set, not yet read.

    Attributes:
        path: Where it is.
        name: Its path inside the data set, with forward slashes: ``C1/17.png``.
        class_index: Its class, as an index into the data set's classes.
        patient: Whose it is; pictures of one patient never part.
    """

    path: Path
    name: str
    class_index: int
    patient: str


@dataclass(frozen=True)
class Dataset:
    """The pictures of the chosen classes, in the order of their names.

    Attributes:
        root: The folder that holds the class folders.
        classes: In the order of the network's outputs.
        pictures: All of them, sorted by name.
        left_out: Sub-folders that belong to no chosen class.
    """

    root: Path
    classes: tuple[TrainingClass, ...]
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...] = ()

    @property
    def finding_index(self) -> int:
        """Which class the screening looks for."""
        return next(index for index, cls in enumerate(self.classes) if cls.finding)

    def counts(self) -> dict[str, int]:
        """Pictures by class name, in the order of the classes."""
        found = Counter(picture.class_index for picture in self.pictures)
        return {cls.name: found[index] for index, cls in enumerate(self.classes)}


def find_dataset(
    root: Path,
    *,
    classes: Sequence[str] = (),
    labels: Sequence[str] = (),
    finding: str = "",
    patients: PatientRule | None = None,
) -> Dataset:
    """List a data set; no picture is opened.

    Files and folders whose names begin with a dot are passed over, and so are files beside the class folders.

    Args:
        root: The folder that holds the class folders.
        classes: See `training.classes.choose_classes`, as for the next two.
        labels: What each class is called in a result.
        finding: Which class the screening looks for.
        patients: Who is on each picture; by default each picture is a patient of its own.

    Raises:
        DatasetError: No folder, classes that cannot be chosen, an empty class folder, a file name that is not UTF-8, or
            a patient rule that does not fit the files.
    """
    try:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as exc:
        raise DatasetError(f"data set {root} cannot be listed: {exc.strerror}; name a folder of class folders") from exc
    chosen = choose_classes(folders, wanted=classes, labels=labels, finding=finding)
    found: list[tuple[str, Path, int]] = []
    for index, cls in enumerate(chosen):
        for folder in cls.folders:
            files = _files(root / folder)
            if not files:
                raise DatasetError(f"class folder {root / folder} holds no pictures; put the class's pictures in it")
            found += [(f"{folder}/{path.name}", path, index) for path in files]
    found.sort()
    whose = (patients or OnePicturePerPatient()).assign([name for name, _, _ in found])
    pictures = tuple(Picture(path, name, index, whose[name]) for name, path, index in found)
    used = {folder for cls in chosen for folder in cls.folders}
    return Dataset(root, chosen, pictures, tuple(folder for folder in folders if folder not in used))


def dataset_digest(labelled: Iterable[tuple[str, str]]) -> str:
    """What identifies a data set whatever its files and patients are called: SHA-256 in hex.

    Args:
        labelled: Class name and `panoramic.radiograph.pixel_digest` of each picture, in any order.
    """
    lines = sorted(f"{digest} {name}\n" for name, digest in labelled)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _files(folder: Path) -> list[Path]:
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as exc:
        raise DatasetError(f"class folder {folder} cannot be listed: {exc.strerror}; see to its permissions") from exc
    for path in files:
        try:
            path.name.encode()
        except UnicodeEncodeError as exc:
            # Tables of patients and predictions are UTF-8: told now, and not when a run is over.
            raise DatasetError(f"{str(path)!r} has a name that is not UTF-8; rename the file") from exc
    return files
