"""Reads the numbers that a node's engines, one after another, have written into files (see `worker.metrics`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

#: In the file names of engines that have ended, in place of their process id.
_ENDED = 0


class EngineFiles:
    """The files into which the engine's processes write their numbers, one after another.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> list[Metric]:
        """The numbers of all engines that this node has had; gauges of the living one only."""
        self._fold()
        # A file that was made this instant is still empty.
        files = [str(path) for path in self.folder.glob("*.db") if path.stat().st_size > 0]
        return list(MultiProcessCollector.merge(files))

    def has_engine(self) -> bool:
        """Whether a process with a warm engine lives: it makes its files when it is."""
        return any(pid != _ENDED and _is_alive(pid) for _, pid in self._files("gauge"))

    def _fold(self) -> None:
        """Add the files of ended processes to one, so that months of restarts do not fill the memory."""
        for path, pid in self._files("gauge"):
            if not _is_alive(pid):
                path.unlink()
        for kind in ("counter", "histogram"):
            ended = [path for path, pid in self._files(kind) if pid != _ENDED and not _is_alive(pid)]
            if not ended:
                continue
            total = MmapedDict(str(self.folder / f"{kind}_{_ENDED}.db"))
            for path in ended:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                    before, _ = total.read_value(key)
                    total.write_value(key, before + value, 0.0)
                path.unlink()
            total.close()

    def _files(self, kind: str) -> Iterator[tuple[Path, int]]:
        """The files of one kind and whose they are: `counter_17.db`, `gauge_livemax_17.db`."""
        for path in self.folder.glob(f"{kind}_*.db"):
            yield path, int(path.stem.rpartition("_")[2])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # The number has gone to someone else's process.
        return False
    return True
