"""What heat maps were drawn: one case a picture, with thumbnails for sheet and page."""

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.classification import Classification
from panoramic.manifest import Manifest
from panoramic.overlay import Colormap
from training.explain.cortex_share import CortexShares

#: Box, height and width in px, that the pictures of sheet and page are reduced to fit.
THUMBNAIL_BOX_PX = (330, 640)


@dataclass(frozen=True, eq=False)
class Case:
    """One picture, its answer and its map.

    Attributes:
        digest: Stands for the picture, whose file name can be a patient's.
        size_px: Height and width.
        warnings: Codes of the picture and of the explanation.
        classification: What the network said.
        cortex: Where the map's mass is; None without a truth, or where the map is empty.
        original: Thumbnail, RGB (h, w, 3).
        coloured: Thumbnail of the map, RGB.
        overlay: Thumbnail of the map on the original, RGB, without the caption.
    """

    digest: str
    size_px: tuple[int, int]
    warnings: tuple[str, ...]
    classification: Classification
    cortex: CortexShares | None
    original: NDArray[np.uint8]
    coloured: NDArray[np.uint8]
    overlay: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """All cases of one drawing.

    Attributes:
        manifest: Of the model.
        class_folder: Name of the folder that the pictures are from.
        wanted: How many pictures were asked for.
        seed: Of the drawing.
        colormap: Colours of maps and overlays.
        cases: In the order in which they were drawn.
        skipped: How many were drawn and could not be used, by reason.
    """

    manifest: Manifest
    class_folder: str
    wanted: int
    seed: int
    colormap: Colormap
    cases: tuple[Case, ...]
    skipped: dict[str, int]

    @property
    def finding_label(self) -> str:
        """Label of the class whose probability is given."""
        return self.manifest.classes[self.manifest.finding_index].label

    def diagnoses(self) -> dict[str, int]:
        """How many pictures got each diagnosis, in the order of the network's outputs."""
        found = Counter(case.classification.diagnosis for case in self.cases)
        return {cls.label: found[cls.label] for cls in self.manifest.classes}

    def cortex(self) -> list[CortexShares]:
        """Of the cases that have them."""
        return [case.cortex for case in self.cases if case.cortex is not None]


def thumbnail(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce a picture (H, W, 3) to fit `THUMBNAIL_BOX_PX`; smaller ones stay as they are."""
    height, width = picture.shape[:2]
    scale = min(1.0, THUMBNAIL_BOX_PX[0] / height, THUMBNAIL_BOX_PX[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
