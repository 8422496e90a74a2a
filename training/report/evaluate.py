"""A saved model on a data set that it has not seen: predictions and the report."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from panoramic.image import load_radiograph
from panoramic.manifest import Manifest
from panoramic.preprocess import normalise
from panoramic.runtime import Runtime
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Dataset, dataset_digest, find_dataset
from training.data.folds import draw_folds, patient_groups
from training.data.origin import count_left_out, count_phantoms, listed
from training.data.patients import PatientRule
from training.data.shortcuts import shortcut_scores
from training.errors import ClassFolderError, DatasetError
from training.explain.maps import explain_picture
from training.explain.new_folder import check_new, new_folder
from training.predictions import Predictions, write_predictions
from training.report.bootstrap import RESAMPLES
from training.report.page import HTML_NAME, CaseImages, ReportContext, write_report
from training.report.statements import repeated, synthetic

PREDICTIONS_NAME: Final = "predictions.csv"

#: Folds in which the shortcuts are fitted and judged.
_SHORTCUT_FOLDS: Final = 5
_PACKAGES: Final = ("osteopan", "torch", "numpy", "opencv-python-headless", "scikit-learn")


@dataclass(frozen=True)
class Evaluation:
    """What is wanted of an evaluation.

    Attributes:
        folders: Folders of the data set by the model's class names, several joined by ``+``; a class that is not
            named is looked for under its own name.
        patients: Who is on each picture.
        batch_size: Pictures at the network at once.
        seed: Of the bootstrap and of the shortcuts' folds.
        resamples: Of the bootstrap.
        made_at: What the report says of when it was made; empty says nothing.
    """

    folders: Mapping[str, str] = field(default_factory=dict)
    patients: PatientRule | None = None
    batch_size: int = 4
    seed: int = 0
    resamples: int = RESAMPLES
    made_at: str = ""


def evaluate(
    runtime: Runtime,
    root: Path,
    *,
    out: Path,
    cache_folder: Path,
    wanted: Evaluation,
    on_found: Callable[[int], object] = lambda _: None,
    on_prepared: Callable[[], object] = lambda: None,
    on_classified: Callable[[int], object] = lambda _: None,
) -> Path:
    """Judge a model's answers on a data set and write ``predictions.csv``, ``report.html`` and ``report.json``.

    Args:
        runtime: The model.
        root: The data set, a folder of class folders.
        out: Folder for the results, new or empty; it appears when everything in it is written.
        cache_folder: Where prepared pictures are kept for other runs.
        wanted: What is wanted.
        on_found: Told how many pictures there are.
        on_prepared: Called after each picture that is prepared.
        on_classified: Told how many pictures a batch had.

    Returns:
        The path of the page.

    Raises:
        DatasetError: The data set does not fit the model, a picture cannot be read, or the model was trained on some;
            the message then lists them.
        ResourcesError: ``out`` holds something, or the disk is full.
    """
    check_new(out)
    manifest = runtime.model.manifest
    dataset = find_for(manifest, root, folders=wanted.folders, patients=wanted.patients)
    on_found(len(dataset.pictures))
    cache = PictureCache(cache_folder, view=manifest.view, input_size=manifest.input_size)
    prepared = cache.prepare(dataset.pictures, on_done=on_prepared, unwanted=manifest.trained_on)
    refuse_seen(prepared, trained_on=manifest.trained_on)
    batches: list[NDArray[np.float64]] = []
    for start in range(0, len(prepared), wanted.batch_size):
        some = prepared[start : start + wanted.batch_size]
        batch = np.stack([normalise(cache.load(one)) for one in some])
        batches.append(np.array([list(answer.probabilities.values()) for answer in runtime.classify(batch)]))
        on_classified(len(some))
    predictions = Predictions(
        classes=manifest.classes,
        names=tuple(one.picture.name for one in prepared),
        digests=tuple(one.digest for one in prepared),
        patients=tuple(one.picture.patient for one in prepared),
        folds=np.zeros(len(prepared), np.int64),
        truths=np.array([one.picture.class_index for one in prepared], np.int64),
        probabilities=np.concatenate(batches),
        thresholds={0: manifest.threshold},
    )

    def explain(index: int) -> CaseImages:
        pixels = load_radiograph(prepared[index].picture.path, view=manifest.view).pixels
        return CaseImages(pixels, explain_picture(runtime, pixels).overlay_png)

    phantoms = count_phantoms(dataset)
    shortcuts, shortcut_note = _shortcuts(prepared, predictions, seed=wanted.seed)
    context = ReportContext(
        title=f"{manifest.name} {manifest.version} on {root.absolute().name}",
        facts=_facts(runtime, dataset, prepared, wanted, phantoms=phantoms),
        threshold_rule="the model's own, chosen when it was made",
        shortcuts=shortcuts,
        explain=explain,
        notes=[*_notes(manifest, prepared, wanted), *shortcut_note],
        phantoms=phantoms,
        patients_known=wanted.patients is not None,
        training_known=manifest.training_known,
        seed=wanted.seed,
        resamples=wanted.resamples,
    )
    with new_folder(out) as folder:
        write_predictions(folder / PREDICTIONS_NAME, predictions)
        write_report(folder, predictions, context=context)
    return out / HTML_NAME


def find_for(
    manifest: Manifest, root: Path, *, folders: Mapping[str, str], patients: PatientRule | None = None
) -> Dataset:
    """List a data set in the order of a model's classes.

    Raises:
        DatasetError: A folder is given for a class that the model does not have, or as `find_dataset`.
    """
    names = [cls.name for cls in manifest.classes]
    for name in folders:
        if name not in names:
            raise DatasetError(f"folders are given for class {name!r}, but the model's classes are {', '.join(names)}")
    chosen = [folders.get(name, name) for name in names]
    try:
        return find_dataset(
            root,
            classes=chosen,
            labels=[cls.label for cls in manifest.classes],
            finding=chosen[manifest.finding_index],
            patients=patients,
        )
    except ClassFolderError as exc:
        if folders:
            raise
        raise DatasetError(
            f"{exc}. The model's classes are {', '.join(names)}; say which folders they are, for example with "
            f"--classes {names[0]}=FOLDER,{names[1]}=FOLDER"
        ) from exc


def refuse_seen(prepared: Sequence[Prepared], *, trained_on: Sequence[str]) -> None:
    """Refuse pictures that had a part in the model.

    Raises:
        DatasetError: There are such; its further lines are the digests and the user's own file names.
    """
    known = set(trained_on)
    seen = [one for one in prepared if one.digest in known]
    if seen:
        listed = "\n".join(f"  {one.digest}  {one.picture.name}" for one in seen)
        raise DatasetError(
            f"{len(seen)} of {len(prepared)} pictures had a part in the model's training, and results on them would "
            f"mean nothing; take them out of the data set (digest and file):\n{listed}"
        )


def _shortcuts(
    prepared: Sequence[Prepared], predictions: Predictions, *, seed: int
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Scores of the shortcuts out of fold, or a sentence that says why there are none."""
    try:
        drawn = draw_folds(
            predictions.truths,
            predictions.patients,
            folds=_SHORTCUT_FOLDS,
            seed=seed,
            digests=predictions.digests,
            class_names=[cls.name for cls in predictions.classes],
        )
    except DatasetError as exc:
        return {}, [f"Shortcuts were not judged: {exc}."]
    folds = np.zeros(len(prepared), np.int64)
    for fold in drawn:
        folds[list(fold.test)] = fold.index
    measures = [one.measures for one in prepared]
    return dict(shortcut_scores(measures, predictions.positives, predictions.patients, folds=folds)), []


