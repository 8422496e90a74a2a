"""From files, folders and lines to requests."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from contract.errors import InvalidRequestError
from contract.jobs import JobRequest
from producer.requests_from import LINE_MAX_BYTES, UndecodableNameError, pictures_named, request_for, requests_in

DICOM = b"\0" * 128 + b"DICM" + b"\0" * 16


def lay_out(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names_of(pictures: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in pictures]


def test_a_folder_stands_for_its_pictures_in_order(tmp_path: Path) -> None:
    lay_out(tmp_path, "b.PNG", "a.jpg", "c.jpeg", "d.Tif", "e.tiff", "f.bmp", "g.dcm")
    lay_out(tmp_path, "note.txt", "README", "report.pdf", ".hidden.png", "._a.jpg", "sub/h.png")
    lay_out(tmp_path, "IM0001", "1.2.840.113619.2", "1.2.840.x", content=DICOM)
    pictures = pictures_named([str(tmp_path)], destination=tmp_path / "out")
    assert names_of(pictures, tmp_path) == [
        "1.2.840.113619.2",
        "IM0001",
        "a.jpg",
        "b.PNG",
        "c.jpeg",
        "d.Tif",
        "e.tiff",
        "f.bmp",
        "g.dcm",
    ]


def test_sub_folders_are_searched_on_request_but_for_the_results(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png", "sub/b.png", "sub/deeper/c.png", ".git/d.png", "out/e.png")
    pictures = pictures_named([str(tmp_path)], destination=tmp_path / "out", recursive=True)
    assert names_of(pictures, tmp_path) == ["a.png", "sub/b.png", "sub/deeper/c.png"]


def test_what_a_worker_drew_is_not_taken_for_a_radiograph(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png", "a_saliency_20260102030405.png", "a_overlay_20260102030405.png", "my_overlay_1.png")
    assert names_of(pictures_named([str(tmp_path)], destination=tmp_path), tmp_path) == ["a.png", "my_overlay_1.png"]


def test_a_named_file_may_be_called_anything_and_is_taken_once(tmp_path: Path) -> None:
    lay_out(tmp_path, "b.png", "a.xyz")
    paths = [str(tmp_path / "b.png"), str(tmp_path / "a.xyz"), str(tmp_path / "b.png")]
    assert names_of(pictures_named(paths, destination=tmp_path), tmp_path) == ["b.png", "a.xyz"]


def test_paths_become_absolute_and_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert pictures_named(["link/a.png"], destination=Path("out")) == [tmp_path / "link" / "a.png"]
    request = request_for(Path("link/a.png"), destination=Path("out"))
    assert (request.img_path, request.destination_path) == (f"{tmp_path}/link/a.png", f"{tmp_path}/out")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "missing.png: No such file or directory"),
        ("file.png/x", "file.png/x: Not a directory"),
        ("empty", "empty: no picture in this folder"),
        ("pipe", "pipe: neither a file nor a folder"),
        ("x" * 300, "x: File name too long"),
    ],
)
def test_a_path_without_a_picture_is_named(name: str, reason: str, tmp_path: Path) -> None:
    lay_out(tmp_path, "file.png", "empty/sub/a.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequestError, match=reason):
        pictures_named([str(tmp_path / "file.png"), str(tmp_path / name)], destination=tmp_path)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UndecodableNameError, match="not UTF-8, and JSON cannot carry it"):
        request_for(tmp_path / os.fsdecode(b"\xff.png"), destination=tmp_path)
    with pytest.raises(InvalidRequestError, match="not UTF-8") as caught:
        request_for(tmp_path / "a.png", destination=tmp_path / os.fsdecode(b"\xff"))
    assert not isinstance(caught.value, UndecodableNameError), "a bad destination spoils every request"


def test_lines_are_read_one_by_one_and_bad_ones_cost_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"img_path": "in/ä.png", "destination_path": "/out", "metadata": {"case": 7}}
    lines = [
        json.dumps(good).encode(),
        b"",
        b"  \t\r",
        b"not json",
        b'{"img_path": "/a"}',
        b"\xff\xfe",
        b'{"img_path": "' + b"a" * (3 * LINE_MAX_BYTES) + b'"}',
        json.dumps({**good, "job_id": "last"}).encode() + b"\r",
    ]
    read = dict(requests_in(io.BytesIO(b"\n".join(lines))))
    reasons = {number: str(error) for number, error in read.items() if isinstance(error, InvalidRequestError)}
    assert list(reasons) == [4, 5, 6, 7]
    assert reasons[4].startswith("not JSON")
    assert reasons[5].startswith("`destination_path`: Field required")
    assert reasons[7] == "longer than 131072 bytes"
    requests = {number: request for number, request in read.items() if isinstance(request, JobRequest)}
    assert {number: request.img_path for number, request in requests.items()} == {
        1: f"{tmp_path}/in/ä.png",
        8: f"{tmp_path}/in/ä.png",
    }
    assert requests[8].job_id == "last"


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_the_longest_request_that_the_contract_allows_fits_a_line(ending: bytes) -> None:
    path = "/" + "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 4095
    document = json.dumps({"img_path": path, "destination_path": path, "metadata": {"k": "ä" * 2000}}).encode()
    ((number, request),) = requests_in(io.BytesIO(document.ljust(LINE_MAX_BYTES - 1) + ending))
    assert number == 1
    assert isinstance(request, JobRequest)
    assert request.img_path == path


def test_a_relative_path_that_gets_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = json.dumps({"img_path": "a" * 4096, "destination_path": "/out"}).encode()
    ((_, error),) = requests_in(io.BytesIO(line))
    assert isinstance(error, InvalidRequestError)
    assert "at most 4096 characters" in str(error)
