"""The pictures of an explanation."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from contract.jobs import RESEARCH_USE as CONTRACT_RESEARCH_USE
from panoramic.classification import Classification
from panoramic.manifest import RESEARCH_USE, Manifest
from panoramic.overlay import Caption, Colormap, caption_of, lookup_table, overlay_png, saliency_png, scale_map

CAPTION = Caption(
    class_label="Patient with Osteoporosis",
    finding_label="Patient with Osteoporosis",
    probability=0.731,
    threshold=0.5,
    model="m 1",
    layer="_conv_head",
    notices=("MODEL NOT TRAINED",),
)


def decode(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("colormap", Colormap)
def test_colours_are_matplotlibs(colormap: Colormap) -> None:
    expected = mpl.colormaps[colormap.value](np.arange(256), bytes=True)[:, :3]
    difference = np.abs(lookup_table(colormap).astype(int) - expected.astype(int))
    # OpenCV and matplotlib round the same table differently by one level.
    assert difference.max() <= 1


def test_a_map_is_stretched_to_the_picture_at_its_own_maximum() -> None:
    cam = np.zeros((3, 6), np.float32)
    cam[1, 4] = 0.25
    strength = scale_map(cam, (300, 600))
    assert strength.shape == (300, 600)
    assert strength.dtype == np.uint8
    row, column = np.unravel_index(int(strength.argmax()), strength.shape)
    assert strength.max() == 255
    assert (row // 100, column // 100) == (1, 4)
    assert strength[:, :200].max() == 0


def test_a_map_without_evidence_stays_empty() -> None:
    assert scale_map(np.zeros((3, 6), np.float32), (30, 60)).max() == 0


def test_the_saliency_file_shows_the_maps_colours_at_the_pictures_size() -> None:
    strength = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    picture = decode(saliency_png(strength, Colormap.HOT))
    assert picture.size == (256, 4)
    assert np.array_equal(np.asarray(picture.convert("RGB"))[2], lookup_table(Colormap.HOT))


def test_the_overlay_leaves_the_radiograph_alone_where_there_is_no_evidence() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (120, 400), dtype=np.uint8)
    strength = np.zeros_like(pixels)
    strength[:, 200:] = 255
    picture = np.asarray(decode(overlay_png(pixels, strength, colormap=Colormap.INFERNO, caption=CAPTION)))
    assert picture.shape[1] == 400
    assert picture.shape[0] > 120
    assert np.array_equal(picture[:120, :200], np.repeat(pixels[:, :200, None], 3, axis=2))
    brightest = lookup_table(Colormap.INFERNO)[255].astype(float)
    expected = pixels[:, 200:, None] * 0.4 + brightest * 0.6
    assert np.abs(picture[:120, 200:] - expected).max() <= 0.51


def test_the_strip_has_text_and_the_colour_bar() -> None:
    pixels = np.zeros((600, 1500), np.uint8)
    picture = np.asarray(decode(overlay_png(pixels, pixels, colormap=Colormap.INFERNO, caption=CAPTION)))
    strip = picture[600:]
    assert (strip[:, :1200] == 255).all(axis=2).sum() > 500
    bar = {tuple(colour) for colour in strip[strip.shape[0] // 4, 1200:]}
    assert {tuple(colour) for colour in lookup_table(Colormap.INFERNO)[[0, 128, 255]]} <= bar


@pytest.mark.parametrize("width", [224, 600, 2925])
def test_the_caption_fits_narrow_and_wide_pictures(width: int) -> None:
    pixels = np.zeros((64, width), np.uint8)
    picture = np.asarray(decode(overlay_png(pixels, pixels, colormap=Colormap.HOT, caption=CAPTION)))
    strip = picture[64:]
    left = width - strip.shape[0] // 8 - width // 6
    gap = strip[:, left - 4 : left - 1]
    assert gap.max() == 0, "the text runs into the colour bar"


def test_the_caption_names_class_model_and_research_use() -> None:
    text = "\n".join(CAPTION.lines)
    for part in ("Patient with Osteoporosis", "0.731", "Model m 1", "MODEL NOT TRAINED", RESEARCH_USE):
        assert part in text
    assert CONTRACT_RESEARCH_USE == RESEARCH_USE


def test_the_caption_is_of_the_answer_and_its_model() -> None:
    manifest = Manifest(
        name="m",
        version="1",
        network="efficientnet-b0",
        notices=("model_not_trained",),
        sha256="0" * 64,
    )
    answer = Classification(
        probability=0.731,
        probabilities={"C1": 0.269, "C3": 0.731},
        class_index=1,
        class_name="C3",
        diagnosis="Patient with Osteoporosis",
        cam=np.zeros((2, 3), np.float32),
        layer="_conv_head",
        method="Grad-CAM",
    )
    assert caption_of(manifest, answer) == CAPTION


def test_pictures_carry_no_metadata() -> None:
    pixels = np.zeros((100, 300), np.uint8)
    for png in (
        saliency_png(pixels, Colormap.HOT),
        overlay_png(pixels, pixels, colormap=Colormap.HOT, caption=CAPTION),
    ):
        assert decode(png).info == {}


def test_a_map_of_another_size_is_refused() -> None:
    caption = Caption("a", "b", probability=0.5, threshold=0.5, model="m", layer="l")
    pixels, strength = np.zeros((60, 100), np.uint8), np.zeros((61, 100), np.uint8)
    with pytest.raises(ValueError, match=r"pixels have shape \(60, 100\) and strength \(61, 100\)"):
        overlay_png(pixels, strength, colormap=Colormap.INFERNO, caption=caption)
