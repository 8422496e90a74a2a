"""What is checked before hours are spent: that results can be written, and that the disk will hold them."""

import shutil
import tempfile
from pathlib import Path

import torch

from panoramic.network import build
from training.errors import ResourcesError
from training.fit.config import TrainingConfig

#: Files of the state of a training in the size of the network: the best weights, and the last epoch with Adam's two
#: moments, twice while the new one replaces the old.
_TRAINING_STATE = 1 + 2 * 3

#: What a prepared picture takes besides its pixels: a small file, and what file systems round up.
_ENTRY_BYTES = 8192

#: For all that is small: reports, logs, tables.
_SMALL_BYTES = 50 * 2**20


def check_places(config: TrainingConfig, *, pictures: int, outputs: int) -> None:
    """Make the folders and see that they can be written to and have room.

    Args:
        config: Of the run, resolved.
        pictures: In the data set.
        outputs: Number of classes.

    Raises:
        ResourcesError: One cannot be written to, or has too little room.
    """
    height, width = config.size_px
    cached = 0 if _holds_anything(config.cache_folder) else pictures * (height * width + _ENTRY_BYTES)
    needed: dict[int, int] = {}
    for folder, size in ((config.out, run_bytes(config, outputs=outputs)), (config.cache_folder, cached)):
        _require_writable(folder)
        disk = folder.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        free = shutil.disk_usage(folder).free
        if free < needed[disk]:
            raise ResourcesError(
                f"{folder} has {free / 1e9:.1f} GB free, and the run needs about {needed[disk] / 1e9:.1f} GB there: "
                "free some space, or name another --out or --cache"
            )


def run_bytes(config: TrainingConfig, *, outputs: int) -> int:
    """About how many bytes a run folder takes at its largest."""
    with torch.device("meta"):
        tensors = build(config.network, outputs=outputs).state_dict().values()
    network: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return network * (config.folds + _TRAINING_STATE) + _SMALL_BYTES


def _holds_anything(folder: Path) -> bool:
    """Whether a cache is in use already; how much of it fits this run, only its preparation can tell."""
    return folder.is_dir() and any(folder.iterdir())


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise ResourcesError(f"{folder} cannot be written to: {exc.strerror}; name another --out or --cache") from exc