def _notes(manifest: Manifest, prepared: Sequence[Prepared], wanted: Evaluation) -> list[str]:
    notes = [f"The model says of itself: {code.replace('_', ' ')}." for code in manifest.notices]
    if not manifest.training_known:
        unknown = (
            "what the weights were trained on that its training began with"
            if manifest.trained_on
            else ("what it was trained on")
        )
        notes.append(
            f"The model does not say {unknown}, so it could not be checked that these pictures are new to it. If they "
            "are not, the numbers below mean nothing."
        )
    if wanted.patients is None:
        notes.append(
            "No patients were named, so each picture counts as a patient of its own. If some patients have several "
            "pictures, the intervals are too narrow: give --patients."
        )
    notes += repeated([one.digest for one in prepared], [one.picture.class_index for one in prepared])
    return notes


def _facts(
    runtime: Runtime, dataset: Dataset, prepared: Sequence[Prepared], wanted: Evaluation, *, phantoms: int
) -> dict[str, dict[str, str]]:
    manifest = runtime.model.manifest
    heights, widths = ([one.size_px[axis] for one in prepared] for axis in (0, 1))
    counts = ", ".join(
        f"{cls.name} ({shown.label}) {n}"
        for cls, shown, n in zip(manifest.classes, dataset.classes, dataset.counts().values(), strict=True)
    )
    groups = patient_groups([one.picture.patient for one in prepared], [one.digest for one in prepared])
    data = {
        "Data set": dataset.root.absolute().name,
        "Synthetic pictures": synthetic(phantoms, pictures=len(prepared)) if phantoms else "",
        "Pictures by class": counts,
        "Patients": str(len(set(groups))) if wanted.patients else "unknown; each picture was counted as one of its own",
        "Size": f"height {min(heights)} to {max(heights)} px, width {min(widths)} to {max(widths)} px",
        "Folders left out": listed(count_left_out(dataset)),
        "Digest of the data": dataset_digest(
            (dataset.classes[one.picture.class_index].name, one.digest) for one in prepared
        ),
    }
    model = {
        "Name and version": f"{manifest.name} {manifest.version}",
        "Network": manifest.network,
        "Ensemble": f"the mean of the logits of {manifest.members} networks" if manifest.members > 1 else "none",
        "View": manifest.view.value,
        "Input size": f"{manifest.input_size[0]} × {manifest.input_size[1]} px (height × width)",
        "Preprocessing": manifest.preprocessing,
        "Threshold": f"{manifest.threshold:g}",
        "Temperature": f"{manifest.temperature:g}",
        "Trained on": _trained_on(manifest),
        "Training data": manifest.training_data,
        "Intended use": manifest.intended_use,
        "SHA-256 of the weights": manifest.sha256,
    }
    software = {"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    if wanted.made_at:
        software["Made at"] = wanted.made_at
    sections = {"Data": data, "Model": model, "Software": software}
    return {name: {row: text for row, text in rows.items() if text} for name, rows in sections.items()}


def _trained_on(manifest: Manifest) -> str:
    if not manifest.trained_on:
        return "not recorded"
    others = "" if manifest.trained_on_is_whole else "; on others before, which are not recorded"
    return f"{len(manifest.trained_on)} pictures, none of them here with identical pixels{others}"


def now() -> str:
    """The time for `Evaluation.made_at`: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
