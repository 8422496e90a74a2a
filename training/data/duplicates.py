"""Which pictures show the same radiograph: equal grey levels, or the same after re-encoding, resizing or brightening.

A picture is reduced to a few cells and its coarse shading is taken away, for all jaws share that; what is left is
compared by correlation. Measured on 7 real radiographs, 21 crops of them and 60 phantoms: pictures of different
patients stay below 0.75 and two pictures of one (phantom) patient below 0.96, while a copy as JPEG of quality 30, at
half the size, 20 grey levels brighter, 30 % darker or with a gamma of 0.7 reaches 0.98 or more. A copy that is
turned by degrees, or cropped, may not be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

#: Width and height of the reduced picture, cells.
_CELLS: Final = (48, 32)
#: What is broader than this many cells (standard deviation of a Gaussian) is taken away.
_SHADING_CELLS: Final = 1.5
#: From this correlation on, two pictures show the same.
SAME_FROM: Final = 0.975
#: Pictures a side of the tables of correlations: 16 MiB at a time, however many pictures there are.
_TILE: Final = 2048
#: How a copy may lie, by the axes along which it is flipped.
_FLIPS: Final = {"": (), "mirrored": (2,), "upside down": (1,), "turned by 180°": (1, 2)}


@dataclass(frozen=True)
class Alike:
    """Pictures that show the same.

    Attributes:
        members: Indices, ascending; two or more.
        flipped: How some of them lie to others: of "mirrored", "upside down" and "turned by 180°".
    """

    members: tuple[int, ...]
    flipped: tuple[str, ...] = ()


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
    """What `find_near_identical` compares: 32 × 48 cells without coarse shading, with mean 0 and norm 1.

    Args:
        pixels: (H, W) grey levels.
    """
    cells = cv2.resize(pixels, _CELLS, interpolation=cv2.INTER_AREA).astype(np.float32)
    cells -= cv2.GaussianBlur(cells, (0, 0), _SHADING_CELLS)
    cells -= cells.mean()
    norm = float(np.linalg.norm(cells))
    return (cells / norm if norm else cells).astype(np.float16)


def find_identical(digests: Sequence[str]) -> list[Alike]:
    """Group the pictures whose `panoramic.radiograph.pixel_digest` is the same."""
    members: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        members.setdefault(digest, []).append(index)
    return [Alike(tuple(group)) for group in members.values() if len(group) > 1]


def find_near_identical(thumbnails: Sequence[NDArray[np.float16]]) -> list[Alike]:
    """Group the pictures whose thumbnails correlate, as they are or flipped.

    A picture that is alike to two others joins them. Takes N²/2 correlations a flip, as matrix products: seconds for
    10,000 pictures.

    Args:
        thumbnails: As `thumbnail` gives them.
    """
    if len(thumbnails) < 2:
        return []
    stack = np.stack(thumbnails)
    group_of = np.arange(len(stack))
    found = {flip: np.zeros(len(stack), np.bool_) for flip in _FLIPS}
    for top in range(0, len(stack), _TILE):
        rows = _flat(stack[top : top + _TILE])
        for left in range(top, len(stack), _TILE):
            for flip, axes in _FLIPS.items():
                columns = _flat(np.flip(stack[left : left + _TILE], axes))
                first, second = np.nonzero(rows @ columns.T >= SAME_FROM)  # (rows, columns) of the alike
                pairs = first + top < second + left  # each pair once, and no picture with its own mirror image
                first, second = first[pairs] + top, second[pairs] + left
                if len(first):
                    group_of = _joined(group_of, first, second)
                    found[flip][first] = True
    order = np.argsort(group_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
    return [
        Alike(tuple(group.tolist()), tuple(flip for flip in _FLIPS if flip and found[flip][group].any()))
        for group in sorted(groups, key=lambda group: int(group[0]))
        if len(group) > 1
    ]


def _flat(thumbnails: NDArray[np.float16]) -> NDArray[np.float32]:
    return thumbnails.reshape(len(thumbnails), -1).astype(np.float32)


def _joined(group_of: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unite the groups of each pair; a group is named by the least of its members."""
    while (apart := group_of[first] != group_of[second]).any():
        ends = group_of[first[apart]], group_of[second[apart]]
        leads_to = np.arange(len(group_of))
        np.minimum.at(leads_to, np.maximum(*ends), np.minimum(*ends))
        while not np.array_equal(further := leads_to[leads_to], leads_to):
            leads_to = further
        group_of = leads_to[group_of]
    return group_of
