"""What a job may read and where it may write."""

from __future__ import annotations

import collections
import itertools
import os
import threading
from pathlib import Path

import pytest

from contract.errors import ErrorCode, JobError
from worker.paths import open_destination, read_input

ANYWHERE = (Path("/"),)
MANY_BYTES = 1000


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


def read(path: Path | str, *roots: Path) -> bytes:
    return read_input(str(path), roots=[root.resolve() for root in roots] or ANYWHERE, max_bytes=MANY_BYTES)


def code_of(error: pytest.ExceptionInfo[JobError]) -> ErrorCode:
    return error.value.code


def test_a_file_in_an_allowed_folder_is_read(picture: Path) -> None:
    assert read(picture, picture.parent) == b"content"


def test_a_link_that_stays_inside_is_followed(picture: Path) -> None:
    link = picture.parent / "link.png"
    link.symlink_to(picture)
    assert read(link, picture.parent) == b"content"


@pytest.mark.parametrize(
    "name",
    ['it\'s "quoted".png', "two  spaces .png", "ünïcode näme – пано 全景.png", "new\nline.png", "-rf.png", "$(x).png"],
)
def test_any_name_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    assert read(tmp_path / name) == b"content"


def test_the_way_out_by_dots_is_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(JobError, match="leads outside the folders") as error:
        read(picture.parent / ".." / "secret", picture.parent)
    assert code_of(error) is ErrorCode.PATH_NOT_ALLOWED


def test_a_link_that_leads_out_is_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (picture.parent / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(JobError, match="leads outside the folders") as error:
        read(picture.parent / "link", picture.parent)
    assert code_of(error) is ErrorCode.PATH_NOT_ALLOWED


def test_a_folder_whose_name_only_begins_like_a_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a").write_bytes(b"")
    with pytest.raises(JobError, match="leads outside the folders"):
        read(tmp_path / "inside" / "a", tmp_path / "in")


def test_outside_the_roots_nothing_is_told_about_what_exists(tmp_path: Path, picture: Path) -> None:
    with pytest.raises(JobError, match="leads outside") as error:
        read(tmp_path / "no such file", picture.parent)
    assert code_of(error) is ErrorCode.PATH_NOT_ALLOWED


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(JobError, match="is relative; give an absolute path"):
        read("a.png")


@pytest.mark.parametrize("name", ["missing.png", "a.png/b.png", "x" * 300])
def test_a_missing_file_is_not_found(picture: Path, name: str) -> None:
    with pytest.raises(JobError, match="there is no file") as error:
        read(picture.parent / name)
    assert code_of(error) is ErrorCode.IMAGE_NOT_FOUND


def test_a_folder_is_no_picture(picture: Path) -> None:
    with pytest.raises(JobError, match="is a folder") as error:
        read(picture.parent)
    assert code_of(error) is ErrorCode.IMAGE_UNREADABLE


def test_a_pipe_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(JobError, match="is a device, pipe or socket"):
        read(tmp_path / "pipe.png")


def test_a_device_is_refused() -> None:
    with pytest.raises(JobError, match="is a device, pipe or socket"):
        read("/dev/zero")


def test_a_file_over_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(JobError, match="at most .* are read") as error:
        read(tmp_path / "huge.png")
    assert code_of(error) is ErrorCode.IMAGE_TOO_LARGE


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(JobError, match="loop of links|there is no file|cannot open"):
        read(tmp_path / "a")


def test_a_link_swapped_between_check_and_opening_gains_nothing(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    link, spare = picture.parent / "link", picture.parent / "spare"
    link.symlink_to(picture)
    stop = threading.Event()

    def swap() -> None:
        targets = itertools.cycle([tmp_path / "secret", picture])
        while not stop.is_set():
            spare.symlink_to(next(targets))
            spare.replace(link)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = collections.Counter[bytes | ErrorCode]()
    try:
        for _ in range(4000):
            try:
                outcomes[read(link, picture.parent)] += 1
            except JobError as error:
                outcomes[error.code] += 1
    finally:
        stop.set()
        thread.join()
    assert set(outcomes) == {b"content", ErrorCode.PATH_NOT_ALLOWED}


def test_no_descriptor_stays_open(picture: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    read(picture)
    with pytest.raises(JobError, match="is a folder"):
        read(picture.parent)
    with open_destination(str(picture.parent), roots=ANYWHERE):
        pass
    with pytest.raises(JobError, match="cannot write"), open_destination(str(picture), roots=ANYWHERE):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_missing_destination_is_made_with_its_parents(tmp_path: Path) -> None:
    with open_destination(str(tmp_path / "a" / "b"), roots=[tmp_path.resolve()]) as destination:
        assert Path(destination.path).is_dir()


def test_a_destination_outside_the_roots_is_refused_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(JobError, match="leads outside"), open_destination(str(elsewhere), roots=[tmp_path / "out"]):
        pass
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_destination_that_is_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(JobError, match="cannot write to destination_path") as error,
        open_destination(str(tmp_path / name), roots=ANYWHERE),
    ):
        pass
    assert code_of(error) is ErrorCode.DESTINATION_NOT_WRITABLE


def test_a_destination_on_a_read_only_file_system_is_refused() -> None:
    with (
        pytest.raises(JobError, match="cannot write|may not write") as error,
        open_destination("/proc/osteopan", roots=ANYWHERE),
    ):
        pass
    assert code_of(error) is ErrorCode.DESTINATION_NOT_WRITABLE
