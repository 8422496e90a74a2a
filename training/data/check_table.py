"""A checked data set as tables on a terminal."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from panoramic.manifest import RESEARCH_USE
from training.data.check import Check, Fingerprint, Spread
from training.data.findings import Finding, FindingCode
from training.data.shortcut_aucs import ShortcutAuc

#: Groups of names shown of each finding, and names of each group; `--json` has them all.
_SHOWN: Final = 5


def print_check(check: Check, console: Console) -> None:
    """Print what a data set consists of and what is wrong with it.

    Args:
        check: The answer.
        console: Where to.
    """
    console.print(_classes(check.fingerprint))
    console.print(_facts(check.fingerprint))
    if check.shortcuts:
        console.print(_shortcuts(check.shortcuts))
    reasons = {file.picture.name: file.reason for file in check.unreadable}
    for finding in check.findings:
        _print_finding(finding, reasons, console)
    wrong = sum(finding.wrong for finding in check.findings)
    verdict = f"{wrong} thing{'s' if wrong > 1 else ''} to put right." if wrong else "Nothing is wrong."
    console.print(Text(f"\n{verdict}", style="bold red" if wrong else "bold green"))
    console.print(Text(RESEARCH_USE, style="dim"))


def printable(name: str) -> str:
    """A file's name without anything that would steer the terminal or cannot be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _classes(fingerprint: Fingerprint) -> Table:
    table = Table("class", "folders", title="Classes", title_justify="left")
    for column in ("files", "usable", "patients"):
        table.add_column(column, justify="right")
    for cls in fingerprint.classes:
        name = printable(cls.name) + (" (finding)" if cls.finding else "")
        counts = (str(number) for number in (cls.files, cls.pictures, cls.patients))
        table.add_row(Text(name), Text(printable(", ".join(cls.folders))), *counts)
    return table


def _facts(fingerprint: Fingerprint) -> Table:
    table = Table(show_header=False, title="Fingerprint", title_justify="left")
    facts = {
        "digest": fingerprint.digest,
        "view": str(fingerprint.view),
        "patients": str(fingerprint.patients),
        "height": _spread(fingerprint.heights_px),
        "width": _spread(fingerprint.widths_px),
        "different sizes": str(fingerprint.sizes),
        "formats": _counted(fingerprint.formats.items()),
        "bits a sample": _counted(fingerprint.bit_depths.items()),
        "reader's warnings": _counted(fingerprint.warnings.items()),
    }
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    return table


def _shortcuts(shortcuts: Sequence[ShortcutAuc]) -> Table:
    table = Table(
        "measure",
        title="Shortcuts to the finding",
        caption="* excludes 0.5, as 1 harmless in 20 does\n** hardly by chance\nof all, only above 0.5 counts",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("AUC", "95 % interval", ""):
        table.add_column(column, justify="right" if column else "left")
    for shortcut in shortcuts:
        mark = "**" if shortcut.tells else "*" if shortcut.suspicious else ""
        table.add_row(
            shortcut.name,
            f"{shortcut.auc:.2f}",
            f"{shortcut.low:.2f} – {shortcut.high:.2f}",
            mark,
            style="red" if shortcut.tells else "",
        )
    return table


def _print_finding(finding: Finding, reasons: dict[str, str], console: Console) -> None:
    mark, style = ("✗", "red") if finding.wrong else ("·", "dim")
    console.print(Text.assemble("\n", (f"{mark} ", style), finding.message + "."))
    if not finding.wrong and len(finding.pictures) > _SHOWN:
        return
    for group in finding.pictures[:_SHOWN]:
        line = _some([printable(name) for name in group])
        if finding.code is FindingCode.UNREADABLE:
            line += f": {reasons[group[0]]}"
        console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 4)))
    if len(finding.pictures) > _SHOWN:
        console.print(Padding(f"… and {len(finding.pictures) - _SHOWN} more; --json lists all", (0, 0, 0, 4)))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _counted(counts: Iterable[tuple[str | int, int]]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in counts) or "none"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "unknown"
    if spread.smallest == spread.largest:
        return f"{spread.smallest} px"
    return f"{spread.smallest} to {spread.largest} px, median {spread.median:g}"
