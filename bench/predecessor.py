"""The predecessor's way from file to result, rebuilt from its description with the same public packages.

Dias et al. 2025, Biomed. Signal Process. Control 100:107031, and the code published with it: grey levels by OpenCV, the
rolling ball of opencv-rolling-ball 1.0.1, torchvision's transforms, efficientnet_pytorch in evaluation mode, and the
absolute gradient of the largest logit at the input as its map, in matplotlib's colours `hot`. Where a script could do a
step in several ways, the quicker one is taken.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from cv2_rolling_ball import subtract_background_rolling_ball
from efficientnet_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from bench.material import Material
from bench.rolling_ball import RADIUS_PX, STRIP_ROWS
from bench.running import running
from bench.scale import Scale
from bench.summary import Row, rounded, shown, spread
from bench.untrained import untrained_network
from local.stack import worker_command
from panoramic.preprocess import remove_background

LABELS = ("Healthy Patient", "Patient with Osteoporosis")

#: What torchvision's `Resize` was given, (height, width), and what `Normalize` was.
INPUT_SIZE = (449, 954)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Takes grey levels (H, W), gives them without their background.
BackgroundRemover = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Answer:
    """What the predecessor says of one picture.

    Attributes:
        diagnosis: One of `LABELS`.
        probability: Of the second; the predecessor itself does not give it.
        saliency_img_path: The coloured map.
        overlay_img_path: The map on the radiograph.
        timings_s: Seconds by step.
    """

    diagnosis: str
    probability: float
    saliency_img_path: Path
    overlay_img_path: Path
    timings_s: dict[str, float]


def reference_ball(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Remove the background with the reference package, whole and in its own way: 30 to 40 µs a pixel."""
    removed, _ = subtract_background_rolling_ball(
        pixels.copy(), RADIUS_PX, light_background=False, use_paraboloid=True, do_presmooth=True
    )
    return np.asarray(removed, np.uint8)


class Predecessor:
    """The program with its network loaded.

    Args:
        network: One of `panoramic.network.NETWORKS`.
        state_dict: Its weights.
        input_size: (height, width) of its input.
        device: ``cpu`` or ``cuda:0``.
        ball: Removes the background.
    """

    def __init__(
        self,
        network: str,
        state_dict: Mapping[str, torch.Tensor],
        *,
        input_size: tuple[int, int] = INPUT_SIZE,
        device: str = "cpu",
        ball: BackgroundRemover = reference_ball,
    ) -> None:
        self._net = EfficientNet.from_name(network, num_classes=len(LABELS))
        self._net.load_state_dict(state_dict)
        self._net.requires_grad_(requires_grad=False).eval().to(device)
        self._size = input_size
        self._device = device
        self._ball = ball

    def answer(self, img_path: Path, destination: Path) -> Answer:
        """From file to pictures, one step after another.

        Args:
            img_path: A radiograph.
            destination: An existing folder.
        """
        timings_s: dict[str, float] = {}
        with _timed("read", timings_s):
            pixels = np.asarray(cv2.imread(str(img_path), cv2.IMREAD_GRAYSCALE), np.uint8)
        with _timed("background", timings_s):
            removed = self._ball(pixels)
        with _timed("transforms", timings_s):
            x = self._transformed(removed).to(self._device)
        with _timed("forward and backward", timings_s):
            probabilities, saliency = self._explained(x)
        with _timed("pictures", timings_s):
            paths = _write(pixels, saliency, destination, img_path.stem)
        return Answer(LABELS[int(probabilities.argmax())], float(probabilities[1]), *paths, timings_s)

    def warm_up(self) -> None:
        """Run the network on an empty picture, so that none pays for allocation and set-up; a script would not."""
        self._explained(torch.zeros(1, 3, *self._size, device=self._device))

    def _explained(self, x: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.float32]]:
        """Forward and backward: probabilities (2,), and the absolute gradient (h, w) of the largest logit at x."""
        x.requires_grad_()
        logits = self._net(x)  # (1, 2)
        logits.max().backward()
        if x.grad is None:
            raise RuntimeError("no gradient reached the input")
        saliency: NDArray[np.float32] = x.grad.abs().amax(dim=1)[0].cpu().numpy()
        return torch.softmax(logits[0].detach().cpu(), dim=0), saliency

    def _transformed(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """What `Resize`, `ToTensor` and `Normalize` of torchvision do to a PIL picture, (1, 3, h, w)."""
        height, width = self._size
        picture = Image.fromarray(pixels).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, deviation = (torch.tensor(of_channel).view(3, 1, 1) for of_channel in (MEAN, DEVIATION))
        return tensor.sub_(mean).div_(deviation)[None]


def _write(pixels: NDArray[np.uint8], saliency: NDArray[np.float32], folder: Path, stem: str) -> tuple[Path, Path]:
    """Colour the map, lay it over the radiograph, half and half, and write both."""
    scaled = (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-12)
    coloured = (mpl.colormaps["hot"](scaled)[..., :3] * 255).astype(np.uint8)  # (h, w, RGB)
    height, width = pixels.shape
    coloured = cv2.resize(cv2.cvtColor(coloured, cv2.COLOR_RGB2BGR), (width, height))
    overlay = cv2.addWeighted(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), 0.5, coloured, 0.5, 0)
    now = datetime.now().astimezone().strftime("%Y%m%d%H%M%S")
    paths = (folder / f"{stem}_saliency_{now}.png", folder / f"{stem}_overlay_{now}.png")
    for path, picture in zip(paths, (coloured, overlay), strict=True):
        if not cv2.imwrite(str(path), picture):
            raise OSError(f"{path} was not written")
    return paths


