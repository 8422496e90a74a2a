"""ONNX Runtime as a runtime: of the libraries the fastest on a CPU.

Milliseconds a picture of b7 at 449×954 in float32 on two cores of an AMD EPYC (Zen 4), in batches of 1 and 2, the least
of four runs taken in turns: ONNX Runtime 585 and 578, OpenVINO 630 and 636, PyTorch with batch norms folded 917 and
1004.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from panoramic.classification import Classification, answers_with_maps, check_batch
from panoramic.errors import PanoramicError
from panoramic.model_file import Model
from panoramic.onnx_graph import INPUT, OUTPUTS, graph_of
from panoramic.runtime import Runtime

_ERRORS_ONLY = 3


class OnnxClassifier(Runtime):
    """A model run by ONNX Runtime in float32 on the CPU."""

    def __init__(self, model: Model, *, cache_dir: Path, threads: int = 0):
        """Export the model, or find it exported, and make it ready to run.

        Args:
            model: From `panoramic.model_file.load_model`.
            cache_dir: Folder of the exported graphs; see `panoramic.onnx_graph.graph_of`.
            threads: CPU threads; 0 for as many as PyTorch uses in this process.

        Raises:
            PanoramicError: The model cannot be exported or run, or the folder cannot be written.
        """
        super().__init__(model)
        version = onnxruntime.__version__
        threads = threads or torch.get_num_threads()
        graph = graph_of(model, cache_dir=cache_dir, runtime_version=version)
        try:
            self._session = make_session(graph, threads=threads)
        except Exception as exc:  # the library's errors have no common class
            raise PanoramicError(
                f"ONNX Runtime {version} cannot run model {model.manifest.name}; use the runtime pytorch"
            ) from exc

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain a batch, (N, 3, h, w); see `Runtime.classify` for the rule and the errors."""
        check_batch(self.model, batch)
        try:
            logits, maps = self._session.run(OUTPUTS, {INPUT: batch})
        except Exception as exc:  # the library's errors have no common class
            raise PanoramicError(
                f"ONNX Runtime failed on a batch of {len(batch)}; give the node more memory, or use smaller batches"
            ) from exc
        return answers_with_maps(self.model, logits, maps, where="cpu")


def make_session(graph: bytes, *, threads: int) -> onnxruntime.InferenceSession:
    """Make an exported graph (`panoramic.onnx_graph.export`) ready to run on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning take the cores from decoding and background removal, which go on meanwhile: with
    # others at work on the machine, a picture took a quarter to a half longer.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
