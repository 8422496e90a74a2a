"""What no pipeline can save: decoding, rolling ball, forward pass and encoding, each alone with its data in place."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from bench.material import Material
from bench.scale import Scale
from bench.summary import Row, Spread, rounded, shown, spread
from panoramic.classification import Classification
from panoramic.explained_network import ExplainedNetwork
from panoramic.model_file import load_model
from panoramic.network import forward_with_activation, restore
from panoramic.onnx_graph import INPUT, OUTPUTS, graph_of
from panoramic.overlay import Caption, Colormap, lookup_table, overlay_png, scale_map
from panoramic.png import encode_indexed, encode_rgb
from panoramic.preprocess import BALL_RADIUS_PX, prepare
from panoramic.rolling_ball import subtract_background, warm_up
from panoramic.runtime_choice import LoadedRuntime, load_runtime
from panoramic.runtime_info import Precision, RuntimeChoice
from panoramic.runtime_native import NativeClassifier
from panoramic.runtime_onnx import make_session

#: The stages whose sum a job is compared with.
PARTS = ("decode", "background", "forward", "encode")


class Floor:
    """The irreducible work on one picture, ready to be timed again and again.

    Args:
        material: Has the picture, the model, and the folder of exported graphs.
        scale: Sizes and repetitions.
        network: One of `panoramic.network.NETWORKS`.
        device: ``cpu`` or ``cuda:0``.
    """

    def __init__(self, material: Material, scale: Scale, *, network: str, device: str = "cpu") -> None:
        self._scale = scale
        cache_dir = material.state_dir / "runtimes"
        model = load_model(material.model(network, input_size=scale.input_size))
        loaded = load_runtime(model, cache_dir=cache_dir, device=device)
        warm_up()
        data = np.frombuffer(material.picture(scale.picture_px).read_bytes(), np.uint8)
        pixels = _decode(data)
        tensor = prepare(pixels, input_size=scale.input_size)
        (answer,) = loaded.runtime.classify(tensor[None])
        saliency, overlay = _drawn(pixels, answer)
        palette = lookup_table(Colormap.INFERNO)
        self.runtime = loaded.description
        self._steps: dict[str, Callable[[], object]] = {
            "decode": lambda: _decode(data),
            "background": lambda: subtract_background(pixels, BALL_RADIUS_PX),
            "encode": lambda: (encode_indexed(saliency, palette), encode_rgb(overlay)),
        }
        self._forwards = {
            size: _raw_forward(loaded, np.repeat(tensor[None], size, axis=0), cache_dir=cache_dir)
            for size in sorted({1, *scale.batch_sizes})
        }

    def measure(self) -> dict[str, Any]:
        """Time each step by itself, several times in a row, so that the runtime's idling threads disturb no other.

        Returns:
            ``parts_ms`` of one picture (`PARTS`; the forward pass of a batch of 1, the encoding of both pictures when
            they are drawn already) and ``sum_ms`` of their medians; ``forward_pictures_per_s`` by batch size.
        """
        times_ms = {name: [1000 * taken_s for taken_s in self._timed_s(step)] for name, step in self._steps.items()}
        rates = {
            size: [size / taken_s for taken_s in self._timed_s(forward)] for size, forward in self._forwards.items()
        }
        times_ms["forward"] = [1000 / rate for rate in rates[1]]
        parts_ms = {part: spread(times_ms[part]) for part in PARTS}
        return {
            "parts_ms": parts_ms,
            "sum_ms": round(sum(found["median"] for found in parts_ms.values()), 3),
            "forward_pictures_per_s": {size: spread(found) for size, found in rates.items()},
        }

    def _timed_s(self, step: Callable[[], object]) -> list[float]:
        step()
        taken_s = []
        for _ in range(self._scale.repetitions):
            began = time.perf_counter()
            step()
            taken_s.append(time.perf_counter() - began)
        return taken_s


def best_rate(*measured: dict[str, Any]) -> float:
    """Pictures a second of the raw forward pass at its best batch size, from one or several times measured."""
    sizes = measured[0]["forward_pictures_per_s"]
    return max(mean(found["forward_pictures_per_s"][size]["median"] for found in measured) for size in sizes)


def sum_ms(*measured: dict[str, Any]) -> float:
    """Milliseconds of the irreducible stages together, from one or several times measured."""
    return mean(found["sum_ms"] for found in measured)


def mean(values: Any) -> float:
    """The arithmetic mean."""
    return float(np.mean(list(values)))


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table: one measurement of `Floor.measure`."""
    rates: dict[Any, Spread] = found["forward_pictures_per_s"]
    return [
        *((f"  {part} alone", shown(found["parts_ms"][part], "ms"), "") for part in PARTS),
        ("  together", f"{rounded(found['sum_ms'])} ms", ""),
        *((f"  raw forward, batch of {size}", shown(rate, "pictures/s"), "") for size, rate in rates.items()),
    ]


def _decode(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def _drawn(pixels: NDArray[np.uint8], answer: Classification) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The two pictures of a result before they are encoded: (H, W) rows of a palette, and (H + strip, W, 3) RGB."""
    strength = scale_map(answer.cam, (pixels.shape[0], pixels.shape[1]))
    caption = Caption(
        answer.diagnosis, answer.diagnosis, probability=answer.probability, threshold=0.5, model="", layer=answer.layer
    )
    overlay = overlay_png(pixels, strength, colormap=Colormap.INFERNO, caption=caption)
    decoded = cv2.imdecode(np.frombuffer(overlay, np.uint8), cv2.IMREAD_COLOR_RGB)
    return strength, np.asarray(decoded, np.uint8)


def _raw_forward(loaded: LoadedRuntime, batch: NDArray[np.float32], *, cache_dir: Path) -> Callable[[], object]:
    """The forward pass with its maps, as the node runs it: no checks, no answers, data in place."""
    runtime, model, about = loaded.runtime, loaded.runtime.model, loaded.description
    if isinstance(runtime, NativeClassifier):
        return lambda: [runtime.explain(picture) for picture in batch]
    if about.name is RuntimeChoice.ONNX:
        graph = graph_of(model, cache_dir=cache_dir, runtime_version=onnxruntime.__version__)
        session = make_session(graph, threads=torch.get_num_threads())
        return lambda: session.run(OUTPUTS, {INPUT: batch})
    device = torch.device(about.device)
    x = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
    run = _torch_network(loaded, device)

    def forward() -> None:
        with torch.inference_mode():
            run(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return forward


def _torch_network(loaded: LoadedRuntime, device: torch.device) -> Callable[[torch.Tensor], object]:
    model, about = loaded.runtime.model, loaded.description
    if about.name is RuntimeChoice.REFERENCE:
        plain = restore(model.manifest.network, model.state_dict)
        plain.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's types lack it
        return lambda x: forward_with_activation(plain, x)
    fused = ExplainedNetwork(model, half=about.precision is Precision.FLOAT16)
    fused.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fused
