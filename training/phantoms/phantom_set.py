"""A whole set of phantoms on disk: one folder a class, one PNG a phantom, and the truth of all in one CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from training.data.parallel import usable_cores
from training.phantoms.phantom import draw_phantom
from training.phantoms.truth import MEAN_SIZE_PX, CorticalClass, PhantomTruth, check_size, draw_truth, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

#: Name of the truth in a set's folder; written last, so that a set without it is not whole.
TRUTH_FILE = "truth.csv"


def plan_set(
    n: int,
    seed: int = 0,
    *,
    size_px: tuple[int, int] = MEAN_SIZE_PX,
    second_picture_share: float = 0.0,
    classes: Sequence[CorticalClass] = tuple(CorticalClass),
) -> list[PhantomTruth]:
    """Draw the truths of a balanced set, without drawing a picture.

    Args:
        n: number of pictures; classes differ by one picture at most.
        seed: seed of the set, 0 or more.
        size_px: height and width of every picture.
        second_picture_share: share of patients, 0–1, who have two pictures, so that grouping by patient can be tried.
        classes: which classes there are, each once.

    Returns:
        The truths, the classes taking turns.

    Raises:
        ValueError: n, seed, size, share or classes is out of its range.
    """
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes are {', '.join(classes) or 'none'}, but at least one is needed, and each once")
    if n < 1:
        raise ValueError(f"n is {n}, but a set has at least 1 picture")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be 0 or more")
    if not 0.0 <= second_picture_share <= 1.0:
        raise ValueError(f"second_picture_share is {second_picture_share}, but a share is between 0 and 1")
    check_size(size_px)
    turns = [
        _pictures(cls, range(place, n, len(classes)), seed, size_px, second_picture_share)
        for place, cls in enumerate(classes)
    ]
    return [next(turns[place % len(classes)]) for place in range(n)]


def _pictures(
    cls: CorticalClass, patients: range, seed: int, size_px: tuple[int, int], second_picture_share: float
) -> Iterator[PhantomTruth]:
    """Pictures of one class, patient after patient."""
    for patient in patients:
        # The patient's number alone: a seed made from the class would let everything depend on it.
        key = f"{seed}/{patient}"
        patient_seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest())
        patient_id = _opaque("patient", key)
        twice = stream(patient_seed, "visits").random() < second_picture_share
        for visit in range(2 if twice else 1):
            yield draw_truth(patient_seed, cls, visit=visit, size_px=size_px, patient_id=patient_id)


def phantom_id(truth: PhantomTruth) -> str:
    """Opaque name of one picture: neither its class nor its patient can be read from it."""
    return _opaque("picture", f"{truth.patient.patient_id}/{truth.seed}/{truth.cls}/{truth.visit}")


def write_set(
    out: Path,
    n: int,
    seed: int = 0,
    *,
    size_px: tuple[int, int] = MEAN_SIZE_PX,
    second_picture_share: float = 0.0,
    classes: Sequence[CorticalClass] = tuple(CorticalClass),
    processes: int | None = None,
    on_written: Callable[[], object] | None = None,
) -> Path:
    """Write a set: `out/C1/<id>.png` and so on, and `out/truth.csv`.

    The bytes do not depend on the number of processes. Interrupted, it leaves whole PNG files and no truth.csv. With
    more than one process the calling script must be importable (guarded by `if __name__ == "__main__"`).

    Args:
        out: folder, new or empty.
        n: number of pictures.
        seed: seed of the set.
        size_px: height and width of every picture.
        second_picture_share: share of patients with two pictures.
        classes: which classes there are, each once.
        processes: processes to draw with; by default one a usable core.
        on_written: called after each picture.

    Returns:
        Path of truth.csv.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: `out` is not an empty folder.
        OSError: `out` cannot be written to.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}, but at least 1 is needed")
    truths = plan_set(n, seed, size_px=size_px, second_picture_share=second_picture_share, classes=classes)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: name a new folder, or empty this one")
    jobs = [(truth, out / relative_path(truth)) for truth in truths]
    for cls in classes:
        (out / cls).mkdir(parents=True, exist_ok=True)
    tell = on_written or (lambda: None)
    count = min(processes or usable_cores(), n)
    if count == 1:
        for truth, path in jobs:
            write_phantom(path, truth)
            tell()
    else:
        _write_in_parallel(jobs, count, tell)
    table = out / TRUTH_FILE
    _write_whole(table, _as_csv(truths).encode())
    return table


