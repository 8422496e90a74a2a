"""One radiograph explained: what the network says of it, and the map that its answer rests on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoramic.classification import Classification
from panoramic.overlay import Colormap, caption_of, overlay_png, scale_map
from panoramic.preprocess import prepare
from panoramic.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Explained:
    """A network's answer with its Grad-CAM map.

    Attributes:
        classification: The answer; its ``cam`` is the map on the network's own coarse grid.
        overlay_png: The map on the radiograph, with caption and colour bar below; a PNG file, RGB, as wide as the
            radiograph.
        strength: (H, W) the map at the radiograph's size, 0 to 255 at its own maximum.
    """

    classification: Classification
    overlay_png: bytes
    strength: NDArray[np.uint8]

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the activation speaks for the diagnosed class, so that the map is zero everywhere."""
        return not self.strength.any()


def explain_picture(runtime: Runtime, pixels: NDArray[np.uint8], *, colormap: Colormap = Colormap.INFERNO) -> Explained:
    """Classify one radiograph, full or crop, and draw its map: what a worker does, without writing anything.

    Args:
        runtime: The model.
        pixels: (H, W) grey levels, bone bright.
        colormap: Colours of the overlay.

    Raises:
        ValueError: Not a two-dimensional array of 8-bit grey levels.
        PanoramicError: The network put out something infinite or not a number.
    """
    manifest = runtime.model.manifest
    tensor = prepare(pixels, input_size=manifest.input_size)  # (3, h, w)
    (classification,) = runtime.classify(tensor[None])
    height, width = pixels.shape
    strength = scale_map(classification.cam, (height, width))
    caption = caption_of(manifest, classification)
    overlay = overlay_png(pixels, strength, colormap=colormap, caption=caption)
    return Explained(classification, overlay, strength)
