"""What is known of a data set besides its pictures: phantoms by their truth, and folders that were left out."""

import shutil
from pathlib import Path

import pytest

from training.data.dataset import find_dataset
from training.data.origin import count_left_out, count_phantoms, listed
from training.phantoms.phantom_set import write_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two phantoms each of C1, C2 and C3, with their truth."""
    write_set(tmp_path / "set", 6, 3, size_px=(121, 292), processes=1)
    return tmp_path / "set"


def test_phantoms_are_known_by_the_truth_beside_them(folder: Path) -> None:
    assert count_phantoms(find_dataset(folder)) == 4
    assert count_phantoms(find_dataset(folder, classes=["C1", "C2", "C3"])) == 6


def test_only_pictures_that_the_truth_names_are_phantoms(folder: Path) -> None:
    (folder / "C1" / "another.png").write_bytes(b"")
    assert count_phantoms(find_dataset(folder)) == 4


def test_phantoms_are_known_through_links_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in ("C1", "C3"):
        (tmp_path / "links" / name).symlink_to(folder / name, target_is_directory=True)
    assert count_phantoms(find_dataset(tmp_path / "links")) == 4


@pytest.mark.parametrize(
    "table", [b"path,patient_id\nC1/1.png,a\n", b"\xff\xfe\x00", b"", b"path,phantom_id,cortical_width_mm\n"]
)
def test_another_truth_makes_no_phantoms(folder: Path, table: bytes) -> None:
    (folder / "truth.csv").write_bytes(table)
    assert count_phantoms(find_dataset(folder)) == 0


def test_without_truth_nothing_is_said(folder: Path) -> None:
    (folder / "truth.csv").unlink()
    assert count_phantoms(find_dataset(folder)) == 0


def test_folders_left_out_are_counted(folder: Path) -> None:
    (folder / "D").mkdir()
    (folder / "D" / "1.png").write_bytes(b"")
    (folder / "D" / ".hidden").write_bytes(b"")
    dataset = find_dataset(folder)
    assert count_left_out(dataset) == {"C2": 2, "D": 1}
    shutil.rmtree(folder / "D")
    assert listed(count_left_out(dataset)) == "C2 (2 files), D (not readable)"
    assert listed({"D": 1}) == "D (1 file)"
    assert listed({}) == "none"
