"""Choosing the fastest runtime whose answers are the reference's.

Which is fastest is known from measurements (`panoramic.runtime_native` has them) and is not measured again at every
start: a node whose answers came now from one library and now from another, as its load would have it, could not be
reproduced. Whether a runtime's answers are right is tried at every start, on that machine, with that model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from panoramic.classification import Classification
from panoramic.errors import PanoramicError
from panoramic.model_file import Model
from panoramic.native.tiles import LANES
from panoramic.probe import probe_batch
from panoramic.runtime import Runtime
from panoramic.runtime_info import Precision, RuntimeChoice, RuntimeInfo
from panoramic.runtime_native import NativeClassifier
from panoramic.runtime_torch import Classifier, FusedClassifier, check_device

#: How far a probability may be from the reference's.
MAX_PROBABILITY_DIFFERENCE: Final = 1e-3

#: How far a place of a map may be from the reference's, as a share of the range of the reference's map.
MAX_MAP_DIFFERENCE: Final = 1e-2

_CPU_ONLY: Final = frozenset({RuntimeChoice.NATIVE, RuntimeChoice.ONNX})

#: The package whose version is told with a runtime's name.
_PACKAGES: Final = {
    RuntimeChoice.NATIVE: "numba",
    RuntimeChoice.ONNX: "onnxruntime",
    RuntimeChoice.PYTORCH: "torch",
    RuntimeChoice.REFERENCE: "torch",
}


@dataclass(frozen=True, eq=False)
class LoadedRuntime:
    """A runtime that was found to give the reference's answers, and what to say of it."""

    runtime: Runtime
    description: RuntimeInfo


@dataclass(frozen=True)
class Differences:
    """How far some answers are from others to the same pictures."""

    probability: float
    """Largest over pictures and classes, 0 to 1."""
    map: float
    """Largest over pictures, as a share of the range of the expected map; infinite where only that has no range."""
    diagnoses: int
    """How many pictures are diagnosed otherwise."""

    @property
    def fault(self) -> str | None:
        """What is too different, in words; None if nothing is."""
        faults = []
        if self.diagnoses:
            faults.append(f"diagnoses {self.diagnoses} probe pictures otherwise")
        if not self.probability <= MAX_PROBABILITY_DIFFERENCE:
            faults.append(f"differs by {self.probability:.2g} in probability (allowed {MAX_PROBABILITY_DIFFERENCE:g})")
        if not self.map <= MAX_MAP_DIFFERENCE:
            faults.append(f"differs by {self.map:.2g} of the map's range (allowed {MAX_MAP_DIFFERENCE:g})")
        return " and ".join(faults) or None


def load_runtime(
    model: Model,
    *,
    cache_dir: Path,
    device: str = "cpu",
    runtime: RuntimeChoice = RuntimeChoice.AUTO,
    precision: Precision = Precision.AUTO,
    threads: int = 0,
) -> LoadedRuntime:
    """Make a model ready to run, warm, by the fastest runtime that is allowed and right.

    The probe pictures go through the reference (PyTorch in float32 on the CPU) and through each candidate in turn, as
    one batch and the first of them alone; the first candidate within `MAX_PROBABILITY_DIFFERENCE` and
    `MAX_MAP_DIFFERENCE`, with the same diagnoses, is taken. If none is, the reference is, on the device; there it must
    pass too, and where it does not, the device computes wrongly.

    Args:
        model: From `panoramic.model_file.load_model`.
        cache_dir: Folder of exported graphs, made if need be; see `panoramic.onnx_graph.graph_of`.
        device: ``cpu``, ``cuda`` or ``cuda:0`` and so on.
        runtime: What to try. Whatever it is, it may end with the reference.
        precision: What to try. float16 may end with float32.
        threads: CPU threads of our kernels and of ONNX Runtime; 0 for as many as PyTorch uses. PyTorch's own are set
            for the whole process with ``torch.set_num_threads``.

    Returns:
        The runtime and what it is. Where `RuntimeInfo.fallback_reason` is not None, warn of it.

    Raises:
        PanoramicError: The request contradicts itself, the device is not there or computes wrongly, or the model's own
            numbers are not finite.
    """
    candidates = list(_candidates(model, device, runtime, precision, cache_dir=cache_dir, threads=threads))
    check_device(device)
    reference = Classifier(model)
    if not candidates:
        reference.warm_up()
        return LoadedRuntime(reference, _describe(RuntimeChoice.REFERENCE, Precision.FLOAT32, device))
    batch = probe_batch(model.manifest.input_size)
    expected = [reference.classify(picture[None])[0] for picture in batch]
    passed_over: list[str] = []
    for candidate in candidates:
        try:
            made = candidate.make()
            found = differences([*made.classify(batch[:1]), *made.classify(batch)], [expected[0], *expected])
        except Exception as exc:  # noqa: BLE001 - compilers and their caches fail in many ways; another runtime may do
            passed_over.append(f"{candidate.name} in {candidate.precision}: {_told(exc)}")
            continue
        if found.fault is None:
            reason = "; ".join(passed_over) or None
            description = _describe(
                candidate.name, candidate.precision, device, differences=found, fallback_reason=reason
            )
            return LoadedRuntime(made, description)
        passed_over.append(f"{candidate.name} in {candidate.precision} {found.fault}")
    reason = "; ".join(passed_over)
    if device != "cpu":
        raise PanoramicError(
            f"device {device} does not give the answers of the CPU for model {model.manifest.name}, not even in "
            f"PyTorch's float32; use another device ({reason})"
        )
    description = _describe(RuntimeChoice.REFERENCE, Precision.FLOAT32, device, fallback_reason=reason)
    return LoadedRuntime(reference, description)


