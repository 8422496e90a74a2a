"""The untrained model: the same each time, honest about itself, and with a map to show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from panoramic.demonstration import DEMONSTRATION_NAME, demonstration_network, ensure_demonstration_model
from panoramic.errors import ModelFileError
from panoramic.model_file import digest_of, load_model
from panoramic.preprocess import to_tensor
from panoramic.runtime import Classifier


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demonstration_model(tmp_path_factory.mktemp("models") / "not" / "there")


def drawn_radiograph(*, exposure: float, seed: int) -> np.ndarray:
    """A bright arch and a row of brighter teeth over a dim, noisy ground: (600, 1300)."""
    y, x = np.mgrid[0:600, 0:1300].astype(np.float64)
    arch = np.exp(-(((y - 520 + 0.0009 * (x - 650) ** 2) / 45) ** 2))
    teeth = np.exp(-(((y - 260) / 90) ** 2)) * (np.sin(x / 22) > -0.4)
    noise = np.random.default_rng(seed).normal(0, 0.02, y.shape)
    return np.clip(255 * exposure * (0.5 * arch + 0.8 * teeth + noise), 0, 255).astype(np.uint8)


def test_says_what_it_is(model_path: Path) -> None:
    manifest = load_model(model_path).manifest

    assert model_path.name == "demonstration-b0-untrained.safetensors"
    assert manifest.name == DEMONSTRATION_NAME == "demonstration-b0-untrained"
    assert manifest.notices == ("model_not_trained",)
    assert "never trained" in manifest.intended_use
    assert "Not a medical device" in manifest.intended_use
    assert manifest.input_size == (449, 954)
    assert [c.label for c in manifest.classes] == ["Healthy Patient", "Patient with Osteoporosis"]


def test_is_the_same_each_time_and_leaves_the_callers_random_numbers_alone(model_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    net = demonstration_network()

    assert torch.equal(torch.rand(3), expected)
    assert digest_of(net.state_dict()) == load_model(model_path).manifest.sha256


@pytest.mark.parametrize("exposure", [0.15, 0.5, 1.0])
def test_shows_a_map_whatever_it_is_shown(model_path: Path, exposure: float) -> None:
    classifier = Classifier(load_model(model_path))
    batch = np.stack([to_tensor(drawn_radiograph(exposure=exposure, seed=s), input_size=(449, 954)) for s in (0, 1)])

    for answer in classifier.classify(batch):
        assert answer.cam.shape == (14, 29)
        assert 0.001 < answer.probability < 0.999
        lit = answer.cam > 0.2 * answer.cam.max()
        assert 0.02 < lit.mean() < 0.9, "neither a single dot nor the whole picture"


def test_either_diagnosis_has_something_to_show(model_path: Path) -> None:
    state_dict = load_model(model_path).state_dict

    # Opposite logits: the diagnosed class's is the mean of its map before the cut at zero, and is not negative.
    assert torch.equal(state_dict["_fc.weight"][0], -state_dict["_fc.weight"][1])
    assert not state_dict["_fc.bias"].any()


def test_a_sound_file_is_left_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    path = ensure_demonstration_model(tmp_path)
    sound = path.read_bytes()
    before = path.stat()

    assert ensure_demonstration_model(tmp_path) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    path.write_bytes(sound[: len(sound) // 2])
    ensure_demonstration_model(tmp_path)
    assert path.read_bytes() == sound
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"


def test_two_processes_may_make_it_at_once(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from panoramic.demonstration import ensure_demonstration_model as ensure;"
        "from panoramic.model_file import load_model;"
        "print(load_model(ensure(pathlib.Path(sys.argv[1]))).manifest.sha256)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    digests = {process.communicate(timeout=120)[0] for process in both}

    assert [process.returncode for process in both] == [0, 0]
    assert len(digests) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_says_so_when_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ModelFileError, match=r"cannot be made: Not a directory; choose another"):
        ensure_demonstration_model(tmp_path / "file" / "models")