def relative_path(truth: PhantomTruth) -> str:
    """Path of a phantom inside its set, with forward slashes."""
    return f"{truth.cls}/{phantom_id(truth)}.png"


def write_phantom(path: Path, truth: PhantomTruth) -> None:
    """Draw a phantom and write it as an 8-bit grey PNG without metadata; the file appears whole or not at all."""
    _write_whole(path, _as_png(draw_phantom(truth)))


def read_set(folder: Path) -> dict[Path, PhantomTruth]:
    """The truths of a written set by the paths of its pictures.

    Raises:
        FileNotFoundError: there is no truth.csv: no set, or one whose writing was interrupted.
    """
    table = folder / TRUTH_FILE
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist: {folder} is no phantom set, or its writing was interrupted")
    with table.open(encoding="utf-8", newline="") as lines:
        return {
            folder / row["path"]: draw_truth(
                int(row["seed"]),
                row["class"],
                visit=int(row["visit"]),
                size_px=(int(row["height_px"]), int(row["width_px"])),
                patient_id=row["patient_id"],
            )
            for row in csv.DictReader(lines)
        }


def truth_row(truth: PhantomTruth) -> dict[str, str | int | float]:
    """One line of truth.csv."""
    patient, exposure = truth.patient, truth.exposure
    return {
        "path": relative_path(truth),
        "phantom_id": phantom_id(truth),
        "patient_id": patient.patient_id,
        "class": str(truth.cls),
        "cortical_width_mm": truth.cortical_width_mm,
        "porosity": truth.porosity,
        "spacing_mm": truth.spacing_mm,
        "seed": truth.seed,
        "visit": truth.visit,
        "height_px": truth.size_px[0],
        "width_px": truth.size_px[1],
        "teeth": " ".join(map(str, patient.teeth)),
        "metal": " ".join(f"{tooth}:{kind}" for tooth, kind in patient.metal),
        "head_scale": patient.head_scale,
        "depth_z": patient.depth_z,
        "tilt_z": patient.tilt_z,
        "occlusal_mm": patient.occlusal_mm,
        "smile_mm": patient.smile_mm,
        "mean_grey": exposure.mean_grey,
        "noise_sd": exposure.noise_sd,
        "blur_px": exposure.blur_px,
        "step_mm": exposure.step_mm,
        "step_grey": exposure.step_grey,
        "spine_grey": exposure.spine_grey,
        "airway": exposure.airway,
        "bite_gap_mm": exposure.bite_gap_mm,
        "marker_x_mm": exposure.marker_xy_mm[0],
        "marker_y_mm": exposure.marker_xy_mm[1],
    }


def _write_in_parallel(jobs: list[tuple[PhantomTruth, Path]], count: int, tell: Callable[[], object]) -> None:
    # Spawned, not forked: OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_process) as pool:
        try:
            for done in as_completed([pool.submit(write_phantom, path, truth) for truth, path in jobs]):
                done.result()
                tell()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_process() -> None:
    """Let the parent alone answer Ctrl-C, so that a child finishes its file; one thread, as there are many children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _as_png(image: NDArray[np.uint8]) -> bytes:
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OSError("OpenCV could not encode the phantom as PNG")
    return data.tobytes()


def _as_csv(truths: list[PhantomTruth]) -> str:
    rows = [truth_row(truth) for truth in truths]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _opaque(kind: str, key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=6, person=kind.encode()).hexdigest()
