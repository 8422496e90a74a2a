"""The teeth: forms by FDI number, placed in two arches, with enamel, dentine, pulp, ligament and dental work.

Mean mesiodistal widths, crown heights and lengths follow dental anatomy (Wheeler's tables, rounded), enlarged by the
magnification of a panoramic unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from training.phantoms.canvas import Canvas, smooth
from training.phantoms.jaw import occlusal_y
from training.phantoms.truth import ALL_TEETH, Metal, PhantomTruth, stream

if TYPE_CHECKING:
    from training.phantoms.canvas import Image, Points

#: Horizontal and vertical magnification of the unit.
_MAGNIFICATION = (1.21, 1.27)

#: (width, crown height, whole length) in mm by position 1–8, upper and lower.
_UPPER_MM: tuple[tuple[float, float, float], ...] = (
    *((8.5, 10.5, 23.5), (6.6, 9.2, 22.0), (7.6, 10.2, 27.0), (7.1, 8.6, 22.0)),
    *((7.0, 8.4, 21.8), (10.3, 7.6, 20.0), (9.8, 7.4, 19.0), (8.8, 6.8, 17.0)),
)
_LOWER_MM: tuple[tuple[float, float, float], ...] = (
    *((5.3, 9.0, 21.5), (5.8, 9.4, 23.2), (6.9, 10.8, 26.0), (7.1, 8.8, 22.5)),
    *((7.3, 8.4, 22.5), (11.2, 7.6, 21.5), (10.7, 7.2, 20.0), (10.2, 7.0, 17.5)),
)

#: Half outlines of the crowns from the middle of the biting edge to the neck: x in half widths, y in crown heights.
_INCISOR = ((-0.8, 0.02), (-0.95, 0.1), (-0.97, 0.28), (-0.82, 0.62), (-0.64, 1.0))
_INCISOR_EDGE = ((-0.5, 0.0), (0.0, 0.01), (0.5, 0.0))
_CANINE = ((-0.62, 0.17), (-0.97, 0.34), (-1.0, 0.46), (-0.86, 0.75), (-0.7, 1.0))
_CANINE_EDGE = ((-0.25, 0.04), (0.0, 0.0), (0.25, 0.04))
_PREMOLAR = ((-0.72, 0.1), (-0.97, 0.28), (-1.0, 0.45), (-0.86, 0.75), (-0.68, 1.0))
_PREMOLAR_EDGE = ((-0.45, 0.01), (-0.1, 0.12), (0.15, 0.1), (0.45, 0.03))
_MOLAR = ((-0.86, 0.08), (-0.98, 0.26), (-1.0, 0.48), (-0.92, 0.78), (-0.82, 1.0))
_MOLAR_EDGE = ((-0.62, 0.0), (-0.3, 0.1), (-0.05, 0.14), (0.1, 0.1), (0.38, 0.02), (0.62, 0.0))


@dataclass(frozen=True)
class _Tooth:
    """One tooth in its own axes (x mesiodistal, y from the biting edge to the apex, mm) and its place in the mouth."""

    number: int
    half_width: float
    crown: float
    length: float
    centre: tuple[float, float]
    lean: float
    bends: tuple[float, ...]

    @property
    def upper(self) -> bool:
        return self.number < 30

    @property
    def position(self) -> int:
        return self.number % 10

    def axial(self, part: Canvas) -> Image:
        """Distance from the biting edge along the tooth's axis, of every pixel (h, w), mm."""
        flip = -1.0 if self.upper else 1.0
        x, y = part.x_mm() - self.centre[0], part.y_mm() - self.centre[1]
        return np.asarray(flip * (y * np.cos(self.lean) - x * np.sin(self.lean)), np.float32)

    def place(self, points: Points) -> Points:
        """From the tooth's axes to the canvas's, mm."""
        flip = -1.0 if self.upper else 1.0
        x, y = points[:, 0], points[:, 1] * flip
        cos, sin = np.cos(self.lean), np.sin(self.lean)
        return np.stack([self.centre[0] + x * cos - y * sin, self.centre[1] + x * sin + y * cos], axis=1)


def draw_teeth(canvas: Canvas, truth: PhantomTruth) -> tuple[Image, Image, Image]:
    """Grey that the teeth add, how far they take the place of bone (0–1), and coverage of metal (0–1), each (H, W)."""
    grey, place, metal = (np.zeros(canvas.shape, np.float32) for _ in range(3))
    work: dict[int, Metal] = dict(truth.patient.metal)
    for tooth in _arches(truth):
        implant = work.get(tooth.number) is Metal.IMPLANT
        if tooth.number not in truth.patient.teeth and not implant:
            continue
        box = tooth.place(_box(tooth))
        part, where = canvas.window(box, 2.0)
        rng = stream(truth.seed, "tooth", tooth.number)
        if not implant:
            added, whole = _draw_tooth(part, tooth, rng)
            grey[where] += added
            place[where] = np.maximum(place[where], whole)
        if tooth.number in work:
            metal[where] = np.maximum(metal[where], _draw_metal(part, tooth, work[tooth.number], rng))
    return grey, place, metal


