"""A radiograph as the rest of the package takes it, its warnings, and the limits set on strangers' files."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import ImageTooLargeError


class ImageWarning(StrEnum):
    """What a person should know of a picture that is used all the same."""

    BIT_DEPTH_REDUCED = "bit_depth_reduced"
    """Stored with more than 8 bits and without a window: brought to 8 by its maximum's depth (8, 10, 12, 14, 16)."""
    SIGNED_RANGE = "signed_range"
    """A DICOM picture with negative values and without a window: black and white are its own extremes."""
    COLOUR = "colour"
    """Some pixels are coloured (a tint, a mark); only the luminance is used."""
    TRANSPARENCY_IGNORED = "transparency_ignored"
    """Not every pixel is opaque; the transparency is dropped and the colour below it used."""
    FIRST_PAGE_ONLY = "first_page_only"
    """The file holds several pictures; the first is used."""
    NO_PREAMBLE = "no_preamble"
    """DICOM without its 128-byte preamble; the encoding was told from the data."""
    FOR_PROCESSING = "for_processing"
    """DICOM marked For Processing: the grey values are those of the detector, not those meant to be looked at."""
    OTHER_BODY_PART = "other_body_part"
    """DICOM whose Body Part Examined is neither the head nor a part of it."""
    LOW_RESOLUTION = "low_resolution"
    """Smaller than what the network takes in, so that it is enlarged and the cortex shows less than it should."""
    UNUSUAL_SHAPE = "unusual_shape"
    """Proportions at the border of what such pictures have."""
    ROUGH = "rough"
    """Neighbouring pixels differ more than X-ray blur lets them: text, a photographed screen, strong noise."""
    POLARITY_INVERTED = "polarity_inverted"
    """The air beside the jaw is bright: bone is probably dark. Invert the picture."""
    UPSIDE_DOWN = "upside_down"
    """The dark corners of the picture are the upper ones: the chin probably points up. Turn the picture."""


@dataclass(frozen=True)
class Limits:
    """Which files are taken.

    The smallest sizes refuse only what cannot show a mandibular cortex at all: a panoramic radiograph a tenth as wide
    as usual, in which the cortex is four pixels thick. Above them, `ImageWarning.LOW_RESOLUTION` says what is small.
    """

    max_file_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 60_000_000
    min_full_width_px: int = 256
    min_full_height_px: int = 100
    min_crop_side_px: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"Limits.{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Radiograph:
    """A picture that may be classified.

    Attributes:
        pixels: (H, W) grey values, 0 black to 255 white, bone bright; C-contiguous.
        warnings: Codes of `ImageWarning`, in the order of the enumeration.
        format: "JPEG", "PNG", "TIFF", "BMP" or "DICOM".
        bit_depth: Bits a sample in the file: 8 or 16 for pictures, Bits Stored for DICOM.
    """

    pixels: NDArray[np.uint8]
    warnings: tuple[str, ...]
    format: str
    bit_depth: int


def pixel_digest(pixels: NDArray[np.uint8]) -> str:
    """What identifies a picture whatever file holds it: 128 bits of SHA-256 over its size and its grey levels, in hex.

    Args:
        pixels: (H, W) grey levels.
    """
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}\0".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:32]


def refuse_file_size(size_bytes: int, limits: Limits) -> None:
    """Compare a file's size with the limit, before anything looks into it.

    Raises:
        ImageTooLargeError: More bytes than ``limits.max_file_bytes``.
    """
    if size_bytes > limits.max_file_bytes:
        raise ImageTooLargeError(
            f"The file has {size_bytes} bytes; at most {limits.max_file_bytes} are allowed. "
            "Export the radiograph alone."
        )
