"""What training runs on: the CUDA cards that are there, or the CPU."""

from dataclasses import dataclass
from typing import Literal

import torch

from training.data.parallel import usable_cores
from training.fit.config import TrainingConfig

_MAX_WORKERS = 8


@dataclass(frozen=True)
class Hardware:
    """What training runs on.

    Attributes:
        accelerator: "cuda" or "cpu".
        devices: How many cards or processes share each step.
        precision: As Lightning calls it.
    """

    accelerator: Literal["cuda", "cpu"] = "cpu"
    devices: int = 1
    precision: Literal["32-true", "16-mixed"] = "32-true"

    @classmethod
    def found(cls) -> "Hardware":
        """All CUDA cards with mixed precision, or else the CPU, where half precision gains nothing."""
        if torch.cuda.is_available():
            return cls("cuda", torch.cuda.device_count(), "16-mixed")
        return cls()

    @property
    def device(self) -> str:
        """Where one network runs alone."""
        return "cuda:0" if self.accelerator == "cuda" else "cpu"

    def __str__(self) -> str:
        return f"{self.devices} x {self.accelerator}, precision {self.precision}"


def usable_workers(config: TrainingConfig, hardware: Hardware) -> int:
    """Processes that read pictures: those asked for, else none on a CPU, which computes with all its cores anyway."""
    if config.workers is not None:
        return config.workers
    if hardware.accelerator == "cpu":
        return 0
    return min(_MAX_WORKERS, max(1, usable_cores() // hardware.devices))
