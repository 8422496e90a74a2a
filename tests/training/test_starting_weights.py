"""What a network starts from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_pytorch import EfficientNet

from panoramic.manifest import ModelDescription
from panoramic.model_file import save_model
from panoramic.network import build, join_members
from panoramic.view import View
from training.errors import RunError
from training.fit.weights import refuse_seen_pictures, starting_weights

ROOT = Path(__file__).parents[2]
B0 = "efficientnet-b0"


def start(text: str | Path, network: str = B0) -> object:
    return starting_weights(str(text), network=network, view=View.FULL)


def test_random_weights_follow_from_seed_and_stream_alone() -> None:
    none = starting_weights("none", network=B0, view=View.FULL)
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    first = none.build(B0, outputs=2, seed=1, stream=0).state_dict()
    assert torch.equal(torch.rand(1), expected_next), "the program's own random numbers are left alone"
    again = none.build(B0, outputs=2, seed=1, stream=0).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for seed, stream in ((2, 0), (1, 1)):
        other = none.build(B0, outputs=2, seed=seed, stream=stream).state_dict()
        assert not torch.equal(first["_conv_stem.weight"], other["_conv_stem.weight"])
    assert (none.origin, none.sha256) == ("none (random)", "")


def test_head_of_other_width_is_drawn_anew_and_the_rest_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = EfficientNet.from_name(B0, num_classes=1000).state_dict()
    torch.save(wide, tmp_path / "imagenet.pth")
    weights = starting_weights(str(tmp_path / "imagenet.pth"), network=B0, view=View.FULL)
    built = weights.build(B0, outputs=2, seed=0, stream=0).state_dict()
    assert built["_fc.weight"].shape == (2, 1280)
    assert all(torch.equal(built[name], wide[name]) for name in wide if not name.startswith("_fc."))
    assert weights.origin.startswith(f"{tmp_path / 'imagenet.pth'} (")
    assert len(weights.sha256) == 64


def test_head_of_the_same_width_is_kept(tmp_path: Path) -> None:
    net = build(B0, outputs=2).state_dict()
    description = ModelDescription(name="learnt", version="3b", network=B0, trained_on=("a" * 32,))
    save_model(tmp_path / "m.safetensors", description, state_dict=net)
    weights = starting_weights(str(tmp_path / "m.safetensors"), network=B0, view=View.FULL)
    assert weights.origin == f"{tmp_path / 'm.safetensors'} (learnt 3b)"
    built = weights.build(B0, outputs=2, seed=9, stream=9).state_dict()
    assert all(torch.equal(built[name], net[name]) for name in net)
    assert weights.trained_on == ("a" * 32,)
    assert weights.history_known


def test_what_weights_have_seen_is_known_only_where_they_say_it_and_so_of_all_that_comes_of_them(
    tmp_path: Path,
) -> None:
    net = build(B0, outputs=2).state_dict()
    torch.save(net, tmp_path / "predecessor.pth")
    seen = ("a" * 32,)
    for name, fields in (("unsaid", {}), ("partly", {"trained_on": seen, "trained_on_is_whole": False})):
        description = ModelDescription(name=name, version="1", network=B0).model_copy(update=fields)
        save_model(tmp_path / f"{name}.safetensors", description, state_dict=net)
    for name in ("predecessor.pth", "unsaid.safetensors", "partly.safetensors"):
        assert not starting_weights(str(tmp_path / name), network=B0, view=View.FULL).history_known, name
    assert starting_weights("none", network=B0, view=View.FULL).history_known


def test_weights_that_saw_the_data_set_are_refused(tmp_path: Path) -> None:
    description = ModelDescription(name="m", version="1", network=B0, trained_on=("a" * 32, "b" * 32))
    save_model(tmp_path / "m.safetensors", description, state_dict=build(B0, outputs=2).state_dict())
    weights = starting_weights(str(tmp_path / "m.safetensors"), network=B0, view=View.FULL)
    refuse_seen_pictures(weights, ["c" * 32])
    with pytest.raises(RunError, match=r"m\.safetensors \(m 1\) were trained on 1 of this data set's 2 pictures"):
        refuse_seen_pictures(weights, ["c" * 32, "b" * 32])


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(build("efficientnet-b1", outputs=2).state_dict(), tmp_path / "b0.pth")
    with pytest.raises(RunError, match=r"b0\.pth are of efficientnet-b1, and efficientnet-b0 is to be trained: give"):
        start(tmp_path / "b0.pth")


def test_ensemble_is_refused(tmp_path: Path) -> None:
    members = [build(B0, outputs=2).state_dict() for _ in range(2)]
    description = ModelDescription(name="m", version="1", network=B0, members=2)
    save_model(tmp_path / "m.safetensors", description, state_dict=join_members(members))
    with pytest.raises(RunError, match="are an ensemble of 2 networks, and one is to be trained"):
        start(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.pth", None, "No such file"),
        ("bad.pth", b"PK\x03\x04 cut short", "damaged"),
        ("other.bin", b"x", r"must end in \.safetensors or \.pth"),
    ],
)
def test_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"the starting weights .*cannot be used: .*{sentence}.*Or give --weights none"):
        start(tmp_path / name)


def test_download_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "set" / "C1").mkdir(parents=True)
    (tmp_path / "set" / "C3").mkdir()
    for cls in ("C1", "C3"):
        for number in range(5):  # as many as there are folds
            (tmp_path / "set" / cls / f"{number}.png").write_bytes(b"not looked at")
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "https_proxy": nowhere, "HTTPS_PROXY": nowhere, "TORCH_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "training", "kfold", "set", "--weights", "imagenet", "--network", B0],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the ImageNet weights of efficientnet-b0 could not be downloaded from https://" in done.stderr
    assert "--weights FILE" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()
