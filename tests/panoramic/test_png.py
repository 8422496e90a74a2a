"""What we write, two independent libraries read back to the last bit."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from panoramic.png import encode_indexed, encode_rgb

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (257, 129), (1353, 2800)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_rgb_comes_back(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels = {
        "noise": rng.integers(0, 256, (*shape, 3), np.uint8),
        "flat": np.full((*shape, 3), 255, np.uint8),
        "ramp": np.add.outer(np.arange(shape[0]), np.arange(shape[1] * 3)).astype(np.uint8).reshape(*shape, 3),
    }[kind]
    content = encode_rgb(pixels)
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        assert picture.mode == "RGB"
        assert picture.info == {}
        assert np.array_equal(np.asarray(picture), pixels)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(decoded[:, :, ::-1], pixels)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_palette_comes_back(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 256, shape, np.uint8)
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    content = encode_indexed(indices, palette)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), palette[indices])
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(decoded[:, :, ::-1], palette[indices])


def test_slices_of_a_larger_picture_are_written_right() -> None:
    whole = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    part = whole[3:30, 5:50]
    with Image.open(io.BytesIO(encode_rgb(part))) as picture:
        assert np.array_equal(np.asarray(picture), part)
