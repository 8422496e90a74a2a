"""The compiled rolling ball against its oracle, the pure Python package opencv-rolling-ball 1.0.1."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from cv2_rolling_ball import subtract_background_rolling_ball
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import panoramic
from panoramic import rolling_ball
from panoramic.rolling_ball import envelope, imagej, subtract_background

REPO_ROOT = Path(__file__).resolve().parents[2]
RADIOGRAPHS = REPO_ROOT.parent / "shared" / "data" / "radiographs"


def reference(image: NDArray[np.uint8], radius_px: int) -> NDArray[np.uint8]:
    # The package divides by zero (NaN, then ignored) on lines of two pixels, and writes into its argument.
    with np.errstate(all="ignore"):
        result, _ = subtract_background_rolling_ball(
            image.copy(), radius_px, light_background=False, use_paraboloid=True, do_presmooth=True
        )
    return np.asarray(result, np.uint8)


def assert_equal_to_reference(image: NDArray[np.uint8], radius_px: int) -> None:
    ours, theirs = subtract_background(image, radius_px), reference(image, radius_px)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)


def relief(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Broad hills, a ramp, bright blobs, dark and saturated patches, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    grey = 90 + 40 * np.sin(x / 37 + 1) * np.cos(y / 23) + 60 * x / width + rng.normal(0, 3, (height, width))
    grey[height // 5 : height // 3, width // 4 : width // 2] += 70
    grey[height // 2 :, : width // 6] = 0
    grey[: height // 8, -width // 7 :] = 255
    return np.asarray(np.clip(grey, 0, 255), np.uint8)


@pytest.mark.parametrize("radius_px", [1, 2, 10, 50, 180, 1000, 10**9])
@pytest.mark.parametrize("shape", [(37, 150), (150, 37), (64, 64)])
def test_equal_in_every_pixel_for_any_radius(shape: tuple[int, int], radius_px: int) -> None:
    assert_equal_to_reference(relief(*shape, seed=radius_px), radius_px)


@pytest.mark.parametrize(
    "shape", [(2, 2), (2, 3), (3, 2), (3, 3), (2, 41), (41, 2), (3, 41), (41, 3), (4, 5), (5, 4), (7, 7)]
)
@pytest.mark.parametrize("radius_px", [1, 10, 180])
def test_equal_on_tiny_and_narrow_images(shape: tuple[int, int], radius_px: int) -> None:
    rng = np.random.default_rng(shape[0] * 100 + shape[1])
    for _ in range(5):
        assert_equal_to_reference(rng.integers(0, 256, shape, dtype=np.uint8), radius_px)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_equal_on_constant_images(grey: int) -> None:
    assert_equal_to_reference(np.full((40, 60), grey, np.uint8), 180)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("levels", [2, 4, 256])
def test_equal_on_noise(levels: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, levels, (90, 120)) * (255 // (levels - 1))
    for radius_px in (3, 180):
        assert_equal_to_reference(noise.astype(np.uint8), radius_px)


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_where_points_lie_on_a_common_parabola(sign: int) -> None:
    """Paraboloids of just the ball's curvature: every choice of the next touching point is nearly a tie."""
    y, x = np.mgrid[-50:50, -70:70]
    for radius_px in (18, 50, 180):
        bowl = 128 + sign * (x**2 + y**2) / (2 * radius_px)
        assert_equal_to_reference(np.clip(bowl, 0, 255).astype(np.uint8), radius_px)


@settings(max_examples=120, deadline=None)
@given(
    image=arrays(np.uint8, st.tuples(st.integers(2, 24), st.integers(2, 24))),
    radius_px=st.one_of(st.integers(1, 30), st.integers(1, 10**6)),
)
def test_equal_on_generated_images(image: NDArray[np.uint8], radius_px: int) -> None:
    assert_equal_to_reference(image, radius_px)


@pytest.mark.parametrize(
    ("name", "top", "left"),
    [("1.png", 0, 0), ("9.png", 700, 1200), ("83.png", 1060, 300), ("107.png", 500, 2700)],
)
def test_equal_on_real_radiographs(name: str, top: int, left: int) -> None:
    path = RADIOGRAPHS / name
    if not path.exists():
        pytest.skip(f"needs the radiograph {name} of the shared test material beside the repository")
    whole = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert whole is not None
    crop = whole[top : top + 200, left : left + 300]
    assert crop.shape == (200, 300)
    assert_equal_to_reference(np.ascontiguousarray(crop, np.uint8), 180)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3), (1, 200), (200, 1)])
def test_single_lines_which_the_reference_cannot_do(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        reference(image, 20)
    # By brute force: adding d²/2r turns parabolas into straight lines, and the background is below every chord.
    smooth = cv2.blur(image, (3, 3)).ravel().astype(np.float64)
    at = np.arange(smooth.size)
    lifted = smooth + at**2 / 40
    hull = lifted.copy()
    for i in at:
        for j in at[i + 1 :]:
            chord = lifted[i] + (lifted[j] - lifted[i]) * (at[i : j + 1] - i) / (j - i)
            hull[i : j + 1] = np.minimum(hull[i : j + 1], chord)
    ours = subtract_background(image, 20)
    assert ours.shape == shape
    np.testing.assert_allclose(ours.ravel(), smooth - (hull - at**2 / 40), rtol=0, atol=0.5 + 1e-6)


def test_any_memory_layout_is_accepted_and_nothing_is_modified() -> None:
    large = relief(120, 160)
    expected = subtract_background(np.ascontiguousarray(large[::-2, 5:90:3]), 30)
    before = large.copy()
    large.flags.writeable = False
    np.testing.assert_array_equal(subtract_background(large[::-2, 5:90:3], 30), expected)
    np.testing.assert_array_equal(subtract_background(np.asfortranarray(large[::-2, 5:90:3]), 30), expected)
    np.testing.assert_array_equal(large, before)


def test_threads_change_nothing_and_calls_may_overlap() -> None:
    images = [relief(150, 200, seed) for seed in range(4)]
    alone = [subtract_background(image, threads=1) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: subtract_background(image, threads=3), images * 3))
    for i, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[i % 4])


