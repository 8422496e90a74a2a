"""Exported graphs in their folder: the right one, whole, made once."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from panoramic.demonstration import demonstration_model
from panoramic.model_file import Model, load_model
from panoramic.onnx_graph import graph_of

Damage = Callable[[bytes], bytes]


class Exporter:
    """Makes a graph of a model's digest at once, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Model) -> bytes:
        self.calls += 1
        return b"graph of " + model.manifest.model_dump_json().encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(demonstration_model())


def test_a_graph_is_exported_once(model: Model, tmp_path: Path) -> None:
    exporter = Exporter()
    folder = tmp_path / "not" / "there" / "yet"

    first = graph_of(model, cache_dir=folder, runtime_version="1", exporter=exporter)
    again = graph_of(model, cache_dir=folder, runtime_version="1", exporter=exporter)

    assert exporter.calls == 1
    assert first == again == exporter(model)
    assert len(list(folder.iterdir())) == 1, "no temporary file is left"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"input_size": (96, 160)},
        {"classes": ({"name": "A", "label": "a", "finding": False}, {"name": "B", "label": "b", "finding": True})},
        {},
    ],
    ids=["weights", "input_size", "same_number_of_classes", "runtime_version"],
)
def test_what_the_graph_depends_on_keeps_graphs_apart(
    model: Model, tmp_path: Path, change: dict[str, object], request: pytest.FixtureRequest
) -> None:
    exporter = Exporter()
    other = replace(model, manifest=model.manifest.model_validate(model.manifest.model_dump() | change))
    version = "1" if change else "2"
    graph_of(model, cache_dir=tmp_path, runtime_version="1", exporter=exporter)

    graph_of(other, cache_dir=tmp_path, runtime_version=version, exporter=exporter)

    assert exporter.calls == (1 if request.node.callspec.id == "same_number_of_classes" else 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: hashlib.sha256(data[32:]).digest() + data[32:],
    ],
    ids=["emptied", "cut_in_the_digest", "cut", "longer", "changed", "changed_digest", "digest_of_the_graph_alone"],
)
def test_a_damaged_file_is_made_again(model: Model, tmp_path: Path, damage: Damage) -> None:
    exporter = Exporter()
    expected = graph_of(model, cache_dir=tmp_path, runtime_version="1", exporter=exporter)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))

    assert graph_of(model, cache_dir=tmp_path, runtime_version="1", exporter=exporter) == expected

    assert exporter.calls == 2
    assert path.read_bytes() == whole


def test_another_models_graph_under_this_models_name_is_not_used(model: Model, tmp_path: Path) -> None:
    other = replace(model, manifest=model.manifest.model_copy(update={"sha256": "0" * 64}))
    for name, which in (("ours", model), ("other", other)):
        graph_of(which, cache_dir=tmp_path / name, runtime_version="1", exporter=Exporter())
    ((ours,), (others,)) = ((tmp_path / name).iterdir() for name in ("ours", "other"))
    ours.write_bytes(others.read_bytes())

    found = graph_of(model, cache_dir=tmp_path / "ours", runtime_version="1", exporter=Exporter())

    assert model.manifest.sha256.encode() in found


def test_processes_at_once_all_get_a_whole_graph(model: Model, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from panoramic.model_file import load_model
from panoramic.onnx_graph import graph_of
model, folder = load_model(Path(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    graph = graph_of(model, cache_dir=folder, runtime_version="1", exporter=lambda _: b"0123456789" * 200_000)
    assert graph == b"0123456789" * 200_000
    for path in folder.glob("*.graph"):
        path.unlink(missing_ok=True)
"""
    path = demonstration_model()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, tmp_path / "graphs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert list((tmp_path / "graphs").iterdir()) == []


def test_without_a_folder_to_write_to_the_graph_is_used_and_not_kept(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    exporter = Exporter()

    first, second = (graph_of(model, cache_dir=blocked, runtime_version="1", exporter=exporter) for _ in range(2))
    assert first == second
    assert exporter.calls == 2
    assert "the exported graph is not kept" in caplog.text
