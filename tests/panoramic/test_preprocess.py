"""The transform, against torchvision's documented steps in PyTorch and Pillow."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoramic.preprocess import (
    CROP_INPUT_SIDE,
    default_input_size,
    normalise,
    prepare,
    remove_background,
    shrink,
    to_tensor,
)
from panoramic.rolling_ball import subtract_background
from panoramic.view import View


def as_torchvision(grey: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Resize, ToTensor and Normalize as torchvision documents and implements them for a PIL image in RGB."""
    picture = Image.fromarray(grey).convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean = torch.as_tensor([0.485, 0.456, 0.406], dtype=torch.float32).view(-1, 1, 1)
    std = torch.as_tensor([0.229, 0.224, 0.225], dtype=torch.float32).view(-1, 1, 1)
    return tensor.sub_(mean).div_(std)


def assert_same_bits(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.numpy().view(np.uint32))


@pytest.mark.parametrize("shape", [(1, 1), (449, 954), (600, 600), (101, 37), (1270, 2800)])
def test_same_bits_as_torchvisions_steps(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(8).integers(0, 256, shape, np.uint8)

    assert_same_bits(to_tensor(grey, input_size=(449, 954)), as_torchvision(grey, (449, 954)))


@settings(max_examples=50, deadline=None)
@given(
    grey=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_same_bits_whatever_the_sizes(grey: np.ndarray, size: tuple[int, int]) -> None:
    assert_same_bits(to_tensor(grey, input_size=size), as_torchvision(grey, size))


def test_every_grey_level_has_torchvisions_bits() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)

    assert_same_bits(to_tensor(levels, input_size=(16, 16)), as_torchvision(levels, (16, 16)))


def test_the_two_steps_are_torchvisions_resize_and_the_rest() -> None:
    grey = np.random.default_rng(7).integers(0, 256, (121, 292), np.uint8)
    small = Image.fromarray(grey).convert("RGB").resize((96, 45), Image.Resampling.BILINEAR)

    shrunk = shrink(grey, input_size=(45, 96))
    np.testing.assert_array_equal(shrunk, np.asarray(small)[..., 0])
    assert_same_bits(normalise(shrunk), as_torchvision(grey, (45, 96)))


def test_prepares_with_a_ball_of_180_px_first() -> None:
    y, x = np.mgrid[0:60, 0:140]
    grey = (90 + 80 * np.sin(x / 30) + 40 * (y % 17 == 0)).astype(np.uint8)
    background_removed = subtract_background(grey, radius_px=180)

    assert not np.array_equal(background_removed, grey)
    np.testing.assert_array_equal(remove_background(grey), background_removed)
    assert_same_bits(prepare(grey, input_size=(45, 95)), as_torchvision(background_removed, (45, 95)))
    assert prepare(grey).shape == (3, 449, 954)


def test_read_only_and_strided_pictures_are_taken_and_left_as_they_are() -> None:
    grey = np.random.default_rng(9).integers(0, 256, (60, 80), np.uint8)
    grey.setflags(write=False)
    expected = grey[::2, ::-1].copy()

    assert_same_bits(to_tensor(grey[::2, ::-1], input_size=(20, 30)), as_torchvision(expected, (20, 30)))


def test_input_sizes_of_the_published_networks() -> None:
    assert default_input_size(View.FULL, "efficientnet-b7") == (449, 954)
    sides = [default_input_size(View.CROP, network) for network in sorted(CROP_INPUT_SIDE)]
    assert sides == [(side, side) for side in (224, 240, 260, 300, 380, 456, 528, 600)]
    with pytest.raises(ValueError, match="network is 'resnet18'; it must be one of efficientnet-b0"):
        default_input_size(View.CROP, "resnet18")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), np.uint16), r"shape \(4, 4\) and type uint16; it must be \(height, width\) of uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), "not empty"),
    ],
)
def test_refuses_what_is_no_grey_picture(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(pixels)
    with pytest.raises(ValueError, match=message):
        to_tensor(pixels, input_size=(10, 10))


def test_refuses_an_empty_size() -> None:
    with pytest.raises(ValueError, match=r"input_size is \(0, 5\)"):
        to_tensor(np.zeros((4, 4), np.uint8), input_size=(0, 5))
