"""A model's network with its Grad-CAM maps as an ONNX graph, exported once and kept in a folder."""

import hashlib
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from panoramic.errors import PanoramicError
from panoramic.explained_network import ExplainedNetwork
from panoramic.model_file import Model

logger = logging.getLogger(__name__)

#: Names of the graph's input, (N, 3, H, W), and outputs, (N, C) and (N, C, h, w), all of float32.
INPUT: Final = "pictures"
OUTPUTS: Final = ("logits", "maps")

#: Version of the ONNX operators that are used: what PyTorch 2.13 exports to by itself.
OPSET: Final = 20

#: Changes whenever another graph would be made of the same model by the same libraries.
_GRAPH_VERSION: Final = 1

_DIGEST_BYTES: Final = 32


def export(model: Model) -> bytes:
    """Export the model's network with its maps: any batch size, the model's own picture size.

    Raises:
        PanoramicError: A package that exporting needs is missing, or PyTorch cannot export the network.
    """
    with _exporters_own_warnings_ignored():
        try:
            return _export(model)
        except ImportError as exc:
            raise PanoramicError(
                f"the model cannot be exported to ONNX: the package {exc.name} is missing; install osteopan[worker]"
            ) from exc
        except Exception as exc:  # the exporter documents none of its errors; a graph of 2 GiB is one of them
            raise PanoramicError(
                f"model {model.manifest.name} cannot be exported to ONNX by PyTorch {torch.__version__}; use the "
                "runtime pytorch"
            ) from exc


def _export(model: Model) -> bytes:
    height, width = model.manifest.input_size
    program = torch.onnx.export(
        ExplainedNetwork(model),
        (torch.zeros(2, 3, height, width),),  # from one picture the exporter would fix the batch size at one
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=OUTPUTS,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    graph = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # where in the source each node is from, with this machine's paths
    content: bytes = graph.SerializeToString()
    return content


def graph_of(
    model: Model, *, cache_dir: Path, runtime_version: str, exporter: Callable[[Model], bytes] = export
) -> bytes:
    """The model's graph as a serialised ONNX ``ModelProto``; exporting takes seconds, and is done once.

    The file's name is a digest of all that the graph depends on: the weights' own digest, the input's size, the number
    of classes and the versions of the libraries. The file begins with the SHA-256 of that and of the graph, so that a
    damaged file, or another model's under this name, is made again. Any number of processes may do this at once.

    The digest is against accidents: who may write to the folder may change the answers, as with the model files.

    Args:
        model: From `panoramic.model_file.load_model`.
        cache_dir: Folder of the graphs, made if need be; its files may be deleted at any time. Where it cannot be
            written, the graph is not kept.
        runtime_version: Of the library that will run the graph.
        exporter: Makes the graph where there is none.

    Raises:
        PanoramicError: The network cannot be exported.
    """
    key = _key(model, runtime_version)
    path = cache_dir / f"{hashlib.sha256(key).hexdigest()[:32]}.graph"
    content = _read(path, key)
    if content is None:
        content = exporter(model)
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _write(path, _digest(key, content), content)
        except OSError as exc:
            logger.warning(
                "the exported graph is not kept, since %s cannot be written (%s): each start exports anew",
                cache_dir,
                exc.strerror,
            )
    return content


def _key(model: Model, runtime_version: str) -> bytes:
    """All that the graph depends on, as text."""
    manifest = model.manifest
    parts = {
        "graph": _GRAPH_VERSION,
        "weights": manifest.sha256,
        "input": manifest.input_size,
        "classes": len(manifest.classes),
        "opset": OPSET,
        "precision": "float32",
        "torch": torch.__version__,
        "runtime": runtime_version,
    }
    return "\n".join(f"{name} {value}" for name, value in parts.items()).encode()


def _digest(key: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()


def _read(path: Path, key: bytes) -> bytes | None:
    """The graph in a file; None if there is none, or another than was written."""
    try:
        with path.open("rb") as file:
            digest = file.read(_DIGEST_BYTES)
            content = file.read()
    except OSError:
        return None
    return content if digest == _digest(key, content) else None


def _write(path: Path, *parts: bytes) -> None:
    """Put a file in place in one step; a reader never sees a part of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _exporters_own_warnings_ignored() -> Iterator[None]:
    """Keep quiet what nobody here can act on: deprecated calls inside PyTorch, and that torchvision is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
