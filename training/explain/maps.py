"""One radiograph explained: what the network says of it, and the map that its answer rests on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoramic.manifest import Manifest
from panoramic.overlay import Caption, Colormap, overlay_png, scale_map
from panoramic.preprocess import prepare
from panoramic.runtime import Classification, Runtime


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


def caption_of(manifest: Manifest, classification: Classification) -> Caption:
    """What stands under an overlay: class, probability, model, layer, and the model's notices in capitals."""
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
