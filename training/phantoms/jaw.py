"""The mandible: its outline from the measured lower border, and the bone inside it apart from the cortex.

Only the patient decides the outline; the class decides nothing in this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.phantoms.canvas import Canvas, smooth
from training.phantoms.truth import Patient, stream

if TYPE_CHECKING:
    from training.phantoms.canvas import Image, Points

#: Depth of the mandible's lower border over the mandible's width, and its standard deviation, every 2.5 % of the
#: width from 10 % to 90 %. Measured on the segmented mandibles of 115 panoramic radiographs (Abdi and Kasaei,
#: Mendeley Data, doi:10.17632/hxt48yk462.1).
_BORDER_U = np.linspace(0.10, 0.90, 33)
_BORDER_MEAN = np.array(
    [
        *(0.3254, 0.3338, 0.3403, 0.3476, 0.3562, 0.3651, 0.3733, 0.3805, 0.3864, 0.3914, 0.3959),
        *(0.3992, 0.4017, 0.4031, 0.4037, 0.4037, 0.4033, 0.4032, 0.4033, 0.4029, 0.4013, 0.3985),
        *(0.3950, 0.3906, 0.3850, 0.3789, 0.3716, 0.3631, 0.3536, 0.3444, 0.3365, 0.3297, 0.3214),
    ]
)
_BORDER_SD = np.array(
    [
        *(0.0472, 0.0438, 0.0425, 0.0418, 0.0410, 0.0398, 0.0388, 0.0379, 0.0373, 0.0373, 0.0372),
        *(0.0370, 0.0369, 0.0370, 0.0369, 0.0367, 0.0368, 0.0370, 0.0368, 0.0366, 0.0365, 0.0365),
        *(0.0368, 0.0372, 0.0377, 0.0381, 0.0391, 0.0404, 0.0422, 0.0436, 0.0445, 0.0455, 0.0484),
    ]
)
#: Width of the mean mandible: 98 % of the field's.
_MANDIBLE_MM = 286.6

#: Ramus, condyle and coronoid process of one side, from the gonial angle upwards, over the sigmoid notch and down
#: the front to the crest: x in mm from the midline, y in mm from the top, at the mean size.
_RAMUS = np.array(
    [
        *((116.6, 92.2), (120.8, 89.2), (124.4, 84.0), (126.6, 76.0), (127.6, 65.0), (128.2, 54.0), (129.6, 42.0)),
        *((132.4, 31.0), (136.4, 22.0), (139.6, 15.0), (139.9, 9.5), (136.9, 5.4), (132.2, 4.2), (127.6, 6.2)),
        *((125.2, 11.0), (123.8, 17.0), (121.2, 22.6), (117.0, 26.8), (111.6, 28.2), (105.8, 25.8), (101.2, 20.6)),
        *((97.6, 15.6), (94.0, 14.4), (90.6, 18.0), (89.2, 27.0), (89.8, 37.0), (90.0, 46.0), (88.8, 54.5)),
        *((86.6, 62.0), (80.6, 68.5)),
    ]
)


@dataclass(frozen=True)
class Jaw:
    """The outline of one mandible, in mm.

    Attributes:
        border_x: x along the lower border, evenly from left to right (n,).
        border_y: its y (n,).
        outline: the whole closed outline (m, 2).
        rami: the left and the right ramus, from the angle up and over to the crest, each (k, 2).
        crest: the alveolar crest from left to right (j, 2).
    """

    border_x: Points
    border_y: Points
    outline: Points
    rami: tuple[Points, Points]
    crest: Points

    def border(self, x_mm: Points | Image) -> Points:
        """Height of the lower border at some x, mm from the top."""
        return np.interp(np.asarray(x_mm, np.float64), self.border_x, self.border_y)


def occlusal_y(patient: Patient, x_mm: float) -> float:
    """Height of the occlusal plane at x: the molars of a smile bite higher than its incisors. In mm."""
    return patient.occlusal_mm - patient.smile_mm * min(1.6, (x_mm / (82.0 * patient.head_scale)) ** 2)


def shape_jaw(patient: Patient, seed: int) -> Jaw:
    """The outline of the patient's mandible."""
    rng = stream(seed, "jaw")
    scale = patient.head_scale
    deviation = patient.depth_z + patient.tilt_z * (2 * _BORDER_U - 1)
    depth = _BORDER_MEAN + _BORDER_SD * deviation
    knots = np.stack([(_BORDER_U - 0.5) * _MANDIBLE_MM * scale, depth * _MANDIBLE_MM], axis=1)
    notch = rng.uniform(0.3, 2.2)
    lift = notch * np.exp(-(((np.abs(knots[:, 0]) / scale - 100.0) / 6.0) ** 2))
    chin = rng.normal(0.0, 0.8) * np.exp(-((knots[:, 0] / 22.0) ** 2))
    knots[:, 1] += chin - lift
    border = smooth(knots)
    rami = (_ramus(rng, knots[:2], scale, side=-1), _ramus(rng, knots[:-3:-1], scale, side=1))
    crest = _crest(patient, rng, rami)
    outline = np.concatenate([border[::-1], rami[0], crest[1:-1], rami[1][::-1]])
    x = np.linspace(border[0, 0], border[-1, 0], 1200)
    return Jaw(x, np.interp(x, border[:, 0], border[:, 1]), outline, rami, crest)


