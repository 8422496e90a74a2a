"""Times the compiled rolling ball against the pure Python package whose result it reproduces."""

import statistics
import time
from typing import Any

from cv2_rolling_ball import subtract_background_rolling_ball

from bench.material import Material
from bench.scale import Scale
from bench.summary import Row
from panoramic.image import load_radiograph
from panoramic.rolling_ball import subtract_background, warm_up

RADIUS_PX = 180

#: Rows of the strip on which the reference is timed. Its cost per pixel grows with how far it searches along each line:
#: the strip keeps the full width, and enough rows that most searches along columns and diagonals (tens of pixels) end
#: inside it. Those that it cuts short flatter the reference, so that the ratio is stated too low rather than too high.
STRIP_ROWS = 160


def measure(material: Material, scale: Scale, *, runs: int = 15) -> dict[str, Any]:
    """Time both on the same picture.

    Args:
        material: Has the picture.
        scale: With `whole_reference` off the reference is timed on a strip and scaled to the picture by its pixels.
        runs: Number of runs of the compiled version, after warming up.

    Returns:
        ``shape``; ``reference_rows``, on which the reference was timed; ``reference_s``, for the whole image;
        ``warm_up_s``; ``best_s`` and ``median_s`` of the compiled version, whole image; ``ratio_best`` and
        ``ratio_median``; ``equal``: whether both results agree in every pixel of the reference's rows.
    """
    image = load_radiograph(material.picture(scale.picture_px)).pixels
    began = time.perf_counter()
    warm_up()
    warm_up_s = time.perf_counter() - began
    times_s = []
    for _ in range(runs):
        began = time.perf_counter()
        subtract_background(image, RADIUS_PX)
        times_s.append(time.perf_counter() - began)

    part = image if scale.whole_reference else image[:STRIP_ROWS]
    writable = part.copy()  # the reference writes its result into its argument
    began = time.perf_counter()
    expected, _ = subtract_background_rolling_ball(
        writable, RADIUS_PX, light_background=False, use_paraboloid=True, do_presmooth=True
    )
    reference_s = (time.perf_counter() - began) * image.size / part.size
    best_s, median_s = min(times_s), statistics.median(times_s)
    return {
        "shape": image.shape,
        "reference_rows": part.shape[0],
        "reference_s": round(reference_s, 2),
        "warm_up_s": round(warm_up_s, 3),
        "best_s": round(best_s, 4),
        "median_s": round(median_s, 4),
        "ratio_best": round(reference_s / best_s),
        "ratio_median": round(reference_s / median_s),
        "equal": bool((subtract_background(part, RADIUS_PX) == expected).all()),
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    height, width = found["shape"]
    return [
        (f"Reference package on {found['reference_rows']} of {height} rows of {width} px", "", ""),
        ("  for the whole picture", f"{found['reference_s']:.1f} s", ""),
        ("  ours, warm", f"{1000 * found['median_s']:.0f} ms (least {1000 * found['best_s']:.0f})", ""),
        ("  ratio", f"{found['ratio_median']} times (most {found['ratio_best']})", "400 times"),
        ("  equal in every pixel compared", "yes" if found["equal"] else "NO", "yes"),
    ]
