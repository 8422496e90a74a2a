"""What a network said of pictures whose class is known, each picture judged once by a network that never saw it."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoramic.manifest import DiagnosisClass
from training.errors import RunError
from training.files import write_whole

_FIXED = ("name", "digest", "patient", "fold", "truth", "prediction", "threshold")
_PROBABILITY = "probability_"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N pictures, C classes.

    Attributes:
        classes: In the order of the network's outputs; exactly one is the finding.
        names: Paths inside the data set. File names can be patients' names: reports show digests instead.
        digests: `panoramic.radiograph.pixel_digest` of each picture.
        patients: Whose each picture is.
        folds: (N,) the fold in whose test part each picture was; all 0 where there are no folds.
        truths: (N,) class indices.
        probabilities: (N, C), rows add up to 1.
        thresholds: By fold: the finding is diagnosed from this probability on, chosen without the test part.
    """

    classes: tuple[DiagnosisClass, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    patients: tuple[str, ...]
    folds: NDArray[np.int64]
    truths: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    thresholds: Mapping[int, float]

    @property
    def finding_index(self) -> int:
        """Which class the screening looks for."""
        return next(index for index, cls in enumerate(self.classes) if cls.finding)

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N,) probability of the finding."""
        return self.probabilities[:, self.finding_index]

    @property
    def positives(self) -> NDArray[np.bool_]:
        """(N,) whether the truth is the finding."""
        return np.equal(self.truths, self.finding_index)

    def diagnoses(self) -> NDArray[np.int64]:
        """(N,) diagnosed classes, by the rule of `panoramic.runtime.Runtime.classify`."""
        others = self.probabilities.copy()
        others[:, self.finding_index] = -1
        thresholds = np.array([self.thresholds[int(fold)] for fold in self.folds])
        diagnosed = np.where(self.scores >= thresholds, self.finding_index, others.argmax(axis=1))
        return diagnosed.astype(np.int64)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write them as CSV, one row a picture; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    names = [cls.name for cls in predictions.classes]
    # RFC 4180's line ending: with another one, Python 3.11 does not quote a carriage return inside a field.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([*_FIXED, *(_PROBABILITY + name for name in names)])
    diagnoses = predictions.diagnoses()
    for index, name in enumerate(predictions.names):
        fold = int(predictions.folds[index])
        writer.writerow(
            [
                name,
                predictions.digests[index],
                predictions.patients[index],
                fold,
                names[predictions.truths[index]],
                names[diagnoses[index]],
                repr(float(predictions.thresholds[fold])),
                *(repr(float(p)) for p in predictions.probabilities[index]),
            ]
        )
    write_whole(path, text.getvalue().encode())


def read_predictions(path: Path, *, classes: tuple[DiagnosisClass, ...]) -> Predictions:
    """Read what `write_predictions` wrote.

    Args:
        path: The CSV file.
        classes: Of the run that wrote it.

    Raises:
        RunError: Not there, damaged, or of other classes.
    """
    names = [cls.name for cls in classes]
    index_of = {name: index for index, name in enumerate(names)}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return Predictions(
            classes=classes,
            names=tuple(row["name"] for row in rows),
            digests=tuple(row["digest"] for row in rows),
            patients=tuple(row["patient"] for row in rows),
            folds=np.array([int(row["fold"]) for row in rows], np.int64),
            truths=np.array([index_of[row["truth"]] for row in rows], np.int64),
            probabilities=np.array(
                [[float(row[_PROBABILITY + name]) for name in names] for row in rows], np.float64
            ).reshape(-1, len(names)),
            thresholds={int(row["fold"]): float(row["threshold"]) for row in rows},
        )
    except OSError as exc:
        raise RunError(f"predictions {path} cannot be read: {exc.strerror}") from exc
    except (KeyError, TypeError, ValueError, csv.Error) as exc:
        raise RunError(f"predictions {path} are damaged or of other classes than {', '.join(names)}") from exc
