"""Tells running out of memory from other faults, and says what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from training.errors import ResourcesError
from training.fit.config import TrainingConfig


@contextmanager
def memory_faults_explained(config: TrainingConfig) -> Iterator[None]:
    """Turn running out of memory into what to change."""
    try:
        yield
    except (MemoryError, RuntimeError, ProcessRaisedException) as exc:
        if not is_out_of_memory(exc):
            raise
        height, width = config.size_px
        where = "the GPU's memory" if "cuda" in str(exc).lower() else "the memory"
        raise ResourcesError(
            f"{where} does not suffice for {config.network} with batches of {config.batch} pictures of "
            f"{height}x{width}: go on by --resume with fewer --workers, or start another run with a smaller "
            "--batch-size (2 or more), a smaller --input-size or a smaller --network"
        ) from exc


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error of PyTorch means that memory ran out: a GPU's, the machine's, or that of a reading process."""
    if isinstance(exc, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(exc).lower()
    # Of a process of several, only its traceback arrives.
    signs = ("out of memory", "memoryerror", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
    return any(sign in words for sign in signs) or ("dataloader worker" in words and "killed by signal" in words)
