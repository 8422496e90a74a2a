"""What several measurements of one run say together."""

from typing import Any

from bench.summary import Row


def compare(results: dict[str, Any], *, network: str) -> dict[str, float]:
    """Ratios between parts that were both measured in this run; none of those that were not.

    Args:
        results: By the name of the part.
        network: That the predecessor was measured with.

    Returns:
        ``predecessor_to_warm_job``: how many times as long as one of our jobs, submit to result at a warm node, the
        predecessor's program takes for the same picture with its network loaded.
    """
    found: dict[str, float] = {}
    if "predecessor" in results and network in results.get("jobs", {}):
        ours_ms = results["jobs"][network]["warm"]["submit_to_result_ms"]["median"]
        found["predecessor_to_warm_job"] = round(1000 * results["predecessor"]["picture_s"] / ours_ms, 1)
    return found


def rows(found: dict[str, float]) -> list[Row]:
    """For the table."""
    titles = {"predecessor_to_warm_job": ("Predecessor to our warm job, submit to result", "100 times")}
    return [(titles[name][0], f"{value:.0f} times", titles[name][1]) for name, value in found.items()]