def _told(error: Exception) -> str:
    """An error in a line; other people's say what they are, and some have many lines."""
    if isinstance(error, PanoramicError):
        return str(error)
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__} ({first_line})"


def differences(found: Sequence[Classification], expected: Sequence[Classification]) -> Differences:
    """Compare answers to the same pictures, of which there must be one at least."""
    pairs = list(zip(found, expected, strict=True))
    return Differences(
        probability=max(
            abs(f.probabilities[name] - value) for f, e in pairs for name, value in e.probabilities.items()
        ),
        map=max(_map_difference(f.cam, e.cam) for f, e in pairs),
        diagnoses=sum(f.class_index != e.class_index for f, e in pairs),
    )


def _map_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    if found.shape != expected.shape:
        return math.inf
    largest = float(np.abs(found - expected).max())
    if largest == 0:
        return 0.0
    extent = float(np.ptp(expected))
    return largest / extent if extent > 0 else math.inf


@dataclass(frozen=True)
class _Candidate:
    """A runtime that could be made."""

    name: RuntimeChoice
    precision: Precision
    make: Callable[[], Runtime]


def _candidates(
    model: Model, device: str, runtime: RuntimeChoice, precision: Precision, *, cache_dir: Path, threads: int
) -> Iterator[_Candidate]:
    """What to try, fastest first; all but the reference on the CPU."""
    on_cpu = device == "cpu"
    if runtime in _CPU_ONLY and not on_cpu:
        raise PanoramicError(
            f"runtime {runtime} runs on the CPU, and the device is {device}; use pytorch or auto there"
        )
    if precision is Precision.FLOAT16 and runtime in {*_CPU_ONLY, RuntimeChoice.REFERENCE}:
        raise PanoramicError(f"runtime {runtime} has no precision float16; use float32 or auto, or runtime pytorch")
    if on_cpu and precision is not Precision.FLOAT16:
        if runtime == RuntimeChoice.NATIVE or (runtime == RuntimeChoice.AUTO and LANES > 0):
            make_native = partial(NativeClassifier, model, threads=threads)
            yield _Candidate(RuntimeChoice.NATIVE, Precision.FLOAT32, make_native)
        if runtime in {RuntimeChoice.AUTO, RuntimeChoice.ONNX}:
            make_onnx = partial(_make_onnx, model, cache_dir=cache_dir, threads=threads)
            yield _Candidate(RuntimeChoice.ONNX, Precision.FLOAT32, make_onnx)
    if runtime in {RuntimeChoice.AUTO, RuntimeChoice.PYTORCH}:
        # Processors are slower in float16 than in float32.
        if precision is Precision.FLOAT16 or (precision is Precision.AUTO and not on_cpu):
            make_half = partial(FusedClassifier, model, device=device, half=True)
            yield _Candidate(RuntimeChoice.PYTORCH, Precision.FLOAT16, make_half)
        make_fused = partial(FusedClassifier, model, device=device)
        yield _Candidate(RuntimeChoice.PYTORCH, Precision.FLOAT32, make_fused)
    if not on_cpu:
        make_reference = partial(Classifier, model, device=device)
        yield _Candidate(RuntimeChoice.REFERENCE, Precision.FLOAT32, make_reference)


def _make_onnx(model: Model, *, cache_dir: Path, threads: int) -> Runtime:
    try:
        from panoramic.runtime_onnx import OnnxClassifier
    except ImportError as exc:
        raise PanoramicError(f"the package {exc.name} is missing; install osteopan[worker]") from exc
    return OnnxClassifier(model, cache_dir=cache_dir, threads=threads)


def _describe(
    name: RuntimeChoice,
    precision: Precision,
    device: str,
    *,
    differences: Differences | None = None,
    fallback_reason: str | None = None,
) -> RuntimeInfo:
    package = _PACKAGES[name]
    return RuntimeInfo(
        name=name,
        library=f"{package} {import_module(package).__version__}",
        precision=precision,
        device=device,
        max_probability_difference=differences.probability if differences else 0.0,
        max_map_difference=differences.map if differences else 0.0,
        fallback_reason=fallback_reason,
    )
