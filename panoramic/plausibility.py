"""Whether a picture can be a panoramic radiograph (or a crop of one), told from its size and its grey values.

The thresholds come from how such pictures are made, not from a fit. A panoramic machine records about 2000–3150 ×
990–1540 px (height over width 0.406 ± 0.036 on 115 radiographs). The X-ray focus, the movement and the detector blur
everything over 1 to 1.5 px, so that neighbours are alike. The lower corners show the air below the angles of
the jaw, the darkest thing there is; the upper corners show the skull's base. What an anatomist would see at once (a
chest in a wide frame, another joint) is not told here: these checks stop mistakes, they certify nothing.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import NotARadiographError
from panoramic.radiograph import ImageWarning, Limits
from panoramic.view import View

#: Width over height: refused outside the first pair, remarked on outside the second.
FULL_RATIOS = ((1.2, 4.0), (1.6, 3.4))
CROP_RATIOS = ((0.5, 2.0), (0.8, 1.25))
#: Width and height that the network takes in, px; a crop's is that of the smallest network.
FULL_INPUT_PX = (954, 449)
CROP_INPUT_PX = (224, 224)
#: Grey values between the 1st and the 99th percentile.
MIN_RANGE = 10
#: Share of pixels with one and the same grey. Radiographs stay below a tenth; black may be padding, so more may be.
MAX_SAME_SHARE = 0.5
MAX_BLACK_SHARE = 0.9
#: Correlation of neighbours: white noise 0, a photographed page about 0.85, a radiograph reduced tenfold still 0.98.
NOISE_CORRELATION = 0.5
ROUGH_CORRELATION = 0.9
#: A rough picture is a page if its median lies this far up its range; a radiograph's lies near the middle.
PAPER_MEDIAN = 2 / 3
#: Width and height to which a picture is reduced in order to look at its corners, px, and the corners' size there.
THUMBNAIL_PX = (64, 26)
CORNER_PX = (8, 4)
#: On the thumbnail, between its 2nd (0) and 98th (1) percentile.
BRIGHT = 0.75
DARK = 0.15
BONE = 0.3


def check_plausible(pixels: NDArray[np.uint8], view: View, *, limits: Limits) -> tuple[ImageWarning, ...]:
    """Refuse what cannot be a radiograph and remark on what is unusual for one.

    Args:
        pixels: (H, W) grey values.
        view: What the picture should show.
        limits: The smallest sizes.

    Raises:
        NotARadiographError: Too small, of another shape, (almost) constant, noise, or flat as a drawing is.
    """
    warnings = [*_check_shape(pixels.shape[1], pixels.shape[0], view, limits), *_check_greys(pixels)]
    if view is View.FULL:
        warnings += _check_orientation(pixels)
    return tuple(warnings)


def _check_shape(width: int, height: int, view: View, limits: Limits) -> list[ImageWarning]:
    if view is View.FULL:
        least = (limits.min_full_width_px, limits.min_full_height_px)
        (ratios, usual), input_px, name = FULL_RATIOS, FULL_INPUT_PX, "full panoramic radiograph"
    else:
        least = (limits.min_crop_side_px, limits.min_crop_side_px)
        (ratios, usual), input_px, name = CROP_RATIOS, CROP_INPUT_PX, "square crop"
    if width < least[0] or height < least[1]:
        raise NotARadiographError(
            f"The picture has {width}x{height} px; a {name} needs at least {least[0]}x{least[1]}. "
            "Export it at its original size."
        )
    ratio = width / height
    if not ratios[0] <= ratio <= ratios[1]:
        raise NotARadiographError(
            f"The picture has {width}x{height} px, so that it is {ratio:.2f} times as wide as high; a {name} is "
            f"{ratios[0]} to {ratios[1]} times as wide as high. Send the right picture; if this is the right one, "
            "see whether it lies on its side, or whether an EXIF orientation turns it."
        )
    warnings = []
    if width < input_px[0] or height < input_px[1]:
        warnings.append(ImageWarning.LOW_RESOLUTION)
    if not usual[0] <= ratio <= usual[1]:
        warnings.append(ImageWarning.UNUSUAL_SHAPE)
    return warnings


def _check_greys(pixels: NDArray[np.uint8]) -> list[ImageWarning]:
    counts = cv2.calcHist([pixels], [0], None, [256], [0, 256])[:, 0]  # (256,)
    share_up_to = np.cumsum(counts) / pixels.size
    darkest, brightest = (int(np.searchsorted(share_up_to, share)) for share in (0.01, 0.99))
    if brightest - darkest < MIN_RANGE:
        raise NotARadiographError(
            f"The picture is (almost) constant: 98 % of its pixels lie between grey {darkest} and {brightest}; "
            f"at least {MIN_RANGE} grey values are needed. Check the export, its window and its bit depth."
        )
    commonest = int(counts.argmax())
    share = float(counts[commonest] / pixels.size)
    if share > (MAX_BLACK_SHARE if commonest == 0 else MAX_SAME_SHARE):
        raise NotARadiographError(
            f"{share:.0%} of the picture's pixels have the same grey ({commonest}), as in a drawing or on a page; "
            f"at most {MAX_SAME_SHARE:.0%} ({MAX_BLACK_SHARE:.0%} of black) are allowed. Send a radiograph."
        )
    correlation = neighbour_correlation(pixels)
    if correlation < NOISE_CORRELATION:
        raise NotARadiographError(
            f"The picture is noise: neighbouring pixels correlate by {correlation:.2f}; at least {NOISE_CORRELATION} "
            "is needed, and radiographs have 0.95 or more. Check the export."
        )
    if correlation >= ROUGH_CORRELATION:
        return []
    median = int(np.searchsorted(share_up_to, 0.5))
    if median - darkest > PAPER_MEDIAN * (brightest - darkest):
        raise NotARadiographError(
            f"The picture is a page: sharp strokes (neighbours correlate by {correlation:.2f}, in radiographs by 0.95 "
            f"or more) on a bright ground (half of it brighter than grey {median}). Send a radiograph."
        )
    return [ImageWarning.ROUGH]


def neighbour_correlation(pixels: NDArray[np.uint8]) -> float:
    """Return the smaller of the correlations between horizontal and vertical neighbours, for a picture not constant.

    Every fifth line is enough: ``1 - E[(a - b)²] / 2 Var``, the lag-one autocorrelation.
    """
    _, deviation = cv2.meanStdDev(pixels)
    upper, lower = pixels[:-1:5], pixels[1::5]
    step = max(_mean_square(upper[:, 1:], upper[:, :-1]), _mean_square(lower, upper))
    return 1 - step / (2 * float(deviation[0, 0]) ** 2)


def _mean_square(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return cv2.norm(first, second, cv2.NORM_L2SQR) / first.size if first.size else 0.0


def _check_orientation(pixels: NDArray[np.uint8]) -> list[ImageWarning]:
    # Every fourth line is enough for means of corners.
    small = cv2.resize(pixels[::4], THUMBNAIL_PX, interpolation=cv2.INTER_AREA).astype(np.float32)
    black, white = np.percentile(small, (2, 98))
    small = (small - black) / max(float(white - black), 1.0)
    across, down = CORNER_PX
    upper = [float(corner.mean()) for corner in (small[:down, :across], small[:down, -across:])]
    lower = [float(corner.mean()) for corner in (small[-down:, :across], small[-down:, -across:])]
    middle = float(small[8:18, 16:48].mean())
    if min(lower) > BRIGHT and middle < min(lower):
        return [ImageWarning.POLARITY_INVERTED]
    if max(upper) < DARK and min(lower) > BONE:
        return [ImageWarning.UPSIDE_DOWN]
    return []
