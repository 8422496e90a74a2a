"""What is measured on, made once: phantoms as files, and model files of random weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.untrained import untrained_network
from panoramic.manifest import ModelDescription
from panoramic.model_file import save_model
from training.phantoms.phantom import draw_phantom, draw_truth


class Material:
    """Files under one folder; each is made when it is first asked for.

    Args:
        folder: An empty one.
        radiographs: Files to take in place of phantoms, by (height, width).

    Attributes:
        state_dir: What nodes keep for themselves, exported graphs among it; the same for all of a run.
    """

    def __init__(self, folder: Path, radiographs: Mapping[tuple[int, int], Path] | None = None) -> None:
        self._folder = folder
        self._radiographs = radiographs or {}
        self._folders = 0
        self.state_dir = self.new_folder("state")

    def new_folder(self, name: str) -> Path:
        """An empty folder of its own."""
        self._folders += 1
        folder = self._folder / f"{self._folders}-{name}"
        folder.mkdir(parents=True)
        return folder

    def model(self, network: str, *, input_size: tuple[int, int]) -> Path:
        """A model file of random weights, named after the network and the (height, width) of its input."""
        path = self._folder / f"{network}-{input_size[0]}x{input_size[1]}.safetensors"
        if not path.exists():
            description = ModelDescription(name="bench", version="0", network=network, input_size=input_size)
            save_model(path, description, state_dict=untrained_network(network).state_dict())
        return path

    def picture(self, size_px: tuple[int, int]) -> Path:
        """The radiograph of a (height, width), or else a phantom as a PNG file."""
        if size_px in self._radiographs:
            return self._radiographs[size_px]
        path = self._folder / f"phantom-{size_px[0]}x{size_px[1]}.png"
        if not path.exists():
            pixels: NDArray[np.uint8] = draw_phantom(draw_truth(0, "C1", size_px=size_px))
            cv2.imwrite(str(path), pixels)
        return path

    def pictures(self, size_px: tuple[int, int], count: int) -> list[Path]:
        """So many copies of it under names of their own, so that no two jobs want to write the same files."""
        original = self.picture(size_px)
        folder = self.new_folder("pictures")
        copies = [folder / f"{number}{original.suffix}" for number in range(count)]
        for copy in copies:
            shutil.copyfile(original, copy)
        return copies
