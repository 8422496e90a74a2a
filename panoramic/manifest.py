"""What a model file says of its weights: what goes in, what comes out, and what it may be used for."""

from datetime import date
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from panoramic.preprocess import FULL_INPUT_SIZE, PREPROCESSING_VERSION
from panoramic.view import View

#: What every result of a model says, unless the model was cleared for something.
RESEARCH_USE: Final = "For research use only. Not a medical device; not for diagnosis, triage or treatment."

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
_Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Pixels = Annotated[int, Field(ge=32, le=4096)]


class _Frozen(BaseModel):
    """Immutable, closed to unknown fields, and silent about its input when it is invalid."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DiagnosisClass(_Frozen):
    """One answer that the model can give."""

    name: _Text
    """Short name, such as the cortical class (Klemetti index) ``C1``."""
    label: _Text
    """What the result's ``diagnosis`` says."""
    finding: bool
    """Whether this is what the screening looks for; exactly one class is."""


#: The classes of the published networks, in the order of their outputs.
HEALTHY_OR_OSTEOPOROSIS: Final = (
    DiagnosisClass(name="C1", label="Healthy Patient", finding=False),
    DiagnosisClass(name="C3", label="Patient with Osteoporosis", finding=True),
)


class ModelDescription(_Frozen):
    """All of a manifest that the author of a model decides."""

    name: _Name
    """By which a request asks for it: letters, digits, ``.``, ``_``, ``+`` and ``-``."""
    version: _Text
    network: Annotated[str, Field(pattern=r"^efficientnet-b[0-7]$")]
    members: Annotated[int, Field(ge=1, le=100)] = 1
    """How many such networks there are: more than one is an ensemble, whose logits are the mean of theirs."""
    outputs: Annotated[int, Field(ge=2, le=100_000)] = 2
    """Width of the last layer; outputs beyond the classes are left over from pre-training and not looked at."""
    classes: Annotated[tuple[DiagnosisClass, ...], Field(min_length=2)] = HEALTHY_OR_OSTEOPOROSIS
    """In the order of the outputs."""
    view: View = View.FULL
    input_size: tuple[_Pixels, _Pixels] = FULL_INPUT_SIZE
    """(height, width) of the network's input."""
    preprocessing: _Text = PREPROCESSING_VERSION
    """`panoramic.preprocess.PREPROCESSING_VERSION` of the program that the model was trained with."""
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """The finding is reported from this probability on."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits are divided by it before softmax (Guo et al. 2017, arXiv:1706.04599); 1 changes nothing."""
    training_data: Annotated[str, Field(max_length=2000)] = ""
    training_date: date | None = None
    trained_on: tuple[_Digest, ...] = ()
    """`panoramic.radiograph.pixel_digest` of the pictures that had a part in the weights, or in any choice."""
    trained_on_is_whole: bool = True
    """Whether no others had; false where training began with weights of which that is unknown."""
    intended_use: Annotated[str, Field(min_length=1, max_length=2000)] = RESEARCH_USE
    notices: tuple[_Code, ...] = ()
    """Warning codes that every result of this model carries, such as ``demonstration_model``."""

    @model_validator(mode="after")
    def _classes_make_sense(self) -> Self:
        findings = sum(c.finding for c in self.classes)
        if findings != 1:
            raise ValueError(f"{findings} of the classes are the finding; exactly one must be")
        if len({c.name for c in self.classes}) < len(self.classes):
            raise ValueError("two classes have the same name")
        if len({c.label for c in self.classes}) < len(self.classes):
            raise ValueError("two classes have the same label")
        if self.outputs < len(self.classes):
            raise ValueError(f"{len(self.classes)} classes need as many outputs; there are {self.outputs}")
        return self

    @property
    def training_known(self) -> bool:
        """Whether it can be told of a picture that it had no part in the weights."""
        return bool(self.trained_on) and self.trained_on_is_whole

    @property
    def finding_index(self) -> int:
        """Which of the classes the screening looks for."""
        return next(i for i, c in enumerate(self.classes) if c.finding)


class Manifest(ModelDescription):
    """A model's description together with the digest of the weights that it describes."""

    schema_version: Literal[1] = 1
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the tensors as stored; `panoramic.model_file.digest_of` says over what exactly."""
