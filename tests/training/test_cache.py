"""The cache of prepared pictures: the worker's numbers, made once, by content, whole or not at all."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from panoramic.image import load_radiograph
from panoramic.preprocess import prepare, to_tensor
from panoramic.radiograph import pixel_digest
from panoramic.view import View
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Picture
from training.data.shortcuts import shortcut_measures
from training.errors import DatasetError, ResourcesError
from training.phantoms.phantom import draw_phantom, draw_truth

SIZE = (45, 96)
ROOT = Path(__file__).parents[2]


def as_picture(path: Path, class_index: int = 0) -> Picture:
    return Picture(path, f"{path.parent.name}/{path.name}", class_index, path.stem)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Four pictures of different sizes and formats."""
    folder = tmp_path_factory.mktemp("phantoms") / "C1"
    folder.mkdir()
    kinds = ((121, 292), "png"), ((130, 300), "jpg"), ((121, 292), "tif"), ((140, 340), "bmp")
    for seed, (size, kind) in enumerate(kinds):
        cv2.imwrite(str(folder / f"{seed}.{kind}"), draw_phantom(draw_truth(seed, "C1", size_px=size)))
    return [as_picture(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def pictures(phantoms: list[Picture], tmp_path: Path) -> list[Picture]:
    """The same in a folder where they may be altered."""
    copied = shutil.copytree(phantoms[0].path.parent, tmp_path / "C1")
    return [as_picture(path) for path in sorted(copied.iterdir())]


@pytest.fixture
def cache(tmp_path: Path) -> PictureCache:
    return PictureCache(tmp_path / "deep" / "cache", view=View.FULL, input_size=SIZE)


def files_of(tmp_path: Path) -> dict[Path, tuple[int, int]]:
    found = [path for path in (tmp_path / "deep" / "cache").rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_training_sees_the_workers_numbers_bit_for_bit(cache: PictureCache, phantoms: list[Picture]) -> None:
    prepared = cache.prepare(phantoms, processes=1)

    assert [entry.picture for entry in prepared] == phantoms
    for entry in prepared:
        pixels = load_radiograph(entry.picture.path).pixels
        loaded = cache.load(entry)
        assert (loaded.shape, loaded.dtype) == (SIZE, np.uint8)
        np.testing.assert_array_equal(
            to_tensor(loaded, input_size=SIZE).view(np.uint32), prepare(pixels, input_size=SIZE).view(np.uint32)
        )
        assert entry.digest == pixel_digest(pixels)
        assert entry.size_px == pixels.shape
        assert entry.measures == shortcut_measures(pixels)


def test_several_processes_make_the_same_and_the_second_run_makes_nothing(
    cache: PictureCache, phantoms: list[Picture], tmp_path: Path
) -> None:
    calls: list[int] = []
    alone = PictureCache(tmp_path / "alone", view=View.FULL, input_size=SIZE)

    made = cache.prepare(phantoms, processes=2, on_done=lambda: calls.append(1))
    files = files_of(tmp_path)
    again = cache.prepare(phantoms[::-1], processes=2, on_done=lambda: calls.append(1))

    assert made == again[::-1] == alone.prepare(phantoms, processes=1)
    assert files_of(tmp_path) == files
    assert len(files) == 2 * len(phantoms)
    assert len(calls) == 2 * len(phantoms)
    for entry in made:
        np.testing.assert_array_equal(cache.load(entry), alone.load(entry))


def test_after_an_unwanted_picture_the_others_are_only_read(
    cache: PictureCache, phantoms: list[Picture], tmp_path: Path
) -> None:
    digests = [pixel_digest(load_radiograph(picture.path).pixels) for picture in phantoms]

    found = cache.prepare(phantoms, processes=1, unwanted=[digests[1], "f" * 32])

    assert [entry.digest for entry in found] == digests
    kept = {path.stem for path in files_of(tmp_path) if path.suffix == ".npy"}
    assert kept == {entry.key for entry in found[:2]}
    # What is there already is known at once.
    assert cache.prepare(phantoms[::-1], processes=1, unwanted=[digests[1]]) == found[::-1]
    assert {path.stem for path in files_of(tmp_path)} == kept
    assert cache.prepare(phantoms, processes=1, unwanted=["f" * 32]) == found
    assert len(files_of(tmp_path)) == 2 * len(phantoms)


def test_an_entry_belongs_to_content_view_and_size(
    cache: PictureCache, pictures: list[Picture], tmp_path: Path
) -> None:
    def key(cache: PictureCache, picture: Picture) -> str:
        return cache.prepare([picture], processes=1)[0].key

    first = key(cache, pictures[0])
    renamed = pictures[0].path.rename(tmp_path / "C1" / "other.png")
    assert key(cache, as_picture(renamed)) == first
    assert (
        key(PictureCache(tmp_path / "deep" / "cache", view=View.FULL, input_size=(46, 96)), as_picture(renamed))
        != first
    )
    square = tmp_path / "square.png"
    cv2.imwrite(str(square), draw_phantom(draw_truth(1, "C1", size_px=(200, 480)))[:200, 140:340])
    crops = PictureCache(tmp_path / "deep" / "cache", view=View.CROP, input_size=(64, 64))
    assert crops.load(crops.prepare([as_picture(square)], processes=1)[0]).shape == (64, 64)

    renamed.write_bytes(pictures[2].path.read_bytes())
    changed = cache.prepare([as_picture(renamed)], processes=1)[0]
    assert changed.key != first
    assert changed.digest == pixel_digest(load_radiograph(pictures[2].path).pixels)


def test_identical_files_share_an_entry(cache: PictureCache, pictures: list[Picture], tmp_path: Path) -> None:
    shutil.copy(pictures[0].path, tmp_path / "C1" / "twin.png")
    twins = [pictures[0], as_picture(tmp_path / "C1" / "twin.png")]
    calls: list[int] = []

    a, b = cache.prepare(twins, processes=1, on_done=lambda: calls.append(1))

    assert (a.key, a.digest) == (b.key, b.digest)
    assert [a.picture, b.picture] == twins
    assert len(calls) == 2
    assert len(files_of(tmp_path)) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


def forget_a_measure(path: Path) -> None:
    about = json.loads(path.read_bytes())
    del about["measures"]["brightness"]
    path.write_text(json.dumps(about), encoding="utf-8")


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", cut),
        (".npy", flip_a_bit),
        (".npy", Path.unlink),
        (".npy", lambda path: path.write_bytes(b"")),
        (".json", cut),
        (".json", Path.unlink),
        (".json", lambda path: path.write_bytes(b"[]")),
        (".json", lambda path: path.write_bytes(b"\xff\xfe")),
        (".json", forget_a_measure),
    ],
)
def test_a_damaged_entry_is_made_anew(
    cache: PictureCache, phantoms: list[Picture], tmp_path: Path, suffix: str, damage: Callable[[Path], object]
) -> None:
    (before,) = cache.prepare(phantoms[:1], processes=1)
    whole = {path: path.read_bytes() for path in files_of(tmp_path)}
    damage(next(path for path in whole if path.suffix == suffix))

    assert cache.prepare(phantoms[:1], processes=1) == [before]
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == whole


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: np.save(path, np.zeros((3, 3), np.uint8))])
def test_loading_a_damaged_entry_says_what_to_do(
    cache: PictureCache, phantoms: list[Picture], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    (entry,) = cache.prepare(phantoms[:1], processes=1)
    damage(next(path for path in files_of(tmp_path) if path.suffix == ".npy"))

    with pytest.raises(DatasetError, match=r"gone or damaged; start again"):
        cache.load(entry)


def spoil(pictures: list[Picture], count: int) -> list[Picture]:
    """Pictures that nobody can read, each of another content."""
    spoilt = []
    for number in range(count):
        path = pictures[0].path.parent / f"bad{number:02}.png"
        path.write_bytes(b"no picture %d" % number)
        spoilt.append(as_picture(path))
    return spoilt


def test_every_unreadable_picture_is_named_with_its_fault(cache: PictureCache, pictures: list[Picture]) -> None:
    bad = spoil(pictures, 2)
    bad[1].path.write_bytes(b"")
    cv2.imwrite(str(pictures[3].path), np.full((140, 340), 90, np.uint8))
    gone = as_picture(pictures[0].path.with_name("gone.png"))

    with pytest.raises(DatasetError, match=r"^4 pictures cannot be used; correct or remove") as caught:
        cache.prepare([bad[0], *pictures, bad[1], gone], processes=2)

    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["C1/3.bmp", "C1/bad00.png", "C1/bad01.png", "C1/gone.png"]
    assert "empty" in lines[2]
    assert "No such file" in lines[3]


def test_no_more_than_a_dozen_are_named(cache: PictureCache, pictures: list[Picture]) -> None:
    with pytest.raises(DatasetError, match=r"^at least 12 pictures cannot be used, these among them") as caught:
        cache.prepare(spoil(pictures, 30), processes=1)

    assert len(str(caught.value).splitlines()) == 13


def test_after_the_first_fault_nothing_more_is_spent(
    cache: PictureCache, pictures: list[Picture], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="^1 picture cannot be used"):
        cache.prepare([pictures[0], *spoil(pictures, 1), *pictures[1:]], processes=1)

    assert len(files_of(tmp_path)) == 2


def test_a_folder_that_cannot_be_made(phantoms: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourcesError, match="folder of prepared pictures.*Not a directory; name another place"):
        PictureCache(tmp_path / "file" / "cache", view=View.FULL, input_size=SIZE).prepare(phantoms)
    with pytest.raises(ValueError, match="processes is 0"):
        PictureCache(tmp_path, view=View.FULL, input_size=SIZE).prepare(phantoms, processes=0)


def run_script(text: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


FULL_DISK = f"""
import resource, sys
from pathlib import Path
from panoramic.view import View
from training.data.cache import PictureCache
from training.data.dataset import Picture
from training.errors import ResourcesError

picture = Picture(Path(sys.argv[1]), "C1/0.png", 0, "0")
cache = PictureCache(Path(sys.argv[2]), view=View.FULL, input_size={SIZE})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    cache.prepare([picture], processes=1)
except ResourcesError as fault:
    sys.stdout.write(str(fault))
"""


def test_a_full_disk_is_told_and_leaves_nothing_half_written(phantoms: list[Picture], tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("needs the right to limit the size of files")
    process = run_script(FULL_DISK, phantoms[0].path, tmp_path / "deep" / "cache")
    told, faults = process.communicate(timeout=60)

    assert (process.returncode, faults) == (0, "")
    assert "was not written: File too large; free some space or name another place" in told
    assert files_of(tmp_path) == {}


def test_a_process_that_is_ended_from_outside_is_told(
    cache: PictureCache, phantoms: list[Picture], tmp_path: Path
) -> None:
    def kill_workers() -> None:
        for child in psutil.Process().children():
            # The second time there are zombies.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    many = vary(phantoms[0], tmp_path / "many", 12)
    with pytest.raises(ResourcesError, match="was ended from outside, most likely for lack of memory; use fewer"):
        cache.prepare(many, processes=2, on_done=kill_workers)
    assert len(cache.prepare(many, processes=1)) == 12


def vary(picture: Picture, folder: Path, count: int, enlarge: int = 1) -> list[Picture]:
    """Pictures of different contents, fast to make."""
    folder.mkdir()
    pixels = cv2.imread(str(picture.path), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    pixels = np.kron(pixels, np.ones((enlarge, enlarge), np.uint8))
    for number in range(count):
        pixels[0, 0] = number
        cv2.imwrite(str(folder / f"{number:03}.png"), pixels)
    return [as_picture(path) for path in sorted(folder.iterdir())]


LONG = f"""
import sys
from pathlib import Path
from panoramic.view import View
from training.data.cache import PictureCache
from training.data.dataset import Picture

if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).iterdir())
    pictures = [Picture(path, path.name, 0, path.stem) for path in files]
    cache = PictureCache(Path(sys.argv[2]), view=View.FULL, input_size={SIZE})
    try:
        cache.prepare(pictures, processes=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_is_answered_promptly_and_what_was_made_is_kept(phantoms: list[Picture], tmp_path: Path) -> None:
    many = vary(phantoms[0], tmp_path / "many", 120, enlarge=5)
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, tmp_path / "many", tmp_path / "deep" / "cache"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_entries(tmp_path)
    children = psutil.Process(process.pid).children()
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the children too
    _, faults = process.communicate(timeout=60)

    assert (process.returncode, faults) == (130, "")
    assert time.monotonic() - began < 15
    assert psutil.wait_procs(children, timeout=10)[1] == []
    made = files_of(tmp_path)
    assert not [path for path in made if path.suffix not in {".npy", ".json"}]
    assert 0 < len(made) < 2 * len(many)


def test_killed_outright_it_leaves_no_process_behind(phantoms: list[Picture], tmp_path: Path) -> None:
    vary(phantoms[0], tmp_path / "many", 120, enlarge=5)
    process = run_script(LONG, tmp_path / "many", tmp_path / "deep" / "cache")
    wait_for_entries(tmp_path)
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    process.kill()
    process.communicate(timeout=60)

    assert psutil.wait_procs(children, timeout=20)[1] == []


def wait_for_entries(tmp_path: Path) -> None:
    deadline = time.monotonic() + 120
    while not any((tmp_path / "deep").rglob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_prepared_pictures_know_no_class_of_the_file(cache: PictureCache, phantoms: list[Picture]) -> None:
    other = [Picture(picture.path, picture.name, 1, "someone") for picture in phantoms[:1]]
    (first,), (second,) = cache.prepare(phantoms[:1], processes=1), cache.prepare(other, processes=1)

    assert second == Prepared(other[0], first.digest, first.size_px, first.measures, first.key)
