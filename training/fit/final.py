"""The model that goes to the worker, from a cross-validation: retrained on everything, or all folds together."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import median, median_high

import numpy as np
import torch

from panoramic.manifest import RESEARCH_USE, ModelDescription
from panoramic.model_file import load_model
from panoramic.network import join_members
from training.data.cache import PictureCache
from training.data.dataset import Dataset
from training.data.origin import count_phantoms
from training.errors import RunError
from training.fit.checkpoints import BEST, LAST
from training.fit.decision import Decision, decide
from training.fit.demonstration import DEMONSTRATION_NOTICE, DEMONSTRATION_USE
from training.fit.final_card import card_facts
from training.fit.fold import model_name
from training.fit.hardware import Hardware
from training.fit.history import History
from training.fit.kfold import assignment_digest
from training.fit.publish import describe, publish, require_free
from training.fit.run_folder import TENSORBOARD, RunFolder, RunRecord
from training.fit.train import Feed, train_one
from training.fit.weights import starting_weights


class How(StrEnum):
    """Where the final weights come from."""

    RETRAIN = "retrain"
    """One network, trained anew on all pictures for the median of the folds' best epochs."""
    ENSEMBLE = "ensemble"
    """The networks of all folds, whose logits are averaged."""


@dataclass(frozen=True)
class FinalOptions:
    """What the final model shall be.

    Attributes:
        how: Where its weights come from.
        name: By which a request asks for it; by default of network, data set and `how`.
        version: Of the model.
        half: Store the weights in half precision.
        demonstration: Trained on phantoms: every result says so. A run that knows its pictures to be phantoms needs no
            telling; their truth may have been left behind.
        commands: That made it, this one last; for the card.
    """

    how: How
    name: str = ""
    version: str = "1"
    half: bool = False
    demonstration: bool = False
    commands: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class _Weights:
    """Tensors, the digests of the pictures that had a part in them, and for manifest and card how they came about."""

    tensors: Mapping[str, torch.Tensor]
    trained_on: frozenset[str]
    trained_on_is_whole: bool
    members: int
    story: str
    made: Mapping[str, str]
    checkpoints: Path | None = None
    """Where a retraining that was stopped would go on from."""


def make_final(
    run: RunFolder,
    out: Path | None,
    *,
    options: FinalOptions,
    dataset: Dataset | None = None,
    hardware: Hardware | None = None,
    on_prepared: Callable[[], object] | None = None,
    progress_bar: bool = True,
) -> Path:
    """Write the model file and its card.

    Args:
        run: A finished cross-validation.
        out: The model file; by default in the run's folder, by the model's name.
        options: What it shall be.
        dataset: The run's pictures, for `How.RETRAIN`.
        hardware: What to train on; by default what is found.
        on_prepared: Called after each picture that is prepared.
        progress_bar: Whether to show the training's progress on standard error.

    Returns:
        The model file's path.

    Raises:
        RunError: The run is not finished or damaged, the data set is not the run's, name or version are not allowed, or
            the target is taken.
        DatasetError: Pictures that cannot be used.
        ModelFileError: A fold's model file is damaged.
        ResourcesError: Not enough memory or disk.
        KeyboardInterrupt: Ctrl-C; a retraining goes on from its last whole epoch when it is asked for again.
    """
    record = run.configuration()
    if record.phantoms or (dataset is not None and count_phantoms(dataset)):
        options = replace(options, demonstration=True)
    name = options.name or model_name(record.config.network, record.dataset, options.how)
    target = out or run.path / f"{name}.safetensors"
    require_free(target)
    decision = decide(run)
    description = _description(record, decision, name=name, options=options)
    facts = card_facts(
        run,
        decision,
        ensemble=options.how is How.ENSEMBLE,
        demonstration=options.demonstration,
        commands=options.commands,
    )
    if options.how is How.ENSEMBLE:
        weights = _folds_together(run, description)
    else:
        weights = _retrained(
            run, dataset, hardware=hardware or Hardware.found(), on_prepared=on_prepared, progress_bar=progress_bar
        )
    synthetic = "Synthetic radiographs (phantoms), which say nothing of patients. " if options.demonstration else ""
    described = ModelDescription.model_validate(
        description.model_dump()
        | {
            "members": weights.members,
            "training_data": f"{synthetic}{weights.story}",
            "trained_on": tuple(sorted(weights.trained_on)),
            "trained_on_is_whole": weights.trained_on_is_whole,
        }
    )
    facts = replace(facts, training={**weights.made, **facts.training})
    publish(target, described, weights=weights.tensors, facts=facts, half=options.half)
    if weights.checkpoints is not None:
        _remove(weights.checkpoints)
    return target


def retraining_schedule(histories: Sequence[History]) -> tuple[float, ...]:
    """The learning rate of each epoch of a retraining.

    There are as many epochs as the median of the best ones (the higher of the two middle ones, where there are two);
    the learning rate of each is the median over the folds that came so far, since nothing is left to steer it by.

    Raises:
        RunError: A fold has no epoch.
    """
    epochs = median_high([history.best_epoch for history in histories])
    return tuple(
        float(median([history.epochs[place].learning_rate for history in histories if len(history.epochs) > place]))
        for place in range(epochs)
    )


