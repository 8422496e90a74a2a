"""A cross-validation from a folder of radiographs to a report, checked before hours are spent and able to go on."""

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from training.data.cache import PictureCache, Prepared
from training.data.dataset import Dataset
from training.data.folds import (
    Fold,
    draw_folds,
    patient_groups,
    read_folds,
    require_classes,
    require_patients,
    united_patients,
    write_folds,
)
from training.data.origin import count_left_out, count_phantoms
from training.errors import RunError
from training.fit.command_line import kfold_command
from training.fit.config import TrainingConfig
from training.fit.fold import FoldPlan, run_fold
from training.fit.hardware import Hardware
from training.fit.outcome import finish_run
from training.fit.preflight import check_places
from training.fit.run_folder import FOLDS, RunFolder, RunRecord, run_folder_name
from training.fit.train import Feed
from training.fit.weights import StartingWeights, refuse_seen_pictures, starting_weights
from training.report.statements import repeated

#: Packages whose version can change the numbers.
_PACKAGES: Final = (
    "osteopan", "torch", "lightning", "efficientnet_pytorch", "numpy", "opencv-python-headless", "pillow",
    "scikit-learn",
)  # fmt: skip


def kfold(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    resume: bool = False,
    hardware: Hardware | None = None,
    say: Callable[[str], object] = lambda _: None,
    on_prepared: Callable[[], object] | None = None,
    progress_bar: bool = True,
) -> Path:
    """Cross-validate a network on a data set.

    Args:
        dataset: From `training.data.dataset.find_dataset`.
        config: What to do.
        resume: Go on with the run whose folder is there; folds that are done are left as they are.
        hardware: What to run on; by default what is found.
        say: Told in a sentence what happens.
        on_prepared: Called after each picture that is prepared.
        progress_bar: Whether to show the training's progress on standard error.

    Returns:
        The run folder; `training.fit.run_folder` says what is in it.

    Raises:
        DatasetError: Pictures that cannot be used, or that cannot be split as asked for.
        RunError: The folder exists, a resume that differs, weights or folds that do not fit.
        ResourcesError: Not enough memory or disk, or a folder that cannot be written to.
        KeyboardInterrupt: Ctrl-C; everything up to the last whole epoch is kept.
    """
    config = config.resolved()
    run = RunFolder(config.out / run_folder_name(config, dataset.root.resolve().name))
    going_on = run.path.exists()
    if going_on and not resume:
        raise run.exists_already()
    if going_on:
        # Of what a run compares, all that is known before the pictures are.
        run.require_same(run.configuration().model_copy(update={"config": config, "classes": dataset.classes}))
    elif resume:
        run.require_there()
    _check_folds(dataset, config)
    starting = starting_weights(config.weights, network=config.network, view=config.view)
    check_places(config, pictures=len(dataset.pictures), outputs=len(dataset.classes))
    cache = PictureCache(config.cache_folder, view=config.view, input_size=config.size_px)
    prepared = cache.prepare(dataset.pictures, on_done=on_prepared, unwanted=starting.trained_on)
    refuse_seen_pictures(starting, [item.digest for item in prepared])
    found = hardware or Hardware.found()
    record = _record(dataset, prepared, config, starting=starting, hardware=found)
    if going_on:
        run.require_same(record)
        record = run.supplement(record)
        say(f"{run.path}: going on, {len(run.folds_done())} of {config.folds} folds are done")
    folds = _folds(run, dataset, prepared, config)
    if not going_on:
        run.create(record)
        say(f"{run.path}: {_starting_sentence(starting)}")
    with run.held():
        write_folds(run.path / FOLDS, folds, _names(prepared), _digests(prepared))
        notes = _notes(prepared, config, starting)
        for note in notes:
            say(note)
        plan = FoldPlan(
            run=run,
            feed=Feed(cache, prepared, np.array([item.picture.class_index for item in prepared], np.int64)),
            classes=dataset.classes,
            config=config,
            starting=starting,
            hardware=found,
            dataset=record.dataset,
            today=datetime.fromisoformat(record.started_at).date(),
            phantoms=bool(record.phantoms),
            progress_bar=progress_bar,
        )
        done = run.folds_done()
        for fold in folds:
            if fold.index not in done:
                say(
                    f"fold_{fold.index} ({fold.index + 1} of {len(folds)}): {len(fold.train)} pictures to train on, "
                    f"{len(fold.validation)} to steer by, {len(fold.test)} to test on"
                )
                run_fold(plan, fold)
        finish_run(run, prepared, starting=starting, notes=notes)
    return run.path


