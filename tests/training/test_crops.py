"""Square crops around annotated regions, and annotations that do not fit."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from training.data.cli import register
from training.data.coco import FolderBy, read_regions
from training.data.crops import crop, crop_side, cut_crops
from training.errors import DatasetError

#: Side that makes crops of 50 px of the pictures below.
SIDE_PX = 369

Document = dict[str, Any]


def field(seed: int) -> NDArray[np.uint8]:
    """Smooth structure that the reader takes for a radiograph."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(90, 150, (16, 34)), (406, 160), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 1, (160, 406)), 0, 255).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, seed in (("C1/17.png", 1), ("C3/17.png", 2)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), field(seed))
    return tmp_path / "images"


def document() -> Document:
    return {
        "info": {"description": "anything"},
        "images": [
            {"id": 1, "file_name": "C1/17.png", "width": 406, "height": 160},
            {"id": 2, "file_name": "C3\\17.png"},
            {"id": 3, "file_name": "never annotated.png"},
        ],
        "categories": [{"id": 7, "name": "below the foramen"}, {"id": 8, "name": "other side"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [100, 60, 20, 30], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 8, "bbox": [390, 150, 16, 10]},
            {"id": 3, "image_id": 2, "category_id": 7, "segmentation": [[0, 0, 9, 0, 9, 7], [3, 3, 5, 9, 3, 9]]},
        ],
    }


def written(tmp_path: Path, change: Callable[[Document], object] = lambda _: None) -> Path:
    changed = copy.deepcopy(document())
    change(changed)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(changed))
    return path


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["crops", *map(str, arguments)])


@pytest.mark.parametrize(
    ("size_px", "side"), [((1210, 2925), 600), ((2420, 5850), 1200), ((1270, 2800), 601), ((605, 1462), 300)]
)
def test_the_side_grows_with_the_root_of_the_pixel_count(size_px: tuple[int, int], side: int) -> None:
    assert crop_side(*size_px) == side


@pytest.mark.parametrize(
    ("box_px", "corner"),
    [
        ((40, 30, 60, 50), (35, 45)),
        ((0, 0, 4, 4), (0, 0)),
        ((98, 70, 100, 80), (70, 90)),
        ((0, 0, 100, 80), (35, 45)),
    ],
    ids=["in the middle", "upper left", "lower right", "larger than the crop"],
)
def test_a_crop_stays_inside(box_px: tuple[float, float, float, float], corner: tuple[int, int]) -> None:
    # Each pixel is its own position.
    pixels = np.arange(80 * 100).reshape(80, 100)
    cut = crop(pixels, box_px, side=10)
    assert cut.shape == (10, 10)
    assert divmod(int(cut[0, 0]), 100) == corner
    assert divmod(int(cut[-1, -1]), 100) == (corner[0] + 9, corner[1] + 9)


def test_crops_are_parts_of_the_radiographs_by_category(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "crops"
    assert cut_crops(written(tmp_path), images, out, side_px=SIDE_PX) == 3
    first, second = (cv2.imread(str(images / name), cv2.IMREAD_GRAYSCALE) for name in ("C1/17.png", "C3/17.png"))
    expected = {
        "below the foramen/17_1.png": first[50:100, 85:135],
        "other side/17_2.png": first[110:160, 356:406],
        "below the foramen/17_3.png": second[:50, :50],
    }
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == expected.keys()
    for name, pixels in expected.items():
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), pixels)


def test_crops_hold_grey_levels_and_nothing_else(tmp_path: Path, images: Path) -> None:
    with Image.open(images / "C1/17.png") as image:
        image.save(images / "C1/17.jpg", dpi=(300, 300), comment=b"Doe^Jane", quality=95)
    path = written(tmp_path, lambda d: d["images"][0].update(file_name="C1/17.jpg"))
    cut_crops(path, images, tmp_path / "crops", side_px=SIDE_PX)
    for file in (tmp_path / "crops").rglob("*.png"):
        with Image.open(file) as image:
            assert (image.mode, image.info, dict(image.getexif())) == ("L", {}, {})
        assert b"Doe" not in file.read_bytes()


def test_crops_by_the_folder_of_the_radiograph(tmp_path: Path, images: Path) -> None:
    answer = run(written(tmp_path), images, tmp_path / "crops", "--by", "folder", "--side-px", SIDE_PX)
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.replace("\n", "") == str(tmp_path / "crops")
    names = {path.relative_to(tmp_path / "crops").as_posix() for path in (tmp_path / "crops").rglob("*.png")}
    assert names == {"C1/17_1.png", "C1/17_2.png", "C3/17_3.png"}


def test_annotations_without_ids_are_numbered(tmp_path: Path, images: Path) -> None:
    path = written(tmp_path, lambda d: [annotation.pop("id") for annotation in d["annotations"]])
    assert [region.file_name for region in read_regions(path, images)] == ["17_0.png", "17_1.png", "17_2.png"]


