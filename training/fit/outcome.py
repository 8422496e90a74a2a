"""What a finished cross-validation leaves: all predictions together, the predecessor's two files, and the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from panoramic.errors import ImageError
from panoramic.image import load_radiograph
from panoramic.model_file import load_model
from panoramic.preprocess import PREPROCESSING_VERSION
from panoramic.runtime_torch import Classifier
from training.data.cache import Prepared
from training.data.dataset import dataset_digest
from training.data.origin import listed
from training.data.shortcuts import shortcut_scores
from training.errors import DatasetError
from training.explain.maps import explain_picture
from training.files import write_whole
from training.fit.module import PLATEAU_FACTOR, PLATEAU_PATIENCE
from training.fit.run_folder import PREDICTIONS, RunFolder, RunRecord
from training.fit.stats import pairs_json, stats_text
from training.fit.weights import StartingWeights
from training.predictions import Predictions, write_predictions
from training.report.context import CaseImages, ReportContext
from training.report.metrics import parse_rule
from training.report.page import write_report
from training.report.statements import synthetic


def finish_run(
    run: RunFolder, prepared: Sequence[Prepared], *, starting: StartingWeights, notes: Sequence[str] = ()
) -> Path:
    """Write what follows from the folds, once all are done.

    Args:
        run: With all folds done.
        prepared: Of all pictures of the data set.
        starting: What the folds began with.
        notes: Sentences that the report's reader must see first.

    Returns:
        Path of the report.

    Raises:
        RunError: A fold's file is damaged.
        ResourcesError: The disk is full.
    """
    record = run.configuration()
    predictions = _together([run.test(fold) for fold in run.folds_done()])
    write_predictions(run.path / PREDICTIONS, predictions)
    write_whole(run.path / "GT_vs_Predictions.json", pairs_json(predictions).encode())
    write_whole(run.path / "stats.txt", stats_text(predictions).encode())
    by_name = {item.picture.name: item for item in prepared}
    ordered = [by_name[name] for name in predictions.names]
    context = ReportContext(
        title=f"Cross-validation of {record.config.network} on {record.dataset}",
        facts=_facts(run, record, predictions),
        threshold_rule=record.config.threshold_rule,
        shortcuts=shortcut_scores(
            [item.measures for item in ordered], predictions.positives, predictions.patients, folds=predictions.folds
        ),
        explain=_Explainer(run, predictions, ordered),
        notes=tuple(notes),
        phantoms=record.phantoms or 0,
        patients_known=bool(record.config.patients),
        training_known=starting.history_known,
        pretrained=bool(starting.trained_on),
        seed=record.config.seed,
    )
    return write_report(run.path, predictions, context=context)


class _Explainer:
    """Explains a picture by the network that never saw it; keeps the last fold's network loaded."""

    def __init__(self, run: RunFolder, predictions: Predictions, prepared: Sequence[Prepared]) -> None:
        self._run = run
        self._folds = predictions.folds
        self._prepared = prepared
        self._loaded: tuple[int, Classifier] | None = None

    def __call__(self, index: int) -> CaseImages:
        fold = int(self._folds[index])
        if self._loaded is None or self._loaded[0] != fold:
            self._loaded = fold, Classifier(load_model(self._run.model_path(fold)))
        runtime = self._loaded[1]
        item = self._prepared[index]
        try:
            pixels = load_radiograph(item.picture.path, view=runtime.model.manifest.view).pixels
        except ImageError as exc:
            raise DatasetError(f"{item.picture.name} could be read before and cannot be now: {exc}") from exc
        return CaseImages(pixels, explain_picture(runtime, pixels).overlay_png)


def _together(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        classes=parts[0].classes,
        names=tuple(name for part in parts for name in part.names),
        digests=tuple(digest for part in parts for digest in part.digests),
        patients=tuple(patient for part in parts for patient in part.patients),
        folds=np.concatenate([part.folds for part in parts]),
        truths=np.concatenate([part.truths for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        thresholds={fold: threshold for part in parts for fold, threshold in part.thresholds.items()},
    )


def _facts(run: RunFolder, record: RunRecord, predictions: Predictions) -> dict[str, dict[str, str]]:
    config = record.config
    folds = run.folds_done()
    best = ", ".join(f"{run.history(fold).best_epoch} of {len(run.history(fold).epochs)}" for fold in folds)
    height, width = config.size_px
    origin = {"Data set": record.dataset}
    if record.phantoms:
        origin["Synthetic pictures"] = synthetic(record.phantoms, pictures=len(predictions.names))
    fixed = parse_rule(config.threshold_rule)[0] == "fixed"
    steered = "stopping and best epoch" if fixed else "stopping, best epoch and threshold"
    grouped = "grouped by patient" if config.patients else "each picture counted as a patient of its own"
    return {
        "Data": {
            **origin,
            "Pictures": ", ".join(f"{count} {name}" for name, count in record.pictures.items()),
            "Patients": str(record.patients)
            if config.patients
            else "unknown: none were named, and each picture was counted as a patient of its own",
            "Folders left out": "not recorded" if record.left_out is None else listed(record.left_out),
            "Classes": "; ".join(f"{c.name}: {c.label}{' (the finding)' if c.finding else ''}" for c in record.classes),
            "Digest of the data": dataset_digest(
                (predictions.classes[truth].name, digest)
                for truth, digest in zip(predictions.truths.tolist(), predictions.digests, strict=True)
            ),
            "View": str(config.view),
        },
        "Model": {
            "Network": config.network,
            "Input size": f"{height} x {width} px (height x width)",
            "Preprocessing": PREPROCESSING_VERSION,
            "Starting weights": record.starting_weights,
            "Digest of the starting weights": record.starting_weights_sha256 or "none",
            "Model files": "one a fold, in the run's folder, each with the SHA-256 of its weights",
            "Ensemble": "none: each picture was judged by one network",
            "Thresholds by fold": ", ".join(f"{predictions.thresholds[fold]:.4f}" for fold in folds),
        },
        "Training": {
            "Design": f"{config.folds}-fold cross-validation, stratified by class, {grouped}; inside each fold a "
            f"validation part steers learning rate, {steered}; the test part is judged once",
            "Optimiser": f"Adam, learning rate {config.learning_rate:g}, multiplied by {PLATEAU_FACTOR:g} after more "
            f"than {PLATEAU_PATIENCE} epochs without a lower validation loss",
            "Loss": "cross-entropy, "
            + (
                "classes weighted in inverse proportion to their pictures"
                if config.class_weights
                else "all classes alike"
            ),
            "Epochs": f"at most {config.epochs}, ended after {config.patience} without a lower validation loss",
            "Best epochs": best,
            "Batch size": str(config.batch),
            "Augmentation": str(config.augmentation),
            "Threshold rule": f"{config.threshold_rule}, {'fixed beforehand' if fixed else 'on the validation part'}",
            "Seed": str(config.seed),
        },
        "Software": {**record.versions, "Hardware": record.hardware, "Started": record.started_at},
    }
