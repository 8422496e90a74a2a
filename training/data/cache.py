"""Radiographs as the network takes them, made once and kept on disk by what their files contain."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import ImageError
from panoramic.image import load_radiograph
from panoramic.preprocess import PREPROCESSING_VERSION, remove_background, shrink
from panoramic.radiograph import pixel_digest
from panoramic.view import View
from training.data.dataset import Picture
from training.data.parallel import run_in_processes, run_in_threads, usable_cores
from training.data.shortcuts import SHORTCUTS, shortcut_measures
from training.errors import DatasetError, ResourcesError
from training.files import write_whole

#: Most pictures that one message names; the search for more ends there.
MAX_NAMED: Final = 12

#: What an entry holds besides the pixels changes with this number.
_ENTRY_VERSION: Final = 1


@dataclass(frozen=True)
class Prepared:
    """A picture of the data set that the cache holds.

    Attributes:
        picture: Which.
        digest: `panoramic.radiograph.pixel_digest` of the radiograph as it was decoded.
        size_px: Its (height, width) before it was resized.
        measures: `training.data.shortcuts.shortcut_measures` of it.
        key: Names the cache's entry.
    """

    picture: Picture
    digest: str
    size_px: tuple[int, int]
    measures: dict[str, float]
    key: str


@dataclass(frozen=True)
class _Entry:
    """What is known of a file's content, whichever pictures of the data set it is."""

    digest: str
    size_px: tuple[int, int]
    measures: dict[str, float]


class PictureCache:
    """Pictures with their background removed, at the network's size: one small .npy and one .json each.

    An entry is named by the SHA-256 of the file's bytes, the preprocessing's version, the view and the size, so that a
    changed file or a changed transform has another entry. Nothing is kept in memory. Several runs may share a folder.

    Args:
        folder: Where the entries go; made when needed.
        view: What the pictures show.
        input_size: (height, width) that the network takes.
    """

    def __init__(self, folder: Path, *, view: View, input_size: tuple[int, int]) -> None:
        self._folder = folder
        self._view = view
        self.input_size = input_size

    def prepare(
        self,
        pictures: Sequence[Picture],
        *,
        processes: int | None = None,
        on_done: Callable[[], object] | None = None,
        unwanted: Collection[str] = (),
    ) -> list[Prepared]:
        """See to it that the cache holds all the pictures; what it holds already is checked and not made again.

        Once a picture turns out to be unusable, the others are only read, so that all of them are named soon. What was
        made until then stays. With more than one process the calling script must be importable (guarded by
        ``if __name__ == "__main__"``).

        Args:
            pictures: Of the data set.
            processes: How many to make missing entries with; by default one a usable core.
            on_done: Called after each picture.
            unwanted: Digests of pictures that the caller refuses. Once one is found the others are only read, so that
                the caller can soon name all of them; the cache does not hold what was only read.

        Returns:
            One each, in the same order.

        Raises:
            DatasetError: Some pictures cannot be used; it names up to `MAX_NAMED` of them, and why.
            ResourcesError: Memory or disk does not suffice.
            ValueError: ``processes`` is below 1.
        """
        if processes is not None and processes < 1:
            raise ValueError(f"processes is {processes}; at least 1 is needed")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ResourcesError(
                f"the folder of prepared pictures, {self._folder}, cannot be made: {exc.strerror}; name another place"
            ) from exc
        tell = on_done or (lambda: None)
        keys, entries, faults = self._look_up(pictures, tell)
        missing: dict[str, list[Picture]] = defaultdict(list)
        for place, picture in enumerate(pictures):
            if place in keys and keys[place] not in entries:
                missing[keys[place]].append(picture)
        if missing and len(faults) < MAX_NAMED:
            count = min(processes or usable_cores(), len(missing))
            self._make(missing, entries, faults, unwanted=frozenset(unwanted), count=count, tell=tell)
        if faults:
            raise DatasetError(_told(faults))
        return [
            Prepared(picture, entry.digest, entry.size_px, entry.measures, keys[place])
            for place, picture in enumerate(pictures)
            for entry in (entries[keys[place]],)
        ]

    def load(self, prepared: Prepared) -> NDArray[np.uint8]:
        """What `panoramic.preprocess.shrink` made of the picture: a new array, (h, w) grey levels.

        Raises:
            DatasetError: The entry is gone or damaged.
        """
        path = self._stem(prepared.key).with_suffix(".npy")
        try:
            pixels: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise self._spoilt(path) from exc
        if pixels.shape != self.input_size or pixels.dtype != np.uint8:
            raise self._spoilt(path)
        return pixels

    def _look_up(
        self, pictures: Sequence[Picture], tell: Callable[[], object]
    ) -> tuple[dict[int, str], dict[str, _Entry], dict[str, str]]:
        """Keys by place, entries by key of what is there, and faults by name; each file is read once."""
        keys: dict[int, str] = {}
        entries: dict[str, _Entry] = {}
        faults: dict[str, str] = {}
        jobs = ((place, picture) for place, picture in enumerate(pictures) if len(faults) < MAX_NAMED)
        # Threads do: a digest is computed without the interpreter's lock.
        with closing(run_in_threads(self._find, jobs, threads=usable_cores())) as results:
            for (place, picture), found in results:
                if isinstance(found, str):
                    faults[picture.name] = found
                    continue
                keys[place], entry = found
                if entry is not None:
                    entries[keys[place]] = entry
                    tell()
        return keys, entries, faults

    def _find(self, _place: int, picture: Picture) -> tuple[str, _Entry | None] | str:
        """A file's key, and its entry if that is there and whole; or why the file cannot be read."""
        about = f"{_ENTRY_VERSION}\0{PREPROCESSING_VERSION}\0{self._view}\0{self.input_size[0]}x{self.input_size[1]}\0"
        try:
            with picture.path.open("rb") as file:
                key = hashlib.file_digest(file, lambda: hashlib.sha256(about.encode())).hexdigest()
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"
        stem = self._stem(key)
        try:
            written = json.loads(stem.with_suffix(".json").read_bytes())
            if hashlib.sha256(stem.with_suffix(".npy").read_bytes()).hexdigest() != written["sha256"]:
                return key, None
            height, width = written["size_px"]
            measures = {name: float(written["measures"][name]) for name in SHORTCUTS}
            return key, _Entry(str(written["digest"]), (int(height), int(width)), measures)
        except (OSError, KeyError, TypeError, ValueError):  # not there, or damaged: made anew
            return key, None

    def _make(
        self,
        missing: dict[str, list[Picture]],
        entries: dict[str, _Entry],
        faults: dict[str, str],
        *,
        unwanted: frozenset[str],
        count: int,
        tell: Callable[[], object],
    ) -> None:
        """Make the missing entries; identical files are made once."""
        refused = any(entry.digest in unwanted for entry in entries.values())
        # Asked for one after another, so that each job knows whether a fault was found before it.
        jobs = (
            (key, pictures[0].path, self._stem(key), self._view, None if faults or refused else self.input_size)
            for key, pictures in missing.items()
            if len(faults) < MAX_NAMED
        )
        try:
            with closing(run_in_processes(_make_entry, jobs, processes=count)) as results:
                for (key, *_), made in results:
                    for picture in missing[key]:
                        if isinstance(made, str):
                            faults[picture.name] = made
                        tell()
                    if isinstance(made, _Entry):
                        entries[key] = made
                        refused = refused or made.digest in unwanted
        except BrokenProcessPool as exc:
            raise ResourcesError(
                f"one of the {count} processes that prepare pictures was ended from outside, most likely for lack of "
                "memory; use fewer processes. What was prepared is kept"
            ) from exc
        except MemoryError as exc:
            raise ResourcesError(
                f"memory does not suffice to prepare pictures in {count} processes; use fewer. What was prepared is "
                "kept"
            ) from exc

    def _stem(self, key: str) -> Path:
        # 256 folders: file systems and people get slow with 200,000 files in one.
        return self._folder / key[:2] / key

    def _spoilt(self, path: Path) -> DatasetError:
        return DatasetError(f"the prepared picture {path} is gone or damaged; start again, and it is made anew")


