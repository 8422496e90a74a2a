"""What is known of a data set besides its pictures: whether they are phantoms, and which folders were left out."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from training.data.dataset import Dataset
from training.phantoms.phantom_set import TRUTH_FILE

#: What only the truth of a phantom set has; a table of patients may be called truth.csv too.
_TRUTH_COLUMNS: Final = frozenset({"path", "phantom_id", "cortical_width_mm", "porosity", "seed", "visit"})


def count_phantoms(dataset: Dataset) -> int:
    """How many pictures a phantom set's truth, which lies beside their class folder, names.

    Phantoms whose truth was left behind cannot be told from radiographs.
    """
    by_set: dict[Path, list[Path]] = defaultdict(list)
    for picture in dataset.pictures:
        path = picture.path.resolve()
        by_set[path.parent.parent].append(path)
    count = 0
    for folder, paths in by_set.items():
        drawn = _drawn(folder)
        count += sum(path in drawn for path in paths)
    return count


def count_left_out(dataset: Dataset) -> dict[str, int | None]:
    """Files in each sub-folder that belongs to no chosen class; None where it cannot be listed."""
    return {folder: _files(dataset.root / folder) for folder in dataset.left_out}


def listed(left_out: Mapping[str, int | None]) -> str:
    """`count_left_out` for a person to read."""
    return (
        ", ".join(
            f"{folder} ({'not readable' if n is None else f'{n} file' + 's' * (n != 1)})"
            for folder, n in left_out.items()
        )
        or "none"
    )


def _drawn(folder: Path) -> set[Path]:
    """Paths of a phantom set's pictures; `read_set` would draw each truth anew, which takes minutes for large sets."""
    try:
        with (folder / TRUTH_FILE).open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if not set(rows.fieldnames or ()) >= _TRUTH_COLUMNS:
                return set()
            return {folder / (row["path"] or "") for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error):
        # None there, or someone else's, about something else.
        return set()


def _files(folder: Path) -> int | None:
    try:
        return sum(path.is_file() and not path.name.startswith(".") for path in folder.iterdir())
    except OSError:
        return None
