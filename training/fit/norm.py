"""Batch norm's statistics for evaluation, taken anew from training pictures whenever the weights are to be judged.

Ioffe and Szegedy 2015 (arXiv:1502.03167, algorithm 2) take them with the final weights; a running mean over the steps
of the training only stands in for that. Here it cannot: the library's memory is 100 steps, made for ImageNet's
thousands of steps an epoch, and a few hundred pictures give a few dozen. After the first epochs the running values
would be those of other weights or still the initial ones, layer after layer, and the network in evaluation mode answers
the same for every picture or explodes, while its training goes well. By that answer the best epoch is chosen and the
learning rate lowered. Wu and Johnson 2021 (arXiv:2105.07576, section 3) measure the same and call the remedy precise
batch norm.
"""

from collections.abc import Iterable
from typing import Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from training.data.batches import PictureDataset, loader

#: How many pictures the statistics are of, at least so many batches: a forward pass each, once an epoch.
SETTLING_PICTURES: Final = 128
_BATCHES: Final = 8


class SettleNorms(Callback):
    """Before each validation, or at the end of an epoch without one, calls `settle_norms`.

    Args:
        part: Pictures of the training part, unaltered.
        batch_size: As in the training.
    """

    def __init__(self, part: PictureDataset, *, batch_size: int) -> None:
        self._part = part
        self._batch_size = batch_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the statistics before the validation part is judged."""
        del trainer
        self._settle(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the statistics before the checkpoint is written, unless the validation had them taken."""
        if trainer.limit_val_batches == 0:
            self._settle(pl_module)

    def _settle(self, module: pl.LightningModule) -> None:
        batches = loader(self._part, batch_size=self._batch_size, shuffle=False, seed=0)
        # A picture left over would make a batch that batch norm cannot average.
        settle_norms(module, (x.to(module.device) for x, labels, _ in batches if len(labels) > 1))


def settling_count(pictures: int, *, batch_size: int) -> int:
    """How many of a training part's pictures the statistics are taken from."""
    return min(pictures, max(SETTLING_PICTURES, _BATCHES * batch_size))


@torch.no_grad()
def settle_norms(net: torch.nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the statistics of all batch norms by their means over batches, with the weights as they are.

    Dropout and drop-connect are off meanwhile, and no random number is drawn.

    Args:
        net: Changed in its statistics alone.
        batches: (N, 3, h, w) each, at least one.
    """
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.SyncBatchNorm)]
    was_training, memories = net.training, [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's sign for the mean over all batches
        norm.train()
    try:
        for x in batches:
            net(x)
    finally:
        for norm, memory in zip(norms, memories, strict=True):
            norm.momentum = memory
        net.train(was_training)
