"""Random pictures of a folder, read one at a time; what cannot be read is skipped and remembered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import ImageError
from panoramic.image import load_radiograph
from panoramic.radiograph import pixel_digest
from panoramic.view import View
from training.errors import DatasetError

#: Why a picture is skipped whose pixels were shown already.
IDENTICAL = "Its pixels are those of another picture that was drawn before."


@dataclass(frozen=True, eq=False)
class Picked:
    """A picture that was drawn and could be read.

    Attributes:
        path: Its file. File names can be patients' names: show the digest instead.
        pixels: (H, W) grey levels, bone bright.
        digest: `panoramic.radiograph.pixel_digest` of them.
        warnings: Codes of `panoramic.radiograph.ImageWarning`.
    """

    path: Path
    pixels: NDArray[np.uint8]
    digest: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A picture that was drawn and not used, and why; the reason does not repeat its name."""

    path: Path
    reason: str


class RandomPictures:
    """Up to n pictures of a folder in a random order, each with pixels of its own; iterate once.

    A picture that cannot be read is replaced by the next of the order, so that there are n if the folder has as many.
    The order depends on the seed and on the names in the folder, nothing else. Sub-folders and files whose names begin
    with a dot are passed over.

    Args:
        folder: Where the pictures are.
        n: How many to draw, at least 1.
        seed: 0 or more.
        view: What the pictures must show.

    Attributes:
        skipped: Those that were drawn and not used, so far.

    Raises:
        DatasetError: The folder cannot be listed or holds no files, or n or the seed is out of its range.
    """

    def __init__(self, folder: Path, *, n: int, seed: int, view: View) -> None:
        if n < 1 or seed < 0:
            raise DatasetError(f"n is {n} and the seed is {seed}, but n must be at least 1 and the seed at least 0")
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as exc:
            raise DatasetError(f"{folder} cannot be listed: {exc.strerror}; name a folder of pictures") from exc
        files = [entry for entry in entries if entry.is_file()]
        if not files:
            inside = [entry.name for entry in entries if entry.is_dir()]
            hint = f"; name one of its sub-folders: {', '.join(inside[:12])}" if inside else "; name a folder that does"
            raise DatasetError(f"{folder} holds no pictures{hint}")
        self._folder = folder
        self._n = n
        self._view = view
        self._files = [files[place] for place in np.random.default_rng(seed).permutation(len(files))]
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        """How many there will be at most."""
        return min(self._n, len(self._files))

    def __iter__(self) -> Iterator[Picked]:
        """Read them one after another.

        Raises:
            DatasetError: At the end, if not one could be read.
        """
        seen: set[str] = set()
        for path in self._files:
            if len(seen) == self._n:
                return
            try:
                radiograph = load_radiograph(path, view=self._view)
            except ImageError as exc:
                self.skipped.append(Skipped(path, str(exc)))
                continue
            digest = pixel_digest(radiograph.pixels)
            if digest in seen:
                self.skipped.append(Skipped(path, IDENTICAL))
                continue
            seen.add(digest)
            yield Picked(path, radiograph.pixels, digest, radiograph.warnings)
        if not seen:
            raise DatasetError(
                f"not one of the {len(self._files)} files in {self._folder} is a readable radiograph (view "
                f"{self._view}), so there is nothing to show. The first, {self.skipped[0].path.name}: "
                f"{self.skipped[0].reason}"
            )
