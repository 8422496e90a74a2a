"""Heat maps of a class folder: what is drawn, what is written, and what is said about the cortex."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy.ndimage import distance_transform_edt
from typer.testing import CliRunner

from bench.untrained import untrained_network
from panoramic.classification import Classification
from panoramic.manifest import RESEARCH_USE, ModelDescription
from panoramic.model_file import Model, load_model, save_model
from panoramic.network import build
from panoramic.overlay import Colormap
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier
from panoramic.view import View
from training.errors import DatasetError, ResourcesError
from training.explain.cases import Case, Heatmaps
from training.explain.cli import MapColours, register
from training.explain.cortex_share import cortex_shares, region_share, widen
from training.explain.heatmaps import draw_heatmaps
from training.explain.maps import explain_picture
from training.explain.new_folder import new_folder
from training.explain.pick import RandomPictures
from training.explain.sheet import sheet_png
from training.phantoms.phantom import cortex_mask, draw_truth
from training.phantoms.phantom_set import read_set, write_set

SMALL = (121, 292)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return untrained_network().state_dict()


def model_of(
    weights: dict[str, torch.Tensor], path: Path, *, view: View = View.FULL, size: tuple[int, int] = (96, 224)
) -> Model:
    described = ModelDescription(
        name="tried", version="3", network="efficientnet-b0", view=view, input_size=size, notices=("model_not_trained",)
    )
    save_model(path, described, state_dict=weights)
    return load_model(path)


@pytest.fixture(scope="module")
def model_file(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tried.safetensors"
    model_of(weights, path)
    return path


@pytest.fixture(scope="module")
def runtime(model_file: Path) -> Classifier:
    return Classifier(load_model(model_file))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("phantoms") / "set", 12, 1, size_px=SMALL, processes=1).parent


@pytest.fixture
def class_folder(phantoms: Path, tmp_path: Path) -> Path:
    """Four phantoms under a person's name each, with no truth beside them."""
    folder = tmp_path / "data" / "C3"
    folder.mkdir(parents=True)
    for index, path in enumerate(sorted((phantoms / "C3").iterdir())):
        shutil.copy(path, folder / f"Maria-Silva-{index}.png")
    return folder


def run(*arguments: str | Path) -> tuple[int, str, str]:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "files.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_command_writes_what_the_network_says(model_file: Path, phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, stdout, stderr = run("heatmaps", model_file, phantoms / "C1", "--n", "3", "--out", out)

    assert (code, stdout.strip()) == (0, str(out / "heatmaps.html"))
    assert "3 of 3 pictures shown" in stderr
    numbers = json.loads((out / "heatmaps.json").read_text())
    assert numbers["notice"] == RESEARCH_USE
    assert len(numbers["cases"]) == 3
    rows = rows_of(out)
    classifier = Classifier(load_model(model_file))
    for case, row in zip(numbers["cases"], rows, strict=True):
        pixels = cv2.imread(str(phantoms / "C1" / row["name"]), cv2.IMREAD_GRAYSCALE)
        (answer,) = classifier.classify(prepare(pixels, input_size=(96, 224))[None])
        assert case["digest"] == row["digest"]
        assert case["probability"] == answer.probability
        assert case["diagnosis"] == answer.diagnosis
        stem = out / "pictures" / row["digest"]
        np.testing.assert_array_equal(cv2.imread(f"{stem}_original.png", cv2.IMREAD_UNCHANGED), pixels)
        with Image.open(f"{stem}_map.png") as coloured, Image.open(f"{stem}_overlay.png") as overlay:
            assert coloured.size == (292, 121)
            assert overlay.width == 292
            assert overlay.height > 121, "the caption is below"
    diagnosed = [case["diagnosis"] for case in numbers["cases"]]
    assert {label: count for label, count in numbers["diagnoses"].items() if count} == {
        label: diagnosed.count(label) for label in diagnosed
    }
    with Image.open(out / "heatmaps.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 292, "three pictures side by side"


class _Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]


def test_page_stands_alone_and_shows_every_case(runtime: Classifier, class_folder: Path, tmp_path: Path) -> None:
    page, drawn = draw_heatmaps(runtime, class_folder, out=tmp_path / "out", n=20)
    text = page.read_text()
    parser = _Sources()
    parser.feed(text)

    assert len(drawn.cases) == 4, "the folder has no more"
    assert len(parser.found) == 12
    assert all(source.startswith("data:image/jpeg;base64,") for source in parser.found)
    assert not re.search(r"@import|url\(|<script", text)
    assert RESEARCH_USE in text
    assert "MODEL NOT TRAINED" in text
    for case in drawn.cases:
        assert case.digest in text
        assert f"{case.classification.probability:.3f}" in text
    assert "cortex" not in text, "nothing is known of it"


