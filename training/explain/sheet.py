"""The sheet: all cases on one picture to print or to show, original, map and overlay side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from panoramic.classification import METHOD
from panoramic.manifest import RESEARCH_USE
from panoramic.overlay import lookup_table, notices_of

if TYPE_CHECKING:
    from training.explain.cases import Case, Heatmaps

#: A sheet of many cases has smaller pictures, not more pixels.
MAX_PIXELS = 18_000_000

#: Height over width that the sheet comes close to: a portrait page's.
SHAPE = 1.4

#: Lines above the cases, the room around them included, and lines under each case.
HEADER_LINES = 7
CASE_LINES = 2

INK, GREY, RED = (17, 24, 39), (75, 85, 99), (185, 28, 28)


def sheet_png(heatmaps: Heatmaps) -> bytes:
    """Draw the sheet.

    Returns:
        An RGB PNG file of at most 20 million pixels.
    """
    layout = _Layout(heatmaps.cases)
    sheet = Image.new("RGB", (layout.width, layout.height), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_header(sheet, draw, heatmaps, layout=layout)
    for place, case in enumerate(heatmaps.cases):
        row, column = divmod(place, layout.columns)
        x = layout.gap + column * (layout.case_width + layout.gap)
        y = layout.header + row * (layout.case_height + layout.gap)
        for which, picture in enumerate((case.original, case.coloured, case.overlay)):
            left = x + which * (layout.cell_width + layout.hair)
            small = Image.fromarray(picture)
            small.thumbnail((layout.cell_width, layout.cell_height), Image.Resampling.LANCZOS)
            at = (left + (layout.cell_width - small.width) // 2, y + layout.cell_height - small.height)
            sheet.paste(small, at)
        for line, text in enumerate(_case_lines(case, heatmaps)):
            at = (x, y + layout.cell_height + round((line + 0.2) * layout.line))
            font = _fitting(text, layout.line * 0.66, width=layout.case_width)
            draw.text(at, text, fill=GREY if line else INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


class _Layout:
    """Sizes in px, for pictures as large as the thumbnails are unless that is too large."""

    def __init__(self, cases: tuple[Case, ...]) -> None:
        widest = max(case.original.shape[1] for case in cases)
        highest = max(case.original.shape[0] for case in cases)
        # A line of text is as wide as a case; a small crop must not make it illegible.
        enlarged = max(1.0, 300 / widest)
        self._arrange(len(cases), round(widest * enlarged), round(highest * enlarged))
        pixels = self.width * self.height
        if pixels > MAX_PIXELS:
            scale = (MAX_PIXELS / pixels) ** 0.5
            self._arrange(len(cases), max(16, int(widest * enlarged * scale)), max(8, int(highest * enlarged * scale)))

    def _arrange(self, count: int, cell_width: int, cell_height: int) -> None:
        self.cell_width, self.cell_height = cell_width, cell_height
        self.hair = max(2, cell_width // 100)
        self.gap = max(6, cell_width // 20)
        self.case_width = 3 * cell_width + 2 * self.hair
        self.line = max(9, self.case_width // 48)
        self.case_height = cell_height + CASE_LINES * self.line + self.line // 2
        step = self.case_width + self.gap, self.case_height + self.gap
        self.columns = min(count, max(1, round((count * step[1] / (SHAPE * step[0])) ** 0.5)))
        rows = -(-count // self.columns)
        self.width = self.gap + self.columns * step[0]
        # The header is as legible as its sheet is large.
        self.header_line = max(self.line, self.width // 72)
        self.header = round((HEADER_LINES + 0.5) * self.header_line * 1.25)
        self.height = self.header + rows * step[1]


def _draw_header(sheet: Image.Image, draw: ImageDraw.ImageDraw, heatmaps: Heatmaps, *, layout: _Layout) -> None:
    manifest = heatmaps.manifest
    bar_width = layout.width // 6
    room = layout.width - bar_width - 3 * layout.gap
    skipped = sum(heatmaps.skipped.values())
    answers = ", ".join(f"{count} “{label}”" for label, count in heatmaps.diagnoses().items())
    lines = [
        (f"{METHOD} of {len(heatmaps.cases)} pictures of “{heatmaps.class_folder}”", INK),
        (
            "  ·  ".join((f"Model {manifest.name} {manifest.version}", *notices_of(manifest))),
            RED if manifest.notices else GREY,
        ),
        (f"Diagnosed: {answers}  (threshold {manifest.threshold:.3f})", GREY),
        (f"Drawn at random with seed {heatmaps.seed}; {skipped} skipped as unusable", GREY),
        ("Left to right: original, map for the diagnosed class, overlay. A map is no localisation of disease.", GREY),
        (RESEARCH_USE, RED),
    ]
    for row, (text, colour) in enumerate(lines):
        size = layout.header_line * (1.3 if row == 0 else 0.85)
        at = (layout.gap, round((row + 0.5 + 0.5 * (row > 0)) * layout.header_line * 1.25))
        draw.text(at, text, fill=colour, font=_fitting(text, size, width=room))
    colours = lookup_table(heatmaps.colormap)[np.linspace(0, 255, bar_width).astype(int)]
    bar = np.repeat(colours[None], round(1.5 * layout.header_line), axis=0)
    left, top = layout.width - layout.gap - bar_width, round(0.6 * layout.header_line)
    sheet.paste(Image.fromarray(bar), (left, top))
    font = _fitting("no evidence     strongest", layout.header_line * 0.8, width=bar_width)
    below = top + bar.shape[0] + layout.header_line // 4
    draw.text((left, below), "no evidence", fill=GREY, font=font)
    draw.text((left + bar_width, below), "strongest", fill=GREY, font=font, anchor="ra")


def _case_lines(case: Case, heatmaps: Heatmaps) -> tuple[str, str]:
    answer = case.classification
    first = f"{answer.diagnosis}  ·  probability of “{heatmaps.finding_label}” {answer.probability:.3f}"
    second = f"{case.digest[:12]}  ·  {case.size_px[1]}×{case.size_px[0]} px"
    if case.cortex is not None:
        share = case.cortex.near
        second += (
            f"  ·  near the cortex {share.mass:.0%} of the map on {share.area:.0%} of the area ({share.ratio:.1f}×)"
        )
    return first, "  ·  ".join((second, *(code.replace("_", " ") for code in case.warnings)))


def _fitting(text: str, size_px: float, *, width: float) -> ImageFont.FreeTypeFont:
    """The font at this size, or smaller where the text would be wider than its room."""
    # Comes with matplotlib, and has the letters of far more languages than Pillow's own font.
    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(file, size_px)
    length = font.getlength(text)
    return font if length <= width else ImageFont.truetype(file, max(1.0, size_px * width / length))