@contextmanager
def _timed(step: str, timings_s: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings_s[step] = time.perf_counter() - began


def measure(material: Material, scale: Scale, *, gpu: int | None = None) -> dict[str, Any]:
    """Answer for one picture, once, with the network loaded and warm, between jobs for the same picture at our node.

    The node runs before and after, so that neither is measured at a better time, and not meanwhile.

    Args:
        material: Has the picture.
        scale: With `whole_reference` off the rolling ball is timed on a strip and scaled to the picture by its pixels,
            which flatters it (`bench.rolling_ball`), and the rest goes on from our own, equal result.
        gpu: Index of the GPU that both run on; None for the CPU.

    Returns:
        ``network``, ``reference_rows`` that the rolling ball was timed on, ``steps_s`` and their sum, ``picture_s``;
        ``warm_job_ms`` from submitting to the result at a warm node, and ``ratio``, how many times as long the
        predecessor takes.
    """
    network = scale.large_network
    ball: BackgroundRemover = reference_ball if scale.whole_reference else remove_background
    weights = untrained_network(network).state_dict()
    device = "cpu" if gpu is None else f"cuda:{gpu}"
    program = Predecessor(network, weights, input_size=scale.input_size, device=device, ball=ball)
    path = material.picture(scale.picture_px)
    ours_ms = _warm_jobs_ms(material, scale, gpu)
    program.warm_up()
    answer = program.answer(path, material.new_folder("predecessor"))
    steps_s = dict(answer.timings_s)
    rows_timed = scale.picture_px[0]
    if not scale.whole_reference:
        rows_timed = min(STRIP_ROWS, rows_timed)
        pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        strip_s: dict[str, float] = {}
        with _timed("strip", strip_s):
            reference_ball(pixels[:rows_timed])
        steps_s["background"] = strip_s["strip"] * pixels.shape[0] / rows_timed
    ours_ms += _warm_jobs_ms(material, scale, gpu)
    picture_s, warm_job_ms = sum(steps_s.values()), spread(ours_ms)
    return {
        "network": network,
        "reference_rows": rows_timed,
        "steps_s": {step: round(taken_s, 3) for step, taken_s in steps_s.items()},
        "picture_s": round(picture_s, 3),
        "warm_job_ms": warm_job_ms,
        "ratio": round(1000 * picture_s / warm_job_ms["median"], 1),
    }


def _warm_jobs_ms(material: Material, scale: Scale, gpu: int | None) -> list[float]:
    model, path = material.model(scale.large_network, input_size=scale.input_size), material.picture(scale.picture_px)
    with running(material, lambda node: worker_command(node, models=[model]), gpu=gpu) as site:
        site.one(path)
        return [site.one(path)[0] for _ in range(scale.warm_jobs)]


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    return [
        (f"{found['network']}, rolling ball timed on {found['reference_rows']} rows", "", ""),
        *((f"  {step}", f"{rounded(taken_s)} s", "") for step, taken_s in found["steps_s"].items()),
        ("  one picture, network loaded and warm", f"{rounded(found['picture_s'])} s", ""),
        ("Our node, warm, submit to result", shown(found["warm_job_ms"], "ms"), ""),
        ("  ratio", f"{found['ratio']:.0f} times", "100 times"),
    ]
