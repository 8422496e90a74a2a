"""Names of the output pictures, and that they appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contract.errors import JobError, LeaseLostError
from worker.paths import Destination, open_destination
from worker.pictures import remove_noted, write_pictures

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    with open_destination(str(tmp_path / "out"), roots=(Path("/"),)) as opened:
        yield opened


def write(destination: Destination, stem: str = "a", mark: bytes = b"") -> tuple[str, str]:
    return write_pictures(destination, stem, saliency=b"saliency" + mark, overlay=b"overlay" + mark, now=NOON)


def test_the_names_are_the_predecessors(destination: Destination) -> None:
    saliency, overlay = write(destination, "BrunoScholles-Radiography")
    assert Path(saliency).name == "BrunoScholles-Radiography_saliency_20261123120000.png"
    assert Path(overlay).name == "BrunoScholles-Radiography_overlay_20261123120000.png"
    assert Path(saliency).read_bytes() == b"saliency"
    assert Path(overlay).read_bytes() == b"overlay"


def test_two_jobs_in_one_second_overwrite_nothing(destination: Destination) -> None:
    first = write(destination, mark=b"1")
    second = write(destination, mark=b"2")
    assert Path(second[0]).name == "a_saliency_20261123120001.png"
    assert [Path(path).read_bytes() for path in (*first, *second)] == [
        b"saliency1",
        b"overlay1",
        b"saliency2",
        b"overlay2",
    ]


def test_both_pictures_share_a_second_even_if_only_one_name_is_taken(destination: Destination) -> None:
    taken = Path(destination.path) / "a_overlay_20261123120000.png"
    taken.write_bytes(b"somebody's")
    saliency, overlay = write(destination)
    assert (Path(saliency).name, Path(overlay).name) == (
        "a_saliency_20261123120001.png",
        "a_overlay_20261123120001.png",
    )
    assert taken.read_bytes() == b"somebody's"
    assert not (Path(destination.path) / "a_saliency_20261123120000.png").exists()


def test_nothing_but_the_two_files_is_left(destination: Destination) -> None:
    write(destination)
    assert sorted(os.listdir(destination.path)) == ["a_overlay_20261123120000.png", "a_saliency_20261123120000.png"]


def test_a_full_disk_leaves_nothing_behind() -> None:
    # /dev/full cannot be a folder; a tmpfs needs rights. A folder that vanishes gives the same kind of fault.
    folder = Path("/dev/shm") / f"osteopan-test-{os.getpid()}"
    with open_destination(str(folder), roots=(Path("/"),)) as destination:
        folder.rmdir()
        with pytest.raises(JobError, match="cannot write to destination_path"):
            write(destination)
    assert not folder.exists()


def test_a_long_name_is_cut_between_characters(destination: Destination) -> None:
    saliency, overlay = write(destination, "ü" * 200)
    for path in (saliency, overlay):
        assert len(Path(path).name.encode()) <= 255
        assert Path(path).name.startswith("üüü")
        assert Path(path).exists()


def test_pictures_go_to_the_folder_that_was_checked_even_if_its_name_is_given_away(
    destination: Destination, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path(destination.path).rename(tmp_path / "moved")
    Path(destination.path).symlink_to(elsewhere)
    write(destination)
    assert os.listdir(elsewhere) == []
    assert len(os.listdir(tmp_path / "moved")) == 2


def write_noted(destination: Destination) -> tuple[list[str], list[str]]:
    """Write both pictures; gives their paths, and the notes that were made before."""
    notes: list[str] = []
    paths = write_pictures(destination, "a", saliency=b"saliency", overlay=b"overlay", now=NOON, on_names=notes.append)
    return list(paths), notes


@pytest.fixture(params=["nameless", "temporary"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files without a name, and what is done on systems that have none."""
    if request.param == "temporary":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return str(request.param)


def test_by_its_note_a_picture_can_be_removed_even_if_the_other_is_gone(destination: Destination, drafts: str) -> None:
    (saliency, _), notes = write_noted(destination)
    Path(saliency).unlink()
    remove_noted(destination, notes[-1])
    assert os.listdir(destination.path) == []


def test_nothing_has_a_name_before_it_is_noted(destination: Destination, drafts: str) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def look(note: str) -> None:
        seen.append((set(os.listdir(destination.path)), {name for name, *_ in json.loads(note)}))

    write_pictures(destination, "a", saliency=b"s", overlay=b"o", now=NOON, on_names=look)
    assert len(seen) == (1 if drafts == "nameless" else 3)
    noted_before: set[str] = set()
    for there, noted in seen:
        assert there <= noted_before
        noted_before = noted
    assert set(os.listdir(destination.path)) <= noted_before


def test_who_may_not_note_writes_nothing(destination: Destination, drafts: str) -> None:
    def refuse(_: str) -> None:
        raise LeaseLostError("another worker has the job")

    with pytest.raises(LeaseLostError, match="another worker"):
        write_pictures(destination, "a", saliency=b"s", overlay=b"o", now=NOON, on_names=refuse)
    assert os.listdir(destination.path) == []


def test_another_jobs_picture_under_a_noted_name_is_left_alone(destination: Destination, drafts: str) -> None:
    (saliency, overlay), notes = write_noted(destination)
    Path(saliency).unlink()
    Path(saliency).write_bytes(b"another job's")
    remove_noted(destination, notes[-1])
    assert Path(saliency).read_bytes() == b"another job's"
    assert not Path(overlay).exists()


def test_a_worker_killed_while_it_writes_leaves_no_file(destination: Destination) -> None:
    """The real thing: a process that dies when it has written the files and given them no name yet."""
    program = (
        "import os, signal, sys; from pathlib import Path; from datetime import datetime;"
        "from worker.paths import open_destination; from worker.pictures import write_pictures\n"
        "with open_destination(sys.argv[1], roots=[Path('/')]) as folder:\n"
        "    write_pictures(folder, 'a', saliency=bytes(9999), overlay=bytes(9999), now=datetime.now(),"
        " on_names=lambda _: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, destination.path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert os.listdir(destination.path) == []
