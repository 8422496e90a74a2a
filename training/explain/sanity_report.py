"""The sanity check of a model as a whole: pictures in, curve, numbers and verdict out, in one folder."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from panoramic.manifest import RESEARCH_USE
from panoramic.overlay import Colormap, lookup_table, notices_of, scale_map
from panoramic.preprocess import prepare
from panoramic.radiograph import pixel_digest
from panoramic.view import View
from training.errors import DatasetError
from training.explain.new_folder import check_new, new_folder
from training.explain.pick import RandomPictures
from training.explain.sanity import CHANGED_BELOW, HEADS, Cascade, Verdict, judge, randomise
from training.files import write_whole
from training.phantoms.phantom import CorticalClass, cortex_mask, draw_phantom, draw_truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from panoramic.model_file import Model

#: Names inside the folder of results.
CURVE_FILE = "sanity.png"
NUMBERS_FILE = "sanity.json"

#: Side of a square crop of a phantom, as a share of its width: 600 px of 2925.
CROP_SHARE = 600 / 2925
#: The mental foramen's distance from the midline as a share of the width: 45 of 292.5 mm.
FORAMEN_SHARE = 45 / 292.5

#: How many maps stand below the curve.
SHOWN_MAPS = 6


@dataclass(frozen=True)
class SanityResult:
    """What `check_sanity` wrote and found.

    Attributes:
        curve: The PNG file.
        verdict: Whether the map changes.
        skipped: Pictures that were drawn and could not be used.
    """

    curve: Path
    verdict: Verdict
    skipped: int


def check_sanity(
    model: Model,
    pictures_folder: Path | None,
    *,
    out: Path,
    n: int = 4,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> SanityResult:
    """Run the cascade over some pictures and write its curve and numbers into a new folder, which appears whole.

    Args:
        model: The model.
        pictures_folder: Where random pictures are taken from; None for phantoms drawn on the spot.
        out: The folder to make.
        n: How many pictures; fewer if the folder has fewer.
        seed: Of pictures and random weights.
        device: ``cpu``, ``cuda`` or ``cuda:0`` and so on.
        on_step: Called after each of `training.explain.sanity.step_names`.

    Raises:
        DatasetError: No pictures, not one readable, or none with a map to compare.
        RunError: The model's maps are too small to compare.
        ResourcesError: The folder cannot be made or filled.
        PanoramicError: No such device, or the network put out something infinite or not a number.
    """
    check_new(out)  # before minutes are spent
    view = model.manifest.view
    if pictures_folder is None:
        pictures, skipped = draw_pictures(n, seed=seed, view=view), 0
    else:
        drawn = RandomPictures(pictures_folder, n=n, seed=seed, view=view)
        pictures = [picked.pixels for picked in drawn]
        skipped = len(drawn.skipped)
    batch = np.stack([prepare(pixels, input_size=model.manifest.input_size) for pixels in pictures])
    cascade = randomise(model, batch, seed=seed, device=device, on_step=on_step)
    verdict = judge(*_means(cascade))
    source = "phantoms drawn for it" if pictures_folder is None else f"pictures of “{pictures_folder.resolve().name}”"
    numbers = _numbers(cascade, verdict, model=model, pictures=pictures) | {
        "seed": seed,
        "source": source,
        "skipped": skipped,
    }
    with new_folder(out) as folder:
        write_whole(folder / NUMBERS_FILE, json.dumps(numbers, indent=2, ensure_ascii=False).encode())
        curve = curve_png(cascade, verdict, model=model, first_picture=pictures[cascade.used[0]], source=source)
        write_whole(folder / CURVE_FILE, curve)
    return SanityResult(out / CURVE_FILE, verdict, skipped)


def draw_pictures(n: int, *, seed: int, view: View) -> list[NDArray[np.uint8]]:
    """Phantoms of C1 and C3 in turn; as crops, the square below the mental foramen on the picture's left.

    Raises:
        DatasetError: n or the seed is out of its range.
    """
    if n < 1 or seed < 0:
        raise DatasetError(f"n is {n} and the seed is {seed}, but n must be at least 1 and the seed at least 0")
    pictures = []
    for index in range(n):
        truth = draw_truth(1000 * seed + index, (CorticalClass.C1, CorticalClass.C3)[index % 2])
        pixels = draw_phantom(truth)
        if view is View.CROP:
            height, width = pixels.shape
            side = round(CROP_SHARE * width)
            column = round((0.5 - FORAMEN_SHARE) * width)
            row = int(np.flatnonzero(cortex_mask(truth)[:, column]).mean())
            top = min(max(0, row - side // 2), height - side)
            pixels = pixels[top : top + side, column - side // 2 : column - side // 2 + side].copy()
        pictures.append(pixels)
    return pictures


def curve_png(
    cascade: Cascade, verdict: Verdict, *, model: Model, first_picture: NDArray[np.uint8], source: str
) -> bytes:
    """The curve, and below it how the first picture's map fares; a PNG file of about 1700 px in width."""
    manifest = model.manifest
    panels = _panels(cascade, picture=first_picture)
    # Seven panels side by side are each about 1.6 in wide.
    panel_height_in = 1.6 * first_picture.shape[0] / first_picture.shape[1] + 0.3
    figure = Figure(figsize=(11.4, 5.6 + panel_height_in), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, len(panels), height_ratios=(4.6, panel_height_in))
    axes = figure.add_subplot(grid[0, :])
    at = np.arange(len(cascade.steps))
    for values, label, colour in (
        (np.array([step.spearman for step in cascade.steps]), "Spearman's rank correlation", "#1d4ed8"),
        (np.array([step.ssim for step in cascade.steps]), "SSIM", "#c2410c"),
    ):  # (steps, N)
        axes.plot(at, values, color=colour, alpha=0.22, linewidth=1)
        axes.plot(at, values.mean(axis=1), color=colour, marker="o", label=f"{label} (mean; thin: each picture)")
    axes.axhline(CHANGED_BELOW, color="#6b7280", linestyle="--", linewidth=1)
    axes.text(at[-1], CHANGED_BELOW + 0.02, "changed, if both end below", ha="right", color="#374151", fontsize=9)
    axes.axhline(0, color="#d1d5db", linewidth=1)
    axes.set_xticks(at, [step.name for step in cascade.steps], rotation=60 if len(at) < 30 else 90, ha="right")
    axes.set_ylim(min(-0.1, axes.get_ylim()[0]), 1.08)
    axes.set_ylabel("similarity with the original map")
    axes.set_xlabel("random so far: this block and all to its left")
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"Does the Grad-CAM map change as the weights do?  {manifest.name} {manifest.version}, "
        f"{len(cascade.used)} {source}",
        fontsize=11,
    )
    for column, (title, image) in enumerate(panels):
        panel = figure.add_subplot(grid[1, column])
        panel.imshow(image)
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    notices = " · ".join((*notices_of(manifest), RESEARCH_USE))
    figure.supxlabel(f"{verdict.sentence}\n{notices}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _panels(cascade: Cascade, *, picture: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
    """The first picture, then its map at some of the steps: titles and RGB pictures."""
    height, width = picture.shape
    scale = min(1.0, 400 / max(height, width))
    size = round(height * scale), round(width * scale)
    small = np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    panels = [("first picture", np.repeat(small[..., None], 3, axis=2))]
    for index in np.unique(np.linspace(0, len(cascade.steps) - 1, SHOWN_MAPS).round().astype(int)):
        step = cascade.steps[index]
        panels.append((step.name, lookup_table(Colormap.INFERNO)[scale_map(step.first_map, size)]))
    return panels


def _means(cascade: Cascade) -> tuple[list[float], list[float]]:
    """Mean rank correlation and mean SSIM over the pictures, step by step."""
    return [float(s.spearman.mean()) for s in cascade.steps], [float(s.ssim.mean()) for s in cascade.steps]


def _numbers(
    cascade: Cascade, verdict: Verdict, *, model: Model, pictures: list[NDArray[np.uint8]]
) -> dict[str, object]:
    manifest = model.manifest
    return {
        "notice": RESEARCH_USE,
        "method": "cascading weight randomisation (Adebayo et al. 2018, arXiv:1810.03292, section 3.1)",
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "sha256": manifest.sha256,
            "notices": list(manifest.notices),
        },
        "changes": verdict.changes,
        "verdict": verdict.sentence,
        "criterion": f"with all weights random, mean rank correlation and mean SSIM are both below {CHANGED_BELOW}",
        "head_draws": HEADS,
        "pictures": [
            {"digest": pixel_digest(pictures[index]), "class": manifest.classes[class_index].name}
            for index, class_index in zip(cascade.used, cascade.classes, strict=True)
        ],
        "without_a_map": len(pictures) - len(cascade.used),
        "steps": [
            {
                "random_so_far": step.name,
                "spearman": float(step.spearman.mean()),
                "ssim": float(step.ssim.mean()),
                "spearman_by_picture": step.spearman.tolist(),
                "ssim_by_picture": step.ssim.tolist(),
            }
            for step in cascade.steps
        ],
    }
