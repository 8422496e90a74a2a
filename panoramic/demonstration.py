"""The model that ships, so that everything can be tried before there is one that was trained on patients.

An EfficientNet-b0 trained on synthetic radiographs alone: its answers mean nothing for a patient, and each of its
results says so. ``panoramic/models`` holds its card, with the commands that made it.
"""

from importlib.resources import files
from pathlib import Path
from typing import Final

#: Name of the model and, with ``.safetensors``, of its file.
DEMONSTRATION_NAME: Final = "demonstration-b0"


def demonstration_model() -> Path:
    """Path of the model file that is part of this package."""
    return Path(str(files("panoramic") / "models" / f"{DEMONSTRATION_NAME}.safetensors"))
