"""Every file of ../shared/data/badinput through one decoder: a radiograph or a reasoned refusal, within seconds.

Also files damaged at random, which the folder's fuzzer finds stand for.
"""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoramic.decoder import DecoderProcess
from panoramic.errors import ImageError, ImageTooLargeError, ImageUnreadableError, NotARadiographError

BAD_INPUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "badinput"
PATIENCE_S = 10.0

#: For a radiograph its warnings, for a refusal its class and words of its message.
EXPECTED: dict[str, tuple[str, ...] | tuple[type[ImageError], str]] = {
    "generated/all_black.png": (NotARadiographError, "constant"),
    "generated/all_white.png": (NotARadiographError, "constant"),
    "generated/bomb_40000x40000_1bit.png": (ImageTooLargeError, "60.0 million pixels"),
    "generated/dicom_no_pixeldata.dcm": (ImageUnreadableError, "holds no integer pixel data"),
    "generated/empty.png": (ImageUnreadableError, "The file is empty"),
    "generated/html_renamed.jpg": (ImageUnreadableError, "unknown kind"),
    "generated/noise.png": (NotARadiographError, "is noise"),
    "generated/one_by_one.png": (NotARadiographError, "has 1x1 px"),
    "generated/pano_12in16bit.tif": ("bit_depth_reduced",),
    "generated/pano_16bit.png": ("bit_depth_reduced",),
    "generated/pano_PX_MONOCHROME1_12bit.dcm": ("bit_depth_reduced",),
    "generated/pano_cmyk.jpg": (),
    "generated/pano_exif_orientation6.jpg": (NotARadiographError, "EXIF orientation"),
    "generated/pano_inverted_polarity.png": ("polarity_inverted",),
    "generated/pano_rgba.png": (),
    "generated/pano_truncated_half.png": (ImageUnreadableError, "cut short"),
    "generated/pano_upside_down.png": ("upside_down",),
    "generated/svg_xxe.svg": (ImageUnreadableError, "unknown kind"),
    "generated/text_renamed.png": (ImageUnreadableError, "unknown kind"),
    "generated/ünïcode näme – пано 全景.png": ("low_resolution",),
    "not_radiographs/RG1_chest_1024.jpg": (NotARadiographError, "0.94 times as wide as high"),
    "not_radiographs/chelsea.png": (NotARadiographError, "colour photograph"),
    "not_radiographs/page.png": (NotARadiographError, "is a page"),
    "synthetic_identities/Huseyan_Koo_1978-06-21_panoramic.png": (),
    "synthetic_identities/c0001_PX.dcm": ("bit_depth_reduced",),
    "dicom_pydicom/CT_small.dcm": (NotARadiographError, "CT Image Storage, modality CT"),
    "dicom_pydicom/ExplVR_LitEndNoMeta.dcm": (ImageUnreadableError, "holds no integer pixel data"),
    "dicom_pydicom/HTJ2K_08_RGB.dcm": (NotARadiographError, "colour photograph"),
    "dicom_pydicom/JLSL_16_15_1_1F.dcm": (NotARadiographError, "128x128 px"),
    "dicom_pydicom/JPEG-lossy.dcm": (NotARadiographError, "modality NM"),
    "dicom_pydicom/JPEG2000.dcm": (NotARadiographError, "modality NM"),
    "dicom_pydicom/MR_small_RLE.dcm": (NotARadiographError, "modality MR"),
    "dicom_pydicom/MR_small_jpeg_ls_lossless.dcm": (NotARadiographError, "modality MR"),
    "dicom_pydicom/MR_truncated.dcm": (NotARadiographError, "modality MR"),
    "dicom_pydicom/RG1_chest_MONOCHROME1_J2K_scrubbed.dcm": (NotARadiographError, "0.94 times as wide as high"),
    "dicom_pydicom/SC_rgb_16bit.dcm": (NotARadiographError, "colour photograph"),
    "dicom_pydicom/SC_rgb_small_odd.dcm": (NotARadiographError, "colour photograph"),
    "dicom_pydicom/badVR.dcm": (NotARadiographError, "RT Dose Storage"),
    "dicom_pydicom/emri_small.dcm": (NotARadiographError, "modality MR"),
    "dicom_pydicom/emri_small_jpeg_2k_lossless.dcm": (NotARadiographError, "modality MR"),
    "dicom_pydicom/examples_palette.dcm": (NotARadiographError, "modality US"),
    "dicom_pydicom/image_dfl.dcm": (NotARadiographError, "1.00 times as wide as high"),
    "dicom_pydicom/meta_missing_tsyntax.dcm": (ImageUnreadableError, "0x0 px"),
    "dicom_pydicom/no_meta.dcm": (ImageUnreadableError, "unknown kind"),
    "dicom_pydicom/reportsi.dcm": (ImageUnreadableError, "Basic Text SR Storage"),
    "dicom_pydicom/rtplan.dcm": (ImageUnreadableError, "RT Plan Storage"),
}
ALL = sorted(str(path.relative_to(BAD_INPUT)) for path in BAD_INPUT.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=PATIENCE_S) as process:
        yield process


