"""Heat maps of random pictures of a class: PNG files, a sheet, a page and the numbers as JSON, in one folder."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from panoramic.classification import METHOD
from panoramic.manifest import RESEARCH_USE
from panoramic.overlay import Colormap, lookup_table, saliency_png
from panoramic.runtime import Runtime
from training.errors import DatasetError
from training.explain.cases import Case, Heatmaps, thumbnail
from training.explain.cortex_share import MARGIN_MM, cortex_shares, summarise, truths_beside
from training.explain.maps import Explained, explain_picture
from training.explain.new_folder import new_folder
from training.explain.page import page_html
from training.explain.pick import Picked, RandomPictures, Skipped
from training.explain.sheet import sheet_png
from training.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from training.phantoms.truth import PhantomTruth

#: Names inside the folder of results.
PAGE_FILE = "heatmaps.html"
SHEET_FILE = "heatmaps.png"
NUMBERS_FILE = "heatmaps.json"
NAMES_FILE = "files.csv"
PICTURES_FOLDER = "pictures"


def draw_heatmaps(
    runtime: Runtime,
    class_folder: Path,
    *,
    out: Path,
    n: int = 20,
    seed: int = 0,
    colormap: Colormap = Colormap.INFERNO,
    on_done: Callable[[], object] = lambda: None,
) -> tuple[Path, Heatmaps]:
    """Explain random pictures of a class folder and write it all into a new folder, which appears whole.

    Args:
        runtime: The model; its manifest says whether the pictures are full radiographs or crops.
        class_folder: Where the pictures are. If a phantom set's truth stands beside it, the maps are compared with it.
        out: The folder to make.
        n: How many pictures; fewer if the folder has fewer.
        seed: Of the drawing.
        colormap: Colours.
        on_done: Called after each picture.

    Returns:
        The page's path, and what is on it.

    Raises:
        DatasetError: No pictures, or not one readable.
        ResourcesError: The folder cannot be made or filled.
        PanoramicError: The network put out something infinite or not a number.
    """
    pictures = RandomPictures(class_folder, n=n, seed=seed, view=runtime.model.manifest.view)
    truths = truths_beside(class_folder)
    with new_folder(out) as folder:
        (folder / PICTURES_FOLDER).mkdir()
        cases, picked_files = [], []
        for picked in pictures:
            explained = explain_picture(runtime, picked.pixels, colormap=colormap)
            cases.append(_case(picked, explained, truth=truths.get(picked.path.resolve()), colormap=colormap))
            _write_pictures(folder / PICTURES_FOLDER, picked, explained, colormap=colormap)
            picked_files.append((picked.path.name, picked.digest))
            on_done()
        heatmaps = Heatmaps(
            manifest=runtime.model.manifest,
            class_folder=class_folder.resolve().name,
            wanted=n,
            seed=seed,
            colormap=colormap,
            cases=tuple(cases),
            skipped=dict(Counter(skipped.reason for skipped in pictures.skipped)),
        )
        write_whole(folder / NAMES_FILE, _names_csv(picked_files, pictures.skipped))
        write_whole(folder / NUMBERS_FILE, json.dumps(_numbers(heatmaps), indent=2, ensure_ascii=False).encode())
        write_whole(folder / SHEET_FILE, sheet_png(heatmaps))
        write_whole(folder / PAGE_FILE, page_html(heatmaps).encode())
    return out / PAGE_FILE, heatmaps


def _case(picked: Picked, explained: Explained, *, truth: PhantomTruth | None, colormap: Colormap) -> Case:
    height, width = picked.pixels.shape
    if truth is not None and truth.size_px != (height, width):
        raise DatasetError(
            f"picture {picked.digest} has {height}x{width} px (height x width), and the truth beside its folder says "
            f"{truth.size_px[0]}x{truth.size_px[1]}: it is not the phantom that was drawn. Draw the set again, or move "
            "the folder away from truth.csv"
        )
    with Image.open(io.BytesIO(explained.overlay_png)) as image:
        overlay = np.asarray(image.crop((0, 0, width, height)))  # the caption is below
    return Case(
        digest=picked.digest,
        size_px=(height, width),
        warnings=(*picked.warnings, *(("explanation_empty",) if explained.is_empty else ())),
        classification=explained.classification,
        cortex=None if truth is None or explained.is_empty else cortex_shares(explained.strength, truth),
        original=thumbnail(np.repeat(picked.pixels[..., None], 3, axis=2)),
        coloured=thumbnail(lookup_table(colormap)[explained.strength]),
        overlay=thumbnail(overlay),
    )


def _write_pictures(folder: Path, picked: Picked, explained: Explained, *, colormap: Colormap) -> None:
    """The three pictures at the radiograph's own size, named by its digest."""
    original = cv2.imencode(".png", picked.pixels)[1].tobytes()
    write_whole(folder / f"{picked.digest}_original.png", original)
    write_whole(folder / f"{picked.digest}_map.png", saliency_png(explained.strength, colormap))
    write_whole(folder / f"{picked.digest}_overlay.png", explained.overlay_png)


def _names_csv(picked: Sequence[tuple[str, str]], skipped: Sequence[Skipped]) -> bytes:
    """Which file is which, for the owner of the files alone: everything else goes by digests."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "digest", "skipped_because"])
    writer.writerows([name, digest, ""] for name, digest in picked)
    writer.writerows([one.path.name, "", one.reason] for one in skipped)
    return text.getvalue().encode(errors="surrogateescape")


def _numbers(heatmaps: Heatmaps) -> dict[str, object]:
    """All that the page says, for programs."""
    manifest = heatmaps.manifest
    shares = heatmaps.cortex()
    return {
        "notice": RESEARCH_USE,
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "sha256": manifest.sha256,
            "notices": list(manifest.notices),
            "view": str(manifest.view),
            "threshold": manifest.threshold,
        },
        "explanation": {
            "method": METHOD,
            "layer": heatmaps.cases[0].classification.layer,
            "class": "the diagnosed one",
            "grid": list(heatmaps.cases[0].classification.cam.shape),
            "colormap": str(heatmaps.colormap),
        },
        "class_folder": heatmaps.class_folder,
        "seed": heatmaps.seed,
        "wanted": heatmaps.wanted,
        "shown": len(heatmaps.cases),
        "skipped": heatmaps.skipped,
        "diagnoses": heatmaps.diagnoses(),
        "finding": heatmaps.finding_label,
        "cortex": None
        if not shares
        else {
            "pictures": len(shares),
            "margin_mm": MARGIN_MM,
            "inside": asdict(summarise([one.cortex for one in shares])),
            "inside_or_within_margin": asdict(summarise([one.near for one in shares])),
        },
        "cases": [_case_numbers(case) for case in heatmaps.cases],
    }


def _case_numbers(case: Case) -> dict[str, object]:
    answer = case.classification
    return {
        "digest": case.digest,
        "size_px": list(case.size_px),
        "diagnosis": answer.diagnosis,
        "class": answer.class_name,
        "probability": answer.probability,
        "probabilities": answer.probabilities,
        "warnings": list(case.warnings),
        "cortex": None
        if case.cortex is None
        else {
            name: asdict(share) | {"ratio": share.ratio}
            for name, share in (("inside", case.cortex.cortex), ("inside_or_within_margin", case.cortex.near))
        },
    }
