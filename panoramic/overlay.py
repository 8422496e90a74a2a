"""The two pictures of an explanation: the coloured map, and the map on its radiograph with colour bar and caption."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panoramic.compiling import compiled
from panoramic.manifest import RESEARCH_USE, Manifest
from panoramic.png import encode_indexed, encode_rgb

if TYPE_CHECKING:  # it needs PyTorch, and drawing does not
    from panoramic.classification import Classification

#: Opacity of the map where it is strongest; below, the radiograph shows through in proportion.
MAX_OPACITY = 0.6

#: Height of the strip under the radiograph, as a share of the picture's width, and at least in pixels.
CAPTION_SHARE = 0.065
CAPTION_MIN_PX = 72


class Colormap(StrEnum):
    """How strength becomes colour."""

    INFERNO = "inferno"
    """Perceptually uniform: equal steps of evidence look equal, in grey print and to colour-blind eyes as well."""
    HOT = "hot"
    """The predecessor's."""


@dataclass(frozen=True)
class Caption:
    """What stands under the overlay.

    Attributes:
        class_label: Label of the explained class.
        finding_label: Label of the class whose probability is given.
        probability: Of the finding, 0 to 1.
        threshold: Probability from which the finding is diagnosed.
        model: Name and version of the model.
        layer: The layer whose activation is weighted.
        notices: What else must be said about the model, in words.
    """

    class_label: str
    finding_label: str
    probability: float
    threshold: float
    model: str
    layer: str
    notices: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Four lines of text; the last is the research-use notice."""
        evidence = f"Grad-CAM, evidence for “{self.class_label}”"
        odds = f"Probability of “{self.finding_label}” {self.probability:.3f} (threshold {self.threshold:.3f})"
        about = "  ·  ".join((f"Model {self.model}", f"layer {self.layer}", *self.notices))
        return evidence, odds, about, RESEARCH_USE


def caption_of(manifest: Manifest, classification: Classification) -> Caption:
    """What stands under the overlay of a model's answer: class, probability, model, layer, and the model's notices."""
    return Caption(
        class_label=classification.diagnosis,
        finding_label=manifest.classes[manifest.finding_index].label,
        probability=classification.probability,
        threshold=manifest.threshold,
        model=f"{manifest.name} {manifest.version}",
        layer=classification.layer,
        notices=notices_of(manifest),
    )


def notices_of(manifest: Manifest) -> tuple[str, ...]:
    """What else must be said about a model, in words: ``MODEL NOT TRAINED``."""
    return tuple(code.replace("_", " ").upper() for code in manifest.notices)


def lookup_table(colormap: Colormap) -> NDArray[np.uint8]:
    """Colours of a map: uint8 (256, 3), RGB, from no evidence to the strongest.

    `hot` is matplotlib's (red rises to 0.365079, green to 0.746032, then blue), `inferno` is OpenCV's copy of it.
    """
    if colormap is Colormap.INFERNO:
        ramp = np.arange(256, dtype=np.uint8).reshape(256, 1)
        return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[:, 0, ::-1])
    x = np.linspace(0.0, 1.0, 256)
    first, second = 0.365079, 0.746032
    red = np.interp(x, (0.0, first, 1.0), (0.0416, 1.0, 1.0))
    green = np.interp(x, (0.0, first, second, 1.0), (0.0, 0.0, 1.0, 1.0))
    blue = np.interp(x, (0.0, second, 1.0), (0.0, 0.0, 1.0))
    return (np.stack((red, green, blue), axis=1) * 255).astype(np.uint8)


def scale_map(cam: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Enlarge a Grad-CAM map to a picture's size and stretch it from 0 to 255 at its own maximum.

    Args:
        cam: float32 (h, w), not negative. All zero (no evidence for the class) stays zero.
        size: Height and width of the picture, px.

    Returns:
        uint8 (H, W).
    """
    height, width = size
    strongest = float(cam.max())
    if strongest <= 0:
        return np.zeros((height, width), np.uint8)
    enlarged = cv2.resize(cam * (255 / strongest), (width, height), interpolation=cv2.INTER_CUBIC)
    # Cubic curves swing over both ends.
    return np.rint(np.clip(enlarged, 0, 255, out=enlarged), out=enlarged).astype(np.uint8)


