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
        predecessor's program takes for the same picture with its network loaded. ``most_share_of_floor_percent``: of
        the raw forward pass's throughput, what the processor time of all stages leaves to a node on these cores.
    """
    found: dict[str, float] = {}
    if "predecessor" in results and network in results.get("jobs", {}):
        ours_ms = results["jobs"][network]["warm"]["submit_to_result_ms"]["median"]
        found["predecessor_to_warm_job"] = round(1000 * results["predecessor"]["picture_s"] / ours_ms, 1)
    if network in results.get("stages", {}) and network in results.get("jobs", {}):
        bound_per_s = results["stages"][network]["cores_bound_per_s"]
        found["most_share_of_floor_percent"] = round(
            100 * bound_per_s / results["jobs"][network]["floor_pictures_per_s"], 1
        )
    return found


def rows(found: dict[str, float]) -> list[Row]:
    """For the table."""
    titles = {
        "predecessor_to_warm_job": ("Predecessor to our warm job, submit to result", "times", "100 times"),
        "most_share_of_floor_percent": ("Most of the raw forward pass that the cores' time allows, on a CPU", "%", ""),
    }
    return [(titles[name][0], f"{value:.0f} {titles[name][1]}", titles[name][2]) for name, value in found.items()]