def test_radius_defaults_to_180_px_and_accepts_numpy_integers() -> None:
    image = relief(60, 300)
    np.testing.assert_array_equal(subtract_background(image), subtract_background(image, cast("int", np.int32(180))))
    assert (subtract_background(image) != subtract_background(image, 20)).any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"image has 3 dimensions \(shape \(4, 4, 3\)\); it must have 2"),
        (np.zeros(4, np.uint8), r"image has 1 dimensions \(shape \(4,\)\)"),
        (np.zeros((4, 4), np.uint16), r"image has dtype uint16; it must be uint8"),
        (np.zeros((4, 4), np.float32), r"image has dtype float32; it must be uint8"),
        (np.zeros((0, 4), np.uint8), r"image is empty \(shape \(0, 4\)\)"),
    ],
)
def test_unusable_images_are_refused(image: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subtract_background(image)


@pytest.mark.parametrize("radius_px", [0, -180, 2**31, 1.5, True])
def test_unusable_radii_are_refused(radius_px: int) -> None:
    with pytest.raises(ValueError, match=rf"radius_px is {radius_px}; it must be a whole number from 1 to 2147483647"):
        subtract_background(np.zeros((4, 4), np.uint8), radius_px)


def test_unusable_numbers_of_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="threads is 0; it must be a whole number from 1"):
        subtract_background(np.zeros((4, 4), np.uint8), threads=0)


@pytest.mark.parametrize("levels", [3, 12, 256])
@pytest.mark.parametrize("radius_px", [4, 180, 3000])
def test_hulls_give_what_imagejs_search_gives_in_every_bit(radius_px: int, levels: int) -> None:
    """Whole passes, before their result is rounded to pixels; coarse grey levels and wide blurs make for ties."""
    rng = np.random.default_rng(levels)
    grey = rng.integers(0, levels, (140, 333)) * (255.0 / (levels - 1))
    for surface in (grey, cv2.GaussianBlur(grey, (0, 0), 3.0), np.floor(cv2.GaussianBlur(grey, (0, 0), 3.0))):
        height, width = surface.shape
        for curvature, shear in (
            (0.5 / radius_px, None),
            (0.5 / radius_px, 0),
            (1 / radius_px, 1),
            (1 / radius_px, -1),
        ):
            by_hull = surface.copy()
            clear = envelope.tolerance(width, curvature, 0.0, 255.0)
            if shear is None:
                names = np.arange(height)
                refused = envelope.slide_along_rows(by_hull, curvature, clear, 0, height)
                firsts, step, lengths = names * width, 1, np.full(height, width)
            else:
                names = {
                    0: np.arange(width),
                    1: np.arange(3 - height, width - 2),
                    -1: np.arange(2, width + height - 3),
                }[shear]
                refused = envelope.slide_along_columns(
                    by_hull, curvature, clear, shear, int(names[0]), int(names[-1]) + 1
                )
                tops = np.maximum(0, -names) if shear == 1 else np.maximum(0, names - width + 1) * abs(shear)
                ends = names * 0 + height
                if shear:
                    ends = np.minimum(height, width - names if shear == 1 else names + 1)
                firsts, step, lengths = names + tops * (width + shear), width + shear, ends - tops
            by_search = surface.copy()
            kept = ~np.isin(names, refused)
            imagej.slide_along(by_search.reshape(-1), curvature, firsts[kept], step, lengths[kept])
            np.testing.assert_array_equal(by_hull, by_search)
            assert len(refused) <= len(names) // 20
            assert (by_hull != surface).any()


def test_warm_up_compiles_every_kernel_and_works_without_a_cache_folder(tmp_path: Path) -> None:
    """A copy in a folder where numba can write nowhere: files stand where each cache folder would be made."""
    copy = tmp_path / "panoramic" / "rolling_ball"
    shutil.copytree(Path(rolling_ball.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("__init__.py", "compiling.py"):
        shutil.copy(Path(panoramic.__file__).with_name(module), copy.parent)
    for blocked in (copy / "__pycache__", copy.parent / "__pycache__", tmp_path / "cache", tmp_path / "home"):
        blocked.touch()
    code = (
        "import panoramic.rolling_ball as r; from panoramic.rolling_ball import envelope, imagej; r.warm_up();"
        "values = [v for m in (r, envelope, imagej) for v in vars(m).values()];"
        "kernels = {id(v): v for v in values if hasattr(v, 'nopython_signatures')};"
        "compiled = [len(k.nopython_signatures) for k in kernels.values()];"
        "import numpy; noise = numpy.random.default_rng(0).integers(0, 9, (70, 90)).astype('u1');"
        "r.subtract_background(noise, 180, threads=2); r.subtract_background(noise, 10**8);"
        "print(r.__file__, len(kernels) > 10, min(compiled) > 0,"
        " compiled == [len(k.nopython_signatures) for k in kernels.values()])"
    )
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path / "home"),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert run.stderr == ""
    assert run.stdout.strip() == f"{copy / '__init__.py'} True True True"
