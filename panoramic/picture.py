"""JPEG, PNG, TIFF and BMP files to 8-bit grey, as ``cv2.imread(path, cv2.IMREAD_GRAYSCALE)`` gives them.

Two libraries look at each file. Pillow reads the header, so that a bomb is refused before anything is decoded, and
then decodes strictly: it raises for a picture that is cut short, where OpenCV, depending on its version and on the
format, returns one whose lower part is grey. OpenCV's own decoding gives the pixels, since the networks were trained on
those, and costs another 10 to 25 ms for a radiograph of 2800×1270 px. Grey PNGs are decoded once, by OpenCV: libpng is
as strict as Pillow, and where rows are missing stricter.

Neither sees a baseline JPEG whose data end early in front of a proper end marker: libjpeg fills up with mid grey and
only prints a remark. Such a picture's last line is 128 throughout, which no radiograph's is, so it is refused too.
Damage that leaves a JPEG's later blocks decodable cannot be told from a picture: JPEG has no checksum.
"""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from panoramic.errors import ImageTooLargeError, ImageUnreadableError, NotARadiographError
from panoramic.grey import check_colour, to_eight_bits
from panoramic.radiograph import ImageWarning, Limits, Radiograph

#: The first bytes of a file, and Pillow's name of what they begin.
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
#: What libjpeg paints where data are missing.
JPEG_FILLING = 128
#: TIFF 6.0, section 8.
PHOTOMETRIC_TAG = 262
WHITE_IS_ZERO = 0
#: Longer side of the picture on which colours are looked at, px.
COLOUR_SAMPLE_PX = 512


def decode_picture(data: bytes, kind: str, *, limits: Limits) -> Radiograph:
    """Decode a picture file; whether it shows a radiograph is not looked at, its colours excepted.

    Args:
        data: The whole file.
        kind: One of the formats in `SIGNATURES`.
        limits: Only ``max_pixels`` counts here.

    Raises:
        ImageTooLargeError: Too many pixels by the header.
        ImageUnreadableError: Cut short, damaged as far as can be told, or samples of an unknown kind.
        NotARadiographError: Black and white without greys, or clearly a colour photograph.
        Exception: Whatever Pillow and OpenCV raise for damage; `panoramic.image` translates it.
    """
    with _open_checked(data, kind, limits) as image:
        several = _holds_several(image)
        if (kind, image.mode) != ("PNG", "L"):
            image.load()
        if image.mode == "1":
            raise NotARadiographError(
                "The picture holds black and white only (1 bit a pixel), and a radiograph has greys. "
                "Export it with 8 or 16 bits a pixel."
            )
        _refuse_filled_up(image, kind)
        warnings = (ImageWarning.FIRST_PAGE_ONLY,) * several + _look_at_colours(image)
        samples = _decode_samples(data, image)
        white_is_zero = (
            isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO
        )
    if samples.dtype == np.uint8:
        return Radiograph(np.ascontiguousarray(samples, np.uint8), warnings, kind, 8)
    if samples.dtype == np.uint16:
        warnings = (ImageWarning.BIT_DEPTH_REDUCED, *warnings)
        pixels = to_eight_bits(samples.astype(np.uint16, copy=False))
        # OpenCV turns the polarity of an 8-bit TIFF and not of a deeper one.
        return Radiograph(255 - pixels if white_is_zero else pixels, warnings, kind, 16)
    raise ImageUnreadableError(
        f"The samples of the picture are of type {samples.dtype}; unsigned integers of 8 or 16 bits are allowed. "
        "Export it with one of these depths."
    )


def refuse_too_many_pixels(width: int, height: int, limits: Limits) -> None:
    """Compare a header's size with the limit.

    Raises:
        ImageTooLargeError: More pixels than ``limits.max_pixels``.
    """
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"The picture has {width}x{height} px, that is {width * height / 1e6:.1f} million; "
            f"at most {limits.max_pixels / 1e6:.1f} million are allowed. Export it at its original size."
        )


def _open_checked(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """Read the header alone."""
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"The picture's header announces a size far above the {limits.max_pixels / 1e6:.1f} million pixels "
            "that are allowed. Export it at its original size."
        ) from None
    refuse_too_many_pixels(*image.size, limits)
    return image


def _holds_several(image: Image.Image) -> bool:
    # Pillow's n_frames walks through all pages of a TIFF, of which a hostile one may have millions.
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(image.tag_v2.next)
    return bool(getattr(image, "n_frames", 1) > 1)


def _refuse_filled_up(image: Image.Image, kind: str) -> None:
    if kind != "JPEG" or image.mode not in {"L", "RGB"}:
        return
    last_line = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))
    if (last_line == JPEG_FILLING).all():
        raise ImageUnreadableError(
            "The lower part of the JPEG picture is missing: its data end before its last line. Export or copy it again."
        )


def _look_at_colours(image: Image.Image) -> tuple[ImageWarning, ...]:
    warnings: tuple[ImageWarning, ...] = ()
    if not image.mode.startswith(("L", "I", "F")):
        scale = max(1, max(image.size) // COLOUR_SAMPLE_PX)
        sample = image.resize(
            (max(1, image.width // scale), max(1, image.height // scale)), Image.Resampling.NEAREST
        ).convert("RGB")
        warnings = check_colour(np.asarray(sample, np.uint8))
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            warnings = (*warnings, ImageWarning.TRANSPARENCY_IGNORED)
    return warnings


def _decode_samples(data: bytes, image: Image.Image) -> NDArray[np.generic]:
    """Return (H, W), upright by its EXIF orientation, in the depth that the file stores."""
    flags = cv2.IMREAD_GRAYSCALE if image.mode in {"L", "LA"} else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    samples: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if samples is None and image.mode.startswith("I;16") and image.format == "TIFF":
        # 12 bits packed without gaps, which OpenCV does not decode.
        samples = np.asarray(ImageOps.exif_transpose(image))
    if samples is None:
        raise ImageUnreadableError(
            f"The {image.format} picture is damaged, cut short, or of a variant that OpenCV does not decode. "
            "Export it again, as PNG or JPEG with 8 bits a pixel."
        )
    if samples.ndim != 2 or sorted(samples.shape) != sorted(image.size):
        raise ImageUnreadableError(
            "Two decoders disagree about the size of the picture, so that its file is damaged. Export it again."
        )
    return samples