def _check_folds(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuse folds that no picture can save, before pictures are prepared, which may take hours."""
    patients = [picture.patient for picture in dataset.pictures]
    if config.folds_file is None:
        require_patients(
            [picture.class_index for picture in dataset.pictures],
            patients,
            folds=config.folds,
            class_names=[cls.name for cls in dataset.classes],
        )
        return
    given = read_folds(config.folds_file, [picture.name for picture in dataset.pictures], patients=patients)
    if len(given) != config.folds:
        raise RunError(
            f"{config.folds_file} has {len(given)} folds, and {config.folds} are asked for: give --folds {len(given)}"
        )
    require_classes(
        given,
        [picture.class_index for picture in dataset.pictures],
        path=config.folds_file,
        class_names=[cls.name for cls in dataset.classes],
    )


def _folds(run: RunFolder, dataset: Dataset, prepared: Sequence[Prepared], config: TrainingConfig) -> tuple[Fold, ...]:
    """The run's own folds if it has some, else those of a file, else new ones."""
    names, digests = _names(prepared), _digests(prepared)
    patients = [item.picture.patient for item in prepared]
    given = config.folds_file and read_folds(config.folds_file, names, digests, patients=patients)
    own = run.path / FOLDS
    if own.exists():
        folds = read_folds(own, names, digests, patients=patients)
        if given and given != folds:
            raise RunError(
                f"{config.folds_file} has other folds than {run.path}, which is gone on with: leave --folds-file out, "
                "or start another run by another --out"
            )
        return folds
    if given:
        return given
    return draw_folds(
        [item.picture.class_index for item in prepared],
        patients,
        folds=config.folds,
        seed=config.seed,
        digests=digests,
        class_names=[cls.name for cls in dataset.classes],
    )


def _record(
    dataset: Dataset,
    prepared: Sequence[Prepared],
    config: TrainingConfig,
    *,
    starting: StartingWeights,
    hardware: Hardware,
) -> RunRecord:
    return RunRecord(
        config=config,
        classes=dataset.classes,
        dataset=dataset.root.resolve().name,
        dataset_sha256=assignment_digest(prepared),
        pictures=dataset.counts(),
        patients=len(set(patient_groups([item.picture.patient for item in prepared], _digests(prepared)))),
        phantoms=count_phantoms(dataset),
        left_out=count_left_out(dataset),
        starting_weights=starting.origin,
        starting_weights_sha256=starting.sha256,
        hardware=str(hardware),
        versions={"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        command=kfold_command(dataset.root, config),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def assignment_digest(prepared: Sequence[Prepared]) -> str:
    """SHA-256 over what a cross-validation takes from a data set: names, pixels, classes and patients."""
    digest = hashlib.sha256()
    for item in sorted(prepared, key=lambda item: item.picture.name):
        picture = item.picture
        digest.update(json.dumps([picture.name, item.digest, picture.class_index, picture.patient]).encode())
    return digest.hexdigest()


def _notes(prepared: Sequence[Prepared], config: TrainingConfig, starting: StartingWeights) -> list[str]:
    notes = ["Near-identical pictures (resized, brightened or encoded anew) were not looked for; training check does."]
    if not config.patients:
        notes.append(
            "No patients were named, so each picture counts as a patient of its own. If some patients have several "
            "pictures, the results are too good: give --patients."
        )
    weights = Path(config.weights).name
    if not starting.history_known:
        notes.append(
            f"The starting weights ({weights}) do not say what they were trained on, so it could not be checked that "
            "these pictures are new to them. If they are not, the results are too good."
        )
    elif starting.trained_on:
        notes.append(
            f"The starting weights ({weights}) were trained on no picture with the same pixels; whether they had seen "
            "others of the same patients cannot be told."
        )
    notes += repeated(_digests(prepared), [item.picture.class_index for item in prepared])
    united = united_patients([item.picture.patient for item in prepared], _digests(prepared))
    if united:
        notes.append(
            f"{sum(map(len, united))} patients share identical pictures; they were kept together, as {len(united)}."
        )
    return notes


def _starting_sentence(starting: StartingWeights) -> str:
    digest = f" (SHA-256 of the weights {starting.sha256[:12]}…)" if starting.sha256 else ""
    return f"new run; starting weights: {starting.origin}{digest}"


def _names(prepared: Sequence[Prepared]) -> list[str]:
    return [item.picture.name for item in prepared]


def _digests(prepared: Sequence[Prepared]) -> list[str]:
    return [item.digest for item in prepared]
