"""What repeated measurements come to, and how a table says it."""

import statistics
from collections.abc import Iterable

#: A line of a table: what was measured, how much, and what was to be reached.
Row = tuple[str, str, str]

#: Of one quantity: ``median``, ``min``, ``max``, and the number of ``runs`` that they are of.
Spread = dict[str, float]


def spread(values: Iterable[float], *, digits: int = 3) -> Spread:
    """Median and extremes. A machine that others use too makes things slower, never faster: look at the least as well.

    Args:
        values: At least one.
        digits: Decimal places to keep.
    """
    found = list(values)
    return {
        "median": round(statistics.median(found), digits),
        "min": round(min(found), digits),
        "max": round(max(found), digits),
        "runs": len(found),
    }


def shown(found: Spread, unit: str) -> str:
    """A spread for people: ``612 ms (598 to 640)``."""
    median = f"{rounded(found['median'])} {unit}"
    return median if found["runs"] == 1 else f"{median} ({rounded(found['min'])} to {rounded(found['max'])})"


def rounded(value: float) -> str:
    """Three significant digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
