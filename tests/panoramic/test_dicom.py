"""DICOM: the grey scale pipeline against values worked out by hand, transfer syntaxes, refusals, privacy."""

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalIntraOralXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from panoramic.dicom import decode_dicom
from panoramic.errors import ImageError, ImageTooLargeError, ImageUnreadableError, NotARadiographError
from panoramic.image import Limits, read_radiograph

HEIGHT, WIDTH = 450, 1080


def ramp(levels: int) -> np.ndarray:
    """Smooth, every level met, dark in the lower corners: (HEIGHT, WIDTH) uint16 from 0 to ``levels - 1``."""
    y = np.linspace(1, 0, HEIGHT)[:, None]
    x = np.linspace(-1, 1, WIDTH)[None]
    field = np.broadcast_to(0.35 + 0.5 * y - 0.3 * np.abs(x) ** 3 + 0.12 * np.sin(14 * x) * y, (HEIGHT, WIDTH))
    field = (field - field.min()) / np.ptp(field)
    return np.rint(field * (levels - 1)).astype(np.uint16)


def make(samples: np.ndarray, bits: int, syntax: UID = ExplicitVRLittleEndian, **tags: object) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["osteopan"])
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "DOE^JANE", "SECRET-4711"
    dataset.Modality = "PX"
    dataset.Rows, dataset.Columns = samples.shape[:2]
    dataset.SamplesPerPixel = 1 if samples.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if samples.ndim == 2 else "RGB"
    if samples.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = samples.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(samples.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = raw
    dataset["PixelData"].VR = "OW" if samples.dtype.itemsize == 2 else "OB"
    return dataset


def save(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    little = syntax != ExplicitVRBigEndian
    implicit = syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return buffer.getvalue()


def read(dataset: Dataset) -> np.ndarray:
    return read_radiograph(save(dataset)).pixels


def stretched(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """The grey values of a straight line from black to white, rounded."""
    return np.rint(np.clip((values - black) / (white - black), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_without_a_window_the_depth_in_use_is_the_range(bits: int) -> None:
    samples = ramp(1 << bits)
    radiograph = read_radiograph(save(make(samples, 16)))
    np.testing.assert_array_equal(radiograph.pixels, stretched(samples.astype(float), 0, (1 << bits) - 1))
    assert (radiograph.format, radiograph.bit_depth, radiograph.warnings) == ("DICOM", 16, ("bit_depth_reduced",))


def test_eight_bits_are_taken_as_they_are() -> None:
    samples = ramp(240).astype(np.uint8)
    radiograph = read_radiograph(save(make(samples, 8)))
    np.testing.assert_array_equal(radiograph.pixels, samples)
    assert radiograph.warnings == ()


def test_monochrome1_is_the_inverse_of_monochrome2() -> None:
    samples = ramp(4096)
    turned = read(make(4095 - samples, 12, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"))
    np.testing.assert_array_equal(turned, 255 - stretched(4095.0 - samples, 0, 4095))
    assert np.abs(turned.astype(int) - read(make(samples, 12))).max() <= 1


def test_the_first_window_is_the_grey_scale() -> None:
    samples = ramp(4096)
    radiograph = read_radiograph(save(make(samples, 12, WindowCenter=[2000, 100], WindowWidth=[2001, 50])))
    # PS3.3 C.11.2.1.2.1: the line runs from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
    np.testing.assert_array_equal(radiograph.pixels, stretched(samples.astype(float), 999.5, 2999.5))
    assert radiograph.warnings == ()


@pytest.mark.parametrize(("width", "function"), [(0, "LINEAR"), ([0.5, 100], "LINEAR"), (0, "SIGMOID")])
def test_an_empty_window_is_named(width: object, function: str) -> None:
    dataset = make(ramp(4096), 12, WindowCenter=2000, WindowWidth=width, VOILUTFunction=function)
    with pytest.raises(ImageUnreadableError, match=r"window is 0(\.5)? grey values wide, and must be at least 1"):
        read(dataset)


def test_a_sigmoid_window_follows_its_formula() -> None:
    samples = ramp(4096)
    shown = read(make(samples, 12, WindowCenter=2000, WindowWidth=1500, VOILUTFunction="SIGMOID"))
    expected = 255 / (1 + np.exp(-4 * (samples.astype(float) - 2000) / 1500))
    np.testing.assert_array_equal(shown, np.rint(expected).astype(np.uint8))


def test_rescaling_comes_before_the_window_and_inversion_after_it() -> None:
    samples = ramp(4096)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3002, "WindowWidth": 2004}
    shown = read(make(samples, 12, **tags))
    np.testing.assert_array_equal(shown, stretched(2.0 * samples - 1000, 2000, 4003))
    tags["PhotometricInterpretation"] = "MONOCHROME1"
    samples = samples[::-1, ::-1].copy()
    np.testing.assert_array_equal(read(make(samples, 12, **tags)), 255 - stretched(2.0 * samples - 1000, 2000, 4003))


@pytest.mark.parametrize(
    "window", [{}, {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}]
)
def test_a_negative_slope_turns_the_grey_scale(window: dict[str, object]) -> None:
    samples = 4095 - ramp(4096)
    shown = read(make(samples, 12, RescaleSlope=-1, RescaleIntercept=4095, **window))
    np.testing.assert_array_equal(shown, stretched(4095.0 - samples, 0, 4095))


def test_a_modality_lut_without_a_window_spans_the_depth_of_its_entries() -> None:
    samples = 4095 - ramp(4096)
    falling = np.arange(1023, -1, -0.25).astype(int)
    shown = read(make(samples, 12, ModalityLUTSequence=lut(falling, 0, 16, ModalityLUTType="US")))
    np.testing.assert_array_equal(shown, stretched(falling[samples].astype(float), 0, 1023))


def lut(values: np.ndarray, first: int, bits: int, **tags: object) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) % 65_536, first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def test_a_voi_lut_is_preferred_to_a_window_and_its_real_depth_counts() -> None:
    samples = ramp(4096)
    curve = np.rint(4095 * np.sqrt(np.arange(4096) / 4095))
    dataset = make(samples, 12, VOILUTSequence=lut(curve, 0, 16), WindowCenter=10, WindowWidth=2)
    np.testing.assert_array_equal(read(dataset), stretched(curve[samples], 0, 4095))


def test_a_modality_lut_comes_before_the_window() -> None:
    samples = ramp(4096)
    curve = np.rint(1023 * (np.arange(4096) / 4095) ** 2)
    dataset = make(samples, 12, ModalityLUTSequence=lut(curve, 0, 16, ModalityLUTType="US"))
    dataset.WindowCenter, dataset.WindowWidth = 400, 602
    np.testing.assert_array_equal(read(dataset), stretched(curve[samples], 99, 700))


def test_negative_values_without_a_window_span_their_own_range() -> None:
    samples = ramp(3001).astype(np.int16) - 1000
    radiograph = read_radiograph(save(make(samples, 16)))
    np.testing.assert_array_equal(radiograph.pixels, stretched(samples.astype(float), -1000, 2000))
    assert radiograph.warnings == ("signed_range",)


def test_colour_and_palette_pictures_become_grey() -> None:
    samples = ramp(256).astype(np.uint8)
    grey = read(make(np.stack([samples] * 3, -1), 8, SOPClassUID=SecondaryCaptureImageStorage))
    np.testing.assert_array_equal(grey, samples)
    dataset = make(samples, 8, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", (np.arange(256) * 257).astype("<u2").tobytes())
    np.testing.assert_array_equal(read(dataset), samples)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_syntaxes(syntax: UID) -> None:
    samples = ramp(4096)
    np.testing.assert_array_equal(read(make(samples, 12, syntax)), stretched(samples.astype(float), 0, 4095))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_syntaxes_that_pydicom_encodes(syntax: UID, bits: int) -> None:
    assert get_encoder(syntax).is_available
    samples = ramp(1 << bits) if bits > 8 else ramp(256).astype(np.uint8)
    dataset = make(samples, bits)
    expected = read(dataset)
    dataset.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(read(dataset), expected)


def gdcm_compress(samples: np.ndarray, bits: int, syntax: UID) -> Dataset:
    """Encode with GDCM's own writer."""
    wanted = {
        JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
        JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
        JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    }[syntax]
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((samples.shape[1], samples.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    allocated = samples.itemsize * 8
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, 0))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(samples.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(wanted))
    change.SetInput(image)
    # From here on the smart pointer in `change` owns the image: Python must not free it a second time.
    image.thisown = False
    assert change.Change()
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    stream = fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
    dataset = make(samples, bits, syntax)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
def test_jpeg_lossless(syntax: UID, bits: int) -> None:
    samples = ramp(4096) if bits == 12 else ramp(256).astype(np.uint8)
    np.testing.assert_array_equal(read(gdcm_compress(samples, bits, syntax)), read(make(samples, bits)))


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_lossy_with_eight_bits(syntax: UID) -> None:
    samples = ramp(256).astype(np.uint8)
    dataset = gdcm_compress(samples, 8, JPEGBaseline8Bit)
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.abs(read(dataset).astype(int) - samples).max() <= 6


def test_jpeg_extended_with_twelve_bits_is_refused_by_name() -> None:
    with pytest.raises(ImageUnreadableError, match=r"JPEG Extended \(Process 2 and 4\).*Extended with 8 bits only"):
        read(gdcm_compress(ramp(4096), 12, JPEGExtended12Bit))


#: pydicom's own samples and their transfer syntaxes; what is refused for its picture was decoded.
SAMPLES = {
    "JPEGLSNearLossless_08.dcm": JPEGLSNearLossless,
    "JPEGLSNearLossless_16.dcm": JPEGLSNearLossless,
    "examples_jpeg2k.dcm": JPEG2000Lossless,
    "SC_rgb_jpeg_dcmtk.dcm": JPEGBaseline8Bit,
    "image_dfl.dcm": DeflatedExplicitVRLittleEndian,
}


def sample(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom's sample {name} is not installed")
    return Path(path).read_bytes()


@pytest.mark.parametrize(("name", "syntax"), SAMPLES.items())
def test_samples_of_pydicom_are_decoded_or_refused_for_what_they_show(name: str, syntax: UID) -> None:
    data = sample(name)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
    with pytest.raises(NotARadiographError, match="no panoramic radiograph|times as wide|at least 256x100|photograph"):
        read_radiograph(data)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000])
def test_jpeg_2000_from_another_encoder(syntax: UID) -> None:
    samples = ramp(4096)
    dataset = make(samples, 12, syntax)
    stream = encode_array(samples, bits_stored=12, photometric_interpretation=2)
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read(dataset), stretched(samples.astype(float), 0, 4095))


def test_a_syntax_without_decoder_is_named() -> None:
    dataset = make(ramp(4096), 12, MPEG2MPML)
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(
        ImageUnreadableError, match=r"MPEG2 Main Profile / Main Level \(1\.2\.840\.10008\.1\.2\.4\.100\)"
    ):
        read(dataset)


@pytest.mark.parametrize("sop_class", [ComputedRadiographyImageStorage, SecondaryCaptureImageStorage])
@pytest.mark.parametrize("modality", ["PX", "DX", "CR", "OT", ""])
def test_admitted_kinds(sop_class: UID, modality: str) -> None:
    dataset = make(ramp(256).astype(np.uint8), 8, SOPClassUID=sop_class, Modality=modality)
    assert read_radiograph(save(dataset)).warnings == ()


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": DigitalIntraOralXRayImageStorageForPresentation, "Modality": "IO"}, "Intra-Oral.*modality IO"),
        ({"Modality": "IO"}, "modality IO"),
        ({"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.2"), "Modality": "CT"}, "CT Image Storage, modality CT"),
        ({"SOPClassUID": UID("1.2.3.4")}, "SOP class unknown"),
        ({"Modality": "DOE_JANE"}, "modality none or another"),
    ],
)
def test_other_kinds_are_refused(tags: dict[str, object], reason: str) -> None:
    with pytest.raises(NotARadiographError, match=reason) as caught:
        read(make(ramp(4096), 12, **tags))
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "for_processing"),
        ({"BodyPartExamined": "CHEST"}, "other_body_part"),
    ],
)
def test_doubtful_kinds_are_remarked_on(tags: dict[str, object], code: str) -> None:
    assert read_radiograph(save(make(ramp(256).astype(np.uint8), 8, **tags))).warnings == (code,)


