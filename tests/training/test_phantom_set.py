"""A set of phantoms on disk, and the command line that writes it."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.cli import app, parse_classes
from training.phantoms.phantom import draw_phantom, draw_truth
from training.phantoms.phantom_set import phantom_id, plan_set, read_set, write_set
from training.phantoms.truth import CorticalClass

ROOT = Path(__file__).parents[2]
SMALL = (120, 290)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_set_has_one_folder_a_class_and_the_truth_of_every_picture(tmp_path: Path) -> None:
    table = write_set(tmp_path / "set", 7, 3, size_px=SMALL, processes=1)
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert Counter(row["class"] for row in rows) == {"C1": 3, "C2": 2, "C3": 2}
    assert {row["path"] for row in rows} | {"truth.csv"} == set(contents(table.parent))
    for row in rows:
        assert row["path"] == f"{row['class']}/{row['phantom_id']}.png"
        assert len(row["teeth"].split()) <= 32
        assert 1.0 <= float(row["cortical_width_mm"]) <= 6.5


def test_truth_on_disk_draws_the_picture_on_disk(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 3, 4, size_px=SMALL, processes=1).parent
    truths = read_set(folder)
    assert len(truths) == 3
    for path, truth in truths.items():
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), draw_phantom(truth))


def test_pictures_carry_no_metadata(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 1, size_px=SMALL, processes=1).parent
    (path,) = folder.rglob("*.png")
    with Image.open(path) as picture:
        assert picture.mode == "L"
        assert picture.info == {}
    data, chunks, at = path.read_bytes(), [], 8
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4])
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        write_set(tmp_path / str(processes), 4, 9, size_px=SMALL, processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    write_set(tmp_path / "other", 4, 10, size_px=SMALL, processes=1)
    assert contents(tmp_path / "1").keys().isdisjoint(contents(tmp_path / "other").keys() - {"truth.csv"})


@pytest.mark.parametrize("n", [1, 2, 3, 100, 400])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_plan_is_balanced_and_its_names_are_opaque(n: int, share: float) -> None:
    truths = plan_set(n, 1, second_picture_share=share)
    counts = Counter(truth.cls for truth in truths)
    assert len(truths) == n
    assert max(counts.values()) - min(counts.values()) <= 1
    names = [phantom_id(truth) for truth in truths]
    assert len(set(names)) == n
    for name, truth in zip(names, truths, strict=True):
        assert truth.patient.patient_id not in name
        assert str(truth.seed) not in name


def test_patients_have_one_picture_or_two_as_asked() -> None:
    one_each = Counter(truth.patient.patient_id for truth in plan_set(300, 2))
    assert set(one_each.values()) == {1}
    some = Counter(truth.patient.patient_id for truth in plan_set(300, 2, second_picture_share=0.4))
    assert set(some.values()) == {1, 2}
    two_each = Counter(truth.patient.patient_id for truth in plan_set(300, 2, second_picture_share=1.0))
    assert set(two_each.values()) == {2}


def test_one_patient_has_one_class() -> None:
    classes: dict[str, set[str]] = {}
    for truth in plan_set(300, 2, second_picture_share=0.5):
        classes.setdefault(truth.patient.patient_id, set()).add(truth.cls)
    assert all(len(found) == 1 for found in classes.values())


def test_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder: name a new folder, or empty this one"):
        write_set(tmp_path, 1, size_px=SMALL)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_set_without_truth_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no phantom set, or its writing was interrupted"):
        read_set(tmp_path)


def test_command_writes_a_set_and_tells_where_its_truth_is(tmp_path: Path) -> None:
    code, out, _ = run("phantoms", tmp_path / "set", "--n", "1", "--size", "120x290")
    assert code == 0
    assert out.replace("\n", "") == str(tmp_path / "set" / "truth.csv")
    assert len(read_set(tmp_path / "set")) == 1


def test_command_writes_one_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    assert run("phantom", path, "--seed", "6", "--class", "C3", "--size", "120x290")[0] == 0
    expected = draw_phantom(draw_truth(6, "C3", size_px=SMALL))
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phantoms", "set", "--n", "0"), "n is 0, but a set has at least 1 picture"),
        (("phantoms", "set", "--seed", "-1"), "seed is -1, but must be 0 or more"),
        (("phantoms", "set", "--size", "large"), "size is 'large', but must be height x width in pixels"),
        (("phantoms", "set", "--size", "1210"), "size is '1210', but must be height x width in pixels"),
        (("phantoms", "set", "--size", "2925x1210"), "a panoramic radiograph's height is 0.3 to 0.6 of its width"),
        (("phantoms", "set", "--size", "10x20"), "each side must have 96 to 6000 px"),
        (("phantoms", "set", "--processes", "0"), "processes is 0, but at least 1 is needed"),
        (("phantoms", "set", "--second-picture-share", "2"), "a share is between 0 and 1"),
        (("phantoms", "full"), "exists and is not an empty folder"),
        (("phantoms", "full/a.png"), "exists and is not an empty folder"),
        (("phantoms", "full/a.png/set"), "Not a directory. Name another place"),
        (("phantom", "full/a.png"), "exists and is left as it is: name a new file"),
        (("phantom", "new.jpg"), "new.jpg must end in .png"),
        (("phantom", "nowhere/new.png"), "nowhere is not a folder: create it"),
        (("phantom", "new.png", "--class", "C4"), "'C4' is not one of"),
        (("phantom", "new.png", "--seed", "-3"), "seed and visit must be 0 or more"),
    ],
)
def test_mistakes_give_a_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").write_bytes(b"a")
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "0:00" not in err, "a progress bar before the sentence"
    assert contents(tmp_path) == {str(Path("full", "a.png")): b"a"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process group")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_interrupted_set_holds_whole_files_and_no_truth(processes: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = [sys.executable, "-m", "training", "phantoms", str(out), "--n", "400", "--size", "120x290"]
    with subprocess.Popen(
        [*command, "--processes", processes], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 60
        while len(list(out.rglob("*.png"))) < 4:
            assert child.poll() is None, "ended before it was interrupted"
            assert time.monotonic() < deadline, "wrote nothing in a minute"
            time.sleep(0.05)
        # As a terminal does: Ctrl-C reaches the whole group.
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "stopped." in err
    assert "Traceback" not in err
    left = contents(out)
    assert 4 <= len(left) < 400
    assert {Path(name).suffix for name in left} == {".png"}
    for name in left:
        with Image.open(out / name) as picture:
            picture.load()
            assert picture.size == (290, 120)


def test_a_set_may_hold_some_classes_only(tmp_path: Path) -> None:
    table = write_set(tmp_path / "set", 4, 9, size_px=SMALL, processes=1, classes=(CorticalClass.C3, CorticalClass.C1))
    assert sorted(path.name for path in table.parent.iterdir()) == ["C1", "C3", "truth.csv"]
    assert {truth.cls for truth in read_set(table.parent).values()} == {CorticalClass.C1, CorticalClass.C3}
    assert len(list((table.parent / "C1").iterdir())) == 2
    with pytest.raises(ValueError, match="each once"):
        plan_set(4, classes=(CorticalClass.C1, CorticalClass.C1))


@pytest.mark.parametrize("text", ["C1,C4", "healthy"])
def test_an_unknown_class_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there are only C1, C2, C3"):
        parse_classes(text)
    assert parse_classes(" c3, C1 ") == (CorticalClass.C3, CorticalClass.C1)
