"""Model files: weights that cannot be parted from their manifest, read without trusting whoever wrote them.

A model file is a ``.safetensors`` file whose header carries the manifest as JSON. The predecessor's ``.pth`` files,
plain state dicts of ``efficientnet_pytorch``, are read too and given the manifest that the published networks imply.
"""

import hashlib
import io
import json
import os
import re
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import safetensors.torch
import torch
from pydantic import ValidationError

from panoramic.errors import ModelFileError
from panoramic.manifest import Manifest, ModelDescription
from panoramic.network import check_tensors, network_of, outputs_of, split_members
from panoramic.preprocess import PREPROCESSING_VERSION, default_input_size
from panoramic.view import View

#: Key of the manifest in the safetensors header.
MANIFEST_KEY: Final = "osteopan_manifest"

#: The largest file that is read, in bytes; the largest network, b7 with 1000 outputs, takes 0.27 GB, and five of them
#: as an ensemble in half precision 0.67 GB.
MAX_FILE_BYTES: Final = 2**30

#: What tensors may be stored as, and the name that the digest gives it.
_DTYPE_NAMES: Final = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
#: Widths of the predecessor's heads: its own, and the library's default, of which the first two are the classes.
_PREDECESSOR_OUTPUTS: Final = (2, 1000)


@dataclass(frozen=True, eq=False)
class Model:
    """Weights with all that is needed to use them."""

    manifest: Manifest
    state_dict: Mapping[str, torch.Tensor] = field(repr=False)
    """float32 on the CPU (the batch norms' counters int64), checked against the manifest; not to be written to."""
    file_sha256: str
    """Of the whole file, so that a changed manifest shows too, where `Manifest.sha256` names the weights alone."""


def save_model(path: Path, description: ModelDescription, *, state_dict: Mapping[str, torch.Tensor]) -> Manifest:
    """Write a model file, whole or not at all.

    Args:
        path: Ends in ``.safetensors``; replaced where it exists.
        description: The manifest without its digest.
        state_dict: Of the network that the description names, float32 or float16, on any device.

    Returns:
        The manifest as written.

    Raises:
        ModelFileError: The weights are not what the description says, they are too many for a file that would be
            read again, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ModelFileError(f"{path.name} cannot be written: a model file's name must end in .safetensors")
    _refuse_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values()))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    try:
        _check(description, tensors)
        fields = description.model_dump(include=set(ModelDescription.model_fields))
        manifest = Manifest(**fields, sha256=digest_of(tensors))
    except ModelFileError as exc:
        raise ModelFileError(f"{path.name} was not written: {exc}") from exc
    content = safetensors.torch.save(tensors, metadata={MANIFEST_KEY: manifest.model_dump_json()})
    _refuse_size(path, len(content))
    _write_whole(path, content)
    return manifest


def load_model(path: Path, *, view: View = View.FULL) -> Model:
    """Read a model file, ``.safetensors`` or the predecessor's ``.pth``, and check all of it.

    Args:
        path: The file.
        view: What a ``.pth`` was trained on, for which it has no place; a ``.safetensors`` says so itself.

    Raises:
        ModelFileError: Missing, not readable, damaged, altered, incomplete, of an unknown kind, or with Python objects
            that would have to be run to be read.
    """
    try:
        content = _read(path)
        if path.suffix == ".safetensors":
            manifest, tensors = _parse_safetensors(content)
        else:
            tensors = _parse_pth(content)
            # A request must be able to ask for it by this name.
            name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._+-]+", "_", path.stem).lstrip("_")[:128] or "checkpoint"
            manifest = _predecessor_manifest(tensors, name=name, view=view)
    except ModelFileError as exc:
        raise ModelFileError(f"{path.name} cannot be used as a model: {exc}") from exc
    as_float32 = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return Model(manifest, MappingProxyType(as_float32), hashlib.sha256(content).hexdigest())


def digest_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the tensors, whatever file they are in.

    Fed with, for each tensor in the order of the names: name, type (F32, F16, I64) and shape (comma-separated), each
    closed by a zero byte, then its values, row by row and little-endian.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{_DTYPE_NAMES[tensor.dtype]}\0{shape}\0".encode())
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _check(description: ModelDescription, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare what a description says with the weights."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPE_NAMES:
            allowed = ", ".join(map(str, _DTYPE_NAMES))
            raise ModelFileError(f"{name} is a tensor of {tensor.dtype}; it must be dense, with values, of {allowed}")
    members = len(split_members(tensors))
    if description.members != members:
        raise ModelFileError(f"the manifest names {description.members} members, but the weights are of {members}")
    network = network_of(tensors)
    if description.network != network:
        raise ModelFileError(f"the manifest names {description.network}, but the weights are of {network}")
    outputs = outputs_of(tensors)
    if description.outputs != outputs:
        raise ModelFileError(f"the manifest names {description.outputs} outputs, but the weights have {outputs}")
    check_tensors(tensors)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{name} has values that are infinite or not a number; train the model again")
    if description.preprocessing != PREPROCESSING_VERSION:
        raise ModelFileError(
            f"it was trained with preprocessing {description.preprocessing!r}, and this program has "
            f"{PREPROCESSING_VERSION!r}; use the program's version that made it, or train it again"
        )


def _parse_safetensors(content: bytes) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Manifest and stored tensors, checked against each other."""
    try:
        tensors = safetensors.torch.load(content)
        header_length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header_length]).get("__metadata__") or {}
    except Exception as exc:  # the library documents none of its errors, and a stranger's file may cause any
        raise ModelFileError("it is damaged, cut short or no safetensors file; copy or export it again") from exc
    if MANIFEST_KEY not in metadata:
        raise ModelFileError("it has no manifest; a model file is written by the training program's export")
    manifest = _parse_manifest(metadata[MANIFEST_KEY])
    _check(manifest, tensors)
    found = digest_of(tensors)
    if found != manifest.sha256:
        raise ModelFileError(
            f"the weights have the digest {found[:12]}… and the manifest says {manifest.sha256[:12]}…: the file was "
            "altered or damaged; copy or export it again"
        )
    return manifest, tensors


