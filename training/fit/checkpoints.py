"""The two checkpoints of a fold in training: the last epoch, to go on from, and the weights of the best."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from training.errors import ResourcesError, RunError
from training.fit.history import History
from training.fit.module import FoldModule, history_of

#: All that is needed to go on after an epoch.
LAST: Final = "last.ckpt"
#: The weights of the epoch with the lowest validation loss so far.
BEST: Final = "best.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under another name in the same folder and renames it; reads tensors and numbers alone.

    Lightning's own writer goes through the system's folder for temporary files, from where a file cannot be moved to
    another disk in one step.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            ResourcesError: The disk is full or the folder cannot be written to; nothing is left behind.
        """
        if storage_options is not None:
            raise TypeError("these checkpoints take no storage options")
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        try:
            torch.save(checkpoint, partial)
            partial.replace(target)
        except (OSError, RuntimeError) as exc:  # PyTorch's writer answers a full disk with a RuntimeError
            raise ResourcesError(
                f"{target} was not written: {getattr(exc, 'strerror', None) or 'the disk is full or failing'}; free "
                "some space, then go on with --resume"
            ) from exc
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; one that asks for more than tensors and numbers is refused before it gets it."""
        if weights_only is False:
            raise TypeError("checkpoints are read with weights_only=True alone: they may run no code")
        return read_checkpoint(Path(path), map_location=map_location)


class KeepEpochs(Checkpoint):
    """After each epoch writes `BEST` if it is the best so far, then `LAST`; and ends the training in time.

    It keeps nothing to itself: everything follows from the module's history. A run that is killed between the two
    files repeats the epoch and writes the same `BEST` again.

    Args:
        folder: Of the fold; exists.
        epochs: How many there are at most.
        patience: How many without a lower validation loss end it.
    """

    def __init__(self, folder: Path, *, epochs: int, patience: int) -> None:
        self._folder = folder
        self._epochs = epochs
        self._patience = patience

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the epoch left."""
        if not isinstance(pl_module, FoldModule):
            raise TypeError(f"{type(pl_module).__name__} keeps no history of its epochs; FoldModule does")
        history = pl_module.history
        if history.best_epoch == len(history.epochs):
            trainer.save_checkpoint(self._folder / BEST, weights_only=True)
        trainer.save_checkpoint(self._folder / LAST)
        if history.ended(epochs=self._epochs, patience=self._patience):
            trainer.should_stop = True


def read_checkpoint(path: Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running what it may hold.

    Raises:
        RunError: Missing, damaged, or more than tensors and numbers.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as exc:
        raise RunError(f"checkpoint {path} cannot be read: {exc.strerror}") from exc
    except Exception as exc:  # unpickling may raise anything
        raise RunError(
            f"checkpoint {path} is damaged, or holds more than tensors and numbers (nothing was run); delete the "
            f"folder {path.parent} and go on with --resume, which trains this fold again"
        ) from exc
    if not isinstance(checkpoint, dict):
        raise RunError(f"checkpoint {path} is of another program; delete the folder {path.parent}")
    return checkpoint


def read_history(path: Path) -> History:
    """The history in a checkpoint file.

    Raises:
        RunError: As `read_checkpoint`, or it holds no history.
    """
    try:
        return history_of(read_checkpoint(path))
    except ValueError as exc:
        raise RunError(f"checkpoint {path} is of another program: it holds no history of epochs") from exc


def best_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the best epoch by the names that ``efficientnet_pytorch`` gives them.

    Raises:
        RunError: As `read_checkpoint`.
    """
    path = folder / BEST
    state = read_checkpoint(path).get("state_dict", {})
    return {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
