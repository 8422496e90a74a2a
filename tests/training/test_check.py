"""The fingerprint of a data set, and every fault that it can have."""

import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner, Result

from panoramic.image import load_radiograph
from panoramic.radiograph import pixel_digest
from panoramic.view import View
from training.data.check import Check, check_dataset
from training.data.check_table import print_check, printable
from training.data.cli import register
from training.data.dataset import dataset_digest, find_dataset
from training.data.duplicates import find_identical, find_near_identical, thumbnail
from training.data.examine import Unreadable, examine
from training.data.findings import Finding, FindingCode
from training.data.patients import PatientPattern

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_radiographs = pytest.mark.skipif(
    not (SHARED / "radiographs").is_dir(), reason="the radiographs of ../shared/data are not here"
)
needs_bad_input = pytest.mark.skipif(
    not (SHARED / "badinput").is_dir(), reason="the bad input of ../shared/data is not here"
)


def field(seed: int, size_px: tuple[int, int] = (180, 400)) -> NDArray[np.uint8]:
    """Smooth structure that the reader takes for a radiograph, another for each seed."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(90, 150, (18, 40)), size_px[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 1, size_px), 0, 255).astype(np.uint8)


def put(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def clean_set(root: Path, *, each: int = 5) -> None:
    for number in range(each):
        put(root / f"C1/{number}.png", field(number))
        put(root / f"C3/{number}.png", field(1000 + number))


def found(check: Check, code: FindingCode) -> list[Finding]:
    return [finding for finding in check.findings if finding.code is code]


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one of each fault; patients are the names up to an underscore."""
    root = tmp_path_factory.mktemp("faulty")
    clean_set(root)
    put(root / "C1/twice_a.bmp", field(50))
    put(root / "C1/twice_b.png", field(50))
    put(root / "C1/anna_1.png", field(60))
    put(root / "C1/berta_1.png", field(60))
    put(root / "C1/cora_1.png", field(61))
    put(root / "C3/dora_1.png", field(61))
    put(root / "C1/emma_1.png", field(62))
    put(root / "C3/frida_1.jpg", cv2.resize(cv2.flip(field(62), 1), (320, 144), interpolation=cv2.INTER_AREA))
    put(root / "C1/gerda_1.png", field(63))
    put(root / "C3/gerda_2.png", field(64))
    put(root / "C3/chin_up.png", np.flipud(air_below(field(65))))
    (root / "C3/list.txt").write_text("no picture")
    (root / "C3/short.png").write_bytes((root / "C3/1.png").read_bytes()[:9000])
    (root / "C3/more").mkdir()
    put(root / "C2/0.png", field(70))
    return root


