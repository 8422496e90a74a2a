"""A node's own settings, on top of those that both ends of the queue share."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from contract.settings import Settings
from panoramic.overlay import Colormap
from panoramic.runtime_info import Precision, RuntimeChoice
from panoramic.view import View

Paths = Annotated[tuple[Path, ...], NoDecode]


class WorkerSettings(Settings):
    """What a node runs on, what it loads and where it may read and write.

    Attributes:
        device: `cpu`, or `cuda:0`: a node sees one GPU only, which `worker run --gpu N` chooses.
        node: Name of this node, unique among those on one broker.
        model: Model files to load, separated by `:`; the first answers requests that name none. Left out, it is
            the demonstration model.
        view: What a predecessor's `.pth` was trained on, `full` or `crop`; a model file of ours says so itself.
        input_roots: Folders, separated by `:`, in which radiographs may lie; links are followed first.
        output_roots: Folders, separated by `:`, in which pictures may be written.
        colormap: Colours of the map.
        read_timeout_s: How long decoding one file may take, in seconds.
        decoder_memory_mib: Address space that decoding one file may take, in MiB.
        threads: CPU threads of the network; 0 leaves it to PyTorch.
        runtime: What runs the network: `auto` takes the fastest that gives the reference's answers, `native` and
            `onnx` (CPU only), `pytorch`, or `reference`.
        precision: `auto`, `float32` or `float16`.
        hands: Threads that read and prepare pictures, and as many that draw and write them, while the network runs; 0
            takes a quarter of the cores, at least one.
        background: What removes the background: the `cpu`, or the `gpu` of a node that has one.
        batch_size: With several jobs waiting, so many go through the network together; 0 takes 1 on a CPU, where more
            gain nothing, and 16 on a GPU.
        log_format: `console` for people, `json` for machines.
        log_level: Least severity that is logged.
        metrics_port: TCP port of this node's own at which it answers Prometheus and health checks; left out, at none.
        metrics_address: Address of this machine at which it does. There is no password: keep it inside.
    """

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda:\d+)$")
    node: str = Field(default_factory=lambda: f"cpu@{socket.gethostname()}", pattern=r"^[A-Za-z0-9_.@-]{1,128}$")
    model: Paths = ()
    view: View = View.FULL
    input_roots: Paths = (Path("/"),)
    output_roots: Paths = (Path("/"),)
    colormap: Colormap = Colormap.INFERNO
    read_timeout_s: float = Field(default=20.0, gt=0)
    decoder_memory_mib: int = Field(default=4096, ge=512)
    threads: int = Field(default=0, ge=0)
    runtime: RuntimeChoice = RuntimeChoice.AUTO
    precision: Precision = Precision.AUTO
    hands: int = Field(default=0, ge=0, le=256)
    background: Literal["cpu", "gpu"] = "cpu"
    batch_size: int = Field(default=0, ge=0, le=256)
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    metrics_address: str = "127.0.0.1"

    @property
    def effective_batch_size(self) -> int:
        """`batch_size`, with 0 resolved for the device."""
        return self.batch_size or (1 if self.device == "cpu" else 16)

    @field_validator("model", "input_roots", "output_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("input_roots", "output_roots")
    @classmethod
    def _absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        if not roots or not all(root.is_absolute() for root in roots):
            raise ValueError("give one or more absolute paths")
        return tuple(root.resolve() for root in roots)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use, at least one: by its affinity, and by its container's quota.

    Args:
        quota: The control group's file (Linux, cgroup v2, ``cpu.max``): microseconds of each period, or ``max``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return min(cores, max(1, int(share) // int(period)))
    except (OSError, ValueError):  # there is no such file, or no limit
        return cores