@pytest.mark.parametrize("part", ["JAW", "SKULL", "head"])
def test_the_head_and_its_parts_get_no_remark(part: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = save(make(ramp(256).astype(np.uint8), 8, BodyPartExamined=part))
    assert read_radiograph(data).warnings == ()


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm", "rtstruct.dcm"])
def test_what_holds_no_picture_is_refused(name: str) -> None:
    with pytest.raises(ImageUnreadableError, match="holds no integer pixel data|damaged|unknown kind"):
        read_radiograph(sample(name))


def test_several_frames_are_refused() -> None:
    dataset = make(ramp(4096), 12, NumberOfFrames=2)
    dataset.PixelData = dataset.PixelData * 2
    with pytest.raises(ImageUnreadableError, match="2 frames; one is allowed"):
        read(dataset)


def test_sizes_are_compared_before_anything_is_decoded() -> None:
    for tags in ({"Rows": 40_000, "Columns": 40_000}, {"NumberOfFrames": 100_000}):
        with pytest.raises(ImageTooLargeError, match=r"at most 60\.0 million"):
            read(make(ramp(4096), 12, **tags))
    with pytest.raises(ImageUnreadableError, match="1080x0 px"):
        read(make(ramp(4096), 12, Rows=0))


def test_a_deflated_bomb_is_refused_before_it_is_inflated() -> None:
    data = save(make(ramp(4096), 12, DeflatedExplicitVRLittleEndian))
    length = struct.unpack("<I", data[140:144])[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = data[: 144 + length] + deflater.compress(bytes(20_000_000)) + deflater.flush()
    with pytest.raises(ImageTooLargeError, match="larger than the 1000000 bytes"):
        read_radiograph(bomb, limits=Limits(max_file_bytes=1_000_000))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_files_cut_short_are_refused(syntax: UID, share: float) -> None:
    samples = ramp(4096)
    if syntax == JPEGLosslessSV1:
        dataset = gdcm_compress(samples, 12, syntax)
    else:
        dataset = make(samples, 12)
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
    data = save(dataset)
    with pytest.raises(ImageUnreadableError, match="cut short"):
        read_radiograph(data[: int(len(data) * share)])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGBaseline8Bit])