def air_below(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    dark = pixels.copy()
    dark[-40:] //= 8
    return dark


@pytest.fixture(scope="module")
def check(faulty: Path) -> Check:
    return check_dataset(find_dataset(faulty, patients=PatientPattern(r"^[^_.]+")))


def test_counts(check: Check) -> None:
    fingerprint = check.fingerprint
    assert [(cls.name, cls.finding, cls.files, cls.pictures) for cls in fingerprint.classes] == [
        ("C1", False, 12, 12),
        ("C3", True, 11, 9),
    ]
    # Patients of the clean pictures are called 0 to 4 in both classes, so they are the same ones.
    assert [cls.patients for cls in fingerprint.classes] == [11, 9]
    assert fingerprint.patients == 5 + 6 + 3
    assert fingerprint.formats == {"BMP": 1, "JPEG": 1, "PNG": 19}
    assert fingerprint.bit_depths == {8: 21}
    assert fingerprint.sizes == 2
    assert (fingerprint.heights_px.smallest, fingerprint.heights_px.median, fingerprint.heights_px.largest) == (
        144,
        180,
        180,
    )
    assert (fingerprint.widths_px.smallest, fingerprint.widths_px.largest) == (320, 400)
    assert fingerprint.warnings["upside_down"] == 1


def test_unreadable_files_are_named_with_their_reason(check: Check) -> None:
    assert [file.picture.name for file in check.unreadable] == ["C3/list.txt", "C3/short.png"]
    assert "of an unknown kind" in check.unreadable[0].reason
    assert "damaged, cut short" in check.unreadable[1].reason
    [finding] = found(check, FindingCode.UNREADABLE)
    assert finding.wrong
    assert "2 of 23 files" in finding.message


def test_identical_pictures_are_told_by_whom_they_touch(check: Check) -> None:
    across_classes, across_patients, within = found(check, FindingCode.IDENTICAL)
    assert across_classes.pictures == (("C1/cora_1.png", "C3/dora_1.png"),)
    assert "different classes" in across_classes.message
    assert across_patients.pictures == (("C1/anna_1.png", "C1/berta_1.png"),)
    assert "different patients" in across_patients.message
    assert within.pictures == (("C1/twice_a.bmp", "C1/twice_b.png"),)
    assert all(finding.wrong for finding in (across_classes, across_patients, within))


def test_near_identical_pictures_are_found_mirrored_and_reduced(check: Check) -> None:
    [finding] = found(check, FindingCode.NEAR_IDENTICAL)
    assert finding.pictures == (("C1/emma_1.png", "C3/frida_1.jpg"),)
    assert "different classes" in finding.message
    assert "mirrored" in finding.message


def test_patients_in_several_classes(check: Check) -> None:
    [finding] = found(check, FindingCode.PATIENT_IN_SEVERAL_CLASSES)
    assert ("C1/gerda_1.png", "C3/gerda_2.png") in finding.pictures
    assert len(finding.pictures) == 1 + 5


def test_readers_warnings_and_what_is_left_out(check: Check) -> None:
    warnings = {finding.message.rpartition(" ")[2]: finding for finding in found(check, FindingCode.READER_WARNING)}
    assert warnings["upside_down"].wrong
    assert warnings["upside_down"].pictures == (("C3/chin_up.png",),)
    assert not warnings["low_resolution"].wrong
    [left_out] = found(check, FindingCode.LEFT_OUT)
    assert left_out.pictures == (("C2",), ("C3/more",))
    assert not left_out.wrong


def test_faults_come_before_remarks(check: Check) -> None:
    wrong = [finding.wrong for finding in check.findings]
    assert wrong == sorted(wrong, reverse=True)
    assert check.wrong


def test_a_clean_set_passes(tmp_path: Path) -> None:
    clean_set(tmp_path)
    answer = run("check", tmp_path)
    assert answer.exit_code == 0
    assert "Nothing is wrong." in answer.stdout
    assert "10/10" in answer.stderr


def test_a_class_with_fewer_patients_than_folds_is_told(tmp_path: Path) -> None:
    clean_set(tmp_path)
    (tmp_path / "C3/4.png").unlink()
    answer = run("check", tmp_path, "--json", "--patients", r"^\d")
    document = json.loads(answer.stdout)
    [finding] = [finding for finding in document["findings"] if finding["code"] == "few_patients"]
    assert finding["wrong"]
    assert re.search("class C3 has 4 patients .* need at least 5", finding["message"])
    assert answer.exit_code == 1


def test_brightness_that_gives_the_class_away_is_told(tmp_path: Path) -> None:
    for number in range(12):
        put(tmp_path / f"C1/{number}.png", field(number))
        put(tmp_path / f"C3/{number}.png", field(1000 + number) - 30)
    answer = run("check", tmp_path, "--json", "--processes", "1")
    document = json.loads(answer.stdout)
    messages = [finding["message"] for finding in document["findings"] if finding["code"] == "shortcut"]
    assert answer.exit_code == 1
    assert any(message.startswith("brightness (mean grey level") and "AUC of 0.00" in message for message in messages)
    by_name = {shortcut["name"]: shortcut for shortcut in document["shortcuts"]}
    assert by_name["brightness"]["auc"] == 0
    assert by_name["all"]["auc"] > 0.9
    assert not by_name["height"]["suspicious"]


def test_the_file_format_is_a_shortcut_too(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / f"A/{number}.png", field(number))
        put(tmp_path / f"B/{number}.bmp", field(1000 + number))
    answer = json.loads(run("check", tmp_path, "--json", "--processes", "1").stdout)
    assert answer["shortcuts"][0]["name"] == "BMP"
    assert answer["shortcuts"][0]["auc"] == 1
    assert "PNG" not in {shortcut["name"] for shortcut in answer["shortcuts"]}


def test_the_json_document_says_the_same(faulty: Path, check: Check) -> None:
    answer = run("check", faulty, "--json", "--patients", r"^[^_.]+")
    document = json.loads(answer.stdout)
    assert answer.exit_code == 1
    assert document == json.loads(json.dumps(check.as_document()))
    assert document["fingerprint"]["digest"] == check.fingerprint.digest
    assert document["unreadable"][0]["name"] == "C3/list.txt"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "cannot be listed: No such file"),
        ([".", "--classes", "C1"], "there is 1 class"),
        ([".", "--classes", "C1,C9"], "class folder 'C9' does not exist"),
        ([".", "--finding", "C9"], "the finding is 'C9'"),
        ([".", "--patients", "none.csv"], "table of patients none.csv cannot be read"),
    ],
)
def test_input_that_cannot_be_used(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_set(tmp_path, each=1)
    monkeypatch.chdir(tmp_path)
    answer = run("check", *arguments)
    assert answer.exit_code == 2
    assert sentence in answer.stderr
    assert answer.stdout == ""


def test_the_digest_knows_neither_names_nor_files_but_classes(tmp_path: Path) -> None:
    clean_set(tmp_path / "a", each=2)
    for number in range(2):
        put(tmp_path / f"b/C1/x{1 - number}.bmp", field(number))
        put(tmp_path / f"b/C3/{number}.png", field(1000 + number))
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c/C1/0.png").rename(tmp_path / "c/C3/9.png")
    digests = [check_dataset(find_dataset(tmp_path / name), processes=1).fingerprint.digest for name in "abc"]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_digest_is_of_all_pictures() -> None:
    pictures = [("C1", "00"), ("C1", "01"), ("C3", "02")]
    assert dataset_digest(pictures) == dataset_digest(reversed(pictures))
    assert len({dataset_digest(pictures), dataset_digest(pictures[1:]), dataset_digest([*pictures, ("C3", "02")])}) == 3


def test_the_table_cannot_be_made_to_steer_the_terminal(tmp_path: Path) -> None:
    clean_set(tmp_path, each=1)
    (tmp_path / "C1/\x1b[31m[bold]x\n.png").write_text("no picture")
    out = io.StringIO()
    print_check(check_dataset(find_dataset(tmp_path), processes=1), Console(file=out, width=200))
    assert r"C1/\x1b[31m[bold]x\n.png: The content of the file" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert printable("a\udcffb") == r"a\udcffb"


def test_long_lists_are_cut_short_in_the_table_alone(tmp_path: Path) -> None:
    clean_set(tmp_path, each=1)
    for number in range(8):
        (tmp_path / f"C1/{number}.txt").write_text("no picture")
    answer = check_dataset(find_dataset(tmp_path), processes=1)
    out = io.StringIO()
    print_check(answer, Console(file=out, width=200))
    assert "C1/4.txt" in out.getvalue()
    assert "C1/5.txt" not in out.getvalue()
    assert "and 3 more; --json lists all" in out.getvalue()
    assert len(answer.as_document()["unreadable"]) == 8


def test_examining_keeps_the_order_and_agrees_with_the_reader(tmp_path: Path) -> None:
    clean_set(tmp_path, each=3)
    (tmp_path / "C1/2.png").write_bytes(b"")
    pictures = find_dataset(tmp_path).pictures
    calls: list[int] = []
    answers = examine(pictures, view=View.FULL, processes=3, on_done=lambda: calls.append(1))
    assert [answer.picture for answer in answers] == list(pictures)
    assert len(calls) == 6
    assert [isinstance(answer, Unreadable) for answer in answers] == [False, False, True, False, False, False]
    for answer in answers:
        if not isinstance(answer, Unreadable):
            assert answer.digest == pixel_digest(load_radiograph(answer.picture.path).pixels)


def test_a_fault_while_examining_ends_it(tmp_path: Path) -> None:
    clean_set(tmp_path, each=3)
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("no more of this")

    with pytest.raises(RuntimeError, match="no more of this"):
        examine(find_dataset(tmp_path).pictures, view=View.FULL, processes=2, on_done=fail)
    assert len(calls) <= 2


def test_identical_needs_every_grey_level() -> None:
    pixels = field(1)
    other = pixels.copy()
    other[0, 0] ^= 1
    digests = [pixel_digest(one) for one in (pixels, other, pixels, pixels.T, pixels)]
    assert [group.members for group in find_identical(digests)] == [(0, 2, 4)]


def copies(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    height, width = pixels.shape
    jpeg = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE)
    return {
        "JPEG of quality 30": jpeg,
        "half": cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        "out of proportion": cv2.resize(pixels, (width * 3 // 4, height * 5 // 6)),
        "brighter": np.clip(pixels.astype(int) + 20, 0, 255).astype(np.uint8),
        "darker": (pixels * 0.7).astype(np.uint8),
        "gamma": (255 * (pixels / 255) ** 0.7).astype(np.uint8),
        "mirrored": cv2.flip(pixels, 1),
        "upside down": cv2.flip(pixels, 0),
        "turned by 180°": cv2.flip(pixels, -1),
    }


@needs_radiographs
def test_copies_of_real_radiographs_are_found_and_other_people_are_not() -> None:
    people = [load_radiograph(SHARED / f"radiographs/{name}.png").pixels for name in (1, 2, 5, 9, 11, 83, 107)]
    assert find_near_identical([thumbnail(pixels) for pixels in people]) == []
    for pixels in people[:3]:
        for what, copy in copies(pixels).items():
            [group] = find_near_identical([thumbnail(one) for one in (*people[3:], pixels, copy)])
            assert group.members == (4, 5), what
            assert group.flipped == ((what,) if what in {"mirrored", "upside down", "turned by 180°"} else ())


@needs_radiographs
def test_the_identical_pair_of_the_radiographs_is_found(tmp_path: Path) -> None:
    for folder, names in (("C1", (2, 9)), ("C3", (32, 5))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").symlink_to(SHARED / f"radiographs/{name}.png")
    answer = check_dataset(find_dataset(tmp_path), processes=1)
    [finding] = found(answer, FindingCode.IDENTICAL)
    assert finding.pictures == (("C1/2.png", "C3/32.png"),)
    assert found(answer, FindingCode.NEAR_IDENTICAL) == []


@needs_bad_input
def test_whatever_strangers_send_gets_a_reason(tmp_path: Path) -> None:
    for folder in ("generated", "pillow_tests"):
        (tmp_path / folder).mkdir()
        for file in (SHARED / "badinput" / folder).iterdir():
            (tmp_path / folder / file.name).symlink_to(file)
    answer = check_dataset(find_dataset(tmp_path), processes=1)
    assert len(answer.unreadable) > 20
    assert all(re.search(r"\w\.$", file.reason) for file in answer.unreadable)
    assert answer.fingerprint.classes[0].pictures > 5


def test_groups_are_those_of_all_pairs_across_tiles() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(2100, 32, 48))
    cells[2095] = cells[3] + 0.05 * rng.normal(size=(32, 48))
    cells[2099] = cells[2095][::-1]
    cells[700] = cells[701]
    cells -= cells.mean((1, 2), keepdims=True)
    cells /= np.sqrt((cells**2).sum((1, 2), keepdims=True))
    groups = find_near_identical(list(cells.astype(np.float16)))
    assert [(group.members, group.flipped) for group in groups] == [
        ((3, 2095, 2099), ("upside down",)),
        ((700, 701), ()),
    ]


def test_chains_and_crowds_are_one_group() -> None:
    # Neighbours on a circle are alike, opposite ones are not.
    rng = np.random.default_rng(1)
    one, other = np.linalg.qr(rng.normal(size=(32 * 48, 2)))[0].T.reshape(2, 32, 48)
    angles = np.arange(40) * np.pi / 40
    chain = [np.asarray(one * np.cos(a) + other * np.sin(a), np.float16) for a in angles]
    assert abs(float((chain[0] * chain[20]).sum())) < 0.01
    [group] = find_near_identical([*chain, np.zeros((32, 48), np.float16), *chain[::-1]])
    assert group.members == (*range(40), *range(41, 81))
