"""The folder of a cross-validation: what is where, made and read in one place.

::

    <network>_<dataset>_Batch<b>_<e>Ep/
    ├── configuration.json          what was asked for, of which data, by which versions (`RunRecord`)
    ├── folds.json                  `training.data.folds.write_folds`
    ├── fold_0/ …                   one a fold, counted from 0
    │   ├── model.safetensors       the weights of the best epoch, as the worker takes them
    │   ├── validation.csv          predictions of the part that steered the training and chose the threshold
    │   ├── history.json            by epoch: losses and learning rate
    │   ├── test.csv                predictions of the test part; written last: with it the fold is done
    │   └── last.ckpt, best.ckpt    while the fold is in training, for --resume
    ├── tensorboard/
    ├── predictions.csv             the test parts of all folds
    ├── GT_vs_Predictions.json, stats.txt
    └── report.html, report.json
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from training.classes import TrainingClass
from training.errors import ResourcesError, RunError
from training.files import write_whole
from training.fit.config import TrainingConfig, differences
from training.fit.history import History
from training.predictions import Predictions, read_predictions, write_predictions

CONFIGURATION: Final = "configuration.json"
FOLDS: Final = "folds.json"
MODEL: Final = "model.safetensors"
VALIDATION: Final = "validation.csv"
TEST: Final = "test.csv"
HISTORY: Final = "history.json"
PREDICTIONS: Final = "predictions.csv"
TENSORBOARD: Final = "tensorboard"

#: The end of what `run_folder_name` gives.
_NUMBERS: Final = r"Batch\d+_\d+Ep"


class RunRecord(BaseModel):
    """What a run was asked for and what it found, so that it can be repeated and nothing else taken for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    schema_version: int = 1
    config: TrainingConfig
    """With every default written out."""
    classes: tuple[TrainingClass, ...]
    """In the order of the network's outputs."""
    dataset: str
    """Name of the data set's folder."""
    dataset_sha256: str
    """Over each picture's name, pixel digest, class and patient."""
    pictures: Mapping[str, int]
    """Their number by class."""
    patients: int
    """Those who share identical pictures count as one."""
    phantoms: int | None = None
    """How many of the pictures are synthetic; None where an earlier version of the program did not look."""
    left_out: Mapping[str, int | None] | None = None
    """`training.data.origin.count_left_out`; None where an earlier version of the program did not say."""
    starting_weights: str
    """`training.fit.weights.StartingWeights.origin`."""
    starting_weights_sha256: str
    hardware: str
    """Accelerator, number of devices, precision."""
    versions: Mapping[str, str]
    """Of Python and of the packages that decide the numbers."""
    command: str
    started_at: str
    """UTC, ISO 8601."""

    def differences(self, now: "RunRecord") -> list[str]:
        """What a run that goes on would do otherwise, each a sentence; versions and hardware are its own affair."""
        found = differences(self.config, now.config)
        if self.classes != now.classes:
            found.append(f"classes were {_class_names(self)} and are now {_class_names(now)}")
        if self.dataset_sha256 != now.dataset_sha256:
            found.append(
                f"the data set had {_counted(self)} (digest {self.dataset_sha256[:12]}) and has now {_counted(now)} "
                f"(digest {now.dataset_sha256[:12]})"
            )
        if self.starting_weights_sha256 != now.starting_weights_sha256:
            found.append(
                f"the starting weights had the digest {self.starting_weights_sha256[:12] or 'none'} and have now "
                f"{now.starting_weights_sha256[:12] or 'none'}"
            )
        return found


def run_folder_name(config: TrainingConfig, dataset: str) -> str:
    """What the predecessor calls it: ``<network>_<dataset>_Batch<b>_<e>Ep``."""
    return f"{config.network}_{dataset}_Batch{config.batch}_{config.epochs}Ep"


