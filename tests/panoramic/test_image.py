"""Pictures: equal to OpenCV's reading where it is right, deeper and other kinds as documented, damage refused."""

import io
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from panoramic.errors import ImageError, ImageTooLargeError, ImageUnreadableError, NotARadiographError
from panoramic.image import ImageWarning, Limits, Radiograph, View, load_radiograph, read_radiograph
from panoramic.picture import decode_picture

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "radiographs"


def draw(width: int = 1200, height: int = 500) -> np.ndarray:
    """A bright arch on a dark ground, with structure and noise: smooth, dark in the lower corners."""
    y = np.linspace(0, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None]
    arch = 1 / (1 + np.exp((y - (1 - 0.55 * x**2)) * 20))
    grey = 20 + arch * (110 + 40 * np.sin(9 * x) * np.cos(7 * y))
    return np.clip(grey + np.random.default_rng(0).normal(0, 1.5, grey.shape), 0, 255).astype(np.uint8)


GREY = draw()


def encode(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def tinted(amount: int) -> Image.Image:
    return Image.fromarray(np.stack([GREY, GREY, np.clip(GREY.astype(int) + amount, 0, 255).astype(np.uint8)], -1))


def rgba(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([GREY, GREY, GREY, np.full_like(GREY, alpha)]))


EXIF_UPRIGHT_AGAIN = Image.Exif()
EXIF_UPRIGHT_AGAIN[274] = 3

EIGHT_BIT = {
    "jpeg": (encode(GREY, "JPEG", quality=90), ()),
    "jpeg in colour": (encode(Image.fromarray(GREY).convert("RGB"), "JPEG"), ()),
    "jpeg progressive": (encode(GREY, "JPEG", progressive=True), ()),
    "jpeg turned by EXIF": (encode(np.rot90(GREY, 2), "JPEG", exif=EXIF_UPRIGHT_AGAIN), ()),
    "jpeg cmyk": (encode(Image.fromarray(GREY).convert("CMYK"), "JPEG"), ()),
    "png": (encode(GREY, "PNG"), ()),
    "png palette": (encode(Image.fromarray(GREY).convert("RGB").quantize(64), "PNG"), ()),
    "png rgba opaque": (encode(rgba(255), "PNG"), ()),
    "png rgba half clear": (encode(rgba(128), "PNG"), (ImageWarning.TRANSPARENCY_IGNORED,)),
    "png tinted": (encode(tinted(20), "PNG"), (ImageWarning.COLOUR,)),
    "png animated": (
        encode(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        (ImageWarning.FIRST_PAGE_ONLY,),
    ),
    "tiff": (tiff(GREY), ()),
    "tiff lzw": (encode(GREY, "TIFF", compression="tiff_lzw"), ()),
    "tiff deflated in tiles": (tiff(GREY, compression="zlib", tile=(64, 64)), ()),
    "tiff big": (tiff(GREY, bigtiff=True), ()),
    "tiff white is zero": (tiff(255 - GREY, photometric="miniswhite"), ()),
    "tiff of two pages": (tiff(np.stack([GREY, GREY])), (ImageWarning.FIRST_PAGE_ONLY,)),
    "bmp": (encode(GREY, "BMP"), ()),
}


@pytest.mark.parametrize(("data", "codes"), EIGHT_BIT.values(), ids=EIGHT_BIT.keys())
def test_eight_bits_are_what_opencv_reads(data: bytes, codes: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "misleading.name"
    path.write_bytes(data)
    radiograph = load_radiograph(path)
    np.testing.assert_array_equal(radiograph.pixels, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert np.abs(radiograph.pixels.astype(int) - GREY).mean() < 4
    assert radiograph.warnings == codes
    assert radiograph.bit_depth == 8
    assert radiograph.pixels.flags.c_contiguous


@pytest.mark.parametrize("path", sorted(REAL.glob("*.png")) or [None], ids=lambda path: path.name if path else "none")
def test_real_radiographs_are_read_as_before_and_without_remark(path: Path | None) -> None:
    if path is None:
        pytest.skip("the real radiographs beside the repository (../shared/data/radiographs) are absent")
    radiograph = load_radiograph(path)
    np.testing.assert_array_equal(radiograph.pixels, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert radiograph.warnings == ()


def png16(samples: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", samples)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("write", [png16, tiff], ids=["png", "tiff"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pictures_are_scaled_by_the_depth_that_they_use(write, bits: int) -> None:
    deep = GREY.astype(np.uint16) << (bits - 8)
    deep[0, 0] = (1 << bits) - 1
    expected = GREY.copy()
    expected[0, 0] = 255
    radiograph = read_radiograph(write(deep))
    np.testing.assert_array_equal(radiograph.pixels, expected)
    assert (radiograph.bit_depth, radiograph.warnings) == (16, ("bit_depth_reduced",))


def test_a_true_sixteen_bit_picture_is_what_opencv_reads(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint32) * 257 + np.random.default_rng(1).integers(0, 200, GREY.shape)).clip(0, 65_535)
    path = tmp_path / "deep.png"
    path.write_bytes(png16(deep.astype(np.uint16)))
    np.testing.assert_array_equal(load_radiograph(path).pixels, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def test_a_deep_tiff_whose_white_is_zero_is_inverted() -> None:
    deep = GREY.astype(np.uint16) << 4
    deep[0, 0] = 4095
    radiograph = read_radiograph(tiff(deep, photometric="miniswhite"))
    np.testing.assert_array_equal(radiograph.pixels[1:], 255 - GREY[1:])


def test_a_deep_colour_picture_is_grey() -> None:
    deep = GREY.astype(np.uint16) << 8
    radiograph = read_radiograph(tiff(np.stack([deep] * 3, -1), photometric="rgb"))
    assert np.abs(radiograph.pixels.astype(int) - GREY).max() <= 1


WHOLE = {
    name: EIGHT_BIT[name][0]
    for name in (
        "jpeg",
        "jpeg in colour",
        "jpeg progressive",
        "png",
        "tiff",
        "tiff lzw",
        "tiff deflated in tiles",
        "bmp",
    )
}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_cut_short_is_refused(name: str, share: float) -> None:
    with pytest.raises(ImageUnreadableError, match="damaged, cut short"):
        read_radiograph(WHOLE[name][: int(len(WHOLE[name]) * share)])


@pytest.mark.parametrize("name", ["jpeg", "jpeg in colour"])
def test_a_jpeg_cut_short_before_its_end_marker_is_refused(name: str) -> None:
    data = WHOLE[name]
    with pytest.raises(ImageUnreadableError, match="lower part of the JPEG picture is missing"):
        read_radiograph(data[: len(data) // 2] + b"\xff\xd9")


def test_a_png_without_its_end_or_with_a_wrong_checksum_is_refused() -> None:
    data = WHOLE["png"]
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x55
    for damaged in (data[:-12], data[:-1], bytes(flipped)):
        with pytest.raises(ImageUnreadableError, match="damaged"):
            read_radiograph(damaged)


FOREIGN = {
    "empty": b"",
    "text": b"Panoramic radiograph of a patient\n",
    "html": b"<!doctype html><html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="900"/>',
    "pdf": b"%PDF-1.7\n",
    "gif": encode(GREY, "GIF"),
    "webp": encode(GREY, "WEBP"),
    "pgm": encode(GREY, "PPM"),
    "ico": encode(Image.fromarray(GREY), "ICO"),
    "jpeg 2000": encode(GREY, "JPEG2000"),
    "pcx": encode(GREY, "PCX"),
    "sgi": encode(GREY, "SGI"),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_formats_are_refused_by_their_content(data: bytes) -> None:
    with pytest.raises(ImageUnreadableError, match="JPEG, PNG, TIFF, BMP and DICOM are allowed"):
        read_radiograph(data)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint32])
def test_other_samples_are_refused(kind: type) -> None:
    with pytest.raises(ImageUnreadableError, match="8 (or 16 )?bits"):
        read_radiograph(tiff(GREY.astype(kind)))


def with_png_size(width: int, height: int) -> bytes:
    """A PNG whose header says so, with a valid checksum, and whose pixels are those of another."""
    import struct
    import zlib

    data = bytearray(encode(GREY, "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (10_000, 9_500), (7_746, 7_746)])
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match=r"60\.0 million"):
        read_radiograph(with_png_size(width, height))


def test_the_limit_on_pixels_is_the_last_size_allowed() -> None:
    data = EIGHT_BIT["png"][0]
    assert read_radiograph(data, limits=Limits(max_pixels=GREY.size)).pixels.shape == GREY.shape
    with pytest.raises(ImageTooLargeError, match="1200x500 px, that is 0.6 million"):
        read_radiograph(data, limits=Limits(max_pixels=GREY.size - 1))


def test_the_limit_on_bytes_is_the_last_size_allowed(tmp_path: Path) -> None:
    data = EIGHT_BIT["png"][0]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert load_radiograph(path, limits=Limits(max_file_bytes=len(data))).format == "PNG"
    for read in (
        lambda limits: load_radiograph(path, limits=limits),
        lambda limits: read_radiograph(data, limits=limits),
    ):
        with pytest.raises(ImageTooLargeError, match=f"{len(data)} bytes; at most {len(data) - 1}"):
            read(Limits(max_file_bytes=len(data) - 1))


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Limits\.max_pixels is 0"):
        Limits(max_pixels=0)


def test_what_is_no_regular_file_is_refused_without_waiting_and_without_its_name(tmp_path: Path) -> None:
    fifo = tmp_path / "Doe_Jane.fifo"
    os.mkfifo(fifo)
    for path, reason in (
        (fifo, "regular file"),
        (tmp_path, "Is a directory|regular file"),
        (tmp_path / "Doe_Jane", "No such"),
    ):
        with pytest.raises(ImageUnreadableError, match=reason) as caught:
            load_radiograph(path)
        assert "Doe" not in str(caught.value)
    with pytest.raises(ImageUnreadableError, match="no path may hold"):
        load_radiograph(Path("Doe\0"))


def smooth_noise(width: int, height: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (height, width))
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 12), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


PAGE = np.full((600, 1400), 205, np.uint8)
for line in range(12):
    cv2.putText(PAGE, "neither a jaw nor a tooth " * 3, (10, 40 + 46 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 30, 2)

IMPLAUSIBLE = {
    "black": (np.zeros((500, 1200), np.uint8), View.FULL, "constant"),
    "white": (np.full((500, 1200), 255, np.uint8), View.FULL, "constant"),
    "almost constant": (100 + GREY // 32, View.FULL, "constant"),
    "noise": (np.random.default_rng(3).integers(0, 256, (500, 1200), np.uint8), View.FULL, "is noise"),
    "tiny": (draw(250, 99), View.FULL, "at least 256x100"),
    "upright": (draw(500, 1200), View.FULL, "0.42 times as wide as high"),
    "square": (draw(900, 900), View.FULL, "1.00 times as wide as high"),
    "ribbon": (draw(2100, 500), View.FULL, "4.20 times as wide as high"),
    "page": (PAGE, View.FULL, "same grey"),
    "page, photographed": (
        np.clip(PAGE * np.linspace(0.85, 1.1, 1400)[None], 0, 255).astype(np.uint8),
        View.FULL,
        "is a page",
    ),
    "crop of a full one": (draw(1300, 500), View.CROP, "2.60 times"),
    "tiny crop": (draw(63, 63), View.CROP, "at least 64x64"),
}


@pytest.mark.parametrize(("pixels", "view", "reason"), IMPLAUSIBLE.values(), ids=IMPLAUSIBLE.keys())
def test_what_cannot_be_a_radiograph_is_refused(pixels: np.ndarray, view: View, reason: str) -> None:
    with pytest.raises(NotARadiographError, match=reason):
        read_radiograph(encode(pixels, "PNG"), view=view)


def test_photographs_and_line_art_are_refused() -> None:
    colours = np.dstack([smooth_noise(1200, 500, seed) for seed in (6, 7, 8)])
    with pytest.raises(NotARadiographError, match="colour photograph"):
        read_radiograph(encode(colours, "JPEG"))
    with pytest.raises(NotARadiographError, match="black and white only"):
        read_radiograph(encode(Image.fromarray(GREY).convert("1"), "PNG"))


REMARKED = {
    "inverted": (255 - GREY, View.FULL, "polarity_inverted"),
    "upside down": (GREY[::-1], View.FULL, "upside_down"),
    "small": (draw(800, 400), View.FULL, "low_resolution"),
    "wide": (draw(1750, 500), View.FULL, "unusual_shape"),
    "high": (draw(1200, 800), View.FULL, "unusual_shape"),
    "rough": (
        np.clip(GREY + np.random.default_rng(4).normal(0, 25, GREY.shape), 0, 255).astype(np.uint8),
        View.FULL,
        "rough",
    ),
    "small crop": (draw(200, 200), View.CROP, "low_resolution"),
    "oblong crop": (draw(600, 400), View.CROP, "unusual_shape"),
}


@pytest.mark.parametrize(("pixels", "view", "code"), REMARKED.values(), ids=REMARKED.keys())
def test_what_is_unusual_is_remarked_on(pixels: np.ndarray, view: View, code: str) -> None:
    assert read_radiograph(encode(pixels, "PNG"), view=view).warnings == (code,)


def test_a_crop_of_bone_gets_no_remark() -> None:
    assert read_radiograph(encode(GREY[:400, 400:800], "PNG"), view=View.CROP).warnings == ()


@pytest.mark.parametrize("gain", [0.35, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("noise", [0, 3, 8])
def test_exposure_and_noise_of_a_radiograph_get_no_remark(gain: float, noise: float) -> None:
    grains = np.random.default_rng(5).normal(0, noise * gain, GREY.shape)
    pixels = np.clip(GREY * gain + grains, 0, 255).astype(np.uint8)
    assert read_radiograph(encode(pixels, "PNG")).warnings == ()


def test_nothing_that_the_file_says_reaches_a_log_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("PIL").setLevel(logging.NOTSET)
    data = tiff(GREY, description="DOE^JANE", metadata=None)
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        assert read_radiograph(data).format == "TIFF"
        with pytest.raises(ImageUnreadableError, match="damaged") as caught:
            read_radiograph(data[: len(data) // 2])
    assert issued == []
    assert caplog.text == ""
    assert "DOE" not in str(caught.value)
    assert caught.value.__cause__ is None
    # The libraries speak again afterwards, and do say what the file says: the silence above is not theirs.
    with Image.open(io.BytesIO(data)):
        pass
    assert "DOE^JANE" in caplog.text


def test_a_radiograph_cannot_be_changed_into_another() -> None:
    radiograph = read_radiograph(EIGHT_BIT["png"][0])
    assert isinstance(radiograph, Radiograph)
    with pytest.raises(AttributeError, match="cannot assign"):
        radiograph.format = "JPEG"  # type: ignore[misc]


def test_every_refusal_is_an_image_error() -> None:
    for kind in (ImageUnreadableError, ImageTooLargeError, NotARadiographError):
        assert issubclass(kind, ImageError)


def png_file(width: int, height: int, scanlines: bytes, *, bits: int = 8, interlaced: bool = False) -> bytes:
    """A grey PNG file, put together by hand from its specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(scanlines)), chunk(b"IEND", b"")
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


def grey_png(grey: np.ndarray, *, bits: int) -> bytes:
    """The same without filters."""
    samples = np.unpackbits(grey[:, :, None], axis=2)[:, :, -bits:].reshape(grey.shape[0], -1)
    raw = b"".join(b"\0" + np.packbits(line).tobytes() for line in samples)
    return png_file(grey.shape[1], grey.shape[0], raw, bits=bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grey_png_of_any_depth_is_read_as_opencv_reads_it(bits: int) -> None:
    content = grey_png(np.random.default_rng(bits).integers(0, 2**bits, (40, 100), np.uint8), bits=bits)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert expected is not None
    assert np.array_equal(decode_picture(content, "PNG", limits=Limits()).pixels, expected)


@pytest.mark.parametrize(
    "metadata",
    [
        {"exif": EXIF_UPRIGHT_AGAIN},
        {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="3"/>'},
        {"transparency": 3},
        {"dpi": (300, 300)},
    ],
    ids=lambda metadata: next(iter(metadata)),
)
def test_a_grey_png_with_metadata_is_read_as_opencv_reads_it(metadata: dict[str, Any]) -> None:
    content = encode(GREY, "PNG", **metadata)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    turned = np.rot90(GREY, 2) if "exif" in metadata else GREY
    np.testing.assert_array_equal(expected, turned)
    np.testing.assert_array_equal(read_radiograph(content).pixels, expected)


#: First row and column of each pass, and its steps down and across; W3C PNG, section 8.2.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("missing", [1, 20, 200])
def test_a_png_whose_data_end_in_order_but_early_is_refused(missing: int, interlaced: bool) -> None:
    height, width = GREY.shape
    parts = [GREY[y::down, x::across] for y, x, down, across in ADAM7] if interlaced else [GREY]
    lines = [b"\0" + line.tobytes() for part in parts for line in part]
    whole, short = (
        png_file(width, height, b"".join(some), interlaced=interlaced) for some in (lines, lines[:-missing])
    )
    np.testing.assert_array_equal(read_radiograph(whole).pixels, GREY)
    with pytest.raises(ImageUnreadableError, match="damaged"):
        read_radiograph(short)
