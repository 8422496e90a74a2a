"""Reads and validates a radiograph that a stranger sent: size, kind, picture, plausibility, in this order.

What a file is, is told from its content and never from its name. Sizes are compared with the limits before
anything is decoded. Every fault of the decoding libraries becomes an `ImageError` here, and only here. They also
log and warn with words from the file (Pillow writes every TIFF tag to its debug log), so they are silent meanwhile.
"""

import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2

from panoramic.dicom import decode_dicom, has_dicom_prefix, is_bare_dicom
from panoramic.errors import ImageError, ImageTooLargeError, ImageUnreadableError
from panoramic.picture import SIGNATURES, decode_picture
from panoramic.plausibility import check_plausible
from panoramic.radiograph import ImageWarning, Limits, Radiograph, refuse_file_size
from panoramic.view import View

__all__ = ["ImageWarning", "Limits", "Radiograph", "View", "load_radiograph", "read_radiograph"]

DECODER_LOGGERS = ("PIL", "pydicom", "pylibjpeg", "openjpeg", "jpeg_ls")
DEFAULT_LIMITS = Limits()


def read_radiograph(data: bytes, *, view: View = View.FULL, limits: Limits = DEFAULT_LIMITS) -> Radiograph:
    """Decode a file and check that it can be what the view says.

    8-bit pictures come out as ``cv2.imread(path, cv2.IMREAD_GRAYSCALE)`` gives them, EXIF orientation included; deeper
    ones by `panoramic.grey.to_eight_bits`; DICOM as `panoramic.dicom` says.

    Args:
        data: The whole file: JPEG, PNG, TIFF, BMP or DICOM.
        view: What the picture should show.
        limits: Largest and smallest sizes.

    Raises:
        ImageUnreadableError: Another format, damaged, or cut short.
        ImageTooLargeError: Too many bytes or pixels, or not enough memory to decode it.
        NotARadiographError: Decodable and no panoramic radiograph.
    """
    refuse_file_size(len(data), limits)
    try:
        with _silent_libraries():
            radiograph = _decode(data, limits)
    except ImageError:
        raise
    except (MemoryError, cv2.error) as exc:
        if isinstance(exc, cv2.error) and exc.code != cv2.Error.STS_NO_MEM:
            raise _damaged(exc) from None
        raise ImageTooLargeError(
            "The memory allowed for decoding does not suffice for this picture. Export it at its original size."
        ) from None
    except Exception as exc:  # noqa: BLE001 - Pillow and pydicom raise some twenty kinds, struct.error and AttributeError among them
        raise _damaged(exc) from None
    found = (*radiograph.warnings, *check_plausible(radiograph.pixels, view, limits=limits))
    return replace(radiograph, warnings=tuple(code for code in ImageWarning if code in found))


def load_radiograph(path: Path, *, view: View = View.FULL, limits: Limits = DEFAULT_LIMITS) -> Radiograph:
    """Read a file of one's own, in this process; for files of strangers see `panoramic.decoder`.

    Messages do not repeat the path: file names are patients' names.

    Raises:
        ImageUnreadableError: It cannot be opened or is not a regular file; and as `read_radiograph`.
        ImageTooLargeError: As `read_radiograph`.
        NotARadiographError: As `read_radiograph`.
    """
    try:
        # Opening a FIFO would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageUnreadableError("The path leads to something other than a regular file. Name a file.")
            refuse_file_size(status.st_size, limits)
            data = file.read(limits.max_file_bytes + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "its name holds a character that no path may hold"
        raise ImageUnreadableError(f"The file cannot be read: {reason}. Check the path and its permissions.") from None
    return read_radiograph(data, view=view, limits=limits)


def _decode(data: bytes, limits: Limits) -> Radiograph:
    if has_dicom_prefix(data):
        return decode_dicom(data, limits=limits)
    for signature, kind in SIGNATURES:
        if data.startswith(signature):
            return decode_picture(data, kind, limits=limits)
    if is_bare_dicom(data):
        return decode_dicom(data, limits=limits)
    found = (
        "The file is empty" if not data else "The content of the file is of an unknown kind (its name does not count)"
    )
    raise ImageUnreadableError(
        f"{found}; JPEG, PNG, TIFF, BMP and DICOM are allowed. Export the radiograph as one of them."
    )


def _damaged(exc: Exception) -> ImageUnreadableError:
    return ImageUnreadableError(
        f"The file is damaged, cut short or of a variant that cannot be decoded ({type(exc).__name__}). "
        "Copy or export it again."
    )


@contextmanager
def _silent_libraries() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in DECODER_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
