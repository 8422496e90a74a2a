"""What a training run was asked for: options before a file before defaults, checked before anything is spent."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from panoramic.network import NETWORKS
from panoramic.preprocess import default_input_size
from panoramic.view import View
from training.data.augment import Augmentation
from training.errors import RunError
from training.report.metrics import parse_rule

#: Pictures a step (on each GPU, where there are several), by view, as in the published work.
DEFAULT_BATCH_SIZE: Final = {View.FULL: 4, View.CROP: 8}

#: ``--weights``: begin with random weights, or with those that the library's author trained on ImageNet.
NO_WEIGHTS: Final = "none"
IMAGENET_WEIGHTS: Final = "imagenet"

#: What may differ when a run goes on: how fast it is computed and where things are. (Another number of threads changes
#: the order of sums, and so last bits.)
CIRCUMSTANCES: Final = frozenset({"workers", "threads", "cache", "out", "folds_file"})

#: What a run compares by what it came to: `RunRecord` has the classes, and digests of the data set and the weights.
_COMPARED_BY_CONTENT: Final = frozenset({"classes", "labels", "finding", "patients", "weights"})

_Pixels = Annotated[int, Field(ge=32, le=4096)]


class TrainingConfig(BaseModel):
    """Everything that decides what a run computes, and a few circumstances (`CIRCUMSTANCES`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    view: View = View.FULL
    """What the pictures show."""
    network: str = "efficientnet-b7"
    """One of `panoramic.network.NETWORKS`."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 100
    """At most; `patience` can end a fold before."""
    batch_size: Annotated[int, Field(ge=2, le=4096)] | None = None
    """Pictures a step, by default `DEFAULT_BATCH_SIZE`; a single one would leave batch norm nothing to average."""
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-3
    input_size: tuple[_Pixels, _Pixels] | None = None
    """(height, width) at the network; by default what `panoramic.preprocess.default_input_size` says."""
    classes: tuple[str, ...] = ()
    """See `training.classes.choose_classes`, as for the next two."""
    labels: tuple[str, ...] = ()
    finding: str = ""
    patients: str = ""
    """See `training.data.patients.patient_rule`."""
    augmentation: Augmentation = Augmentation.ON_THE_FLY
    class_weights: bool = False
    """Whether the loss counts the rarer class more, in inverse proportion to its pictures."""
    threshold_rule: str = "0.5"
    """See `training.report.metrics.choose_threshold`; applied to the validation part."""
    weights: str = NO_WEIGHTS
    """What training starts from: none, imagenet, or a file of the same network."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    patience: Annotated[int, Field(ge=1, le=100_000)] = 20
    """A fold ends after so many epochs without a lower validation loss."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that read pictures; by default by the number of cores."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of one operation on the CPU; by default PyTorch's choice."""
    folds_file: Path | None = None
    """Folds of an earlier run on the same data set, to be used again."""
    out: Path = Path("runs")
    """Where run folders are made."""
    cache: Path | None = None
    """Where prepared pictures are kept; by default the folder ``cache`` in `out`."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, network: str) -> str:
        if network not in NETWORKS:
            raise ValueError(f"is {network!r}, but must be one of {', '.join(NETWORKS)}")
        return network

    @field_validator("threshold_rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        parse_rule(rule)
        return rule

    @field_validator("input_size", mode="before")
    @classmethod
    def _size_from_text(cls, size: object) -> object:
        if not isinstance(size, str):
            return size
        match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", size.strip(), re.IGNORECASE | re.ASCII)
        if match is None:
            raise ValueError(f"is {size!r}, but must be height x width in pixels, for example 449x954")
        return int(match[1]), int(match[2])

    @property
    def batch(self) -> int:
        """Pictures a step."""
        return self.batch_size or DEFAULT_BATCH_SIZE[self.view]

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) at the network."""
        return self.input_size or default_input_size(self.view, self.network)

    @property
    def cache_folder(self) -> Path:
        """Where prepared pictures are kept."""
        return self.cache or self.out / "cache"

    def resolved(self) -> "TrainingConfig":
        """The same with every default that depends on another field written out."""
        return self.model_copy(
            update={"batch_size": self.batch, "input_size": self.size_px, "cache": self.cache_folder}
        )


def read_config(options: Mapping[str, object], *, file: Path | None = None) -> TrainingConfig:
    """Put a configuration together.

    Args:
        options: Given on the command line, by field name; None or an empty tuple is an option that was not given.
        file: TOML with the same names (``batch_size`` or ``batch-size``), for what the options leave open.

    Raises:
        RunError: The file cannot be read, a name is unknown, or a value is not allowed.
    """
    values = _read_toml(file) if file else {}
    values.update({name: value for name, value in options.items() if value is not None and value != ()})
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as exc:
        raise RunError(_sentence(exc)) from exc


def differences(earlier: TrainingConfig, now: TrainingConfig) -> list[str]:
    """What differs between two configurations, each as ``name was … and is now …``.

    Left out are `CIRCUMSTANCES`, and the options that say where to find what `RunRecord` compares by its content.
    """
    before, after = earlier.resolved().model_dump(mode="json"), now.resolved().model_dump(mode="json")
    return [
        f"{name} was {_shown(before[name])} and is now {_shown(after[name])}"
        for name in before
        if name not in CIRCUMSTANCES | _COMPARED_BY_CONTENT and before[name] != after[name]
    ]


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as content:
            table = tomllib.load(content)
    except OSError as exc:
        raise RunError(f"configuration {file} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RunError(f"configuration {file} is no TOML: {exc}") from exc
    values = {name.replace("-", "_"): value for name, value in table.items()}
    allowed = list(TrainingConfig.model_fields)
    unknown = [name for name in values if name not in allowed]
    if unknown:
        raise RunError(f"configuration {file} sets {', '.join(unknown)}, but only these exist: {', '.join(allowed)}")
    return values


def _sentence(exc: ValidationError) -> str:
    faults = []
    for fault in exc.errors(include_input=True, include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else "configuration"
        words = fault["msg"].removeprefix("Value error, ")
        shown = words if words.startswith("is ") else f"is {_shown(fault['input'])}: {_lower(words)}"
        faults.append(f"{name} {shown}")
    return "; ".join(dict.fromkeys(faults))


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "nothing"
    return repr(value) if value == "" else str(value)


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]