def _arches(truth: PhantomTruth) -> list[_Tooth]:
    """All 32 places, whether there is a tooth or not."""
    patient = truth.patient
    gap = truth.exposure.bite_gap_mm
    end_at: dict[int, float] = {}
    teeth = []
    for number in ALL_TEETH:
        quadrant, position = divmod(number, 10)
        rng = stream(truth.seed, "place", number)
        upper, side = quadrant < 3, -1.0 if quadrant in (1, 4) else 1.0
        width, crown, length = (_UPPER_MM if upper else _LOWER_MM)[position - 1]
        half = 0.5 * width * _MAGNIFICATION[0] * patient.head_scale * rng.uniform(0.96, 1.04)
        tall = _MAGNIFICATION[1] * patient.head_scale * rng.uniform(0.95, 1.05)
        start = end_at.get(quadrant, 0.0)
        end_at[quadrant] = start + 2 * half * (1.0 if position < 6 else 0.98)
        x = side * (start + half)
        # The front teeth part most when the patient bites on the unit's peg.
        open_mm = gap * max(0.0, 1.0 - abs(x) / 75.0) ** 0.8 - 0.8
        y = occlusal_y(patient, x) + (-0.5 if upper else 0.5) * open_mm + rng.normal(0.0, 0.35)
        slope = -2 * patient.smile_mm * x / (82.0 * patient.head_scale) ** 2
        lean = np.arctan(slope) + side * _lean(rng, position, upper=upper)
        bends = tuple(rng.normal(0.0, 0.7, 3) + 0.9 * side)
        teeth.append(_Tooth(number, half, crown * tall, length * tall, (x, y), float(lean), bends))
    return teeth


def _lean(rng: np.random.Generator, position: int, *, upper: bool) -> float:
    """Tilt in radians on the patient's left: lower molars lean forwards, their roots point back."""
    mean = np.interp(position, [1, 3, 5, 8], [0.0, 0.06, 0.03, 0.02] if upper else [0.0, -0.06, -0.14, -0.40])
    wild = 0.3 if position == 8 else 0.045
    return float(mean + rng.normal(0.0, wild * (0.7 if upper else 1.0)))


def _box(tooth: _Tooth) -> Points:
    w = tooth.half_width * 1.3
    return np.array([(-w, -1.0), (w, -1.0), (w, tooth.length + 1), (-w, tooth.length + 1)])


def _crown(tooth: _Tooth, *, shrink: float = 1.0, sink: float = 0.0) -> Points:
    """Outline of the crown; shrunk and sunk, that of the dentine inside it."""
    side, edge = {
        1: (_INCISOR, _INCISOR_EDGE),
        2: (_INCISOR, _INCISOR_EDGE),
        3: (_CANINE, _CANINE_EDGE),
        4: (_PREMOLAR, _PREMOLAR_EDGE),
        5: (_PREMOLAR, _PREMOLAR_EDGE),
    }.get(tooth.position, (_MOLAR, _MOLAR_EDGE))
    half = np.array(side[::-1])
    other = np.array(side) * (-1, 1)
    outline = np.concatenate([half, np.array(edge), other]) * (tooth.half_width * shrink, tooth.crown * (1 - sink))
    outline[:, 1] += sink * tooth.crown
    return np.concatenate([smooth(outline), [(0.0, tooth.crown * 1.06)]])


def _roots(tooth: _Tooth, *, inset: float = 1.0, start: float = 0.7) -> list[Points]:
    """Outlines of the roots from the neck to each apex; inset, those of the canals."""
    neck, apex = tooth.crown * start, tooth.length
    if tooth.position >= 6:
        spread = 0.50 if tooth.position < 8 else 0.3
        places = [(-0.40, -spread, 1.0), (0.40, spread, 0.95)] + ([(0.0, 0.05, 1.05)] if tooth.upper else [])
        base = 0.44
    elif tooth.number in (14, 24):
        places, base = [(-0.2, -0.24, 0.97), (0.2, 0.24, 1.0)], 0.52
    else:
        places, base = [(0.0, 0.0, 1.0)], 0.64
    outlines = []
    for (top, tip, reach), bend in zip(places, tooth.bends, strict=False):
        t = np.linspace(0.0, 1.0, 14)
        bulge = 0.16 * np.sin(np.pi * t) * np.sign(top)
        centre = tooth.half_width * (top + (tip - top) * t**1.3 + bulge) + bend * t**2.2
        y = neck + (apex * reach - neck) * t
        half = inset * base * tooth.half_width * (1.0 - 0.45 * t) * np.sqrt(np.clip(1.0 - t**6, 0.0, 1.0))
        left, right = np.stack([centre - half, y], axis=1), np.stack([centre + half, y], axis=1)
        outlines.append(np.concatenate([left, right[::-1]]))
    if tooth.position >= 6 and inset == 1.0:
        # The trunk that molar roots share down to the furcation.
        low, w = tooth.crown + 0.26 * (tooth.length - tooth.crown), tooth.half_width
        outlines.append(
            np.array(
                [
                    (-0.8 * w, neck),
                    (0.8 * w, neck),
                    (0.6 * w, low + 1.8),
                    (0.22 * w, low),
                    (0.0, low - 0.8),
                    (-0.22 * w, low),
                    (-0.6 * w, low + 1.8),
                ]
            )
        )
    return outlines