def test_links_inside_the_folder_may_lead_anywhere(tmp_path: Path, images: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    (images / "C1/17.png").rename(elsewhere)
    (images / "C1/17.png").symlink_to(elsewhere)
    assert cut_crops(written(tmp_path), images, tmp_path / "crops", side_px=SIDE_PX) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["images"][0].update(file_name="C1/18.png"), "is on C1/18.png, which .*images does not hold"),
        (lambda d: d["images"][0].update(file_name="../annotations.json"), "leads out of the folder of images"),
        (lambda d: d["images"][0].update(file_name="/etc/passwd"), "leads out of the folder of images"),
        (lambda d: d["images"][0].update(file_name="..\\annotations.json"), "leads out of the folder of images"),
        (lambda d: d["images"][0].update(file_name="C1\n/17.png"), "or is no path"),
        (lambda d: d["images"][0].update(file_name=""), "not in COCO's format: images 0 file_name"),
        (lambda d: d["images"][0].update(width=2925), "has 160 x 406 px, but was annotated at 160 x 2925"),
        (lambda d: d["images"][1].update(id=1), "lists two images with the same id"),
        (lambda d: d["images"].pop(0), "annotation 1 of .* is on image 1, which the file does not list"),
        (lambda d: d["categories"].pop(), "annotation 2 of .* is of category 8, which the file does not list"),
        (lambda d: d["categories"][1].update(name="../C1"), "'../C1', which cannot name a folder"),
        (lambda d: d["categories"][1].update(name=".."), "'..', which cannot name a folder"),
        (lambda d: d["categories"][1].update(name="a\\b"), "which cannot name a folder"),
        (lambda d: d["annotations"][1].update(id=1), "annotation 1 of .* is there twice"),
        (lambda d: d["annotations"][2].update(bbox=[0, 0, 407.5, 10]), "annotation 3 spans x 0 to 407.5 .* outside of"),
        (lambda d: d["annotations"][2].update(bbox=[-5, 0, 10, 10]), "spans x -5 to 5 .* outside of C3/17.png"),
        (lambda d: d["annotations"][2].update(bbox=[5, 155, 10, 10]), "y 155 to 165, outside of C3/17.png"),
        (lambda d: d["annotations"][2].update(bbox=[5, 5, 0, 10]), "is 0 x 10 px; width and height must be positive"),
        (lambda d: d["annotations"][2].update(bbox=[5, 5, 10]), "has 3 numbers, but needs 4"),
        (lambda d: d["annotations"][2].update(bbox=[5, 5, 10, float("nan")]), "bbox 3: Input should be a finite"),
        (lambda d: d["annotations"][2].update(segmentation={"counts": "x"}), "run-length mask without a bbox"),
        (lambda d: d["annotations"][2].update(segmentation=[]), "neither a bbox nor a polygon"),
        (lambda d: d["annotations"].clear(), "holds no annotation"),
        (lambda d: d.pop("categories"), "not in COCO's format: categories: Field required"),
    ],
)
def test_annotations_that_do_not_fit_leave_nothing_behind(
    change: Callable[[Document], object], sentence: str, tmp_path: Path, images: Path
) -> None:
    path = written(tmp_path, change)
    with pytest.raises(DatasetError, match=sentence):
        cut_crops(path, images, tmp_path / "crops", side_px=SIDE_PX)
    assert {entry.name for entry in tmp_path.iterdir()} == {"annotations.json", "images"}


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "[" * 100_000, '{"images": "\ud800"}'])
def test_what_is_no_coco_file(text: str, tmp_path: Path, images: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DatasetError, match="not in COCO's format"):
        cut_crops(path, images, tmp_path / "crops")


def test_an_unreadable_radiograph_leaves_nothing_behind(tmp_path: Path, images: Path) -> None:
    whole = (images / "C3/17.png").read_bytes()
    (images / "C3/17.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="C3/17.png: The PNG picture is damaged, cut short"):
        cut_crops(written(tmp_path), images, tmp_path / "crops", side_px=SIDE_PX)
    assert {entry.name for entry in tmp_path.iterdir()} == {"annotations.json", "images"}


def test_radiographs_in_no_folder_cannot_name_their_crops(tmp_path: Path, images: Path) -> None:
    (images / "C1/17.png").rename(images / "17.png")
    path = written(tmp_path, lambda d: d["images"][0].update(file_name="17.png"))
    with pytest.raises(DatasetError, match=r"is on 17.png, which is in no folder"):
        read_regions(path, images, by=FolderBy.FOLDER)


@pytest.mark.parametrize("side_px", [1, 0, 5000])
def test_sides_that_no_crop_can_have(side_px: int, tmp_path: Path, images: Path) -> None:
    with pytest.raises(DatasetError, match=f"side_px is {side_px}, "):
        cut_crops(written(tmp_path), images, tmp_path / "crops", side_px=side_px)
    assert not (tmp_path / "crops").exists()


def test_an_output_folder_in_use_is_left_alone(tmp_path: Path, images: Path) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/mine.txt").write_text("keep")
    answer = run(written(tmp_path), images, tmp_path / "crops")
    assert answer.exit_code == 2
    assert "exists and is not an empty folder" in answer.stderr
    assert [entry.name for entry in (tmp_path / "crops").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("none.json", "images", "crops"), "annotations none.json cannot be read: No such file"),
        (("annotations.json", "none", "crops"), "none is not a folder"),
        (("annotations.json", "images", "none/crops"), "none is not a folder: create it"),
    ],
)
def test_paths_that_are_not_there(
    arguments: tuple[str, str, str], sentence: str, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert sentence in answer.stderr
