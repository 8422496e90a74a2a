"""How much of a map falls where a phantom's truth says that the inferior cortex is."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from training.phantoms.phantom import cortex_mask
from training.phantoms.phantom_set import TRUTH_FILE, read_set

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.phantoms.truth import PhantomTruth

#: How far from the cortex, mm at the detector, evidence still counts as near it: about half a cell of the network's
#: grid on a full radiograph (14×29 cells over 121×292.5 mm), which is all that a map can tell places apart.
MARGIN_MM = 5.0


@dataclass(frozen=True)
class RegionShare:
    """A map's mass against a region's area.

    Attributes:
        mass: Share of the map's sum that lies in the region, 0 to 1.
        area: Share of the picture that the region takes: what a map would have there that is spread evenly.
    """

    mass: float
    area: float

    @property
    def ratio(self) -> float:
        """Above 1 the map prefers the region; 1 is what a map without any preference has."""
        return self.mass / self.area


@dataclass(frozen=True)
class CortexShares:
    """For one picture: the cortex itself, and the cortex with `MARGIN_MM` around it."""

    cortex: RegionShare
    near: RegionShare


def region_share(strength: NDArray[np.uint8], region: NDArray[np.bool_]) -> RegionShare:
    """Compare where a map's mass is with where a region is.

    Args:
        strength: (H, W), not all zero.
        region: (H, W), not all False.

    Raises:
        ValueError: The shapes differ, the map is empty or the region is.
    """
    if strength.shape != region.shape or not strength.any() or not region.any():
        raise ValueError(
            f"strength is {strength.shape} with maximum {strength.max()}, region {region.shape} with "
            f"{int(region.sum())} pixels; the shapes must be equal and neither may be empty"
        )
    mass = strength[region].sum(dtype=np.int64) / strength.sum(dtype=np.int64)
    return RegionShare(mass=float(mass), area=float(region.mean()))


def cortex_shares(strength: NDArray[np.uint8], truth: PhantomTruth) -> CortexShares:
    """Where a phantom's map has its mass.

    Args:
        strength: (H, W) the map at the phantom's size, not all zero; as displayed, since that is what a reader sees.
        truth: The phantom's.

    Raises:
        ValueError: The map is empty or of another size.
    """
    cortex = cortex_mask(truth)
    return CortexShares(
        cortex=region_share(strength, cortex),
        near=region_share(strength, widen(cortex, radius_px=MARGIN_MM / truth.spacing_mm)),
    )


@dataclass(frozen=True)
class ShareSummary:
    """Of one region over several pictures: means, and the range of the ratio."""

    mean_mass: float
    mean_area: float
    mean_ratio: float
    smallest_ratio: float
    largest_ratio: float


def summarise(shares: Sequence[RegionShare]) -> ShareSummary:
    """Put the shares of at least one picture together."""
    ratios = [share.ratio for share in shares]
    return ShareSummary(
        mean_mass=float(np.mean([share.mass for share in shares])),
        mean_area=float(np.mean([share.area for share in shares])),
        mean_ratio=float(np.mean(ratios)),
        smallest_ratio=min(ratios),
        largest_ratio=max(ratios),
    )


def widen(region: NDArray[np.bool_], *, radius_px: float) -> NDArray[np.bool_]:
    """All pixels (H, W) whose centres are at most so far from the region's nearest one."""
    outside = (~region).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius_px, np.bool_)


def truths_beside(class_folder: Path) -> dict[Path, PhantomTruth]:
    """The truths of the phantom set that a class folder is part of, by resolved path; none if it is part of none."""
    parent = class_folder.resolve().parent
    if not (parent / TRUTH_FILE).is_file():
        return {}
    try:
        return read_set(parent)
    except (KeyError, ValueError, TypeError, csv.Error):
        # Someone else's truth.csv, about something else: it says nothing of where the cortex is.
        return {}
