"""The one transform from radiograph to network input, shared by training and worker.

It repeats, bit for bit, what the published networks were trained with (Dias et al. 2025, Biomed. Signal Process.
Control 100:107031): rolling-ball background subtraction, then torchvision's ``Resize``, ``ToTensor`` and ``Normalize``
on a picture whose one grey channel stands three times. Needs NumPy and Pillow, not PyTorch.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panoramic.rolling_ball import subtract_background
from panoramic.view import View

#: Names this transform in a model's manifest; changes whenever the numbers that come out of it could change.
PREPROCESSING_VERSION: Final = "rolling-ball-180+bilinear+imagenet/1"

#: Radius of the rolling ball, in pixels of the radiograph as it was sent.
BALL_RADIUS_PX: Final = 180

#: (height, width) of a full radiograph at the network, a third of the published radiographs' size.
FULL_INPUT_SIZE: Final = (449, 954)

#: Side of a square crop at the network, by network.
CROP_INPUT_SIDE: Final = {
    "efficientnet-b0": 224,
    "efficientnet-b1": 240,
    "efficientnet-b2": 260,
    "efficientnet-b3": 300,
    "efficientnet-b4": 380,
    "efficientnet-b5": 456,
    "efficientnet-b6": 528,
    "efficientnet-b7": 600,
}

#: Mean and standard deviation of ImageNet's red, green and blue, on a scale of 0 to 1.
CHANNEL_MEAN: Final = (0.485, 0.456, 0.406)
CHANNEL_STD: Final = (0.229, 0.224, 0.225)


def default_input_size(view: View, network: str) -> tuple[int, int]:
    """The (height, width) that a network of the published kind takes.

    Args:
        view: What the pictures show.
        network: ``efficientnet-b0`` to ``efficientnet-b7``; matters for crops only.

    Raises:
        ValueError: The network is none of these.
    """
    if network not in CROP_INPUT_SIDE:
        raise ValueError(f"network is {network!r}; it must be one of {', '.join(CROP_INPUT_SIDE)}")
    if view is View.FULL:
        return FULL_INPUT_SIZE
    return CROP_INPUT_SIDE[network], CROP_INPUT_SIDE[network]


def prepare(pixels: NDArray[np.uint8], *, input_size: tuple[int, int] = FULL_INPUT_SIZE) -> NDArray[np.float32]:
    """Turn a radiograph, full or crop, into the network's input.

    Args:
        pixels: (H, W) grey levels, bone bright.
        input_size: (h, w) that the network takes, `Manifest.input_size`.

    Returns:
        (3, h, w), about -2.1 to 2.7; add a leading axis for a batch.

    Raises:
        ValueError: Not a two-dimensional array of 8-bit grey levels, or an impossible size.
    """
    return to_tensor(remove_background(pixels), input_size=input_size)


def remove_background(
    pixels: NDArray[np.uint8], *, radius_px: int = BALL_RADIUS_PX, threads: int | None = None
) -> NDArray[np.uint8]:
    """Even out the exposure: subtract what a ball, rolled under the grey levels, can reach.

    Args:
        pixels: (H, W) grey levels, bone bright.
        radius_px: Of the ball; the networks know none but the published one.
        threads: How many share the work; None for one a core.

    Returns:
        (H, W) grey levels above the background.
    """
    _check_grey(pixels, name="pixels")
    return subtract_background(pixels, radius_px=radius_px, threads=threads)


def to_tensor(background_removed: NDArray[np.uint8], *, input_size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize, scale to [0, 1] and normalise: `shrink`, then `normalise`.

    Args:
        background_removed: (H, W) from `remove_background`.
        input_size: (h, w) that the network takes.

    Returns:
        (3, h, w).

    Raises:
        ValueError: As `prepare`.
    """
    return normalise(shrink(background_removed, input_size=input_size))


def shrink(background_removed: NDArray[np.uint8], *, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize as torchvision's ``Resize`` does to a picture of 8 bits.

    Args:
        background_removed: (H, W) from `remove_background`.
        input_size: (h, w) that the network takes.

    Returns:
        (h, w) grey levels, read-only.

    Raises:
        ValueError: As `prepare`.
    """
    _check_grey(background_removed, name="background_removed")
    height, width = input_size
    if height < 1 or width < 1:
        raise ValueError(f"input_size is {input_size}; height and width must be at least 1 pixel")
    # The predecessor repeats the grey level in three channels first. Pillow filters each channel alone, so resizing
    # one and repeating it afterwards gives the same bits for a third of the work.
    return np.asarray(Image.fromarray(background_removed).resize((width, height), Image.Resampling.BILINEAR))


def normalise(shrunk: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale to [0, 1] and normalise, with the arithmetic of torchvision's ``ToTensor`` and ``Normalize``.

    Args:
        shrunk: (h, w) from `shrink`.

    Returns:
        (3, h, w).

    Raises:
        ValueError: Not a two-dimensional array of 8-bit grey levels.
    """
    _check_grey(shrunk, name="shrunk")
    scaled = shrunk.astype(np.float32) / np.float32(255)  # (h, w)
    mean = np.array(CHANNEL_MEAN, np.float32)[:, None, None]
    std = np.array(CHANNEL_STD, np.float32)[:, None, None]
    # Two roundings, as in `sub_(mean).div_(std)`: folding them into one multiply-add would change the last bit.
    normalised: NDArray[np.float32] = (scaled - mean) / std  # (3, h, w)
    return normalised


def _check_grey(pixels: NDArray[np.uint8], *, name: str) -> None:
    """Refuse what is no two-dimensional array of 8-bit grey levels."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(
            f"{name} has shape {pixels.shape} and type {pixels.dtype}; it must be (height, width) of uint8, not empty"
        )
