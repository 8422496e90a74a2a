"""Square crops around annotated regions of radiographs, for networks that look at one place of the jaw."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.decoder import DecoderProcess
from panoramic.errors import ImageError
from panoramic.radiograph import refuse_file_size
from training.data.coco import FolderBy, Region, read_regions
from training.errors import DatasetError
from training.files import write_whole

#: Side of a crop of the mean radiograph, and that radiograph's (height, width), in pixels.
DEFAULT_SIDE_PX: Final = 600
MEAN_SIZE_PX: Final = (1210, 2925)

#: How far annotation tools let a box stand out of its picture by rounding.
_ROUNDING_PX = 1.0


def crop_side(height_px: int, width_px: int, *, side_px: int = DEFAULT_SIDE_PX) -> int:
    """Side of the crops of a radiograph, so that they show as much of the jaw whatever its resolution.

    It grows with the square root of the pixel count, ``side_px * sqrt(height * width / (1210 * 2925))`` rounded: 600 px
    at 1210 x 2925 px, the mean of 115 panoramic radiographs, and so about 6 cm at the detector on every machine.

    Args:
        height_px: Of the radiograph.
        width_px: Of the radiograph.
        side_px: Of a crop of the mean radiograph.
    """
    return round(side_px * math.sqrt(height_px * width_px / math.prod(MEAN_SIZE_PX)))


def crop(pixels: NDArray[np.uint8], box_px: tuple[float, float, float, float], *, side: int) -> NDArray[np.uint8]:
    """The square around the middle of a box, moved inside the picture where it would stand out.

    Args:
        pixels: (H, W) grey levels.
        box_px: (left, top, right, bottom).
        side: Of the square in pixels, at most H and at most W.
    """
    left, top, right, bottom = box_px
    height, width = pixels.shape
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    return pixels[y : y + side, x : x + side]


def cut_crops(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    side_px: int = DEFAULT_SIDE_PX,
    by: FolderBy = FolderBy.CATEGORY,
    on_done: Callable[[int], object] = lambda _: None,
) -> int:
    """Cut a square around every annotated region and write each as an 8-bit grey PNG without metadata.

    The crops are ``OUT/<folder>/<name of the radiograph>_<id of the annotation>.png``. `out` appears when the last of
    them is written, or not at all.

    Args:
        annotations: A file in COCO's format, with bounding boxes or polygons.
        images: The folder that its file names start from.
        out: A folder that is new or empty.
        side_px: Side of a crop of the mean radiograph; see `crop_side`.
        by: What the folders in `out` are named after.
        on_done: Called after each radiograph with how many there are.

    Returns:
        How many crops were written.

    Raises:
        DatasetError: Annotations that are not COCO's or do not fit the radiographs, a radiograph that cannot be used,
            or an output folder that is in use.
        ResourcesError: The disk is full.
        PanoramicError: The decoder does not start.
    """
    if side_px < 1:
        raise DatasetError(f"side_px is {side_px}, but must be at least 1")
    regions = read_regions(annotations, images, by=by)
    if not out.absolute().parent.is_dir():
        raise DatasetError(f"{out.parent} is not a folder: create it, or name a folder in another one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder: name a new folder, or empty this one")
    of_image: dict[str, list[Region]] = {}
    for region in regions:
        of_image.setdefault(region.image, []).append(region)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        for folder in {region.folder for region in regions}:
            (partial / folder).mkdir(parents=True)
        with DecoderProcess() as decoder:
            for image, here in of_image.items():
                pixels = _read(images / image, image, decoder)
                for region in here:
                    _write(partial / region.folder / region.file_name, pixels, region, side_px)
                on_done(len(of_image))
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(regions)


def _read(path: Path, name: str, decoder: DecoderProcess) -> NDArray[np.uint8]:
    try:
        refuse_file_size(path.stat().st_size, decoder.limits)
        return decoder.read(path.read_bytes()).pixels
    except ImageError as fault:
        raise DatasetError(f"{name}: {fault}") from fault
    except OSError as fault:
        raise DatasetError(f"{name} cannot be read: {fault.strerror}") from fault


def _write(path: Path, pixels: NDArray[np.uint8], region: Region, side_px: int) -> None:
    height, width = pixels.shape
    if region.size_px and region.size_px != (height, width):
        raise DatasetError(
            f"{region.image} has {height} x {width} px, but was annotated at {region.size_px[0]} x "
            f"{region.size_px[1]}: annotate the picture that is to be cut"
        )
    left, top, right, bottom = region.box_px
    if min(left, top) < -_ROUNDING_PX or right > width + _ROUNDING_PX or bottom > height + _ROUNDING_PX:
        raise DatasetError(
            f"annotation {region.annotation} spans x {left:g} to {right:g} and y {top:g} to {bottom:g}, outside of "
            f"{region.image} with its {height} x {width} px: correct it"
        )
    side = crop_side(height, width, side_px=side_px)
    if not 1 <= side <= min(height, width):
        raise DatasetError(
            f"side_px is {side_px}, which makes crops of {side} px of {region.image} with its {height} x {width} px: "
            "name another side"
        )
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(crop(pixels, region.box_px, side=side)))
    if not encoded:
        raise DatasetError(f"the crop of annotation {region.annotation} could not be encoded as PNG")
    write_whole(path, data.tobytes())