def _ramus(rng: np.random.Generator, end: Points, scale: float, *, side: int) -> Points:
    """One ramus, hung on the last two knots of the lower border and varied a little in height and breadth."""
    angle = end[0]
    points = _RAMUS * scale
    low, high = points[0, 1], 4.0 * scale
    share = np.clip((points[:, 1] - high) / (low - high), 0.0, 1.0)
    # The lower end follows the border's depth; the condyle stays where the joint is.
    points[:, 1] += share * (angle[1] + rng.uniform(-1.4, 0.0) - low) + (1 - share) * rng.normal(0.0, 2.0)
    points[:, 0] += rng.normal(0.0, 1.6) * (1 - share) + rng.normal(0.0, 0.7) * share
    # Behind the sigmoid notch lies the coronoid process, the front of the ramus: its breadth varies by itself.
    points[19:, 0] += rng.normal(-0.5, 2.2)
    points += rng.normal(0.0, 0.35, points.shape)
    points[:, 0] *= side
    # The border's last segment only lends its direction, so that the angle has no corner.
    return smooth(np.concatenate([end[::-1], points[1:]]))[12:]


def _crest(patient: Patient, rng: np.random.Generator, rami: tuple[Points, Points]) -> Points:
    """The alveolar crest: at the teeth's necks, and lower where they are long gone."""
    ends = rami[0][-1], rami[1][-1]
    points = [ends[0]]
    for x in np.linspace(-74, 74, 33) * patient.head_scale:
        gone = _share_lost(patient, x)
        neck = occlusal_y(patient, float(x)) + 13.0 - 1.5 * abs(x) / 75
        # A toothless ridge is smooth, and rises backwards to the ramus.
        sunk = 9.5 * gone * (1.0 - 0.75 * (abs(x) / 76.0) ** 2.5)
        points.append(np.array([x, neck + sunk + rng.normal(0.0, 0.7 - 0.5 * gone)]))
    points.append(ends[1])
    return smooth(points)


def _share_lost(patient: Patient, x_mm: float) -> float:
    """How much of the lower arch near x has no teeth, 0–1."""
    quadrant = 4 if x_mm < 0 else 3
    place = abs(x_mm) / (patient.head_scale * 76.0) * 8.0
    near = [10 * quadrant + number for number in range(1, 9) if abs(number - 0.5 - place) <= 1.2]
    return sum(tooth not in patient.teeth for tooth in near) / max(1, len(near))


def draw_jaw(canvas: Canvas, jaw: Jaw, seed: int) -> Image:
    """Grey that the mandible adds (H, W), apart from its inferior cortex."""
    rng = stream(seed, "marrow")
    soft = canvas.coarse(4.0)
    body = canvas.enlarge(_body(soft, jaw))
    body *= _rim(canvas, jaw)
    marrow = (
        41.0 + 4.6 * trabeculae(canvas, rng) + 3.5 * canvas.noise(rng, 9.0) + 2.0 * canvas.noise(rng, 3.0, stretch=2.0)
    )
    # Fewer, larger meshes and less bone above the angle and at the submandibular fossa.
    x, y = canvas.x_mm(), canvas.y_mm()
    fossa = np.exp(-(((np.abs(x) - 58) / 22) ** 2) - ((y - 94) / 9) ** 2)
    grey = body * (marrow - 13.0 * fossa)
    grey += _lines(canvas, jaw, rng) * body
    return np.asarray(grey, np.float32)


