"""Times whole jobs through a real node: the first one, one after another, and with several waiting."""

from typing import Any

from bench.floor import Floor, best_rate, sum_ms
from bench.floor import rows as floor_rows
from bench.material import Material
from bench.running import Running, rates, running
from bench.scale import Scale
from bench.summary import Row, rounded, shown, spread
from local.stack import Node, worker_command
from worker.screening import STAGES


def measure(material: Material, scale: Scale, *, gpu: int | None = None) -> dict[str, Any]:
    """Run jobs with each network, between two measurements of the floor: others may use the machine too.

    Returns:
        By network: ``floor_before`` and ``floor_after`` (`bench.floor.Floor.measure`), ``cold``, ``warm``, ``waiting``
        by the number of jobs; ``ratio_to_irreducible`` of a warm job; and ``share_of_floor_percent`` that the most
        waiting jobs reach, steadily and with the way of the first job through the node counted in.
    """
    return {network: _of_network(material, scale, network, gpu) for network in scale.networks}


def _of_network(material: Material, scale: Scale, network: str, gpu: int | None) -> dict[str, Any]:
    model = material.model(network, input_size=scale.input_size)
    floor = Floor(material, scale, network=network, device="cpu" if gpu is None else f"cuda:{gpu}")
    before = floor.measure()

    def command(node: Node) -> list[str]:
        return worker_command(node, models=[model])

    starts: list[tuple[float, float, dict[str, float]]] = []
    for number_of_start in range(scale.cold_starts):
        with running(material, command, gpu=gpu) as site:
            cold_ms, result = site.one(material.picture(scale.picture_px))
            starts.append((site.start_s, cold_ms, result.timings_ms))
            if number_of_start == scale.cold_starts - 1:
                warm = _warm(site, material, scale)
                waiting = _waiting(site, material, scale)
    after = floor.measure()
    most = waiting[str(max(scale.waiting))]
    best = best_rate(before, after)
    return {
        "floor_before": before,
        "floor_after": after,
        "cold": {
            "start_s": spread((start_s for start_s, _, _ in starts), digits=1),
            "submit_to_result_ms": spread(cold_ms for _, cold_ms, _ in starts),
            "stages_ms": _stages([timings for _, _, timings in starts]),
        },
        "warm": warm,
        "waiting": waiting,
        "ratio_to_irreducible": round(warm["submit_to_result_ms"]["median"] / sum_ms(before, after), 3),
        "irreducible_ms": round(sum_ms(before, after), 3),
        "floor_pictures_per_s": round(best, 3),
        "share_of_floor_percent": {name: round(100 * found["median"] / best, 1) for name, found in most.items()},
    }


def _warm(site: Running, material: Material, scale: Scale) -> dict[str, Any]:
    jobs = [site.one(material.picture(scale.picture_px)) for _ in range(scale.warm_jobs)]
    timings = [result.timings_ms for _, result in jobs]
    return {
        "submit_to_result_ms": spread(wall_ms for wall_ms, _ in jobs),
        "engine_ms": spread(each["engine"] for each in timings),
        "overhead_ms": spread(wall_ms - result.timings_ms["engine"] for wall_ms, result in jobs),
        "stages_ms": _stages(timings),
    }


def _stages(timings: list[dict[str, float]]) -> dict[str, Any]:
    return {stage: spread(each[stage] for each in timings) for stage in STAGES}


def _waiting(site: Running, material: Material, scale: Scale) -> dict[str, Any]:
    pictures = material.pictures(scale.picture_px, max(scale.waiting))
    return {
        str(count): rates([site.all(pictures[:count]) for _ in range(scale.waiting_repetitions)])
        for count in scale.waiting
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    lines: list[Row] = []
    for network, of_network in found.items():
        cold, warm = of_network["cold"], of_network["warm"]
        share = of_network["share_of_floor_percent"]
        lines += [
            (network, "", ""),
            *floor_rows(of_network["floor_before"]),
            ("  starting a node that has run here before", shown(cold["start_s"], "s"), ""),
            ("  first job of a node", shown(cold["submit_to_result_ms"], "ms"), ""),
            ("  job at a warm node, submit to result", shown(warm["submit_to_result_ms"], "ms"), ""),
            ("    of which outside the engine", shown(warm["overhead_ms"], "ms"), ""),
            *((f"    stage {stage}", shown(warm["stages_ms"][stage], "ms"), "") for stage in STAGES),
            ("  irreducible stages, mean of before and after", f"{rounded(of_network['irreducible_ms'])} ms", ""),
            ("  raw forward pass, likewise", f"{rounded(of_network['floor_pictures_per_s'])} pictures/s", ""),
            ("    ratio to the irreducible stages", f"{of_network['ratio_to_irreducible']:.2f}", "below 1.4"),
            *(
                (f"  {count} waiting", shown(rate["per_s"], "pictures/s"), "")
                for count, rate in of_network["waiting"].items()
            ),
            ("    share of the floor, first to last", f"{rounded(share['per_s'])} %", "90 %"),
        ]
        if "steady_per_s" in share:
            lines.append(("    share of the floor, steadily", f"{rounded(share['steady_per_s'])} %", "90 %"))
    return lines