class RunFolder:
    """A run on disk.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, record: RunRecord) -> None:
        """Make the folder with its configuration.

        Raises:
            RunError: It is there already.
            ResourcesError: It cannot be made.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as exc:
            raise self.exists_already() from exc
        except OSError as exc:
            raise ResourcesError(f"run folder {self.path} cannot be made: {exc.strerror}; name another --out") from exc
        write_whole(self.path / CONFIGURATION, _json(record.model_dump(mode="json")))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing into the folder; the system lets go of it however this process ends.

        Raises:
            RunError: Another process has it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as exc:
            raise RunError(
                f"{self.path} is being written to by another process: wait for it, or stop it first"
            ) from exc
        finally:
            os.close(descriptor)

    def exists_already(self) -> RunError:
        """The sentence for a run that would write into another's folder."""
        return RunError(
            f"run folder {self.path} exists: go on with it by --resume, or name another --out, or remove it"
        )

    def require_there(self) -> None:
        """Make sure that ``--resume`` with other numbers in the folder's name does not begin anew unnoticed.

        Raises:
            RunError: There is no such folder, but one of the same network and data set with another number of epochs or
                another batch size.
        """
        same = re.fullmatch(rf"(.+_){_NUMBERS}", self.path.name)
        if self.path.exists() or same is None or not self.path.parent.is_dir():
            return
        pattern = re.compile(re.escape(same[1]) + _NUMBERS)
        others = sorted(str(path) for path in self.path.parent.iterdir() if pattern.fullmatch(path.name))
        if others:
            raise RunError(
                f"run folder {self.path} does not exist, and there is {', '.join(others)}: to go on with that, give "
                "its --batch-size and --epochs; for a new run, leave --resume out"
            )

    def supplement(self, now: RunRecord) -> RunRecord:
        """Fill in what an earlier version of the program did not record of the same data set.

        Args:
            now: `require_same` was content with it.

        Returns:
            The run's record.

        Raises:
            RunError: As `configuration`.
            ResourcesError: The disk is full.
        """
        earlier = self.configuration()
        missing = {name: getattr(now, name) for name in ("phantoms", "left_out") if getattr(earlier, name) is None}
        if not missing:
            return earlier
        record = earlier.model_copy(update=missing)
        write_whole(self.path / CONFIGURATION, _json(record.model_dump(mode="json")))
        return record

    def require_same(self, now: RunRecord) -> None:
        """Make sure that a run which goes on does what the earlier one did.

        Raises:
            RunError: There is no run, or it differs; each difference is named.
        """
        found = self.configuration().differences(now)
        if found:
            raise RunError(
                f"{self.path} cannot be gone on with, since {'; '.join(found)}. Give the same, or start another run by "
                "another --out"
            )

    def configuration(self) -> RunRecord:
        """What the run was asked for.

        Raises:
            RunError: No run, or one of another version.
        """
        path = self.path / CONFIGURATION
        try:
            return RunRecord.model_validate_json(self._read(path))
        except ValidationError as exc:
            fields = ", ".join(dict.fromkeys(".".join(map(str, e["loc"])) for e in exc.errors(include_input=False)))
            raise RunError(f"{path} is damaged or of another version of this program: {fields or 'no JSON'}") from exc

    def fold_path(self, fold: int) -> Path:
        """The folder of a fold, counted from 0."""
        return self.path / f"fold_{fold}"

    def model_path(self, fold: int) -> Path:
        """The model file of a fold's best epoch."""
        return self.fold_path(fold) / MODEL

    def tensorboard_path(self, fold: int) -> Path:
        """Where TensorBoard's files of a fold are."""
        return self.path / TENSORBOARD / f"fold_{fold}"

    def folds_done(self) -> list[int]:
        """The folds that are trained and tested."""
        numbers = [path.parent.name.removeprefix("fold_") for path in self.path.glob(f"fold_*/{TEST}")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def write_fold(self, fold: int, *, validation: Predictions, test: Predictions, history: History) -> None:
        """Write what a fold came to; its model file must be there. The fold is done with the last file.

        Raises:
            ResourcesError: The disk is full.
        """
        folder = self.fold_path(fold)
        write_predictions(folder / VALIDATION, validation)
        write_whole(folder / HISTORY, _json(history.as_json()))
        write_predictions(folder / TEST, test)

    def validation(self, fold: int) -> Predictions:
        """Predictions of a fold's validation part.

        Raises:
            RunError: The fold is not done, or the file is damaged; the same holds for the next three.
        """
        return self._predictions(self.fold_path(fold) / VALIDATION)

    def test(self, fold: int) -> Predictions:
        """Predictions of a fold's test part."""
        return self._predictions(self.fold_path(fold) / TEST)

    def history(self, fold: int) -> History:
        """The epochs of a fold."""
        path = self.fold_path(fold) / HISTORY
        try:
            return History.from_json(json.loads(self._read(path)))
        except (ValueError, AttributeError) as exc:
            raise RunError(f"{path} is damaged; delete the folder {path.parent} and go on with --resume") from exc

    def predictions(self) -> Predictions:
        """Predictions of all test parts, once all folds are done."""
        return self._predictions(self.path / PREDICTIONS)

    def _predictions(self, path: Path) -> Predictions:
        classes = tuple(cls.as_answer() for cls in self.configuration().classes)
        return read_predictions(path, classes=classes)

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise RunError(f"{path} cannot be read: {exc.strerror}; name the folder of a finished run") from exc


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _class_names(record: RunRecord) -> str:
    return ", ".join(f"{c.name} ({c.label}{', the finding' if c.finding else ''})" for c in record.classes)


def _counted(record: RunRecord) -> str:
    return f"{sum(record.pictures.values())} pictures of {record.patients} patients"