@pytest.mark.parametrize("name", ALL or ["nothing"])
def test_every_bad_file_is_answered_by_one_decoder(name: str, decoder: DecoderProcess) -> None:
    if not ALL:
        pytest.skip("the folder of bad input beside the repository (../shared/data/badinput) is absent")
    data = (BAD_INPUT / name).read_bytes()
    before = decoder.pid
    began = time.monotonic()
    answer: tuple[str, ...] | ImageError
    try:
        answer = decoder.read(data).warnings
    except ImageError as exc:
        answer = exc
    assert time.monotonic() - began < PATIENCE_S
    assert decoder.pid == before, "the decoder died"
    expected = EXPECTED.get(name)
    if expected is None:
        # Pillow's fuzzer finds are small pictures, of other things: none may pass for a radiograph.
        assert name.startswith("pillow_tests/")
        assert isinstance(answer, ImageUnreadableError | ImageTooLargeError | NotARadiographError)
    elif expected and isinstance(expected[0], type):
        assert type(answer) is expected[0]
        assert expected[1] in str(answer)
    else:
        assert answer == expected


@pytest.mark.skipif(not ALL, reason="the folder of bad input beside the repository is absent")
def test_deep_files_show_the_same_radiograph_as_eight_bits(decoder: DecoderProcess) -> None:
    generated = BAD_INPUT / "generated"
    plain = decoder.read((generated / "pano_rgba.png").read_bytes()).pixels.astype(int)
    for name in ("pano_16bit.png", "pano_12in16bit.tif", "pano_PX_MONOCHROME1_12bit.dcm"):
        assert np.abs(decoder.read((generated / name).read_bytes()).pixels - plain).max() <= 2, name
    turned = decoder.read((generated / "pano_inverted_polarity.png").read_bytes()).pixels
    np.testing.assert_array_equal(255 - turned.astype(int), plain)


@pytest.mark.skipif(not ALL, reason="the folder of bad input beside the repository is absent")
def test_messages_name_no_patient(decoder: DecoderProcess) -> None:
    data = (BAD_INPUT / "synthetic_identities" / "c0001_PX.dcm").read_bytes()
    import pydicom

    name = str(pydicom.dcmread(io.BytesIO(data)).PatientName).split("^")[0]
    assert len(name) > 2
    for damaged in (data[: len(data) // 2], data.replace(b"CS\x02\x00PX", b"CS\x02\x00IO")):
        with pytest.raises(ImageError, match="damaged|modality IO") as caught:
            decoder.read(damaged)
        assert name.lower() not in str(caught.value).lower()


def damaged_files() -> Iterator[bytes]:
    y, x = np.linspace(0, 1, 220)[:, None], np.linspace(-1, 1, 500)[None]
    picture = Image.fromarray((20 + (110 + 40 * np.sin(9 * x)) * (y < 1 - 0.5 * x**2)).astype(np.uint8))
    random = np.random.default_rng(7)
    for kind in ("JPEG", "PNG", "TIFF", "BMP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        whole = buffer.getvalue()
        for _ in range(25):
            data = bytearray(whole)
            # Headers are at the beginning, a TIFF's directory is at either end.
            for _ in range(random.integers(1, 6)):
                span = random.choice([40, 400, len(data)])
                place = int(random.integers(4, span)) * int(random.choice([1, -1]))
                data[place] = int(random.integers(0, 256))
            yield bytes(data)


def test_files_damaged_at_random_never_harm_the_decoder(decoder: DecoderProcess) -> None:
    before, refusals = decoder.pid, []
    for data in damaged_files():
        try:
            assert decoder.read(data).pixels.size <= 60_000_000
        except ImageError as exc:
            refusals.append(type(exc))
    assert decoder.pid == before
    assert len(refusals) > 40
    assert set(refusals) <= {ImageUnreadableError, ImageTooLargeError, NotARadiographError}
