"""Times the runtimes that a CPU node could take, on one picture, each in turn in every repetition."""

import time
from typing import Any

import cv2

from bench.material import Material
from bench.scale import Scale
from bench.summary import Row, shown, spread
from panoramic.model_file import load_model
from panoramic.preprocess import prepare
from panoramic.runtime_choice import load_runtime
from panoramic.runtime_info import RuntimeChoice

#: In the order in which `auto` tries them.
RUNTIMES = (RuntimeChoice.NATIVE, RuntimeChoice.ONNX, RuntimeChoice.PYTORCH, RuntimeChoice.REFERENCE)


def measure(material: Material, scale: Scale) -> dict[str, Any]:
    """Classify one picture with each network by each runtime, warm, in this process.

    Returns:
        By network and runtime: ``ms`` of a picture with its map, and how far its answers to the probe pictures were
        from the reference's, ``max_probability_difference`` and ``max_map_difference``. A runtime that did not pass
        here is left out.
    """
    return {network: _of_network(material, scale, network) for network in scale.networks}


def _of_network(material: Material, scale: Scale, network: str) -> dict[str, Any]:
    model = load_model(material.model(network, input_size=scale.input_size))
    pixels = cv2.imread(str(material.picture(scale.picture_px)), cv2.IMREAD_GRAYSCALE)
    batch = prepare(pixels, input_size=scale.input_size)[None]
    loaded = [load_runtime(model, cache_dir=material.state_dir / "runtimes", runtime=runtime) for runtime in RUNTIMES]
    passed = [each for runtime, each in zip(RUNTIMES, loaded, strict=True) if each.description.name is runtime]
    times_ms: list[list[float]] = [[] for _ in passed]
    for repetition in range(scale.repetitions + 1):
        first = repetition % len(passed)  # each in turn follows each other: the threads of some run on for a while
        for at in [*range(first, len(passed)), *range(first)]:
            each, times = passed[at], times_ms[at]
            began = time.perf_counter()
            each.runtime.classify(batch)
            if repetition > 0:
                times.append((time.perf_counter() - began) * 1000)
    return {
        each.description.name.value: {
            "ms": spread(times),
            "max_probability_difference": each.description.max_probability_difference,
            "max_map_difference": each.description.max_map_difference,
        }
        for each, times in zip(passed, times_ms, strict=True)
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    lines: list[Row] = []
    for network, by_runtime in found.items():
        lines.append((network, "", ""))
        for name, each in by_runtime.items():
            differs = f"{each['max_probability_difference']:.0e}, {each['max_map_difference']:.0e}"
            lines.append((f"  {name}, differs by ({differs})", shown(each["ms"], "ms"), ""))
    return lines