def _make_entry(_key: str, path: Path, stem: Path, view: View, input_size: tuple[int, int] | None) -> _Entry | str:
    """Make one entry of the cache; runs in a process of its own.

    Args:
        path: The radiograph.
        stem: The entry's path without its suffix.
        view: What the picture shows.
        input_size: (h, w) of the network, or None to read the radiograph and do no more.

    Returns:
        The entry, or why the picture cannot be used.

    Raises:
        ResourcesError: It cannot be written.
    """
    try:
        pixels = load_radiograph(path, view=view).pixels
    except ImageError as exc:
        return str(exc)
    entry = _Entry(pixel_digest(pixels), (pixels.shape[0], pixels.shape[1]), shortcut_measures(pixels))
    if input_size is None:
        return entry
    # One thread: there are processes enough.
    shrunk = shrink(remove_background(pixels, threads=1), input_size=input_size)
    file = io.BytesIO()
    np.save(file, shrunk, allow_pickle=False)
    try:
        stem.parent.mkdir(exist_ok=True)
    except OSError as exc:
        raise ResourcesError(f"{stem.parent} cannot be made: {exc.strerror}; name another place") from exc
    write_whole(stem.with_suffix(".npy"), file.getvalue())
    about = {
        "digest": entry.digest,
        "size_px": entry.size_px,
        "measures": entry.measures,
        "sha256": hashlib.sha256(file.getvalue()).hexdigest(),
    }
    # Last, so that an entry without it is not whole.
    write_whole(stem.with_suffix(".json"), json.dumps(about).encode())
    return entry


def _told(faults: dict[str, str]) -> str:
    found = f"{len(faults)} pictures" if len(faults) > 1 else "1 picture"
    some = (
        f"at least {found} cannot be used, these among them" if len(faults) >= MAX_NAMED else f"{found} cannot be used"
    )
    listed = "\n".join(f"  {name}: {fault}" for name, fault in sorted(faults.items())[:MAX_NAMED])
    return f"{some}; correct or remove what is named, and start again (what is prepared is kept):\n{listed}"
