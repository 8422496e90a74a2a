"""Trains one network: on a part of the pictures, steered by another part where there is one, and able to go on."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from training.data.augment import Augmentation
from training.data.batches import PictureDataset, loader
from training.data.cache import PictureCache, Prepared
from training.fit.checkpoints import LAST, KeepEpochs, WholeFiles, best_weights, read_history
from training.fit.config import TrainingConfig
from training.fit.hardware import Hardware, usable_workers
from training.fit.history import History
from training.fit.memory import memory_faults_explained
from training.fit.module import FoldModule
from training.fit.norm import SettleNorms, settling_count
from training.fit.weights import StartingWeights

#: What Lightning says of runs that are as they should be: small sets, few workers, a log folder that a resume uses.
_HARMLESS = (
    ".*does not have many workers.*",
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*It is recommended to use `self.log\\(.*sync_dist=True\\)`.*",
    ".*`training_step` returned `None`.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


@dataclass(frozen=True, eq=False)
class Feed:
    """Prepared pictures with their classes.

    Attributes:
        cache: Where they are.
        prepared: All of them.
        labels: (N,) class indices.
    """

    cache: PictureCache
    prepared: Sequence[Prepared]
    labels: NDArray[np.int64]

    def part(self, indices: Sequence[int], *, augmentation: Augmentation, seed: int) -> PictureDataset:
        """Some of the pictures, in the order given."""
        prepared = [self.prepared[index] for index in indices]
        return PictureDataset(self.cache, prepared, self.labels[list(indices)], augmentation=augmentation, seed=seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """What training came to.

    Attributes:
        state_dict: The weights of the best epoch (the last one without validation), float32 on the CPU.
        history: All epochs.
    """

    state_dict: dict[str, torch.Tensor] = field(repr=False)
    history: History


def train_one(
    folder: Path,
    feed: Feed,
    *,
    train: Sequence[int],
    validation: Sequence[int],
    outputs: int,
    config: TrainingConfig,
    starting: StartingWeights,
    hardware: Hardware,
    stream: int = 0,
    learning_rates: Sequence[float] = (),
    tensorboard: Path | None = None,
    progress_bar: bool = True,
) -> Trained:
    """Train a network, or go on with one whose training was stopped.

    With a validation part its loss lowers the learning rate, ends the training and names the best epoch. Without one
    the training takes all of ``config.epochs`` and the last weights are the result. On a CPU the result is the same,
    bit for bit, however often the training was stopped and resumed, with the same number of threads.

    Args:
        folder: For the checkpoints; made if it is not there. What is in it already is gone on with.
        feed: The pictures.
        train: Indices into the feed of those whose labels the weights may see.
        validation: Of those that steer; none for training on everything.
        outputs: Number of classes.
        config: Epochs, batch size, learning rate, augmentation, class weights, seed, patience, workers.
        starting: Where the weights begin.
        hardware: What to run on.
        stream: Keeps the random numbers of one fold from those of another.
        learning_rates: One an epoch, for training without a validation part; by default the configured one throughout.
        tensorboard: Folder for TensorBoard's files; none are written without.
        progress_bar: Whether to show one on standard error.

    Raises:
        ResourcesError: Not enough memory or disk.
        RunError: A checkpoint in the folder cannot be used, or the loss became infinite.
        KeyboardInterrupt: Ctrl-C; the last whole epoch is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    history = read_history(last) if last.exists() else History()
    if not history.ended(epochs=config.epochs, patience=config.patience):
        data = _FoldData(feed, train=train, validation=validation, config=config, hardware=hardware, stream=stream)
        module = FoldModule(
            starting.build(config.network, outputs=outputs, seed=config.seed, stream=stream),
            learning_rate=config.learning_rate,
            seed=config.seed,
            stream=stream,
            class_weights=_class_weights(feed.labels[list(train)], outputs) if config.class_weights else (),
            learning_rates=learning_rates,
        )
        count = settling_count(len(train), batch_size=config.batch)
        settling = np.random.default_rng((config.seed, stream)).permutation(len(train))[:count]
        part = feed.part([train[place] for place in settling.tolist()], augmentation=Augmentation.NONE, seed=0)
        callbacks: list[Callback] = [
            SettleNorms(part, batch_size=config.batch),
            KeepEpochs(folder, epochs=config.epochs, patience=config.patience),
        ]
        if progress_bar:
            callbacks.append(_EpochsFromOne(console_kwargs={"stderr": True}))
        with _quiet(), memory_faults_explained(config):
            trainer = pl.Trainer(
                accelerator=hardware.accelerator,
                devices=hardware.devices,
                # Lightning's default for several devices runs the whole command once more for each of them.
                strategy="ddp_spawn" if hardware.devices > 1 else "auto",
                sync_batchnorm=hardware.devices > 1 and hardware.accelerator == "cuda",
                precision=hardware.precision,
                benchmark=hardware.accelerator == "cuda",
                max_epochs=config.epochs,
                limit_val_batches=1.0 if validation else 0,
                num_sanity_val_steps=0,
                log_every_n_steps=10,
                callbacks=callbacks,
                plugins=[WholeFiles()],
                logger=TensorBoardLogger(tensorboard, name="", version="") if tensorboard else False,
                enable_progress_bar=progress_bar,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            _fit(trainer, module, data, last if last.exists() else None)
        history = read_history(last)
    return Trained(best_weights(folder), history)


class _EpochsFromOne(RichProgressBar):
    """Lightning's progress bar, which counts epochs from 0 to one less than there are."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        # As wide as the bar of the validation part, or the two would flicker.
        return text.ljust(len(self.validation_description))


class _FoldData(pl.LightningDataModule):
    """The loaders of one fold; Lightning tells them each epoch, from which order and augmentation follow."""

    def __init__(
        self,
        feed: Feed,
        *,
        train: Sequence[int],
        validation: Sequence[int],
        config: TrainingConfig,
        hardware: Hardware,
        stream: int,
    ) -> None:
        super().__init__()
        self._seed = int(np.random.SeedSequence((config.seed, stream)).generate_state(1)[0])
        self._train = feed.part(train, augmentation=config.augmentation, seed=self._seed)
        self._validation = feed.part(validation, augmentation=Augmentation.NONE, seed=self._seed)
        self._batch_size = config.batch
        self._workers = usable_workers(config, hardware)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, int, int]]:
        # Lightning's own count of epochs is one behind when a run goes on, and workers begin to read at once.
        module = self.trainer.lightning_module if self.trainer else None
        epoch = len(module.history.epochs) if isinstance(module, FoldModule) else 0
        return self._loader(self._train, epoch=epoch, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, int, int]]:
        return self._loader(self._validation, epoch=0, shuffle=False)

    def _loader(self, part: PictureDataset, *, epoch: int, shuffle: bool) -> DataLoader[tuple[torch.Tensor, int, int]]:
        return loader(
            part, batch_size=self._batch_size, shuffle=shuffle, seed=self._seed, epoch=epoch, workers=self._workers
        )


def _class_weights(labels: NDArray[np.int64], outputs: int) -> list[float]:
    """One factor a class, in inverse proportion to its pictures; their mean over the pictures is 1."""
    counts = np.bincount(labels, minlength=outputs)
    return [float(len(labels) / (outputs * count)) if count else 0.0 for count in counts]


def _fit(trainer: pl.Trainer, module: FoldModule, data: pl.LightningDataModule, checkpoint: Path | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as exc:
        # Lightning answers Ctrl-C by switching it off and leaving the program.
        if trainer.state.status is not TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and harmless warnings from the progress bar."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
