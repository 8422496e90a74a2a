"""One fold from start to end: train, choose the threshold on the validation part, then touch the test part once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from panoramic.manifest import RESEARCH_USE, ModelDescription
from panoramic.model_file import load_model, save_model
from panoramic.runtime_torch import Classifier
from training.classes import TrainingClass
from training.data.folds import Fold
from training.fit.checkpoints import BEST, LAST
from training.fit.config import TrainingConfig
from training.fit.demonstration import DEMONSTRATION_NOTICE, DEMONSTRATION_USE
from training.fit.hardware import Hardware, usable_workers
from training.fit.predict import probabilities
from training.fit.run_folder import RunFolder
from training.fit.train import Feed, train_one
from training.fit.weights import StartingWeights
from training.predictions import Predictions
from training.report.metrics import choose_threshold


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """All that the folds of one run have in common.

    Attributes:
        run: Where the results go.
        feed: The pictures.
        classes: In the order of the network's outputs.
        config: Resolved.
        starting: Where each fold's weights begin.
        hardware: What to run on.
        dataset: Name of the data set.
        today: The date that model files bear.
        phantoms: Whether some of the pictures are synthetic.
        progress_bar: Whether to show one on standard error.
    """

    run: RunFolder
    feed: Feed
    classes: tuple[TrainingClass, ...]
    config: TrainingConfig
    starting: StartingWeights
    hardware: Hardware
    dataset: str
    today: date
    phantoms: bool = False
    progress_bar: bool = True


def run_fold(plan: FoldPlan, fold: Fold) -> None:
    """Train and judge one fold, or go on with it, and write all that the run folder keeps of it.

    Raises:
        ResourcesError: Not enough memory or disk.
        RunError: As `training.fit.train.train_one`.
        ModelFileError: The weights are infinite or not a number, or cannot be written.
    """
    folder = plan.run.fold_path(fold.index)
    trained = train_one(
        folder,
        plan.feed,
        train=fold.train,
        validation=fold.validation,
        outputs=len(plan.classes),
        config=plan.config,
        starting=plan.starting,
        hardware=plan.hardware,
        stream=fold.index,
        tensorboard=plan.run.tensorboard_path(fold.index),
        progress_bar=plan.progress_bar,
    )
    path = plan.run.model_path(fold.index)
    description = _description(plan, fold)
    save_model(path, description, state_dict=trained.state_dict)
    validation = _judge(plan, path, fold, fold.validation, threshold=description.threshold)
    threshold = choose_threshold(validation.scores, validation.positives, rule=plan.config.threshold_rule)
    described = description.model_copy(update={"threshold": threshold})
    save_model(path, described, state_dict=trained.state_dict)
    plan.run.write_fold(
        fold.index,
        validation=replace(validation, thresholds={fold.index: threshold}),
        test=_judge(plan, path, fold, fold.test, threshold=threshold),
        history=trained.history,
    )
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


def _judge(plan: FoldPlan, model: Path, fold: Fold, part: Sequence[int], *, threshold: float) -> Predictions:
    """What the fold's model file says of a part, as the worker would."""
    prepared = [plan.feed.prepared[index] for index in part]
    runtime = Classifier(load_model(model), device=plan.hardware.device)
    return Predictions(
        classes=tuple(cls.as_answer() for cls in plan.classes),
        names=tuple(item.picture.name for item in prepared),
        digests=tuple(item.digest for item in prepared),
        patients=tuple(item.picture.patient for item in prepared),
        folds=np.full(len(part), fold.index, np.int64),
        truths=plan.feed.labels[list(part)],
        probabilities=probabilities(
            runtime,
            plan.feed,
            part,
            batch_size=plan.config.batch,
            workers=usable_workers(plan.config, plan.hardware),
        ),
        thresholds={fold.index: threshold},
    )


def _description(plan: FoldPlan, fold: Fold) -> ModelDescription:
    config = plan.config
    seen = [*fold.train, *fold.validation]
    counts = np.bincount(plan.feed.labels[seen], minlength=len(plan.classes))
    listed = ", ".join(f"{count} {cls.name}" for cls, count in zip(plan.classes, counts, strict=True))
    digests = {plan.feed.prepared[index].digest for index in seen}
    return ModelDescription(
        name=model_name(config.network, plan.dataset, f"fold{fold.index}"),
        version="1",
        network=config.network,
        outputs=len(plan.classes),
        classes=tuple(cls.as_answer() for cls in plan.classes),
        view=config.view,
        input_size=config.size_px,
        training_data=(
            f"Fold {fold.index} (of 0 to {config.folds - 1}) of a cross-validation on the data set {plan.dataset}"
            f"{', synthetic radiographs (phantoms)' if plan.phantoms else ''}: "
            f"trained on {len(fold.train)} pictures; learning rate, best epoch and threshold from "
            f"{len(fold.validation)} others ({listed} together). Starting weights: {plan.starting.origin}."
        ),
        training_date=plan.today,
        trained_on=tuple(sorted(digests.union(plan.starting.trained_on))),
        trained_on_is_whole=plan.starting.history_known,
        intended_use=DEMONSTRATION_USE if plan.phantoms else RESEARCH_USE,
        notices=(DEMONSTRATION_NOTICE,) if plan.phantoms else (),
    )


def model_name(network: str, dataset: str, suffix: str) -> str:
    """A name by which a request can ask for a model: ``<network>-<dataset>-<suffix>``."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", dataset)
    return f"{network}-{plain[: 127 - len(network) - len(suffix) - 1]}-{suffix}"
