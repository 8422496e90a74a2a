"""One radiograph in, one diagnosis and two pictures out: what a node does for each job, with no queue in sight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from contract.errors import ErrorCode, JobError, SettingsError
from panoramic import rolling_ball
from panoramic.decoder import DecoderProcess
from panoramic.demonstration import ensure_demonstration_model
from panoramic.errors import (
    DecoderTimeoutError,
    ImageError,
    ImageTooLargeError,
    NotARadiographError,
    PanoramicError,
)
from panoramic.manifest import Manifest
from panoramic.model_file import load_model
from panoramic.overlay import Caption, overlay_png, saliency_png, scale_map
from panoramic.preprocess import remove_background, to_tensor
from panoramic.radiograph import Limits
from panoramic.runtime import Classification, Classifier
from worker.paths import open_destination, read_input
from worker.pictures import remove_noted, write_pictures
from worker.settings import WorkerSettings

#: What a job goes through, in this order; also the keys of `timings_ms`.
STAGES = ("read", "background", "network", "pictures")

#: Warning of a result whose map is zero everywhere: the activation holds nothing in favour of the diagnosed class.
EXPLANATION_EMPTY = "explanation_empty"

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
        saliency_img_path: The coloured map.
        overlay_img_path: The map on the radiograph.
        warnings: Codes: of the model, of the picture, of the explanation.
        timings_ms: Milliseconds by stage.
    """

    classification: Classification
    manifest: Manifest
    saliency_img_path: str
    overlay_img_path: str
    warnings: tuple[str, ...]
    timings_ms: dict[str, float]


class Screener:
    """The models of a node, loaded once, and the process that decodes pictures for it.

    A context manager: the decoder lives from `__enter__` to `__exit__`. For one thread at a time.

    Raises:
        SettingsError: A model file cannot be used, or the device is not there.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        paths = settings.model or (ensure_demonstration_model(settings.state_dir / "models"),)
        self._classifiers: dict[str, Classifier] = {}
        for path in paths:
            try:
                model = load_model(path, view=settings.view)
                classifier = Classifier(model, device=settings.device)
            except (PanoramicError, RuntimeError) as error:
                raise SettingsError(f"model {path}: {error}") from error
            name = model.manifest.name
            if name in self._classifiers:
                raise SettingsError(f"two of the models are named {name}; a name must be unique on a node")
            self._classifiers[name] = classifier
        self._limits = Limits()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._decoder = self._stack.enter_context(
            DecoderProcess(
                timeout_s=self._settings.read_timeout_s, memory_bytes=self._settings.decoder_memory_mib * 2**20
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the loaded models; the first is the default."""
        return tuple(self._classifiers)

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """What the model files say of the loaded models, in the same order."""
        return tuple(classifier.model.manifest for classifier in self._classifiers.values())

    def warm_up(self) -> None:
        """Run every stage once, so that no job pays for compilation, and a device that fails is noticed now."""
        rolling_ball.warm_up()
        for classifier in self._classifiers.values():
            classifier.warm_up()
        manifest = next(iter(self._classifiers.values())).model.manifest
        blank = np.zeros((64, 160), np.uint8)
        label = manifest.classes[manifest.finding_index].label
        caption = Caption(label, label, probability=0, threshold=0, model=manifest.name, layer="")
        overlay_png(blank, blank, colormap=self._settings.colormap, caption=caption)

    def screen(
        self,
        img_path: str,
        destination_path: str,
        *,
        model: str | None = None,
        on_stage: OnStage = lambda _: None,
        on_pictures: OnPictures = lambda _: None,
    ) -> Screening:
        """Classify one radiograph, explain the answer and write the pictures.

        Args:
            img_path: Absolute path of the radiograph.
            destination_path: Absolute path of the folder for the pictures.
            model: Name of a loaded model; None for the first.
            on_stage: Called at the beginning of each of `STAGES`.
            on_pictures: Called before the pictures get their names.

        Raises:
            JobError: The radiograph, the folder or the model cannot be used; no picture is left behind.
        """
        timings_ms: dict[str, float] = {}

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            on_stage(name)
            start = time.perf_counter()
            yield
            timings_ms[name] = round((time.perf_counter() - start) * 1000, 3)

        classifier = self._classifier(model)
        manifest = classifier.model.manifest
        settings = self._settings
        with _coded_errors(), ExitStack() as opened:
            with stage("read"):
                data = read_input(img_path, roots=settings.input_roots, max_bytes=self._limits.max_file_bytes)
                radiograph = self._decoder.read(data, view=manifest.view)
                # After the picture, so that a wrong path leaves no empty folder; before the work, not to waste it.
                destination = opened.enter_context(open_destination(destination_path, roots=settings.output_roots))
            with stage("background"):
                background_removed = remove_background(radiograph.pixels)
            with stage("network"):
                tensor = to_tensor(background_removed, input_size=manifest.input_size)
                classification = classifier.classify(tensor[None])[0]
            with stage("pictures"):
                strength = scale_map(classification.cam, radiograph.pixels.shape)
                saliency_path, overlay_path = write_pictures(
                    destination,
                    Path(img_path).stem,
                    saliency=saliency_png(strength, settings.colormap),
                    overlay=overlay_png(
                        radiograph.pixels,
                        strength,
                        colormap=settings.colormap,
                        caption=_caption(manifest, classification),
                    ),
                    now=datetime.now().astimezone(),
                    on_names=on_pictures,
                )
        empty = () if strength.any() else (EXPLANATION_EMPTY,)
        return Screening(
            classification,
            manifest,
            saliency_path,
            overlay_path,
            warnings=(*manifest.notices, *radiograph.warnings, *empty),
            timings_ms=timings_ms,
        )

    def take_back(self, destination_path: str, note: str) -> bool:
        """Remove the pictures of a note, those that are there; False if the folder cannot be used any more."""
        try:
            with open_destination(destination_path, roots=self._settings.output_roots) as destination:
                remove_noted(destination, note)
        except JobError:
            return False
        return True

    def _classifier(self, name: str | None) -> Classifier:
        if name is None:
            return next(iter(self._classifiers.values()))
        if name not in self._classifiers:
            raise JobError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"model {name} is not loaded here; available: {', '.join(self._classifiers)}",
            )
        return self._classifiers[name]


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


def _caption(manifest: Manifest, classification: Classification) -> Caption:
    return Caption(
        class_label=classification.diagnosis,
        finding_label=manifest.classes[manifest.finding_index].label,
        probability=classification.probability,
        threshold=manifest.threshold,
        model=f"{manifest.name} {manifest.version}",
        layer=classification.layer,
        notices=tuple(code.replace("_", " ").upper() for code in manifest.notices),
    )
