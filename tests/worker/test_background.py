"""The background on the GPU: in numba's simulator, pictures of several threads at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import SettingsError
from panoramic import rolling_ball_cuda
from worker.background import GpuBackground

REPO_ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from panoramic.rolling_ball import subtract_background
from worker.background import GpuBackground

random = np.random.default_rng(0)
pictures = [random.integers(0, 256, shape).astype(np.uint8) for shape in ((9, 14), (12, 7), (5, 5), (3, 8), (6, 6))]
background = GpuBackground(radius_px=12, probe_shape=(6, 9))
with ThreadPoolExecutor(5) as threads:
    found = list(threads.map(background.remove, pictures))
background.close()
for picture, answer in zip(pictures, found, strict=True):
    np.testing.assert_array_equal(answer, subtract_background(picture, 12))
print("equal")
"""


def test_every_thread_gets_its_own_picture_back() -> None:
    """The simulator must be chosen before numba is imported."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPO_ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert run.stdout == "equal\n", run.stderr


@pytest.mark.skipif(rolling_ball_cuda.is_available(), reason="there is a CUDA GPU")
def test_a_node_without_a_gpu_is_told_what_to_set() -> None:
    with pytest.raises(SettingsError, match="set OSTEOPAN_BACKGROUND=cpu"):
        GpuBackground()