def _parse_manifest(text: str) -> Manifest:
    """Read a manifest, with the first faults named by their fields."""
    try:
        loose = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelFileError("its manifest is not JSON; export it again") from exc
    version = loose.get("schema_version") if isinstance(loose, dict) else None
    known = Manifest.model_fields["schema_version"].default
    if version != known:
        raise ModelFileError(
            f"its manifest has schema version {version!r}, and this program knows {known}; use the program's version "
            "that made it"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as exc:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in exc.errors(include_input=False)]
        raise ModelFileError(f"its manifest is invalid ({'; '.join(faults[:3])}); export it again") from exc


def _parse_pth(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a plain state dict; a pickle that asks for anything else is refused before it gets it."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # unpickling a stranger's bytes may raise anything
        raise ModelFileError(
            "it is damaged, or holds Python objects beside tensors, which could run code and are never loaded (nothing "
            "was run). Save the network's state_dict() alone with torch.save, or export a model file."
        ) from exc
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise ModelFileError("it holds no state dict (names with tensors); save the network's state_dict() alone")
    # DataParallel, with which several cards are trained on, puts a prefix before each name.
    return {name.removeprefix("module."): tensor.detach() for name, tensor in loaded.items()}


def _predecessor_manifest(tensors: Mapping[str, torch.Tensor], *, name: str, view: View) -> Manifest:
    """What the predecessor's program takes for granted of its weights."""
    members = len(split_members(tensors))
    if members > 1:
        raise ModelFileError(
            f"it holds an ensemble of {members} networks, and a file without a manifest holds one; export a model file"
        )
    network = network_of(tensors)
    outputs = outputs_of(tensors)
    if outputs not in _PREDECESSOR_OUTPUTS:
        raise ModelFileError(
            f"it has {outputs} outputs, and without a manifest only 2, or 1000 of which the first two are the classes, "
            "are understood; export a model file that names its classes"
        )
    input_size = default_input_size(view, network)
    description = ModelDescription(
        name=name,
        version="0",
        network=network,
        outputs=outputs,
        view=view,
        input_size=input_size,
        trained_on_is_whole=False,
    )
    _check(description, tensors)
    return Manifest(**description.model_dump(), sha256=digest_of(tensors))


def _read(path: Path) -> bytes:
    """The file's bytes, read once so that all checks are of the same content."""
    if path.suffix not in {".safetensors", ".pth"}:
        raise ModelFileError("its name must end in .safetensors or .pth")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError("it is a folder or a device; give the path of a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ModelFileError(f"it has {status.st_size} bytes, and no known network needs {MAX_FILE_BYTES}")
        content = path.read_bytes()
    except OSError as exc:
        raise ModelFileError(f"{exc.strerror}; give the path of a readable file") from exc
    if not content:
        raise ModelFileError("it is empty; copy or export it again")
    return content


def _refuse_size(path: Path, size_bytes: int) -> None:
    """Refuse to write what `load_model` would refuse to read."""
    if size_bytes > MAX_FILE_BYTES:
        raise ModelFileError(
            f"{path.name} was not written: it would have {size_bytes} bytes, and a model file has at most "
            f"{MAX_FILE_BYTES}; store half precision, or an ensemble of fewer or smaller networks"
        )


def _write_whole(path: Path, content: bytes) -> None:
    """Put a file in place in one step, durably; a reader never sees a part of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise ModelFileError(f"{path.name} was not written: {exc.strerror}; choose a writable folder") from exc
