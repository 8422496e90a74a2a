"""Who is on which picture: from a table, from the file names, or each picture a patient of its own."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from training.errors import DatasetError

#: Columns of a table of patients.
PATH_COLUMN = "path"
PATIENT_COLUMN = "patient_id"


class PatientRule(Protocol):
    """A way to tell whose a picture is."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """The patient of each picture.

        Args:
            names: Paths inside the data set, with forward slashes.

        Raises:
            DatasetError: The rule says nothing of a picture, or speaks of one that is not there.
        """


class OnePicturePerPatient:
    """Nothing is known: each picture counts as a patient of its own."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Each picture's own name."""
        return {name: name for name in names}


class PatientPattern:
    """The part of the file name that a regular expression finds: its first group, else all of the match.

    Args:
        pattern: As Python's `re` takes it, searched in the file's name without its folder.

    Raises:
        DatasetError: No regular expression.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as exc:
            raise DatasetError(f"patients is {pattern!r}, which is no regular expression: {exc}") from exc

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """What the expression finds in each name."""
        whose: dict[str, str] = {}
        for name in names:
            match = self._pattern.search(name.rpartition("/")[2])
            part = match and (match[1] if self._pattern.groups else match[0])
            if not part:
                raise DatasetError(
                    f"patients is {self._pattern.pattern!r}, which finds nothing in the name of {name}; every picture "
                    "needs a patient"
                )
            whose[name] = part
        return whose


class PatientTable:
    """A CSV file with the columns ``path`` (inside the data set, such as ``C1/17.png``) and ``patient_id``.

    Rows of folders that are left out do no harm; a row that names a missing file does.

    Args:
        file: The table; `truth.csv` of a phantom set is one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """What the table says of each picture."""
        table = self._read()
        missing = [name for name in names if not table.get(name)]
        if missing:
            raise DatasetError(f"{self._file} names no patient for {_some(missing)}; every picture needs one")
        folders = {name.partition("/")[0] for name in names}
        there = set(names)
        unknown = [name for name in table if name.partition("/")[0] in folders and name not in there]
        if unknown:
            raise DatasetError(
                f"{self._file} names {_some(unknown)}, which the data set does not hold; correct the table"
            )
        return {name: table[name] for name in names}

    def _read(self) -> dict[str, str]:
        try:
            with self._file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines)
                columns = reader.fieldnames or ()
                if PATH_COLUMN not in columns or PATIENT_COLUMN not in columns:
                    raise DatasetError(
                        f"{self._file} has the columns {', '.join(columns) or 'none'}, but needs {PATH_COLUMN} and "
                        f"{PATIENT_COLUMN}"
                    )
                rows = [(row[PATH_COLUMN] or "", row[PATIENT_COLUMN] or "") for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is no CSV file in UTF-8"
            raise DatasetError(f"the table of patients {self._file} cannot be read: {reason}") from exc
        table: dict[str, str] = {}
        for name, patient in rows:
            key = name.strip().replace("\\", "/").removeprefix("./")
            if table.setdefault(key, patient.strip()) != patient.strip():
                raise DatasetError(f"{self._file} gives {key} to two patients; keep one row a picture")
        return table


def patient_rule(text: str) -> PatientRule:
    """The rule that ``--patients`` asks for: a table if it names a file or ends in .csv, else a regular expression."""
    if not text:
        return OnePicturePerPatient()
    if text.lower().endswith(".csv") or _is_file(text):
        return PatientTable(Path(text))
    return PatientPattern(text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        # Too long for a path; an expression may be.
        return False


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