def test_only_the_owners_table_has_file_names(runtime: Classifier, class_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw_heatmaps(runtime, class_folder, out=out)

    assert {row["name"] for row in rows_of(out)} == {path.name for path in class_folder.iterdir()}
    for path in out.rglob("*"):
        assert "Silva" not in path.name
        if path.is_file() and path.name != "files.csv":
            assert b"Silva" not in path.read_bytes()


def test_the_seed_draws_the_pictures(phantoms: Path) -> None:
    def drawn(seed: int) -> list[str]:
        return [picked.path.name for picked in RandomPictures(phantoms / "C2", n=2, seed=seed, view=View.FULL)]

    assert drawn(5) == drawn(5)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1


def test_unusable_pictures_are_counted_and_replaced(runtime: Classifier, class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "a.png").write_bytes(b"not a picture")
    (class_folder / "b.jpg").write_bytes(b"")
    (class_folder / ".hidden.png").write_bytes(b"")
    shutil.copy(class_folder / "Maria-Silva-0.png", class_folder / "copy.png")
    page, drawn = draw_heatmaps(runtime, class_folder, out=tmp_path / "out", n=5)

    assert len(drawn.cases) == 4
    assert sum(drawn.skipped.values()) == 3
    unusable = {row["name"]: row["skipped_because"] for row in rows_of(tmp_path / "out") if row["skipped_because"]}
    assert {"a.png", "b.jpg"} < set(unusable)
    assert "empty" in unusable["b.jpg"]
    (twin,) = set(unusable) - {"a.png", "b.jpg"}
    assert twin in {"copy.png", "Maria-Silva-0.png"}
    assert "pixels are those of another picture" in unusable[twin]
    assert "1 skipped: The file is empty" in page.read_text()


@pytest.mark.parametrize(
    ("prepare_folder", "message"),
    [
        (lambda _: None, "cannot be listed: No such file"),
        (lambda folder: folder.mkdir(), "holds no pictures; name a folder that does"),
        (lambda folder: (folder / "C1").mkdir(parents=True), "holds no pictures; name one of its sub-folders: C1"),
        (
            lambda folder: (folder.mkdir(), (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")),
            "not one of the 1 files in .* is a readable radiograph .view full.",
        ),
    ],
)
def test_a_folder_without_pictures_is_told(
    model_file: Path, tmp_path: Path, prepare_folder: object, message: str
) -> None:
    prepare_folder(tmp_path / "class")
    code, stdout, stderr = run("heatmaps", model_file, tmp_path / "class", "--out", tmp_path / "out")

    assert (code, stdout) == (2, "")
    assert re.search(message, stderr)
    assert [path.name for path in tmp_path.iterdir() if path.name != "class"] == []


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (1, -1)])
def test_numbers_out_of_range(phantoms: Path, n: int, seed: int) -> None:
    with pytest.raises(DatasetError, match=f"n is {n} and the seed is {seed}"):
        RandomPictures(phantoms / "C1", n=n, seed=seed, view=View.FULL)


def test_nothing_is_overwritten(runtime: Classifier, class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ResourcesError, match="exists and is not an empty folder"):
        draw_heatmaps(runtime, class_folder, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def half_written() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt("stopped")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        half_written()
    assert list(tmp_path.iterdir()) == []


def test_crops_by_a_crop_model(weights: dict[str, torch.Tensor], tmp_path: Path, phantoms: Path) -> None:
    model = model_of(weights, tmp_path / "crop.safetensors", view=View.CROP, size=(96, 96))
    folder = tmp_path / "<b>C1"
    folder.mkdir()
    picture = cv2.imread(str(next((phantoms / "C1").iterdir())), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "a.png"), picture[:, :121])
    cv2.imwrite(str(folder / "whole.png"), picture)
    page, drawn = draw_heatmaps(Classifier(model), folder, out=tmp_path / "out")

    assert [case.size_px for case in drawn.cases] == [(121, 121)]
    assert sum(drawn.skipped.values()) == 1, "a whole radiograph is no crop"
    assert "square crops" in page.read_text()
    assert "<b>C1" not in page.read_text()
    assert "&lt;b&gt;C1" in page.read_text()


def test_a_predecessors_file_does_not_say_what_its_pictures_show_but_the_caller_can(
    phantoms: Path, tmp_path: Path
) -> None:
    torch.save(build("efficientnet-b0", outputs=2).state_dict(), tmp_path / "old.pth")
    picture = cv2.imread(str(next((phantoms / "C1").iterdir())), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "crops").mkdir()
    cv2.imwrite(str(tmp_path / "crops" / "a.png"), picture[:, :121])
    code, _, told = run(
        "heatmaps", tmp_path / "old.pth", tmp_path / "crops", "--view", "crop", "--n", "1", "--out", tmp_path / "out"
    )
    assert code == 0, told
    assert "1 of 1 pictures shown" in told


def test_shares_of_a_region() -> None:
    strength = np.zeros((4, 10), np.uint8)
    strength[0, :3] = (10, 20, 30)
    region = np.zeros((4, 10), bool)
    region[0, 1:5] = True

    share = region_share(strength, region)

    assert (share.mass, share.area) == (pytest.approx(50 / 60), 0.1)
    assert share.ratio == pytest.approx(50 / 6)
    with pytest.raises(ValueError, match="neither may be empty"):
        region_share(np.zeros_like(strength), region)
    with pytest.raises(ValueError, match="neither may be empty"):
        region_share(strength, np.zeros_like(region))


@pytest.mark.parametrize("radius_px", [0.0, 1.0, 4.5, 13.0])
def test_widening_is_by_euclidean_distance(radius_px: float) -> None:
    region = np.random.default_rng(3).random((60, 90)) > 0.995
    np.testing.assert_array_equal(widen(region, radius_px=radius_px), distance_transform_edt(~region) <= radius_px)


def test_cortex_shares_of_maps_that_look_there_and_nowhere() -> None:
    truth = draw_truth(4, "C1", size_px=SMALL)
    cortex = cortex_mask(truth)
    even = cortex_shares(np.full(SMALL, 7, np.uint8), truth)
    there = cortex_shares(np.where(cortex, 200, 0).astype(np.uint8), truth)

    assert even.cortex.ratio == pytest.approx(1)
    assert even.near.ratio == pytest.approx(1)
    assert there.cortex.mass == there.near.mass == 1
    assert there.cortex.area == cortex.mean()
    # 5 mm on either side of a cortex of 3 to 4 mm
    assert 2 < there.near.area / there.cortex.area < 8


def test_phantoms_are_compared_with_their_truth(runtime: Classifier, phantoms: Path, tmp_path: Path) -> None:
    page, drawn = draw_heatmaps(runtime, phantoms / "C3", out=tmp_path / "out", n=2)
    numbers = json.loads((tmp_path / "out" / "heatmaps.json").read_text())
    truths = {path.name: truth for path, truth in read_set(phantoms).items()}

    assert numbers["cortex"]["pictures"] == 2
    assert numbers["cortex"]["margin_mm"] == 5
    inside = []
    for row, case in zip(rows_of(tmp_path / "out"), numbers["cases"], strict=True):
        pixels = cv2.imread(str(phantoms / "C3" / row["name"]), cv2.IMREAD_GRAYSCALE)
        strength = explain_picture(runtime, pixels).strength.astype(float)
        cortex = cortex_mask(truths[row["name"]])
        assert case["cortex"]["inside"]["mass"] == pytest.approx((strength * cortex).sum() / strength.sum())
        assert case["cortex"]["inside_or_within_margin"]["mass"] > case["cortex"]["inside"]["mass"]
        inside.append(case["cortex"]["inside"]["ratio"])
    assert numbers["cortex"]["inside"]["mean_ratio"] == pytest.approx(np.mean(inside))
    assert "Does it look at the cortex?" in page.read_text()
    assert drawn.cases[0].cortex is not None


def test_a_truth_of_something_else_is_not_used(runtime: Classifier, class_folder: Path, tmp_path: Path) -> None:
    (class_folder.parent / "truth.csv").write_text("path,patient_id\nC3/Maria-Silva-0.png,7\n")
    _, drawn = draw_heatmaps(runtime, class_folder, out=tmp_path / "out", n=1)
    assert drawn.cortex() == []


def test_a_picture_that_is_not_its_truths_is_told(runtime: Classifier, phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "set")
    for path in (tmp_path / "set" / "C1").iterdir():
        cv2.imwrite(str(path), np.pad(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 2))
    with pytest.raises(DatasetError, match=r"has 125x296 px .* says 121x292: it is not the phantom"):
        draw_heatmaps(runtime, tmp_path / "set" / "C1", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "size"), [(1, (121, 292)), (20, (264, 640)), (150, (264, 640)), (90, (330, 330))])