def saliency_png(strength: NDArray[np.uint8], colormap: Colormap) -> bytes:
    """The coloured map alone, as a PNG file with a palette.

    Args:
        strength: uint8 (H, W), from `scale_map`.
        colormap: Which colours.
    """
    return encode_indexed(strength, lookup_table(colormap))


def overlay_png(
    pixels: NDArray[np.uint8], strength: NDArray[np.uint8], *, colormap: Colormap, caption: Caption
) -> bytes:
    """The map on its radiograph, at the radiograph's own size, with a strip below it for caption and colour bar.

    Args:
        pixels: The radiograph, uint8 (H, W).
        strength: The map, uint8 (H, W), from `scale_map`.
        colormap: Which colours.
        caption: What the strip says.

    Returns:
        An RGB PNG file of W × (H + strip) px.
    """
    height, width = pixels.shape
    strip_px = max(CAPTION_MIN_PX, round(width * CAPTION_SHARE))
    canvas = np.empty((height + strip_px, width, 3), np.uint8)
    _blend(pixels, strength, lookup_table(colormap), out=canvas[:height])
    strip = Image.new("RGB", (width, strip_px))
    _draw_strip(strip, caption, lookup_table(colormap))
    canvas[height:] = np.asarray(strip)
    return encode_rgb(canvas)


def _blend(
    pixels: NDArray[np.uint8], strength: NDArray[np.uint8], colours: NDArray[np.uint8], *, out: NDArray[np.uint8]
) -> None:
    if pixels.shape != strength.shape:
        raise ValueError(f"pixels have shape {pixels.shape} and strength {strength.shape}; they must be the same")
    # Every pair (strength, grey) has one colour, so 65,536 of them are mixed once, and the picture only looks them up.
    opacity = (np.arange(256, dtype=np.float32) / 255 * MAX_OPACITY)[:, None, None]
    grey = np.arange(256, dtype=np.float32)[None, :, None]
    mixed = grey * (1 - opacity) + colours[:, None, :].astype(np.float32) * opacity  # (strength, grey, RGB)
    _look_up(np.rint(mixed).astype(np.uint8), strength, pixels, out)


@compiled
def _look_up(
    table: NDArray[np.uint8], first: NDArray[np.uint8], second: NDArray[np.uint8], out: NDArray[np.uint8]
) -> None:
    """Fill out, (H, W, 3), from the table, (256, 256, 3), a third of the time that NumPy's indexing takes."""
    height, width = first.shape
    for row in range(height):
        for column in range(width):
            colour = table[first[row, column], second[row, column]]
            for channel in range(3):
                out[row, column, channel] = colour[channel]


def _draw_strip(strip: Image.Image, caption: Caption, colours: NDArray[np.uint8]) -> None:
    draw = ImageDraw.Draw(strip)
    margin = strip.height // 8
    bar_width = strip.width // 6
    pitch = (strip.height - 2 * margin) / len(caption.lines)

    def font_to_fit(lines: tuple[str, ...], width: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        size_px = pitch / 1.25
        while True:
            font = ImageFont.load_default(size_px)
            # Letters are set on whole pixels, so that a line does not shrink in proportion to its letters.
            if size_px <= 1 or max(draw.textlength(line, font=font) for line in lines) <= width:
                return font
            size_px *= 0.95

    font = font_to_fit(caption.lines, strip.width - bar_width - 3 * margin)
    for row, line in enumerate(caption.lines):
        draw.text((margin, margin + (row + 0.5) * pitch), line, fill="white", font=font, anchor="lm")

    left, top = strip.width - margin - bar_width, margin
    bar = np.repeat(colours[np.linspace(0, 255, bar_width).astype(int)][None], strip.height // 3, axis=0)
    strip.paste(Image.fromarray(bar), (left, top))
    below = top + bar.shape[0] + margin // 2
    font = font_to_fit(("no evidence   strongest",), bar_width)
    draw.text((left, below), "no evidence", fill="white", font=font, anchor="la")
    draw.text((left + bar_width, below), "strongest", fill="white", font=font, anchor="ra")