def _body(soft: Canvas, jaw: Jaw) -> Image:
    """Bone along the beam, 0–1 (H, W): less in the thin upper ramus, and tapering towards the alveolar crest."""
    inside = soft.fill(jaw.outline)
    crest = np.interp(soft.x_mm(), jaw.crest[:, 0], jaw.crest[:, 1], left=-99, right=-99)
    alveolar = np.clip((soft.y_mm() - crest) / 9.0, 0.0, 1.0)
    upper = np.clip((soft.y_mm() - 14.0) / 45.0, 0.0, 1.0)
    share = np.where(crest > 0, 0.45 + 0.55 * alveolar, 0.45 + 0.55 * upper)
    return soft.blur(inside * soft.blur(share.astype(np.float32), 1.5), 0.4)


def trabeculae(canvas: Canvas, rng: np.random.Generator) -> Image:
    """The mesh of cancellous bone (H, W), of about unit deviation: bright strands around dark meshes."""
    mesh = sum(
        weight * (0.8 - np.abs(canvas.noise(rng, grain, stretch=1.25)))
        for weight, grain in ((0.4, 1.3), (0.6, 0.8), (0.6, 0.5))
    )
    density = np.clip(1.0 + 0.4 * canvas.noise(rng, 7.0), 0.45, 1.8)
    return np.asarray(1.5 * mesh * density, np.float32)


def _rim(canvas: Canvas, jaw: Jaw) -> Image:
    """Bone thickness along the beam, 0–1: it falls to nothing where the lower border rounds off."""
    depth = jaw.border(canvas.x_mm()) - canvas.y_mm()
    inside = np.abs(canvas.x_mm()) < jaw.border_x[-1] - 1.0
    rim = np.sqrt(np.clip((depth + 0.3) / 3.8, 0.0, 1.0))
    return np.where(inside | (depth > 3.8), 0.18 + 0.82 * rim, 1.0).astype(np.float32)


def _lines(canvas: Canvas, jaw: Jaw, rng: np.random.Generator) -> Image:
    """Cortical plates of the rami, the oblique ridges, the crest, and the mandibular canal (H, W)."""
    fine = canvas.coarse(5.0)
    grey = np.zeros(fine.shape, np.float32)
    for side, ramus in zip((-1, 1), jaw.rami, strict=True):
        posterior = 24.0 * fine.blur(fine.stroke(ramus[: 11 * len(ramus) // 30], 2.0), 0.5)
        grey += posterior * np.clip((ramus[0, 1] + 1.0 - fine.y_mm()) / 12.0, 0.0, 1.0)
        grey += fine.blur(14.0 * fine.stroke(ramus[11 * len(ramus) // 30 : 17 * len(ramus) // 30], 1.2), 0.5)
        grey += fine.blur(22.0 * fine.stroke(ramus[26 * len(ramus) // 30 :], 1.3), 0.45)
        front = ramus[-1]
        mid = jaw.border(np.array([front[0] * 0.55]))[0]
        ridge = smooth([ramus[-40], front, (front[0] * 0.86, front[1] + 6.5), (front[0] * 0.70, front[1] + 13.0)])
        grey += fine.blur(26.0 * fine.stroke(ridge, 1.6), 0.7)
        canal = smooth(
            [
                (side * (108 + rng.normal(0, 1.5)), 50 + rng.normal(0, 2)),
                (side * 103, 63),
                (side * 94, 75 + rng.normal(0, 1)),
                (side * 80, 0.55 * (86 + mid - 17)),
                (side * 62, mid - 16 + rng.normal(0, 1)),
                (side * 48, mid - 17),
                (side * 43, mid - 20),
            ]
        )
        grey -= fine.blur(9.0 * fine.stroke(canal, 3.0), 0.6)
        for offset in (-1.8, 1.8):
            plate = canal + np.array([0.35 * side * offset, offset])
            broken = np.clip(0.5 + fine.noise(rng, 6.0), 0.0, 1.0)
            grey += fine.blur(13.0 * fine.stroke(plate, 0.5), 0.25) * broken
        foramen = fine.fill(np.array([side * 42.0, mid - 21.5]) + 1.7 * _circle())
        grey -= fine.blur(9.0 * foramen, 0.7)
    grey += fine.blur(9.0 * fine.stroke(jaw.crest, 0.9), 0.5)
    return canvas.enlarge(grey)


def _circle() -> Points:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
