"""Annotated regions of radiographs, read from a file in the format of COCO (Lin et al. 2014, arXiv:1405.0312)."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from training.errors import DatasetError


class FolderBy(StrEnum):
    """What the folder of a crop is named after."""

    CATEGORY = "category"
    """The annotation's category."""
    FOLDER = "folder"
    """The folder that holds the radiograph: ``C1`` of ``C1/17.png``."""


@dataclass(frozen=True)
class Region:
    """An annotated region.

    Attributes:
        annotation: Its id in the annotations; unique.
        image: Path of the radiograph inside the folder of images, with forward slashes.
        size_px: (height, width) of the radiograph as annotated, None where the annotations do not say.
        folder: Name of the folder that its crop belongs in.
        box_px: (left, top, right, bottom).
    """

    annotation: int
    image: str
    size_px: tuple[int, int] | None
    folder: str
    box_px: tuple[float, float, float, float]

    @property
    def file_name(self) -> str:
        """Of its crop: the radiograph's name and the annotation's id."""
        return f"{PurePosixPath(self.image).stem}_{self.annotation}.png"


def read_regions(annotations: Path, images: Path, *, by: FolderBy = FolderBy.CATEGORY) -> list[Region]:
    """Read annotations in COCO's format, and see that the radiographs that they speak of are there.

    Args:
        annotations: The JSON file.
        images: The folder that its file names start from.
        by: What the folders of the crops are named after.

    Raises:
        DatasetError: Not COCO's format, nothing annotated, an id that is missing or used twice, a name that leads out
            of a folder, a region without extent, or a missing file.
    """
    coco = _parse(annotations)
    if not coco.annotations:
        raise DatasetError(f"{annotations} holds no annotation: nothing to cut")
    if not images.is_dir():
        raise DatasetError(f"{images} is not a folder: name the one that holds the radiographs")
    image_of = {image.id: image for image in coco.images}
    if len(image_of) < len(coco.images):
        raise DatasetError(f"{annotations} lists two images with the same id: each needs one of its own")
    category_of = {category.id: category.name for category in coco.categories}
    regions: dict[int, Region] = {}
    for place, annotation in enumerate(coco.annotations):
        number = place if annotation.id is None else annotation.id
        who = f"annotation {number} of {annotations}"
        image = image_of.get(annotation.image_id)
        if image is None:
            raise DatasetError(f"{who} is on image {annotation.image_id}, which the file does not list")
        if annotation.category_id not in category_of:
            raise DatasetError(f"{who} is of category {annotation.category_id}, which the file does not list")
        if number in regions:
            raise DatasetError(f"{who} is there twice: each annotation needs an id of its own")
        regions[number] = Region(
            annotation=number,
            image=_inside(images, image.file_name, who),
            size_px=(image.height, image.width) if image.height and image.width else None,
            folder=_folder_name(category_of[annotation.category_id], image.file_name, by, who),
            box_px=_box(annotation, who),
        )
    return list(regions.values())


_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Image(BaseModel):
    id: int
    file_name: Annotated[str, Field(min_length=1)]
    width: int | None = None
    height: int | None = None


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    id: int | None = None
    image_id: int
    category_id: int
    bbox: list[_Number] = []
    segmentation: list[list[_Number]] | dict[str, Any] = []


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def _parse(annotations: Path) -> _Coco:
    try:
        return _Coco.model_validate_json(annotations.read_bytes())
    except OSError as exc:
        raise DatasetError(f"annotations {annotations} cannot be read: {exc.strerror}; name a COCO file") from exc
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = " ".join(map(str, first["loc"]))
        raise DatasetError(
            f"annotations {annotations} are not in COCO's format: {where + ': ' if where else ''}{first['msg']}. "
            "Export them as COCO JSON with images, annotations and categories"
        ) from exc


def _inside(images: Path, file_name: str, who: str) -> str:
    """The path inside the folder of images; links are the user's own and may lead where they like."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or not file_name.isprintable():
        raise DatasetError(
            f"{who} is on {file_name!r}, which leads out of the folder of images or is no path; write paths inside it"
        )
    if not (images / path).is_file():
        raise DatasetError(f"{who} is on {path}, which {images} does not hold: add the file, or name another folder")
    return str(path)


def _folder_name(category: str, file_name: str, by: FolderBy, who: str) -> str:
    path = PurePosixPath(file_name.replace("\\", "/"))
    name = category if by is FolderBy.CATEGORY else path.parent.name
    if not name:
        raise DatasetError(
            f"{who} is on {file_name}, which is in no folder, so that its crop cannot be named after one; put the "
            "radiographs into a folder a class, or name the crops after the category"
        )
    if name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 200:
        raise DatasetError(
            f"{who} is of {name!r}, which cannot name a folder: no slash, no dot in front, 200 bytes at most; rename it"
        )
    return name


def _box(annotation: _Annotation, who: str) -> tuple[float, float, float, float]:
    if len(annotation.bbox) == 4:
        left, top, width, height = annotation.bbox
        right, bottom = left + width, top + height
    elif annotation.bbox:
        raise DatasetError(
            f"the bbox of {who} has {len(annotation.bbox)} numbers, but needs 4: left, top, width, height"
        )
    elif isinstance(annotation.segmentation, dict):
        raise DatasetError(f"{who} is a run-length mask without a bbox: export bounding boxes too")
    else:
        xs = [x for polygon in annotation.segmentation for x in polygon[::2]]
        ys = [y for polygon in annotation.segmentation for y in polygon[1::2]]
        if not ys:
            raise DatasetError(f"{who} has neither a bbox nor a polygon")
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    if right <= left or bottom <= top:
        raise DatasetError(
            f"the region of {who} is {right - left:g} x {bottom - top:g} px; width and height must be positive"
        )
    return left, top, right, bottom
