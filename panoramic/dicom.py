"""DICOM files to 8-bit grey as a viewer shows them: modality LUT, VOI LUT or window, then the inversion of MONOCHROME1.

The order is that of DICOM PS3.4 N.2. Each step maps one stored value to another, so the chain is worked out by pydicom
for the stored values that occur (at most 65,536) and the picture is looked up in the table.

Where a file has neither VOI LUT nor window, black is stored value 0 and white the largest value of the effective depth
(see `panoramic.grey.effective_depth`), no more than Bits Stored. The picture's own extremes are not taken: brightness
would depend on one piece of metal. Where values are negative there is no natural black, and the extremes remain.

Nothing of the header but sizes, depths and coded kinds from closed lists gets into a message.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import VR

from panoramic.errors import ImageTooLargeError, ImageUnreadableError, NotARadiographError
from panoramic.grey import check_colour, effective_depth, luminance
from panoramic.picture import refuse_too_many_pixels
from panoramic.radiograph import ImageWarning, Limits, Radiograph

PREAMBLE_BYTES = 128
#: Panoramic radiographs are stored as one of these; a file without SOP class is let through with its remark.
ADMITTED_CLASSES = frozenset(
    {
        DigitalXRayImageStorageForPresentation,
        DigitalXRayImageStorageForProcessing,
        ComputedRadiographyImageStorage,
        SecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
#: Panoramic, digital, computed and film radiography, and 'other', which exports write.
ADMITTED_MODALITIES = frozenset({"PX", "DX", "CR", "RG", "OT"})
#: Those that a message may name, so that no free text gets there.
OTHER_MODALITIES = frozenset({"CT", "ES", "IO", "IVOCT", "MG", "MR", "NM", "OCT", "OP", "PT", "RF", "US", "XA", "XC"})
#: Body Part Examined (PS3.16 annex L) of devices that make panoramic radiographs; exports leave it empty.
HEAD_PARTS = frozenset({"", "FACE", "HEAD", "HEADNECK", "JAW", "MANDIBLE", "MAXILLA", "SKULL", "TEETH", "TMJ", "TOOTH"})
#: Beyond the range of any stored value, to learn where a window ends.
FAR = 1e12


def has_dicom_prefix(data: bytes) -> bool:
    """Tell DICOM from its prefix. The preamble before it may hold the beginning of a TIFF (PS3.10 section 7.1)."""
    return data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM"


def is_bare_dicom(data: bytes) -> bool:
    """Tell DICOM without prefix from its first data element, which belongs to group 0002 or 0008."""
    if len(data) < 8:
        return False
    explicit = data[4:6] in {str(code.value).encode() for code in VR if len(code.value) == 2}
    if data[:2] in {b"\x02\0", b"\x08\0"}:
        return explicit or struct.unpack("<I", data[4:8])[0] <= 1024
    return data[:2] == b"\0\x08" and explicit


def decode_dicom(data: bytes, *, limits: Limits) -> Radiograph:
    """Decode the one frame of a DICOM radiograph.

    Args:
        data: The whole file, with preamble or without.
        limits: ``max_pixels`` before decoding, ``max_file_bytes`` for what a deflated file inflates to.

    Raises:
        ImageTooLargeError: Too many pixels by the header, or too much to inflate.
        ImageUnreadableError: No or several pictures, cut short, a transfer syntax without decoder, or unknown samples.
        NotARadiographError: Another kind of object or modality (intra-oral, CT, ...), or a colour photograph.
        Exception: Whatever pydicom and its decoders raise for damage; `panoramic.image` translates it.
    """
    _refuse_deflated_bomb(data, limits)
    dataset = dcmread(io.BytesIO(data), force=True)
    warnings = _check_kind(dataset)
    _check_size(dataset, limits)
    _check_transfer_syntax(dataset)
    if not has_dicom_prefix(data):
        warnings = (ImageWarning.NO_PREAMBLE, *warnings)
    stored: NDArray[Any] = pixel_array(dataset)  # (H, W) or (H, W, 3)
    if stored.dtype.itemsize > 2 or stored.dtype.kind not in "iu":
        raise ImageUnreadableError(
            f"The DICOM picture has {stored.dtype.itemsize * 8} bits a sample; integers of at most 16 are allowed."
        )
    bits_stored = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation in {"MONOCHROME1", "MONOCHROME2"} and stored.ndim == 2:
        pixels, remarks = _render(stored, dataset)
    else:
        pixels, remarks = _render_colour(stored, dataset)
    return Radiograph(np.ascontiguousarray(pixels), (*warnings, *remarks), "DICOM", bits_stored)


def _refuse_deflated_bomb(data: bytes, limits: Limits) -> None:
    """Look for the end of a deflated file first: pydicom inflates the whole of it before any size can be read."""
    start = PREAMBLE_BYTES + 4
    if data[start : start + 8] != b"\x02\0\0\0UL\x04\0":
        return
    meta_end = start + 12 + struct.unpack("<I", data[start + 8 : start + 12])[0]
    if DeflatedExplicitVRLittleEndian.encode() not in data[start:meta_end]:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflater.decompress(data[meta_end:], limits.max_file_bytes + 1)) > limits.max_file_bytes:
        raise ImageTooLargeError(
            f"The deflated DICOM file is larger than the {limits.max_file_bytes} bytes that are allowed once inflated."
        )


def _check_kind(dataset: Dataset) -> tuple[ImageWarning, ...]:
    """Refuse what is no panoramic radiograph by its header.

    An admitted class with a modality that is not panoramic (DX, CR, OT) is let through without remark: that is how many
    devices and most exports file panoramic radiographs, and the picture itself is looked at later.
    """
    uid = UID(str(dataset.get("SOPClassUID") or ""))
    kind = f"SOP class {uid.name}" if uid.type == "SOP Class" else "SOP class unknown"
    if "PixelData" not in dataset:
        raise ImageUnreadableError(
            f"The DICOM file holds no integer pixel data ({kind}); a report, a plan or a header alone cannot be "
            "classified, nor a file cut short before its pixels. Export the radiograph itself."
        )
    modality = str(dataset.get("Modality") or "")
    if uid not in {"", *ADMITTED_CLASSES} or modality not in {"", *ADMITTED_MODALITIES}:
        shown = modality if modality in ADMITTED_MODALITIES | OTHER_MODALITIES else "none or another"
        raise NotARadiographError(
            f"The DICOM file is no panoramic radiograph: {kind}, modality {shown}. Allowed are digital X-ray (DX), "
            f"computed radiography (CR) and secondary capture with modality {', '.join(sorted(ADMITTED_MODALITIES))} "
            "or none. Send the panoramic radiograph."
        )
    warnings: tuple[ImageWarning, ...] = ()
    if uid == DigitalXRayImageStorageForProcessing:
        warnings = (ImageWarning.FOR_PROCESSING,)
    if str(dataset.get("BodyPartExamined") or "").upper() not in HEAD_PARTS:
        warnings = (*warnings, ImageWarning.OTHER_BODY_PART)
    return warnings


def _check_size(dataset: Dataset, limits: Limits) -> None:
    rows, columns = (int(dataset.get(name) or 0) for name in ("Rows", "Columns"))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if rows < 1 or columns < 1:
        raise ImageUnreadableError(f"The DICOM header gives {columns}x{rows} px; both must be at least 1.")
    refuse_too_many_pixels(columns, rows * max(frames, 1), limits)
    if frames != 1:
        raise ImageUnreadableError(
            f"The DICOM file holds {frames} frames; one is allowed. Export the panoramic radiograph alone."
        )


def _check_transfer_syntax(dataset: Dataset) -> None:
    """Refuse what nothing here decodes; where the file meta information is missing, fill in what pydicom found."""
    meta = dataset.file_meta
    if not meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = native
    syntax = UID(meta.TransferSyntaxUID)
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    # Neither Pillow nor pydicom's use of GDCM decodes JPEG Extended with 12 bits.
    if syntax == JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8:
        decodable = False
    if not decodable:
        shown = f"{syntax.name} ({syntax})" if syntax.type == "Transfer Syntax" else "unknown"
        raise ImageUnreadableError(
            f"Nothing here decodes the DICOM file's transfer syntax: {shown}. Allowed are uncompressed, deflated, RLE, "
            "JPEG (Extended with 8 bits only), JPEG-LS, JPEG 2000 and HTJ2K. "
            "Export it uncompressed (Explicit VR Little Endian)."
        )


def _render(stored: NDArray[Any], dataset: Dataset) -> tuple[NDArray[np.uint8], tuple[ImageWarning, ...]]:
    """Grey as displayed, (H, W)."""
    lowest, highest = int(stored.min()), int(stored.max())
    units = apply_modality_lut(np.arange(lowest, highest + 1).astype(stored.dtype), dataset)
    warnings: tuple[ImageWarning, ...] = ()
    if dataset.get("VOILUTSequence"):
        black, white = _lut_range(dataset)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        _refuse_empty_window(dataset)
        # Where pydicom puts a window's ends depends on depth, sign and rescaling; values far outside find them.
        black, white = (float(end) for end in apply_voi_lut(np.array([-FAR, FAR]), dataset, index=0))
    elif dataset.get("ModalityLUTSequence"):
        black, white = 0, (1 << effective_depth(int(units.max()))) - 1
    else:
        black, white, warnings = _range_without_window(dataset, lowest, highest)
    if black == white:
        raise NotARadiographError("The DICOM picture is constant: its grey scale has a single value. Check the export.")
    shown = apply_voi_lut(units, dataset, index=0).astype(np.float64)
    table = np.rint(np.clip((shown - black) / (white - black), 0, 1) * 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    return table[stored.astype(np.int32) - lowest], warnings


def _refuse_empty_window(dataset: Dataset) -> None:
    """A linear window is at least 1 wide, the others wider than 0 (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    width = dataset.WindowWidth
    width = float(width[0] if isinstance(width, MultiValue) else width)
    if width <= 0 or (width < 1 and dataset.get("VOILUTFunction", "LINEAR") == "LINEAR"):
        raise ImageUnreadableError(
            f"The DICOM file's window is {width:g} grey values wide, and must be at least 1. Export it with another "
            "window, or with none."
        )


def _lut_range(dataset: Dataset) -> tuple[float, float]:
    """Black and white of a VOI LUT; its largest entry tells, for descriptors announce 16 bits for tables of 12."""
    count, first, bits = (int(number) for number in dataset.VOILUTSequence[0].LUTDescriptor)
    entries = apply_voi_lut(np.arange(first, first + (count or 65_536)), dataset, index=0)
    return 0, (1 << min(bits, effective_depth(int(entries.max())))) - 1


def _range_without_window(dataset: Dataset, lowest: int, highest: int) -> tuple[float, float, tuple[ImageWarning, ...]]:
    """Black and white, rescaled, and the remark that they were inferred."""
    bits_stored = int(dataset.BitsStored)
    warnings: tuple[ImageWarning, ...] = ()
    if lowest < 0:
        ends = (lowest, highest)
        warnings = (ImageWarning.SIGNED_RANGE,)
    else:
        ends = (0, (1 << min(effective_depth(highest), max(bits_stored, 8))) - 1)
        warnings = (ImageWarning.BIT_DEPTH_REDUCED,) if bits_stored > 8 else ()
    black, white = sorted(float(end) for end in apply_modality_lut(np.array(ends), dataset))
    return black, white, warnings


def _render_colour(stored: NDArray[Any], dataset: Dataset) -> tuple[NDArray[np.uint8], tuple[ImageWarning, ...]]:
    """Luminance of a palette, RGB or YCbCr picture (which pydicom has turned into RGB), (H, W)."""
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        bits = stored.dtype.itemsize * 8
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise ImageUnreadableError("The DICOM picture has neither one grey sample a pixel nor three colours.")
    rgb = (stored >> max(bits - 8, 0)).astype(np.uint8)
    step = max(1, max(rgb.shape) // 512)
    return luminance(rgb), check_colour(rgb[::step, ::step])
