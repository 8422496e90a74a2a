"""From what a file stores to 8-bit grey: bit depths and colours."""

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import NotARadiographError
from panoramic.radiograph import ImageWarning

#: Bits that detectors and exports use.
DEPTHS = (8, 10, 12, 14, 16)
#: Difference between the largest and smallest of R, G and B. JPEG's rounding makes up to about 4 of grey.
TINTED_CHROMA = 15
COLOURED_CHROMA = 30
#: Share of pixels. A mark drawn in colour covers a thousandth; a photograph is coloured in a third and more.
TINTED_SHARE = 0.001
COLOURED_SHARE = 1 / 3


def effective_depth(maximum: int) -> int:
    """Return the bits that a picture with this largest value was made with.

    A 12-bit radiograph in a 16-bit file is almost black where its 16 bits are taken at their word (OpenCV's ``>> 8``).
    Detectors use nearly their whole range (metal and direct exposure saturate), so the maximum tells the depth.
    """
    return next((depth for depth in DEPTHS if maximum < 1 << depth), DEPTHS[-1])


def to_eight_bits(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Scale by the effective depth; a picture that uses 16 bits comes out as OpenCV's ``IMREAD_GRAYSCALE`` gives it."""
    return (pixels >> (effective_depth(int(pixels.max())) - 8)).astype(np.uint8)


def check_colour(rgb: NDArray[np.uint8]) -> tuple[ImageWarning, ...]:
    """Tell a tinted picture from a photograph.

    Args:
        rgb: (H, W, 3), a sample of the pixels is enough.

    Returns:
        ``ImageWarning.COLOUR`` if some pixels are coloured.

    Raises:
        NotARadiographError: A third of the pixels or more is coloured.
    """
    chroma = np.ptp(rgb, axis=2)  # (H, W)
    coloured = float((chroma > COLOURED_CHROMA).mean())
    if coloured > COLOURED_SHARE:
        raise NotARadiographError(
            f"The picture is a colour photograph: {coloured:.0%} of its pixels are coloured, and a radiograph is grey. "
            "If it is a tinted scan of a film, convert it to greyscale first."
        )
    return (ImageWarning.COLOUR,) if float((chroma > TINTED_CHROMA).mean()) > TINTED_SHARE else ()


def luminance(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) to (H, W) with OpenCV's weights (ITU-R BT.601)."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