def test_a_sheet_stays_below_20_megapixels(runtime: Classifier, count: int, size: tuple[int, int]) -> None:
    answer = Classification(
        probability=0.25,
        probabilities={"C1": 0.75, "C3": 0.25},
        class_index=0,
        class_name="C1",
        diagnosis="Healthy Patient",
        cam=np.ones((3, 7), np.float32),
        layer="layer",
        method="Grad-CAM",
    )
    grey = np.full((*size, 3), 90, np.uint8)
    case = Case("0" * 32, size, (), answer, None, grey, grey, grey)
    drawn = Heatmaps(runtime.model.manifest, "C1", count, 0, Colormap.HOT, (case,) * count, {})
    with Image.open(io.BytesIO(sheet_png(drawn))) as sheet:
        assert sheet.width * sheet.height <= 20_000_000
        # Every case is there: three pictures of grey 90 each, and white paper between them.
        share = (np.asarray(sheet.convert("L")) == 90).mean()
        assert 0.3 < share < 0.95


def test_an_empty_map_is_said_and_not_compared(
    weights: dict[str, torch.Tensor], phantoms: Path, tmp_path: Path
) -> None:
    blind = weights | {"_fc.weight": torch.zeros_like(weights["_fc.weight"])}
    runtime = Classifier(model_of(blind, tmp_path / "m.safetensors"))
    page, drawn = draw_heatmaps(runtime, phantoms / "C1", out=tmp_path / "out", n=1)
    assert "explanation_empty" in drawn.cases[0].warnings
    assert drawn.cortex() == []
    assert "explanation empty" in page.read_text()


def test_command_offers_every_colormap() -> None:
    assert [colours.value for colours in MapColours] == [colormap.value for colormap in Colormap]
