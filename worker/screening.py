"""One radiograph in, one diagnosis and two pictures out: what a node does for each job, with no queue in sight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import ErrorCode, JobError, SettingsError
from panoramic import rolling_ball
from panoramic.classification import Classification
from panoramic.decoder import DecoderProcess
from panoramic.demonstration import demonstration_model
from panoramic.errors import (
    DecoderTimeoutError,
    ImageError,
    ImageTooLargeError,
    NotARadiographError,
    PanoramicError,
)
from panoramic.manifest import Manifest
from panoramic.model_file import load_model
from panoramic.overlay import Caption, caption_of, overlay_png, saliency_png, scale_map
from panoramic.preprocess import remove_background, to_tensor
from panoramic.radiograph import Limits
from panoramic.runtime_choice import LoadedRuntime, load_runtime
from panoramic.runtime_info import RuntimeInfo
from worker.paths import Destination, open_destination, read_input
from worker.pictures import remove_noted, write_pictures
from worker.settings import WorkerSettings, usable_cores

#: What a job goes through, in this order; also the keys of `timings_ms`.
STAGES = ("read", "background", "network", "pictures")

#: Warning of a result whose map is zero everywhere: the activation holds nothing in favour of the diagnosed class.
EXPLANATION_EMPTY = "explanation_empty"

#: Warning of a result whose network did not run on the fastest runtime: that one's answers were not the reference's.
RUNTIME_FALLBACK = "runtime_fallback"

#: Called at the beginning of each stage with its name. It may raise to abandon the job.
OnStage = Callable[[str], None]

#: Called with a note for `Screener.take_back` before the pictures get their names. It may raise to abandon the job.
OnPictures = Callable[[str], None]


@dataclass(frozen=True)
class Screening:
    """What the engine found in one radiograph.

    Attributes:
        classification: Diagnosis, probability and map.
        manifest: Of the model that answered.
        runtime: What ran it.
        saliency_img_path: The coloured map.
        overlay_img_path: The map on the radiograph.
        warnings: Codes: of the model, of the picture, of the explanation.
        timings_ms: Milliseconds by stage.
    """

    classification: Classification
    manifest: Manifest
    runtime: RuntimeInfo
    saliency_img_path: str
    overlay_img_path: str
    warnings: tuple[str, ...]
    timings_ms: dict[str, float]


@dataclass(eq=False)
class Prepared:
    """A radiograph on its way through the engine: read, and ready for the network.

    Attributes:
        loaded: The model that is to answer.
        stem: File name of the radiograph without its ending.
        pixels: (H, W) grey levels as read.
        tensor: (3, h, w), the network's input.
        destination: The open folder for the pictures.
        warnings: Codes about the picture.
        timings_ms: Milliseconds by stage, so far.
    """

    loaded: LoadedRuntime
    stem: str
    pixels: NDArray[np.uint8]
    tensor: NDArray[np.float32]
    destination: Destination
    warnings: tuple[str, ...]
    timings_ms: dict[str, float]
    _opened: ExitStack

    def close(self) -> None:
        """Let go of the folder."""
        self._opened.close()


class Screener:
    """The models of a node, loaded once, and the processes that decode pictures for it.

    A context manager: the decoders live from `__enter__` to `__exit__`. Pictures may be prepared, and others delivered,
    by `hands` threads each while another thread classifies.

    Args:
        settings: The node's.

    Attributes:
        hands: So many threads may prepare pictures at a time, and as many deliver them.

    Raises:
        SettingsError: A model file cannot be used, or the device is not there.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self.hands = settings.hands or max(1, usable_cores() // 4)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        paths = settings.model or (demonstration_model(),)
        self._runtimes: dict[str, LoadedRuntime] = {}
        for path in paths:
            try:
                model = load_model(path, view=settings.view)
                runtime = load_runtime(
                    model,
                    cache_dir=settings.state_dir / "runtimes",
                    device=settings.device,
                    runtime=settings.runtime,
                    precision=settings.precision,
                    threads=settings.threads,
                )
            except (PanoramicError, RuntimeError) as error:
                raise SettingsError(f"model {path}: {error}") from error
            name = model.manifest.name
            if name in self._runtimes:
                raise SettingsError(f"two of the models are named {name}; a name must be unique on a node")
            self._runtimes[name] = runtime
        self._limits = Limits()
        self._stack = ExitStack()
        self._remove_background: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
        if settings.background == "gpu":
            from worker.background import GpuBackground

            background = GpuBackground()
            self._stack.callback(background.close)
            self._remove_background = background.remove
        else:
            # All hands together have as many threads as there are cores.
            self._remove_background = partial(remove_background, threads=max(1, usable_cores() // self.hands))
        self._decoders: SimpleQueue[DecoderProcess] = SimpleQueue()

    def __enter__(self) -> Self:
        for _ in range(self.hands):
            decoder = DecoderProcess(
                timeout_s=self._settings.read_timeout_s, memory_bytes=self._settings.decoder_memory_mib * 2**20
            )
            self._decoders.put(self._stack.enter_context(decoder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the loaded models; the first is the default."""
        return tuple(self._runtimes)

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """What the model files say of the loaded models, in the same order."""
        return tuple(loaded.runtime.model.manifest for loaded in self._runtimes.values())

    @property
    def runtimes(self) -> dict[str, RuntimeInfo]:
        """What each model runs on, by its name."""
        return {name: loaded.description for name, loaded in self._runtimes.items()}

    def warm_up(self) -> None:
        """Run every stage once, so that no job pays for compilation, and a device that fails is noticed now."""
        rolling_ball.warm_up()
        for loaded in self._runtimes.values():
            loaded.runtime.warm_up()
        manifest = self._runtime(None).runtime.model.manifest
        blank = np.zeros((64, 160), np.uint8)
        label = manifest.classes[manifest.finding_index].label
        caption = Caption(label, label, probability=0, threshold=0, model=manifest.name, layer="")
        overlay_png(blank, blank, colormap=self._settings.colormap, caption=caption)

    def screen(self, img_path: str, destination_path: str, *, model: str | None = None) -> Screening:
        """Classify one radiograph, explain the answer and write the pictures.

        Args:
            img_path: Absolute path of the radiograph.
            destination_path: Absolute path of the folder for the pictures.
            model: Name of a loaded model; None for the first.

        Raises:
            JobError: The radiograph, the folder or the model cannot be used; no picture is left behind.
        """
        prepared = self.prepare(img_path, destination_path, model=model)
        (outcome,) = self.classify([prepared])
        if isinstance(outcome, JobError):
            raise outcome
        return self.deliver(prepared, outcome)

    def prepare(
        self,
        img_path: str,
        destination_path: str,
        *,
        model: str | None = None,
        on_stage: OnStage = lambda _: None,
    ) -> Prepared:
        """Read a radiograph and make it the network's input: the stages `read` and `background`.

        Args:
            img_path: Absolute path of the radiograph.
            destination_path: Absolute path of the folder for the pictures, which is made and kept open.
            model: Name of a loaded model; None for the first.
            on_stage: Called at the beginning of each stage.

        Raises:
            JobError: The radiograph, the folder or the model cannot be used.
        """
        timings_ms: dict[str, float] = {}
        loaded = self._runtime(model)
        manifest = loaded.runtime.model.manifest
        settings = self._settings
        with _coded_errors(), ExitStack() as opened:
            with _timed("read", timings_ms, on_stage):
                data = read_input(img_path, roots=settings.input_roots, max_bytes=self._limits.max_file_bytes)
                with self._decoder() as decoder:
                    radiograph = decoder.read(data, view=manifest.view)
                # After the picture, so that a wrong path leaves no empty folder; before the work, not to waste it.
                destination = opened.enter_context(open_destination(destination_path, roots=settings.output_roots))
            with _timed("background", timings_ms, on_stage):
                tensor = to_tensor(self._remove_background(radiograph.pixels), input_size=manifest.input_size)
            return Prepared(
                loaded,
                Path(img_path).stem,
                radiograph.pixels,
                tensor,
                destination,
                radiograph.warnings,
                timings_ms,
                opened.pop_all(),
            )

    def classify(self, batch: Sequence[Prepared]) -> list[Classification | JobError]:
        """Run the network once for all of a batch: the stage `network`.

        What cannot be answered together is answered one by one, so that each fails by itself.

        Args:
            batch: At least one, all for the same model. Those that fail are closed.
        """
        start = time.perf_counter()
        outcomes: list[Classification | JobError]
        try:
            with _coded_errors():
                outcomes = list(batch[0].loaded.runtime.classify(np.stack([prepared.tensor for prepared in batch])))
        except JobError as error:
            if len(batch) > 1:
                return [outcome for prepared in batch for outcome in self.classify([prepared])]
            batch[0].close()
            outcomes = [error]
        for prepared in batch:
            prepared.timings_ms["network"] = round((time.perf_counter() - start) * 1000, 3)
        return outcomes

    def deliver(
        self,
        prepared: Prepared,
        classification: Classification,
        *,
        on_stage: OnStage = lambda _: None,
        on_pictures: OnPictures = lambda _: None,
    ) -> Screening:
        """Write the pictures: the stage `pictures`.

        Args:
            prepared: The radiograph, which is closed.
            classification: What the network said of it.
            on_stage: Called at the beginning.
            on_pictures: Called before the pictures get their names.

        Raises:
            JobError: The folder cannot be written to; no picture is left behind.
        """
        manifest = prepared.loaded.runtime.model.manifest
        colormap = self._settings.colormap
        try:
            with _coded_errors(), _timed("pictures", prepared.timings_ms, on_stage):
                strength = scale_map(classification.cam, prepared.pixels.shape)
                saliency_path, overlay_path = write_pictures(
                    prepared.destination,
                    prepared.stem,
                    saliency=saliency_png(strength, colormap),
                    overlay=overlay_png(
                        prepared.pixels, strength, colormap=colormap, caption=caption_of(manifest, classification)
                    ),
                    now=datetime.now().astimezone(),
                    on_names=on_pictures,
                )
        finally:
            prepared.close()
        about = prepared.loaded.description
        empty = () if strength.any() else (EXPLANATION_EMPTY,)
        fallback = (RUNTIME_FALLBACK,) if about.fell_back else ()
        return Screening(
            classification,
            manifest,
            about,
            saliency_path,
            overlay_path,
            warnings=(*manifest.notices, *prepared.warnings, *empty, *fallback),
            timings_ms=prepared.timings_ms,
        )

    def take_back(self, destination_path: str, note: str) -> bool:
        """Remove the pictures of a note, those that are there; False if the folder cannot be used any more."""
        try:
            with open_destination(destination_path, roots=self._settings.output_roots) as destination:
                remove_noted(destination, note)
        except JobError:
            return False
        return True

    @contextmanager
    def _decoder(self) -> Iterator[DecoderProcess]:
        decoder = self._decoders.get()
        try:
            yield decoder
        finally:
            self._decoders.put(decoder)

    def _runtime(self, name: str | None) -> LoadedRuntime:
        if name is None:
            return next(iter(self._runtimes.values()))
        if name not in self._runtimes:
            raise JobError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"model {name} is not loaded here; available: {', '.join(self._runtimes)}",
            )
        return self._runtimes[name]


@contextmanager
def _timed(stage: str, timings_ms: dict[str, float], on_stage: OnStage) -> Iterator[None]:
    on_stage(stage)
    start = time.perf_counter()
    yield
    timings_ms[stage] = round((time.perf_counter() - start) * 1000, 3)


@contextmanager
def _coded_errors() -> Iterator[None]:
    """The one place where the engine's errors become codes of the contract."""
    try:
        yield
    except ImageTooLargeError as error:
        raise JobError(ErrorCode.IMAGE_TOO_LARGE, str(error)) from error
    except NotARadiographError as error:
        raise JobError(ErrorCode.NOT_A_RADIOGRAPH, str(error)) from error
    except DecoderTimeoutError as error:
        raise JobError(ErrorCode.DEADLINE_EXCEEDED, str(error)) from error
    except ImageError as error:
        raise JobError(ErrorCode.IMAGE_UNREADABLE, str(error)) from error
    except PanoramicError as error:
        raise JobError(ErrorCode.INTERNAL_ERROR, str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        torch.cuda.empty_cache()
        message = "the worker ran out of memory; run fewer nodes on this device, or give it more"
        raise JobError(ErrorCode.INTERNAL_ERROR, message, may_pass=True) from error
