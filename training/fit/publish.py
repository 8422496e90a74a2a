"""Puts a model file and its card in place: written aside, read back, compared, and only then given their names."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from panoramic.manifest import ModelDescription
from panoramic.model_file import Model, load_model, save_model
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier
from panoramic.view import View
from training.errors import ResourcesError, RunError
from training.files import write_whole
from training.fit.model_card import CardFacts, Stored, render_card
from training.phantoms.phantom import draw_phantom, draw_truth
from training.phantoms.truth import CorticalClass

#: Probabilities of the file may differ from those of the weights it was made of by so much: nothing but the order of
#: sums in single precision, and in half precision what a person would not call another answer.
TOLERANCE: Final = {False: 1e-6, True: 0.01}

#: (height, width) of the phantoms that a file is compared on.
_PHANTOM_SIZE_PX: Final = (242, 585)


def require_free(path: Path) -> None:
    """Make sure, before anything is spent, that a model file and its card can be written.

    Raises:
        RunError: The name has another suffix, something has that name already, or there is no such folder.
        ResourcesError: The folder cannot be written to.
    """
    if path.suffix != ".safetensors":
        raise RunError(f"{path} must end in .safetensors: that is what a model file is")
    for taken in (path, card_path(path)):
        if taken.exists():
            raise RunError(f"{taken} exists and is left as it is: name another --out, or remove it")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is not a folder: create it, or name another --out")
    if not os.access(path.parent, os.W_OK):
        raise ResourcesError(f"{path.parent} cannot be written to: name another --out")


def card_path(path: Path) -> Path:
    """Where the card of a model file is."""
    return path.with_suffix(".md")


def describe(fields: Mapping[str, object]) -> ModelDescription:
    """A description whose name, version and labels a person chose.

    Raises:
        RunError: The manifest does not allow one of them.
    """
    try:
        return ModelDescription.model_validate(fields)
    except ValidationError as exc:
        faults = [f"{'.'.join(map(str, e['loc']))} {e['input']!r}: {e['msg']}" for e in exc.errors()]
        raise RunError(f"a model file cannot have {'; '.join(faults)}") from exc


def publish(
    path: Path, description: ModelDescription, *, weights: Mapping[str, torch.Tensor], facts: CardFacts, half: bool
) -> Path:
    """Write a model file and its card, once the file was read back and answers as the weights do.

    Args:
        path: Of the model file; `require_free` was content with it.
        description: Of the weights.
        weights: float32 (counters int64) on the CPU.
        facts: For the card.
        half: Store the weights in half precision.

    Returns:
        The path.

    Raises:
        RunError: The file answers otherwise than the weights.
        ModelFileError: The weights are not what the description says, or cannot be written.
        ResourcesError: The disk is full.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".model-") as folder:
        aside = Path(folder) / path.name
        manifest = save_model(aside, description, state_dict=_halved(weights) if half else weights)
        content = aside.read_bytes()
        read_back = load_model(aside)
        original = Model(manifest, MappingProxyType(dict(weights)), file_sha256="")
        pictures = check_pictures(description.view, description.input_size)
        difference = float(np.abs(_answers(read_back, pictures) - _answers(original, pictures)).max())
        if difference > TOLERANCE[half]:
            advice = "do not store half precision" if half else "this is a fault of the program"
            raise RunError(
                f"{path.name} was not written: read back, its probabilities differ by up to {difference:.3g} from "
                f"those of the weights it was made of, and {TOLERANCE[half]:g} is allowed; {advice}"
            )
        check = (
            f"Read back and compared with the weights it was made of, on {len(pictures)} phantoms: probabilities "
            f"differ by at most {difference:.1g}."
        )
        stored = Stored(path.name, len(content), hashlib.sha256(content).hexdigest(), half, check)
        # The card first: a model never lies there without it.
        write_whole(card_path(path), render_card(manifest, facts, stored).encode())
        try:
            aside.replace(path)
        except OSError as exc:
            card_path(path).unlink(missing_ok=True)
            raise ResourcesError(f"{path} was not written: {exc.strerror}; name another --out") from exc
    return path


def check_pictures(view: View, input_size: tuple[int, int]) -> NDArray[np.float32]:
    """A phantom of each cortical class as a network's input, (3, 3, h, w); for crops a square of each."""
    batch = []
    for seed, cls in enumerate(CorticalClass):
        pixels = draw_phantom(draw_truth(seed, cls, size_px=_PHANTOM_SIZE_PX))
        if view is View.CROP:
            side = _PHANTOM_SIZE_PX[0] // 2
            pixels = np.ascontiguousarray(pixels[-side:, side : 2 * side])
        batch.append(prepare(pixels, input_size=input_size))
    return np.stack(batch)


def _answers(model: Model, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities, (N, C)."""
    classifier = Classifier(model)
    return np.array([list(answer.probabilities.values()) for answer in classifier.classify(pictures)])


def _halved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    largest = torch.finfo(torch.float16).max
    for name, tensor in weights.items():
        if tensor.is_floating_point() and float(tensor.abs().max()) > largest:
            raise RunError(f"{name} has values beyond {largest:g}, the largest of half precision: do not store that")
    return {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
