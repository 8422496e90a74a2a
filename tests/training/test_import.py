"""Model files of a predecessor's checkpoints: the same answers, and a card that says what nobody knows."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from efficientnet_pytorch import EfficientNet
from typer.testing import CliRunner

from bench.untrained import untrained_network
from panoramic.errors import ModelFileError
from panoramic.manifest import RESEARCH_USE
from panoramic.model_file import load_model
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier
from panoramic.view import View
from training.errors import RunError
from training.fit.cli_final import register
from training.fit.predecessor import import_checkpoint
from training.phantoms.phantom import draw_phantom, draw_truth

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return dict(untrained_network().state_dict())


@pytest.fixture
def checkpoint(tmp_path: Path, weights: Weights) -> Path:
    path = tmp_path / "efficientnet-b7_best model.pth"
    torch.save(weights, path)
    return path


def widened(weights: Weights, outputs: int) -> Weights:
    """The same answers from a head of which the first two outputs are the classes."""
    more = outputs - 2
    return weights | {
        "_fc.weight": torch.cat([weights["_fc.weight"], torch.randn(more, 1280)]),
        "_fc.bias": torch.cat([weights["_fc.bias"], torch.zeros(more)]),
    }


@pytest.mark.parametrize("outputs", [2, 1000])
def test_the_file_answers_as_the_librarys_network_does(tmp_path: Path, weights: Weights, outputs: int) -> None:
    stored = weights if outputs == 2 else widened(weights, outputs)
    torch.save(stored, tmp_path / "old.pth")
    x = prepare(draw_phantom(draw_truth(7, "C3", size_px=(121, 292))))[None]
    net = EfficientNet.from_name("efficientnet-b0", num_classes=outputs)
    net.load_state_dict(torch.load(tmp_path / "old.pth", weights_only=True))
    with torch.inference_mode():
        expected = torch.softmax(net.eval()(torch.from_numpy(x))[0, :2].double(), dim=0).numpy()

    made = import_checkpoint(tmp_path / "old.pth", tmp_path / "new.safetensors")

    model = load_model(made)
    (answer,) = Classifier(model).classify(x)
    np.testing.assert_allclose([*answer.probabilities.values()], expected, atol=1e-6)
    assert model.manifest.outputs == outputs
    assert all(torch.equal(model.state_dict[name], tensor) for name, tensor in stored.items())
    assert ("The head is wider" in (tmp_path / "new.md").read_text()) == (outputs == 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.md", "new.safetensors", "old.pth"]


def test_the_card_says_what_is_unknown(tmp_path: Path, checkpoint: Path) -> None:
    made = import_checkpoint(checkpoint, tmp_path / "m.safetensors", command="training import old.pth")

    manifest = load_model(made).manifest
    card = (tmp_path / "m.md").read_text()
    assert (manifest.name, manifest.version, manifest.threshold) == ("efficientnet-b7_best_model", "1", 0.5)
    assert (manifest.trained_on, manifest.training_date) == ((), None)
    assert RESEARCH_USE in card
    assert manifest.sha256 in card
    assert "training import old.pth" in card
    assert "## Quantitative analyses\n\nUnknown to the program" in card
    assert "Unknown: the weights came without any record of it." in card
    assert "an evaluation cannot refuse them" in card
    assert "| Date | unknown |" in card


def test_the_command_takes_view_name_version_and_labels(tmp_path: Path, checkpoint: Path) -> None:
    app = typer.Typer()
    register(app)
    out = tmp_path / "crop.safetensors"

    done = CliRunner().invoke(
        app,
        [
            "import",
            str(checkpoint),
            "--view",
            "crop",
            "--out",
            str(out),
            "--name",
            "crops-b0",
            "--version",
            "2.1",
            "--labels",
            "Saudável, Osteoporose",
        ],
    )

    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    manifest = load_model(out).manifest
    assert (manifest.view, manifest.input_size) == (View.CROP, (224, 224))
    assert (manifest.name, manifest.version) == ("crops-b0", "2.1")
    assert [(c.name, c.label, c.finding) for c in manifest.classes] == [
        ("C1", "Saudável", False),
        ("C3", "Osteoporose", True),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--view", "side"], "--view is 'side'; it must be one of full, crop"),
        (["--labels", "one"], "labels are one, but 2 are needed"),
        (["--labels", "same,same"], "no two classes may have the same"),
        (["--name", "no good/name"], "a model file cannot have name 'no good/name': String should match"),
        (["--version", ""], "a model file cannot have version '': String should have at least 1"),
        (["--out", "model.pth"], "model.pth must end in .safetensors"),
        (["--out", "nowhere/m.safetensors"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    register(app)

    done = CliRunner().invoke(app, ["import", str(checkpoint), *options])

    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.search(sentence, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_refuses_what_is_no_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(RunError, match=r"m.safetensors must end in .pth: a model file of this program needs no import"):
        import_checkpoint(tmp_path / "m.safetensors", tmp_path / "n.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ModelFileError, match=r"bad.pth cannot be used as a model: it is damaged"):
        import_checkpoint(tmp_path / "bad.pth", tmp_path / "n.safetensors")
    with pytest.raises(ModelFileError, match=r"none.pth cannot be used as a model: No such file"):
        import_checkpoint(tmp_path / "none.pth", tmp_path / "n.safetensors")


@pytest.mark.parametrize("taken", ["m.safetensors", "m.md"])
def test_leaves_what_is_there_alone(tmp_path: Path, checkpoint: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")

    with pytest.raises(RunError, match=f"{taken} exists and is left as it is"):
        import_checkpoint(checkpoint, tmp_path / "m.safetensors")

    assert (tmp_path / taken).read_text() == "mine"