def _pulp(tooth: _Tooth) -> list[Points]:
    """Pulp chamber, with horns in a molar, and root canals."""
    top, low, w = 0.55 * tooth.crown, 1.15 * tooth.crown, tooth.half_width
    if tooth.position >= 6:
        chamber = [(-0.36 * w, top), (-0.1 * w, top + 0.2 * tooth.crown), (0.1 * w, top + 0.2 * tooth.crown)]
        chamber += [(0.36 * w, top), (0.36 * w, low), (-0.36 * w, low)]
    else:
        chamber = [(-0.12 * w, top), (0.12 * w, top), (0.16 * w, low), (-0.16 * w, low)]
    return [np.array(chamber), *_roots(tooth, inset=0.16 if tooth.position >= 6 else 0.18)]


def _draw_tooth(part: Canvas, tooth: _Tooth, rng: np.random.Generator) -> tuple[Image, Image]:
    """Grey that one tooth adds, and its silhouette."""
    crown = part.fill(tooth.place(_crown(tooth)))
    core = part.fill(tooth.place(_crown(tooth, shrink=0.76, sink=0.22)))
    root = part.fill(*(tooth.place(outline) for outline in _roots(tooth)))
    pulp = part.fill(*(tooth.place(outline) for outline in _pulp(tooth)))
    whole = np.maximum(crown, root)
    # A rounded body is thickest in the middle, so the blurred silhouette stands for its thickness.
    thick = 0.5 + 0.5 * part.blur(whole, 1.1)
    grey = 58.0 * whole * thick * rng.uniform(0.92, 1.08)
    # Enamel thins out towards the neck, and is thinner on front teeth.
    fade = np.clip((1.05 * tooth.crown - tooth.axial(part)) / (0.6 * tooth.crown), 0.0, 1.0)
    enamel = fade * part.blur(crown, 0.4)
    grey += ((16.0 if tooth.position <= 3 else 34.0) * part.blur(np.clip(crown - core, 0.0, 1.0), 0.4) + 22.0) * enamel
    grey -= 19.0 * part.blur(pulp, 0.4)
    in_bone = np.clip(part.blur(root, 2.0) * 2.5, 0.0, 1.0) * (1.0 - part.blur(crown, 1.2))
    ligament = _ring(part, whole, 0.0, 0.35) * in_bone
    plate = _ring(part, whole, 0.35, 0.8) * in_bone
    edges = part.blur(8.0 * plate - 9.0 * ligament, 0.2)
    return part.blur(np.asarray(grey, np.float32), 0.3) + edges, part.blur(whole, 0.3)


def _ring(part: Canvas, mask: Image, inner_mm: float, outer_mm: float) -> Image:
    """A line around a mask, from one distance to another."""
    return np.asarray(np.clip(_dilate(part, mask, outer_mm) - _dilate(part, mask, inner_mm), 0.0, 1.0), np.float32)


def _dilate(part: Canvas, mask: Image, by_mm: float) -> Image:
    radius = round(by_mm * part.px_per_mm)
    if radius == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask, disc), np.float32)


def _draw_metal(part: Canvas, tooth: _Tooth, kind: Metal, rng: np.random.Generator) -> Image:
    w, crown, length = tooth.half_width, tooth.crown, tooth.length
    if kind is Metal.FILLING:
        centre = np.array([rng.uniform(-0.35, 0.35) * w, rng.uniform(0.2, 0.35) * crown])
        angle = np.linspace(0, 2 * np.pi, 9, endpoint=False)
        radius = rng.uniform(0.6, 1.15, 9)[:, None] * (rng.uniform(0.3, 0.65) * w, rng.uniform(0.16, 0.28) * crown)
        blob = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        # A filling lies within its tooth.
        return part.fill(tooth.place(smooth(blob, closed=True))) * part.fill(tooth.place(_crown(tooth)))
    if kind is Metal.CROWN:
        return part.fill(tooth.place(_crown(tooth, shrink=1.03)))
    if kind is Metal.ROOT_FILLING:
        canals = [tooth.place(outline) for outline in _roots(tooth, inset=0.2)]
        cap = part.fill(tooth.place(_crown(tooth, shrink=0.9, sink=0.12)))
        return np.asarray(np.maximum(0.62 * part.fill(*canals), cap), np.float32)
    screw_y = np.linspace(1.1 * crown, 0.95 * length, 60)
    screw = 0.36 * w * (1 - 0.25 * np.linspace(0, 1, 60) ** 2) + 0.28 * np.sign(np.sin(screw_y * 2 * np.pi / 1.1))
    body = np.concatenate([np.stack([-screw, screw_y], axis=1), np.stack([screw, screw_y], axis=1)[::-1]])
    return part.fill(tooth.place(body), tooth.place(_crown(tooth, shrink=0.92)))
