"""The training of one network, as PyTorch Lightning takes it: loss, optimiser, learning rate, and what an epoch left.

A run that was killed and goes on gives the same weights, bit for bit on a CPU: every step draws its random numbers
(dropout, drop-connect) from (seed, stream, epoch, step) alone, and all that steers the run is its `History`, which
the checkpoint holds.
"""

from collections.abc import Sequence
from typing import Any, Final

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.errors import RunError
from training.fit.history import Epoch, History

#: Of Adam, as in the published work.
BETAS: Final = (0.9, 0.999)

#: The learning rate is multiplied by the factor after more than so many epochs without a lower validation loss.
PLATEAU_FACTOR: Final = 0.1
PLATEAU_PATIENCE: Final = 5

TRAIN_LOSS: Final = "train_loss"
VALIDATION_LOSS: Final = "validation_loss"

_HISTORY_KEY: Final = "osteopan_history"

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FoldModule(pl.LightningModule):
    """Trains a network on one part of the data and watches another.

    Args:
        net: From `panoramic.network.build`; changed by the training.
        learning_rate: Of the first epoch.
        seed: Of the run.
        stream: Keeps the random numbers of one fold from those of another.
        class_weights: One factor a class for the loss, or nothing for 1 each.
        learning_rates: One an epoch, where there is no validation part to steer the learning rate.

    Attributes:
        net: The network.
        history: The epochs so far, those before a resume included.
    """

    def __init__(
        self,
        net: EfficientNet,
        *,
        learning_rate: float,
        seed: int,
        stream: int,
        class_weights: Sequence[float] = (),
        learning_rates: Sequence[float] = (),
    ) -> None:
        super().__init__()
        for layer in net.modules():
            if hasattr(layer, "_swish"):
                # The same function as the library's own, a seventh of a step faster, and it keeps no more for its
                # backward pass.
                layer._swish = torch.nn.SiLU()  # noqa: SLF001
        # Depthwise convolutions, which these networks are made of, run fastest with the channels innermost.
        self.net = net.to(memory_format=torch.channels_last)
        # The library's own swish saves memory at the cost of a third more time.
        self.net.set_swish(memory_efficient=False)
        self.history = History()
        self._learning_rate = learning_rate
        self._learning_rates = tuple(learning_rates)
        self._entropy = (seed, stream)
        self._plateau: ReduceLROnPlateau | None = None
        self._epoch_rate = learning_rate
        weight = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weight, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of x (N, 3, h, w)."""
        logits: torch.Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, and the rule that lowers its learning rate.

        Lightning's own bookkeeping of such rules is not used: it forgets the last epoch when a run goes on, since a
        checkpoint is written before the rule is asked. Here the rule is asked again about the epochs of the history.
        """
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self._learning_rate, betas=BETAS)
        self._plateau = ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
        for epoch in self.history.epochs:
            self._steer(epoch)
        return optimizer

    def on_train_epoch_start(self) -> None:
        """Set the epoch's learning rate."""
        (group,) = self._optimizer().param_groups
        if self._learning_rates:
            group["lr"] = self._learning_rates[min(self.current_epoch, len(self._learning_rates) - 1)]
        self._epoch_rate = float(group["lr"])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """The loss of one batch: x (N, 3, h, w), class indices (N,), places (N,).

        None, by which Lightning makes no step, for a single picture left over at the end of an epoch: batch norm has
        nothing to average then. The order changes from epoch to epoch, so it is another picture each time. On several
        devices each has one picture left, and they average over all of them.
        """
        if len(batch[1]) == 1 and self.trainer.world_size == 1:
            return None
        entropy = (*self._entropy, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        loss, _ = self._loss(batch)
        self.log(
            TRAIN_LOSS, loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(batch[1])
        )
        return loss

    def validation_step(self, batch: Batch, _batch_idx: int) -> None:
        """Log the loss and the accuracy of one batch."""
        loss, logits = self._loss(batch)
        accuracy = (logits.argmax(dim=1) == batch[1]).float().mean()
        size = len(batch[1])
        self.log(VALIDATION_LOSS, loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        self.log("validation_accuracy", accuracy, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history and let it steer the learning rate.

        Raises:
            RunError: The loss is infinite or not a number.
        """
        self.log("learning_rate", self._epoch_rate, sync_dist=True)
        metrics = self.trainer.callback_metrics
        watched = float(metrics[VALIDATION_LOSS]) if VALIDATION_LOSS in metrics else None
        epoch = Epoch(train_loss=float(metrics[TRAIN_LOSS]), validation_loss=watched, learning_rate=self._epoch_rate)
        if not np.isfinite(epoch.train_loss) or (watched is not None and not np.isfinite(watched)):
            raise RunError(
                f"the loss is infinite or not a number in epoch {len(self.history.epochs) + 1}, with the learning rate "
                f"{self._epoch_rate:g}; start again with a smaller --learning-rate"
            )
        self.history = self.history.then(epoch)
        self._steer(epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the history into a checkpoint, as plain numbers."""
        checkpoint[_HISTORY_KEY] = self.history.model_dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history out of it again."""
        self.history = history_of(checkpoint)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        x, truths, _ = batch
        logits = self(x)  # (N, C)
        losses = F.cross_entropy(logits, truths, weight=self.get_buffer("class_weights"), reduction="none")  # (N,)
        # PyTorch's own mean divides by the weights of the batch, which in a batch of one class cancels them.
        return losses.mean(), logits

    def _steer(self, epoch: Epoch) -> None:
        if self._plateau is not None and epoch.validation_loss is not None:
            self._plateau.step(epoch.validation_loss)

    def _optimizer(self) -> torch.optim.Optimizer:
        (optimizer,) = self.trainer.optimizers
        return optimizer


def history_of(checkpoint: dict[str, Any]) -> History:
    """The history in a checkpoint of `FoldModule`.

    Raises:
        ValueError: It holds none.
    """
    return History.model_validate(checkpoint.get(_HISTORY_KEY))
