"""Makes a model file of a predecessor's checkpoint, and says in its card what nobody wrote down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from panoramic.manifest import DiagnosisClass, ModelDescription
from panoramic.model_file import load_model
from panoramic.view import View
from training.errors import RunError
from training.fit.model_card import CardFacts
from training.fit.publish import describe, publish, require_free

_METRICS: Final = (
    (
        "Threshold 0.5: with two classes that is the larger of the two logits, as the predecessor decides. It was "
        "chosen on no data."
    ),
    (
        "Temperature 1: the probabilities were not calibrated on any data, so of pictures with a probability of 0.9 "
        "need not nine in ten have the finding."
    ),
)
_CAVEATS: Final = (
    "Who trained the weights, on which pictures, and how well they do are unknown to this file.",
    (
        "View, input size, preprocessing and the meaning of the outputs are those of the published predecessor, taken "
        "for granted; nothing in a checkpoint confirms them."
    ),
    (
        "Since the pictures of the training are unknown, an evaluation cannot refuse them: judge this model on "
        "pictures that it cannot have seen."
    ),
)
_WIDE_HEAD: Final = (
    "The head is wider than there are classes. The predecessor's program takes the largest of all outputs, this one "
    "the larger of the classes: they differ where another output is largest, which stands for no diagnosis."
)


def import_checkpoint(
    checkpoint: Path,
    out: Path | None = None,
    *,
    view: View = View.FULL,
    name: str = "",
    version: str = "1",
    labels: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Write a model file and its card from a plain state dict of ``efficientnet_pytorch``.

    The weights stay as they are, a head of 1000 outputs included. The file is read back and must answer as the
    checkpoint does.

    Args:
        checkpoint: A ``.pth`` file.
        out: The model file; by default the checkpoint's name with the other suffix, in the current folder.
        view: What the network was trained on.
        name: Of the model; by default the checkpoint's.
        version: Of the model.
        labels: What results call the two classes, healthy first; by default the published ones.
        command: For the card.

    Returns:
        The path of the model file.

    Raises:
        ModelFileError: The checkpoint cannot be used.
        RunError: It is no ``.pth`` file, the target is taken, name, version or labels are not allowed, or the file
            answers otherwise.
        ResourcesError: The disk is full.
    """
    if checkpoint.suffix != ".pth":
        raise RunError(f"{checkpoint.name} must end in .pth: a model file of this program needs no import")
    target = out or Path(f"{checkpoint.stem}.safetensors")
    require_free(target)
    model = load_model(checkpoint, view=view)
    implied = model.manifest
    description = describe(
        {
            **implied.model_dump(include=set(ModelDescription.model_fields)),
            "name": name or implied.name,
            "version": version,
            "classes": _relabelled(implied.classes, labels),
            "training_data": "Unknown: the weights came without any record of it.",
        }
    )
    facts = CardFacts(
        commands=[command] if command else [],
        metrics=_METRICS,
        caveats=[
            f"Made of the checkpoint {checkpoint.name}, whose SHA-256 is {model.file_sha256}.",
            *_CAVEATS,
            *([] if implied.outputs == len(implied.classes) else [_WIDE_HEAD]),
        ],
    )
    return publish(target, description, weights=model.state_dict, facts=facts, half=False)


def _relabelled(classes: Sequence[DiagnosisClass], labels: Sequence[str]) -> list[dict[str, object]]:
    if labels and len(labels) != len(classes):
        raise RunError(
            f"labels are {', '.join(labels)}, but {len(classes)} are needed, in the order of the outputs: healthy first"
        )
    if len(set(labels)) < len(labels):
        raise RunError(f"labels are {', '.join(labels)}, but no two classes may have the same")
    shown = labels or [cls.label for cls in classes]
    return [{**cls.model_dump(), "label": label} for cls, label in zip(classes, shown, strict=True)]