def _description(record: RunRecord, decision: Decision, *, name: str, options: FinalOptions) -> ModelDescription:
    """All that is known before the weights are; a name that is not allowed shows here."""
    config = record.config
    return describe(
        {
            "name": name,
            "version": options.version,
            "network": config.network,
            "outputs": len(record.classes),
            "classes": tuple(cls.as_answer() for cls in record.classes),
            "view": config.view,
            "input_size": config.size_px,
            "threshold": decision.threshold,
            "temperature": decision.temperature.value,
            "training_date": datetime.now(UTC).date(),
            "intended_use": DEMONSTRATION_USE if options.demonstration else RESEARCH_USE,
            "notices": (DEMONSTRATION_NOTICE,) if options.demonstration else (),
        }
    )


def _folds_together(run: RunFolder, description: ModelDescription) -> _Weights:
    models = [load_model(run.model_path(fold)) for fold in run.folds_done()]
    for fold, model in zip(run.folds_done(), models, strict=True):
        for field in ("network", "outputs", "classes", "view", "input_size", "preprocessing"):
            found, wanted = getattr(model.manifest, field), getattr(description, field)
            if found != wanted:
                raise RunError(
                    f"{run.model_path(fold)} has {field} {found}, and the run was configured with {wanted}: the file "
                    "is of another run"
                )
    return _Weights(
        tensors=join_members([model.state_dict for model in models]),
        trained_on=frozenset(digest for model in models for digest in model.manifest.trained_on),
        trained_on_is_whole=all(model.manifest.trained_on_is_whole for model in models),
        members=len(models),
        story=f"{run.configuration().dataset}: the networks of a {len(models)}-fold cross-validation, each trained on "
        "another part of its pictures, with their logits averaged.",
        made={"Final weights": f"the {len(models)} networks of the folds, each of its best epoch, as they are"},
    )


def _retrained(
    run: RunFolder,
    dataset: Dataset | None,
    *,
    hardware: Hardware,
    on_prepared: Callable[[], object] | None,
    progress_bar: bool,
) -> _Weights:
    record = run.configuration()
    if dataset is None:
        raise RunError(f"retraining needs the pictures: give --dataset, the folder {record.dataset} of the run")
    rates = retraining_schedule([run.history(fold) for fold in run.folds_done()])
    # Without a validation part nothing ends the training before.
    config = record.config.model_copy(update={"epochs": len(rates), "patience": len(rates)})
    starting = starting_weights(config.weights, network=config.network, view=config.view)
    if starting.sha256 != record.starting_weights_sha256:
        raise RunError(
            f"the starting weights {starting.origin} have the digest {starting.sha256[:12] or 'none'}, and the run "
            f"began with {record.starting_weights_sha256[:12] or 'none'}: put the same file in their place"
        )
    cache = PictureCache(config.cache_folder, view=config.view, input_size=config.size_px)
    prepared = cache.prepare(dataset.pictures, on_done=on_prepared)
    found = assignment_digest(prepared)
    if found != record.dataset_sha256:
        raise RunError(
            f"{dataset.root} is not the data set of the run: its digest is {found[:12]}, over {len(prepared)} "
            f"pictures, and the run had {record.dataset_sha256[:12]}, over {sum(record.pictures.values())}. Give the "
            "pictures that the folds were trained on, or cross-validate the new ones"
        )
    checkpoints = run.path / f"final_{len(rates)}Ep"
    trained = train_one(
        checkpoints,
        Feed(cache, prepared, np.array([item.picture.class_index for item in prepared], np.int64)),
        train=range(len(prepared)),
        validation=(),
        outputs=len(record.classes),
        config=config,
        starting=starting,
        hardware=hardware,
        stream=config.folds,  # one more than the last fold's
        learning_rates=rates,
        tensorboard=run.path / TENSORBOARD / "final",
        progress_bar=progress_bar,
    )
    listed = ", ".join(f"{count} {name}" for name, count in record.pictures.items())
    patients = f"{record.patients} patients" if config.patients else "unknown patients"
    return _Weights(
        tensors=trained.state_dict,
        trained_on=frozenset(item.digest for item in prepared) | frozenset(starting.trained_on),
        trained_on_is_whole=starting.history_known,
        members=1,
        story=f"{record.dataset}: all {len(prepared)} pictures ({listed}) of {patients}. Starting weights: "
        f"{starting.origin}.",
        made={
            "Final weights": f"trained anew on all pictures for {len(rates)} epochs, the median of the folds' best",
            "Learning rates": f"from {rates[0]:g} to {rates[-1]:g}, by epoch the median of the folds'",
            "Hardware of the final training": str(hardware),
        },
        checkpoints=checkpoints,
    )


def _remove(checkpoints: Path) -> None:
    for name in (LAST, BEST):
        (checkpoints / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody put something else into it
        checkpoints.rmdir()
