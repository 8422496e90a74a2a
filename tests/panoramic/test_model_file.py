"""Model files: all of it comes back, and nothing that is not right is let in."""

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from efficientnet_pytorch import EfficientNet
from pydantic import ValidationError

from panoramic.errors import ModelFileError
from panoramic.manifest import DiagnosisClass, Manifest, ModelDescription
from panoramic.model_file import MANIFEST_KEY, digest_of, load_model, save_model
from panoramic.view import View

DESCRIPTION = ModelDescription(name="test", version="1.2", network="efficientnet-b0", threshold=0.3)


def library_weights(*, outputs: int, seed: int = 10) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(EfficientNet.from_name("efficientnet-b0", num_classes=outputs).state_dict())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return library_weights(outputs=2)


@pytest.fixture(scope="module")
def sound(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound model file's bytes."""
    path = tmp_path_factory.mktemp("sound") / "sound.safetensors"
    save_model(path, DESCRIPTION, state_dict=weights)
    return path.read_bytes()


def written(path: Path, weights: dict[str, torch.Tensor], manifest: str | None) -> Path:
    """A safetensors file with this text for a manifest, written by the library alone."""
    metadata = None if manifest is None else {MANIFEST_KEY: manifest}
    path.write_bytes(safetensors.torch.save(weights, metadata=metadata))
    return path


def manifest_fields(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    fields = json.loads(DESCRIPTION.model_dump_json())
    return {**fields, "schema_version": 1, "sha256": independent_digest(weights)}


def independent_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """The digest as its documentation describes it."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64"}
    content = b""
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name].numpy())
        shape = ",".join(str(side) for side in weights[name].shape)
        content += name.encode() + b"\0" + names[array.dtype.name].encode() + b"\0" + shape.encode() + b"\0"
        content += array.tobytes()
    return hashlib.sha256(content).hexdigest()


def assert_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_is_loaded(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    description = ModelDescription(
        name="three",
        version="2",
        network="efficientnet-b0",
        outputs=3,
        classes=(
            DiagnosisClass(name="C1", label="Normal", finding=False),
            DiagnosisClass(name="C2", label="Osteopenia", finding=False),
            DiagnosisClass(name="C3", label="Osteoporosis", finding=True),
        ),
        view=View.CROP,
        input_size=(224, 224),
        threshold=0.25,
        temperature=1.5,
        training_data="phantoms",
        training_date="2025-01-31",
        intended_use="tests",
        notices=("model_not_trained", "demonstration_model"),
    )
    weights = library_weights(outputs=3)

    saved = save_model(tmp_path / "m.safetensors", description, state_dict=weights)
    model = load_model(tmp_path / "m.safetensors")

    assert model.manifest == saved
    assert model.manifest == Manifest(**description.model_dump(), sha256=independent_digest(weights))
    assert model.manifest.finding_index == 2
    assert_same_tensors(model.state_dict, weights)
    assert model.file_sha256 == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_other_programs_can_read_the_weights(sound: bytes, weights: dict[str, torch.Tensor]) -> None:
    assert_same_tensors(safetensors.torch.load(sound), weights)


def test_half_precision_is_stored_and_widened(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}

    save_model(tmp_path / "m.safetensors", DESCRIPTION, state_dict=halves)
    model = load_model(tmp_path / "m.safetensors")

    assert model.manifest.sha256 == independent_digest(halves) == digest_of(halves)
    assert_same_tensors(model.state_dict, {n: t.float() if t.is_floating_point() else t for n, t in halves.items()})
    assert (tmp_path / "m.safetensors").stat().st_size < 0.52 * 4 * sum(t.numel() for t in weights.values())


def test_the_digest_sees_name_type_shape_and_value() -> None:
    one = {"a": torch.arange(6.0).reshape(2, 3)}
    others = [
        {"b": one["a"]},
        {"a": one["a"].reshape(3, 2)},
        {"a": one["a"].half()},
        {"a": one["a"] + torch.tensor([0.0, 0.0, 1e-6])},
        {"a": one["a"], "b": torch.tensor(0)},
    ]
    assert digest_of(one) == independent_digest(one)
    assert digest_of({"a": one["a"].T.contiguous().T}) == digest_of(one)
    assert len({digest_of(one), *map(digest_of, others)}) == 6


def test_a_changed_threshold_shows_in_the_files_digest_and_not_in_the_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    models = []
    for threshold in (0.3, 0.4):
        save_model(
            tmp_path / "m.safetensors", DESCRIPTION.model_copy(update={"threshold": threshold}), state_dict=weights
        )
        models.append(load_model(tmp_path / "m.safetensors"))

    assert models[0].manifest.sha256 == models[1].manifest.sha256
    assert models[0].file_sha256 != models[1].file_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "efficientnet-b3"}, "manifest names efficientnet-b3, but the weights are of efficientnet-b0"),
        ({"outputs": 1000}, "manifest names 1000 outputs, but the weights have 2"),
        ({"sha256": "0" * 64}, "altered or damaged"),
        ({"preprocessing": "other/7"}, "trained with preprocessing 'other/7', and this program has"),
        ({"schema_version": 2}, "schema version 2, and this program knows 1"),
        ({"schema_version": None}, "schema version None"),
        ({"threshold": 1.5}, "manifest is invalid .threshold: Input should be less than or equal to 1"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"sha256": "short"}, "sha256: String should match"),
        ({"input_size": [449]}, "input_size.1: Field required"),
        ({"notices": ["Not A Code"]}, "notices.0: String should match"),
        ({"classes": [{"name": "C1", "label": "a", "finding": True}]}, "classes: Tuple should have at least 2"),
    ],
)
def test_refuses_manifests_that_are_wrong(
    tmp_path: Path, weights: dict[str, torch.Tensor], change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "m.safetensors", weights, json.dumps(manifest_fields(weights) | change))

    with pytest.raises(ModelFileError, match=f"^m.safetensors cannot be used as a model: .*{message}"):
        load_model(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no manifest"),
        ("not json", "manifest is not JSON"),
        ("[" * 100_000, "manifest is not JSON"),
        ("[1]", "schema version None"),
    ],
)
def test_refuses_files_without_a_readable_manifest(
    tmp_path: Path, weights: dict[str, torch.Tensor], text: str | None, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_model(written(tmp_path / "m.safetensors", weights, text))


def test_refuses_weights_that_are_not_numbers(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    bad = weights | {"_fc.bias": torch.tensor([0.0, float("nan")])}
    path = written(tmp_path / "m.safetensors", bad, json.dumps(manifest_fields(bad)))

    with pytest.raises(ModelFileError, match="_fc.bias has values that are infinite or not a number"):
        load_model(path)
    with pytest.raises(ModelFileError, match=r"n.safetensors was not written: _fc.bias has values"):
        save_model(tmp_path / "n.safetensors", DESCRIPTION, state_dict=bad)
    assert not (tmp_path / "n.safetensors").exists()


def test_refuses_types_that_no_network_here_uses(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    bad = weights | {"_fc.bias": torch.zeros(2, dtype=torch.bfloat16)}
    path = written(tmp_path / "m.safetensors", bad, json.dumps(manifest_fields(weights)))

    with pytest.raises(ModelFileError, match=r"_fc.bias is a tensor of torch.bfloat16; it must be dense"):
        load_model(path)


@pytest.mark.parametrize("offset", [40, 5000, -1, -1000])
def test_a_single_flipped_bit_is_noticed(tmp_path: Path, sound: bytes, offset: int) -> None:
    damaged = bytearray(sound)
    damaged[offset] ^= 1
    (tmp_path / "m.safetensors").write_bytes(damaged)

    with pytest.raises(ModelFileError, match="^m.safetensors cannot be used as a model: "):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"garbage" * 100,
        b"\x80\x02.",
        b"PK\x03\x04" + b"\0" * 50,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        b"\xff" * 64,
    ],
)
def test_refuses_what_is_no_model_with_a_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)

    with pytest.raises(ModelFileError, match="^m.* cannot be used as a model: .*(empty|damaged|no manifest|network)"):
        load_model(path)


@pytest.mark.parametrize("kept", [4, 7, 1000, 100_000, -1])
def test_refuses_a_file_cut_short(tmp_path: Path, sound: bytes, weights: dict[str, torch.Tensor], kept: int) -> None:
    torch.save(weights, tmp_path / "whole.pth")
    (tmp_path / "m.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:kept])
    (tmp_path / "m.safetensors").write_bytes(sound[:kept])

    for name in ("m.pth", "m.safetensors"):
        with pytest.raises(ModelFileError, match=f"^{name} cannot be used as a model: it is damaged"):
            load_model(tmp_path / name)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(2**30 + 1)

    with pytest.raises(ModelFileError, match=r"folder.pth cannot .* it is a folder or a device"):
        load_model(tmp_path / "folder.pth")
    with pytest.raises(ModelFileError, match=r"pipe.pth cannot .* it is a folder or a device"):
        load_model(tmp_path / "pipe.pth")
    with pytest.raises(ModelFileError, match=r"none.pth cannot .* No such file or directory"):
        load_model(tmp_path / "none.pth")
    with pytest.raises(ModelFileError, match=r"must end in .safetensors or .pth"):
        load_model(tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="it has 1073741825 bytes, and no known network needs 1073741824"):
        load_model(tmp_path / "huge.safetensors")


@pytest.mark.parametrize("outputs", [2, 1000])
def test_the_predecessors_files_get_the_manifest_they_imply(tmp_path: Path, outputs: int) -> None:
    weights = library_weights(outputs=outputs)
    path = tmp_path / "efficientnet-b7_wrongly_named.pth"
    torch.save(weights, path)

    model = load_model(path)

    assert_same_tensors(model.state_dict, weights)
    assert model.manifest == Manifest(
        name="efficientnet-b7_wrongly_named",
        version="0",
        network="efficientnet-b0",
        outputs=outputs,
        classes=(
            DiagnosisClass(name="C1", label="Healthy Patient", finding=False),
            DiagnosisClass(name="C3", label="Patient with Osteoporosis", finding=True),
        ),
        view=View.FULL,
        input_size=(449, 954),
        threshold=0.5,
        trained_on_is_whole=False,
        intended_use="For research use only. Not a medical device; not for diagnosis, triage or treatment.",
        sha256=independent_digest(weights),
    )
    crop = load_model(path, view=View.CROP).manifest
    assert (crop.view, crop.input_size) == (View.CROP, (224, 224))


def test_state_dicts_are_found_where_training_programs_put_them(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "m.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    assert_same_tensors(load_model(tmp_path / "m.pth").state_dict, weights)
    assert_same_tensors(load_model(tmp_path / "old.pth").state_dict, weights)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.trace),)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_is_refused_and_never_run(
    tmp_path: Path, weights: dict[str, torch.Tensor], zipped: bool
) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "m.pth"
    if zipped:
        torch.save({**weights, "x": Malicious(trace)}, path)
        with zipfile.ZipFile(path) as archive:
            assert b"mknod" in b"".join(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    else:
        path.write_bytes(pickle.dumps(Malicious(trace)))
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the pickle does what it is made for"
        trace.unlink()

    with pytest.raises(ModelFileError, match="holds Python objects beside tensors, which could run code"):
        load_model(path)

    assert not trace.exists()


def test_refuses_a_whole_pickled_network(tmp_path: Path) -> None:
    torch.save(EfficientNet.from_name("efficientnet-b0"), tmp_path / "m.pth")

    with pytest.raises(ModelFileError, match=r"Save the network's state_dict\(\) alone"):
        load_model(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({1: torch.zeros(1)}, "holds no state dict"),
        ({}, "_conv_stem.weight, _conv_head.weight, _fc.weight is missing among 0 tensors"),
        ({"_fc.weight": torch.zeros(2, 8)}, "_conv_stem.weight, _conv_head.weight is missing among 1 tensors"),
    ],
)
def test_refuses_other_things_that_torch_saves(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "m.pth")

    with pytest.raises(ModelFileError, match=message):
        load_model(tmp_path / "m.pth")


@pytest.mark.parametrize(
    "strange", [torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)]
)
def test_refuses_tensors_without_plain_values(
    tmp_path: Path, weights: dict[str, torch.Tensor], strange: torch.Tensor
) -> None:
    torch.save(weights | {"_fc.bias": strange}, tmp_path / "m.pth")

    with pytest.raises(ModelFileError, match=r"_fc.bias is a tensor of .*; it must be dense, with values"):
        load_model(tmp_path / "m.pth")


def test_refuses_to_guess_what_other_heads_mean(tmp_path: Path) -> None:
    torch.save(library_weights(outputs=3), tmp_path / "m.pth")

    with pytest.raises(ModelFileError, match="it has 3 outputs, and without a manifest only 2, or 1000"):
        load_model(tmp_path / "m.pth")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, sound: bytes, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(sound)
    wrong = DESCRIPTION.model_copy(update={"network": "efficientnet-b1"})

    with pytest.raises(ModelFileError, match="m.safetensors was not written: the manifest names efficientnet-b1"):
        save_model(path, wrong, state_dict=weights)

    assert path.read_bytes() == sound
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ModelFileError, match="folder.safetensors was not written: Is a directory; choose"):
        save_model(tmp_path / "folder.safetensors", DESCRIPTION, state_dict=weights)
    with pytest.raises(ModelFileError, match="was not written: No such file or directory; choose"):
        save_model(tmp_path / "none" / "m.safetensors", DESCRIPTION, state_dict=weights)
    with pytest.raises(ModelFileError, match=r"m.pth cannot be written: a model file's name must end in .safetensors"):
        save_model(tmp_path / "m.pth", DESCRIPTION, state_dict=weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "m.safetensors"]


def test_weights_and_manifest_cannot_be_exchanged(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(sound)
    model = load_model(tmp_path / "m.safetensors")

    with pytest.raises(AttributeError, match="cannot assign to field 'manifest'"):
        model.manifest = model.manifest  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        model.state_dict["_fc.bias"] = torch.zeros(2)  # type: ignore[index]
    with pytest.raises(ValidationError, match="Instance is frozen"):
        model.manifest.threshold = 0.1  # type: ignore[misc]
    assert len(repr(model)) < 2000


@pytest.mark.parametrize(
    ("names", "labels", "findings", "message"),
    [
        ("ab", "xy", (True, True), "2 of the classes are the finding"),
        ("ab", "xy", (False, False), "0 of the classes are the finding"),
        ("aa", "xy", (True, False), "two classes have the same name"),
        ("ab", "xx", (True, False), "two classes have the same label"),
    ],
)
def test_classes_must_make_sense(names: str, labels: str, findings: tuple[bool, bool], message: str) -> None:
    classes = [
        {"name": name, "label": label, "finding": finding}
        for name, label, finding in zip(names, labels, findings, strict=True)
    ]

    with pytest.raises(ValidationError, match=message):
        ModelDescription.model_validate(DESCRIPTION.model_dump() | {"classes": classes})


def test_a_class_needs_an_output() -> None:
    three = [{"name": n, "label": n, "finding": n == "c"} for n in "abc"]

    with pytest.raises(ValidationError, match="3 classes need as many outputs; there are 2"):
        ModelDescription.model_validate(DESCRIPTION.model_dump() | {"classes": three})


def test_errors_never_repeat_their_input() -> None:
    with pytest.raises(ValidationError, match="threshold") as caught:
        ModelDescription.model_validate(DESCRIPTION.model_dump() | {"threshold": "Jane Doe", "Extra": "Jane Doe"})

    assert "Jane" not in str(caught.value)
