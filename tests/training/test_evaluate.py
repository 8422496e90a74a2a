"""A saved model on a data set: the predictions, the refusals, the report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from panoramic.image import load_radiograph
from panoramic.manifest import HEALTHY_OR_OSTEOPOROSIS, ModelDescription
from panoramic.model_file import load_model, save_model
from panoramic.network import build
from panoramic.preprocess import prepare
from panoramic.radiograph import pixel_digest
from panoramic.runtime_torch import Classifier
from training.errors import DatasetError
from training.phantoms.phantom_set import write_set
from training.report.cli import parse_classes, register
from training.report.evaluate import find_for

INPUT = (64, 152)
N = 36


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sets") / "phantoms"
    write_set(folder, N, 5, size_px=(121, 292), second_picture_share=0.3, processes=1)
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = build("efficientnet-b0", outputs=2).train()
    # Batch norms that have seen nothing let so little through that every picture would get the same answer.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(8, 3, *INPUT))
    return net.state_dict()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def model_file(
    folder: Path, weights: dict[str, torch.Tensor], *, trained_on: tuple[str, ...], trained_on_is_whole: bool = True
) -> Path:
    path = folder / "model.safetensors"
    description = ModelDescription(
        name="tiny",
        version="1",
        network="efficientnet-b0",
        classes=HEALTHY_OR_OSTEOPOROSIS,
        input_size=INPUT,
        threshold=0.4,
        temperature=1.7,
        trained_on=trained_on,
        trained_on_is_whole=trained_on_is_whole,
        notices=("model_not_trained",),
    )
    save_model(path, description, state_dict=weights)
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    app = typer.Typer()
    register(app)

    @app.command()
    def other() -> None:
        """A second command, so that the first keeps its name."""

    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def pictures(data: Path) -> dict[str, Path]:
    return {f"{path.parent.name}/{path.name}": path for name in ("C1", "C3") for path in (data / name).iterdir()}


def test_command_writes_what_the_worker_would_have_answered(
    data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path
) -> None:
    path = model_file(tmp_path, weights, trained_on=("0" * 32,))
    out = tmp_path / "out"
    code, shown, told = run(
        path, data, "--out", out, "--cache", cache, "--patients", data / "truth.csv", "--resamples", "100"
    )
    assert (code, "Traceback" in told) == (0, False)
    assert shown.replace("\n", "") == str(out / "report.html")
    assert {entry.name for entry in out.iterdir()} == {"report.html", "report.json", "predictions.csv"}
    with (out / "predictions.csv").open(newline="") as lines:
        rows = {row["name"]: row for row in csv.DictReader(lines)}
    assert set(rows) == set(pictures(data))
    runtime = Classifier(load_model(path))
    for name, file in pictures(data).items():
        pixels = load_radiograph(file).pixels
        (answer,) = runtime.classify(prepare(pixels, input_size=INPUT)[None])
        assert float(rows[name]["probability_C3"]) == pytest.approx(answer.probability, abs=1e-6)
        assert rows[name]["prediction"] == answer.class_name
        assert rows[name]["digest"] == pixel_digest(pixels)
    assert np.ptp([float(row["probability_C3"]) for row in rows.values()]) > 0.02
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["thresholds"]["by_fold"] == {"0": 0.4}
    assert numbers["facts"]["Data"]["Data set"] == "phantoms"
    assert numbers["facts"]["Data"]["Folders left out"] == "C2 (12 files)"
    assert numbers["facts"]["Model"]["Trained on"] == "1 pictures, none of them here with identical pixels"
    assert numbers["notes"][1] == "The model says of itself: model not trained."
    synthetic = f"All {len(rows)} pictures are synthetic radiographs (phantoms), drawn by a program"
    assert numbers["notes"][0].startswith(f"{synthetic}. ")
    assert numbers["facts"]["Data"]["Synthetic pictures"] == synthetic
    assert (numbers["phantoms"], numbers["patients_known"]) == (len(rows), True)
    assert "<h1>tiny 1 on phantoms, synthetic radiographs (phantoms)</h1>" in (out / "report.html").read_text()
    claim = {row["item"]: row for row in numbers["checklists"]["CLAIM 2024"]}
    assert claim["19"]["answer"].startswith("No picture with identical pixels had a part")
    assert "brightness" in numbers["shortcuts"]
    with (data / "truth.csv").open(newline="") as lines:
        whose = {row["path"]: row["patient_id"] for row in csv.DictReader(lines)}
    assert numbers["patients"] == len({whose[name] for name in rows}) < numbers["pictures"] == len(rows)
    assert (out / "report.html").read_text().count("<img ") == 24
    for file in pictures(data).values():
        assert file.stem not in (out / "report.html").read_text()


def test_pictures_of_the_training_are_refused_with_their_list(
    data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path
) -> None:
    seen = sorted(pictures(data).items())[3:5]
    digests = [pixel_digest(load_radiograph(file).pixels) for _, file in seen]
    path = model_file(tmp_path, weights, trained_on=(*digests, "f" * 32))
    out = tmp_path / "out"
    code, shown, told = run(path, data, "--out", out, "--cache", cache)
    assert (code, shown, out.exists()) == (2, "", False)
    assert f"2 of {len(pictures(data))} pictures had a part in the model's training" in told
    for digest, (name, _) in zip(digests, seen, strict=True):
        assert f"  {digest}  {name}" in told.splitlines()


def test_pictures_of_the_training_are_refused_before_the_others_are_prepared(
    data: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    digests = [pixel_digest(load_radiograph(file).pixels) for file in pictures(data).values()]
    path = model_file(tmp_path, weights, trained_on=tuple(digests))
    code, _, told = run(path, data, "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert code == 2
    assert f"{len(digests)} of {len(digests)} pictures had a part in the model's training" in told
    # A few were at work in other processes when the first was found.
    assert len(list((tmp_path / "cache").rglob("*.npy"))) < len(digests)


def test_missing_data_set_is_one_sentence(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = model_file(tmp_path, weights, trained_on=())
    code, shown, told = run(path, tmp_path / "nope", "--out", tmp_path / "out")
    assert (code, shown) == (2, "")
    sentence = f"training: data set {tmp_path / 'nope'} cannot be listed: No such file or directory; "
    assert told == f"{sentence}name a folder of class folders\n"


def test_model_that_hides_its_training_is_judged_with_a_warning(
    data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path
) -> None:
    path = model_file(tmp_path, weights, trained_on=())
    code, _, _ = run(path, data, "--out", tmp_path / "out", "--cache", cache, "--resamples", "100")
    assert code == 0
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("does not say what it was trained on" in note for note in numbers["notes"])
    assert numbers["facts"]["Data"]["Patients"] == "unknown; each picture was counted as one of its own"
    assert any(note.startswith("No patients were named") for note in numbers["notes"])
    claim = {row["item"]: row for row in numbers["checklists"]["CLAIM 2024"]}
    assert "cannot be checked: the model does not say what it was trained on" in claim["19"]["answer"]
    assert claim["19"]["lacks"] == "what the model was trained on; who is on which picture"


def test_model_whose_training_began_with_unknown_weights_is_judged_with_a_warning(
    data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path
) -> None:
    path = model_file(tmp_path, weights, trained_on=("0" * 32,), trained_on_is_whole=False)
    code, _, told = run(path, data, "--out", tmp_path / "out", "--cache", cache, "--resamples", "100")
    assert code == 0, told
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "does not say what the weights were trained on that its training began with" in " ".join(numbers["notes"])
    assert numbers["facts"]["Model"]["Trained on"].endswith("; on others before, which are not recorded")
    assert "No picture with identical pixels had a part" not in (tmp_path / "out" / "report.html").read_text()


def test_folder_that_holds_something_is_left_alone(
    data: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = model_file(tmp_path, weights, trained_on=())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, told = run(path, data, "--out", tmp_path / "out")
    assert code == 2
    assert "exists and is not an empty folder" in told
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_folders_may_have_other_names_and_be_taken_together(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    manifest = load_model(model_file(tmp_path, weights, trained_on=())).manifest
    for name in ("sick", "porous", "healthy"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"")
    found = find_for(manifest, tmp_path / "data", folders=parse_classes("C3=sick+porous, C1=healthy"))
    assert {picture.name: picture.class_index for picture in found.pictures} == {
        "healthy/1.png": 0,
        "porous/1.png": 1,
        "sick/1.png": 1,
    }
    assert found.finding_index == 1
    with pytest.raises(DatasetError, match=r"classes are C1, C3; say which folders they are.*--classes C1=FOLDER"):
        find_for(manifest, tmp_path / "data", folders={})
    with pytest.raises(DatasetError, match="folders are given for class 'C9', but the model's classes are C1, C3"):
        find_for(manifest, tmp_path / "data", folders={"C9": "sick"})


@pytest.mark.parametrize("text", ["C1", "C1=", "=a", "C1=a,C1=b"])
def test_classes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="it must give each class once, as CLASS=FOLDER"):
        parse_classes(text)


def test_copies_and_unjudged_shortcuts_are_told(
    data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    files = {name: sorted((data / name).iterdir())[:2] for name in ("C1", "C3")}
    for name, chosen in files.items():
        (small / name).mkdir(parents=True)
        for file in chosen:
            (small / name / file.name).write_bytes(file.read_bytes())
    copied = files["C1"][0]
    (small / "C3" / "copy.png").write_bytes(copied.read_bytes())
    path = model_file(tmp_path, weights, trained_on=())
    code, _, told = run(path, small, "--out", tmp_path / "out", "--cache", cache, "--resamples", "100")
    assert code == 0, told
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    notes = " ".join(numbers["notes"])
    # Five files, two of them the same picture; and without the truth beside them nobody can tell that it is drawn.
    assert (numbers["pictures"], numbers["patients"], numbers["phantoms"]) == (5, 4, 0)
    digest = pixel_digest(load_radiograph(copied).pixels)[:8]
    assert f"Pictures that are in the data set more than once: 1 ({digest}); in more than one class: 1." in notes
    assert "Shortcuts were not judged:" in notes


def test_damaged_model_is_one_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    code, shown, told = run(tmp_path / "model.safetensors", data, "--out", tmp_path / "out")
    assert (code, shown) == (2, "")
    assert told.startswith("training: ")
    assert "Traceback" not in told


def test_probabilities_add_up(data: Path, weights: dict[str, torch.Tensor], cache: Path, tmp_path: Path) -> None:
    path = model_file(tmp_path, weights, trained_on=())
    run(path, data, "--out", tmp_path / "out", "--cache", cache, "--resamples", "100", "--batch-size", "5")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    sums = [float(row["probability_C1"]) + float(row["probability_C3"]) for row in rows]
    assert np.allclose(sums, 1)
