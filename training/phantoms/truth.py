"""What is true of one phantom: its cortical class, and everything that knows nothing of the class.

The two are drawn from separate random streams. The patient's stream (teeth, metal, shape of the jaw) and the
picture's stream (exposure, marker, noise) are seeded without the class, so no draw of theirs can depend on it;
only the bone's stream is told the class.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

#: Field of view that every phantom holds, width and height in mm at the detector: the mean of 115 panoramic
#: radiographs, 2925×1210 px at 0.10 mm a pixel.
FIELD_MM = (292.5, 121.0)

#: Height and width in pixels of that mean radiograph.
MEAN_SIZE_PX = (1210, 2925)

#: Smallest side, in pixels, at which the cortex is still wider than a pixel.
SMALLEST_SIDE_PX = 96

#: Largest side, in pixels: above that of any panoramic unit, and a bound on memory.
LARGEST_SIDE_PX = 6000

#: Upper right to lower right, as in the FDI two-digit notation (ISO 3950).
ALL_TEETH = tuple(10 * quadrant + number for quadrant in (1, 2, 3, 4) for number in range(1, 9))


class CorticalClass(StrEnum):
    """Class of the inferior mandibular cortex (Klemetti et al. 1994)."""

    C1 = "C1"  # even, sharp endosteal margin
    C2 = "C2"  # semilunar defects or one to three layers of residue
    C3 = "C3"  # heavy residues, clearly porous


class Metal(StrEnum):
    """Radiopaque dental work, each of which saturates the detector."""

    FILLING = "filling"
    CROWN = "crown"
    ROOT_FILLING = "root_filling"
    IMPLANT = "implant"


@dataclass(frozen=True, slots=True)
class Patient:
    """What two pictures of one patient share, apart from the bone; drawn without knowledge of the class.

    Attributes:
        patient_id: opaque name, for grouping.
        teeth: FDI numbers of the teeth present.
        metal: FDI number and kind of each piece of dental work.
        head_scale: size of the jaw relative to the mean.
        depth_z: depth of the mandible, in standard deviations of the measured lower border.
        tilt_z: its left–right tilt, in the same deviations.
        occlusal_mm: height of the occlusal plane at the midline, from the top of the field.
        smile_mm: how much higher the molars bite than the incisors.
    """

    patient_id: str
    teeth: tuple[int, ...]
    metal: tuple[tuple[int, Metal], ...]
    head_scale: float
    depth_z: float
    tilt_z: float
    occlusal_mm: float
    smile_mm: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """What belongs to one picture; drawn without knowledge of the class.

    Attributes:
        mean_grey: mean of the finished 8-bit picture.
        noise_sd: standard deviation of the detector noise, grey levels.
        blur_px: standard deviation of the blur, pixels of 0.10 mm.
        step_mm: height of the exposure step below the teeth, from the top of the field.
        step_grey: its contrast, grey levels.
        spine_grey: brightness of the midline haze, grey levels.
        airway: darkness of the air above the tongue, 0–1.
        bite_gap_mm: opening between the incisors.
        marker_xy_mm: top left corner of the 'R'.
    """

    mean_grey: float
    noise_sd: float
    blur_px: float
    step_mm: float
    step_grey: float
    spine_grey: float
    airway: float
    bite_gap_mm: float
    marker_xy_mm: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PhantomTruth:
    """The whole truth of one phantom; the same truth always draws the same bytes.

    Attributes:
        cls: cortical class.
        cortical_width_mm: mandibular cortical width below the mental foramina, at the detector.
        porosity: 0 (solid) to 1; correlated with the width, not determined by it.
        seed: the patient's seed.
        visit: which of the patient's pictures this is, from 0.
        size_px: height and width of the picture.
        patient: what is the patient's and not the bone's.
        exposure: what is the picture's.
    """

    cls: CorticalClass
    cortical_width_mm: float
    porosity: float
    seed: int
    visit: int
    size_px: tuple[int, int]
    patient: Patient
    exposure: Exposure

    @property
    def spacing_mm(self) -> float:
        """Side of a pixel at the detector, mm."""
        height, width = self.size_px
        return max(FIELD_MM[0] / width, FIELD_MM[1] / height)


@dataclass(frozen=True, slots=True)
class _BoneLaw:
    """Normal distributions of a class: width in mm (FACTS: chosen to give AUC 0.80–0.87), porosity 0–1."""

    width_mm: float
    porosity: float
    porosity_sd: float


_WIDTH_SD_MM = 0.7
_WIDTH_RANGE_MM = (1.0, 6.5)
#: Fall of the porosity, within a class, for a cortex one deviation wider than its class's mean.
_POROSITY_PER_WIDTH_Z = -0.06
_BONE = {
    CorticalClass.C1: _BoneLaw(3.9, 0.14, 0.05),
    CorticalClass.C2: _BoneLaw(3.4, 0.42, 0.09),
    CorticalClass.C3: _BoneLaw(2.9, 0.72, 0.10),
}


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """A random stream (PCG64) of its own for each name and keys: what one stream draws never shifts another.

    Args:
        seed: the phantom's seed, 0 or more.
        name: what is drawn from the stream.
        keys: further numbers that tell streams of one name apart, 0 or more.

    Returns:
        A generator that gives the same numbers in every process.
    """
    entropy = (seed, zlib.crc32(name.encode()), *keys)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def check_size(size_px: tuple[int, int]) -> None:
    """Refuse a size at which a panoramic radiograph cannot be drawn.

    Raises:
        ValueError: a side is too short or too long, or the shape is not a panoramic radiograph's.
    """
    height, width = size_px
    if min(size_px) < SMALLEST_SIDE_PX or max(size_px) > LARGEST_SIDE_PX:
        raise ValueError(
            f"size is {height}x{width} px, but each side must have {SMALLEST_SIDE_PX} to {LARGEST_SIDE_PX} px; "
            f"a usual one is {MEAN_SIZE_PX[0]}x{MEAN_SIZE_PX[1]} (height x width)"
        )
    if not 0.3 <= height / width <= 0.6:
        raise ValueError(
            f"size is {height}x{width} px (height x width), a shape of {height / width:.2f}, but a panoramic "
            f"radiograph's height is 0.3 to 0.6 of its width, for example {MEAN_SIZE_PX[0]}x{MEAN_SIZE_PX[1]}"
        )


def draw_truth(
    seed: int,
    cls: CorticalClass | str,
    *,
    visit: int = 0,
    size_px: tuple[int, int] = MEAN_SIZE_PX,
    patient_id: str | None = None,
) -> PhantomTruth:
    """Draw the truth of one phantom.

    Args:
        seed: the patient's seed, 0 or more. Two classes of one seed differ in the bone alone.
        cls: the cortical class, C1, C2 or C3.
        visit: which of the patient's pictures: another visit changes the exposure, not the patient.
        size_px: height and width of the picture.
        patient_id: opaque name of the patient; made from the seed if not given.

    Raises:
        ValueError: the seed or visit is negative, the class unknown, or the size not that of a panoramic radiograph.
    """
    if seed < 0 or visit < 0:
        raise ValueError(f"seed and visit must be 0 or more, not {seed} and {visit}")
    if cls not in tuple(CorticalClass):
        raise ValueError(f"class is {cls!r}, but must be one of {', '.join(CorticalClass)}")
    check_size(size_px)
    cls = CorticalClass(cls)
    width_mm, porosity = _draw_bone(stream(seed, "bone", list(CorticalClass).index(cls)), cls)
    return PhantomTruth(
        cls=cls,
        cortical_width_mm=width_mm,
        porosity=porosity,
        seed=seed,
        visit=visit,
        size_px=size_px,
        patient=_draw_patient(stream(seed, "patient"), patient_id if patient_id is not None else f"S{seed}"),
        exposure=_draw_exposure(stream(seed, "exposure", visit)),
    )


def _draw_bone(rng: np.random.Generator, cls: CorticalClass) -> tuple[float, float]:
    law = _BONE[cls]
    width_z, porosity_z = rng.standard_normal(2)
    width_mm = np.clip(law.width_mm + _WIDTH_SD_MM * width_z, *_WIDTH_RANGE_MM)
    porosity = np.clip(law.porosity + _POROSITY_PER_WIDTH_Z * width_z + law.porosity_sd * porosity_z, 0.0, 1.0)
    return float(width_mm), float(porosity)


def _draw_patient(rng: np.random.Generator, patient_id: str) -> Patient:
    teeth = _draw_teeth(rng)
    return Patient(
        patient_id=patient_id,
        teeth=teeth,
        metal=_draw_metal(rng, teeth),
        head_scale=float(rng.uniform(0.95, 1.0)),
        depth_z=float(np.clip(rng.normal(-0.05, 0.3), -0.6, 0.2)),
        tilt_z=float(np.clip(rng.normal(0.0, 0.12), -0.3, 0.3)),
        occlusal_mm=float(rng.uniform(58.0, 65.0)),
        smile_mm=float(np.clip(rng.normal(5.0, 3.5), -1.0, 12.0)),
    )


def _draw_teeth(rng: np.random.Generator) -> tuple[int, ...]:
    """0 to 32 teeth: one patient in ten has none, and the third and first molars are lost most."""
    loss = rng.choice([0.02, 0.12, 0.35, 1.0], p=[0.4, 0.33, 0.17, 0.10])
    fate = rng.random(len(ALL_TEETH))
    upper_lost = rng.random() < 0.04
    proneness = {1: 0.6, 2: 0.7, 3: 0.4, 4: 1.0, 5: 1.1, 6: 1.6, 7: 1.3, 8: 4.0}
    return tuple(
        tooth
        for tooth, luck in zip(ALL_TEETH, fate, strict=True)
        if loss < 1.0 and luck > min(0.9, loss * proneness[tooth % 10]) and not (upper_lost and tooth < 30)
    )


def _draw_metal(rng: np.random.Generator, teeth: tuple[int, ...]) -> tuple[tuple[int, Metal], ...]:
    rate = rng.choice([0.0, 0.1, 0.3], p=[0.35, 0.4, 0.25])
    has_implants = rng.random() < 0.12
    work: list[tuple[int, Metal]] = []
    for tooth in ALL_TEETH:
        luck, kind = rng.random(2)
        posterior = 1.6 if tooth % 10 > 3 else 0.5
        if tooth in teeth and tooth % 10 < 8 and luck < rate * posterior:
            work.append((tooth, Metal.FILLING if kind < 0.6 else Metal.CROWN if kind < 0.8 else Metal.ROOT_FILLING))
        elif tooth not in teeth and tooth % 10 < 7 and has_implants and luck < 0.35:
            work.append((tooth, Metal.IMPLANT))
    return tuple(work)


def _draw_exposure(rng: np.random.Generator) -> Exposure:
    return Exposure(
        mean_grey=float(np.clip(rng.normal(95.0, 20.0), 37.0, 141.0)),
        noise_sd=float(np.clip(rng.normal(1.45, 0.2), 0.9, 2.2)),
        blur_px=float(rng.uniform(1.0, 1.5)),
        step_mm=float(rng.uniform(77.0, 86.0)),
        step_grey=float(rng.uniform(16.0, 36.0)),
        spine_grey=float(rng.uniform(22.0, 60.0)),
        airway=float(rng.uniform(0.15, 1.0)),
        bite_gap_mm=float(rng.uniform(0.5, 7.0)),
        marker_xy_mm=(float(rng.uniform(-145.0, -136.0)), float(rng.uniform(93.0, 101.0))),
    )
