"""The CUDA rolling ball: its kernels in numba's simulator, and on a GPU where there is one, against the CPU's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from panoramic.rolling_ball import subtract_background
from panoramic.rolling_ball_cuda import is_available, subtract_background_batch

REPO_ROOT = Path(__file__).resolve().parents[2]

#: Wide and high, more than a tile of 32 in either direction, narrower than a line that can be slid along, single lines.
SHAPES = [(21, 36), (35, 17), (2, 9), (7, 1), (3, 3)]


def pictures(shapes: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    """Noise, quantised the more coarsely the further down the list: ties between touching points."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 256, shape) // step * step).astype(np.uint8)
        for shape, step in zip(shapes, (1, 60, 20, 1, 90), strict=True)
    ]


def test_equal_in_every_pixel_in_the_simulator(tmp_path: Path) -> None:
    """The simulator must be chosen before numba is imported, and its threads are threads of the operating system."""
    inputs = pictures(SHAPES)
    np.savez(tmp_path / "in.npz", *inputs)
    code = (
        "import sys, numpy as np; from panoramic.rolling_ball_cuda import is_available, subtract_background_batch;"
        "assert is_available();"
        "given = np.load(sys.argv[1]);"
        "np.savez(sys.argv[2], *subtract_background_batch([given[name] for name in given.files], 12))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")],
        cwd=REPO_ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        for picture, name in zip(inputs, outputs.files, strict=True):
            np.testing.assert_array_equal(outputs[name], subtract_background(picture, 12))


@pytest.mark.skipif(not is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("radius_px", [1, 50, 180, 1000, 10**9])
def test_equal_in_every_pixel_on_a_gpu(radius_px: int) -> None:
    rng = np.random.default_rng(radius_px)
    inputs = pictures(SHAPES) + [rng.integers(0, 256, (600, 1100)).astype(np.uint8) // 8 for _ in range(3)]
    for picture, result in zip(inputs, subtract_background_batch(inputs, radius_px), strict=True):
        np.testing.assert_array_equal(result, subtract_background(picture, radius_px))


@pytest.mark.skipif(is_available(), reason="there is a CUDA GPU here")
def test_without_a_gpu_the_error_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match=r"no CUDA GPU and driver; use panoramic\.rolling_ball\.subtract_background"):
        subtract_background_batch([np.zeros((4, 4), np.uint8)])


def test_unusable_pictures_and_radii_are_refused_like_the_other_ones() -> None:
    good = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="image has dtype float64; it must be uint8"):
        subtract_background_batch([good, np.zeros((4, 4))])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="radius_px is 0; it must be a whole number from 1"):
        subtract_background_batch([good], 0)