def test_a_code_stream_cut_short_inside_a_whole_file_is_refused(syntax: UID) -> None:
    samples = ramp(256).astype(np.uint8)
    if syntax in {JPEGLosslessSV1, JPEGBaseline8Bit}:
        dataset = gdcm_compress(samples, 8, syntax)
    else:
        dataset = make(samples, 8)
        dataset.compress(syntax, generate_instance_uid=False)
    stream = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: len(stream) // 2 & ~1]])
    with pytest.raises(ImageError, match="damaged, cut short"):
        read(dataset)


def test_a_constant_picture_is_an_error_whatever_its_decoder_said() -> None:
    with pytest.raises(NotARadiographError, match="constant"):
        read(make(np.zeros((HEIGHT, WIDTH), np.uint16), 12))
    with pytest.raises(NotARadiographError, match="constant"):
        read(make(ramp(4096), 12, WindowCenter=50_000, WindowWidth=2))
    with pytest.raises(NotARadiographError, match="single value"):
        read(make(ramp(4096), 12, RescaleSlope=0, RescaleIntercept=7))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_and_meta_information_is_read(syntax: UID) -> None:
    data = save(make(ramp(4096), 12, syntax))
    length = struct.unpack("<I", data[140:144])[0]
    radiograph = read_radiograph(data[144 + length :])
    np.testing.assert_array_equal(radiograph.pixels, stretched(ramp(4096).astype(float), 0, 4095))
    assert radiograph.warnings == ("bit_depth_reduced", "no_preamble")


def test_a_file_that_is_also_a_tiff_is_dicom() -> None:
    data = save(make(ramp(4096), 12))
    assert read_radiograph(b"II*\0" + data[4:]).format == "DICOM"


def test_nothing_of_the_header_reaches_a_log_a_warning_or_a_message(caplog: pytest.LogCaptureFixture) -> None:
    dataset = make(ramp(4096), 12)
    data = save(dataset).replace(b"SECRET-4711", b"DOE^JANE\\\\\xff").replace(b"PX", b"P?")
    wrong = data.replace(b"US\x02\x00", b"DS\x02\x00")
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        for damaged in (wrong, data[: len(data) // 2], data):
            with pytest.raises(ImageError, match="damaged|no panoramic radiograph") as caught:
                read_radiograph(damaged)
            assert "DOE" not in str(caught.value)
            assert caught.value.__cause__ is None
    assert issued == []
    assert caplog.text == ""


def test_decoding_alone_does_not_judge_what_is_shown() -> None:
    assert decode_dicom(save(make(np.zeros((4, 4), np.uint16), 12)), limits=Limits()).pixels.shape == (4, 4)
