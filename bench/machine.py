"""What the numbers were measured on: the machine, the libraries, and how busy others kept it."""

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

#: Packages whose version can move the numbers.
_PACKAGES = ("torch", "onnxruntime", "numba", "opencv-python-headless", "numpy", "isal", "celery", "kombu", "redis")


def describe() -> dict[str, Any]:
    """Processor, memory, accelerator, versions and load, as they are now. Linux only, as all of this package."""
    return {
        "processor": _processor(),
        "usable_cores": usable_cores(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "revision": _revision(),
        "load_before": load(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def load() -> float:
    """Processes that wanted a core over the last minute, on average; near 0 if the machine is ours alone."""
    return round(os.getloadavg()[0], 2)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_s(pid: int) -> float:
    """Seconds of processor time that all threads of a process have used, those that have ended included.

    The process's own clock, which counts nanoseconds: `clock_getcpuclockid(3)` makes its id from the process's in this
    way. What /proc and psutil give is counted in hundredths of a second, as long as some of our stages take.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _revision() -> str:
    """The commit that was measured, with `-dirty` if it was not that alone; empty outside a clone."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()
