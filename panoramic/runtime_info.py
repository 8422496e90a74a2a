"""What can be asked of a runtime, and what is said of the one in use; needs no library that runs networks."""

from dataclasses import dataclass
from enum import StrEnum


class RuntimeChoice(StrEnum):
    """What runs the network."""

    AUTO = "auto"
    """The fastest that gives the reference's answers."""
    NATIVE = "native"
    """Kernels of our own, on a CPU with AVX-512, or AVX2 and FMA."""
    ONNX = "onnx"
    """ONNX Runtime, on the CPU alone."""
    PYTORCH = "pytorch"
    """PyTorch with batch norms folded, on the CPU or a CUDA card."""
    REFERENCE = "reference"
    """PyTorch in float32 with the network as it was trained: the slowest, and what the others are compared with."""


class Precision(StrEnum):
    """The floating-point numbers that the network is computed in."""

    AUTO = "auto"
    """float16 on a CUDA card if its answers pass, else float32."""
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    """If its answers pass, else float32."""


@dataclass(frozen=True)
class RuntimeInfo:
    """The runtime that a model runs on, and how far from the reference it was when it was loaded."""

    name: RuntimeChoice
    """Never ``auto``."""
    library: str
    """Name and version, such as ``numba 0.68.1``."""
    precision: Precision
    """Never ``auto``."""
    device: str
    max_probability_difference: float
    """Largest over the probe pictures and the classes, 0 to 1."""
    max_map_difference: float
    """Largest over the probe pictures, as a share of the range of the reference's map."""
    fallback_reason: str | None = None
    """Why this is not the runtime that was asked for, or not the fastest: a sentence for each that was passed over."""

    @property
    def fell_back(self) -> bool:
        """Whether a runtime before this one could not be used."""
        return self.fallback_reason is not None
