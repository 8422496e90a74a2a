"""A model card: what a person must know of a model file before using it, as Markdown beside the file.

Headings after Mitchell et al. 2019, Model Cards for Model Reporting, FAT* '19, arXiv:1810.03993. What the program does
not know is said to be unknown, never left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from panoramic.manifest import RESEARCH_USE, Manifest

UNKNOWN: Final = "Unknown to the program that wrote this card: to be filled in by the authors."

_FACTORS: Final = (
    "Sites, X-ray devices, exposure, positioning, metal and dental restorations, the state of the teeth, age and sex "
    "can all change the answers. The program knows none of them, so nothing below is broken down by any of them."
)
_ETHICS: Final = (
    "Radiographs are patient data even without a name in them. A heat map shows what an answer rests on; it is no "
    "localisation of disease."
)
_DIGESTS: Final = (
    "The file holds no picture, but digests of the pixels of the pictures that had a part in the weights: whoever has "
    "such a picture can tell that it was among them."
)
_OUT_OF_SCOPE: Final = (
    "Not for: diagnosis, triage or treatment; other pictures than those named above as its input; replacing bone "
    "densitometry (DXA)."
)


@dataclass(frozen=True)
class CardFacts:
    """What whoever made a model knows of it besides the manifest; what is left empty is shown as unknown.

    Attributes:
        commands: That made it, in their order.
        training_data: Rows of a table.
        training: Rows of a table: how it was trained.
        evaluation_data: On what it was judged.
        metrics: How it was judged, and how threshold and temperature were chosen.
        performance: Measure and value with interval, by the heading of a table.
        software: Package and version.
        caveats: Sentences.
    """

    commands: Sequence[str] = ()
    training_data: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    evaluation_data: Sequence[str] = ()
    metrics: Sequence[str] = ()
    performance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    caveats: Sequence[str] = ()


@dataclass(frozen=True)
class Stored:
    """How a model lies in its file.

    Attributes:
        file_name: Of the model file.
        size_bytes: Of the model file.
        sha256: Of the model file.
        half: Whether the weights are in half precision.
        check: What reading it back came to, in a sentence.
    """

    file_name: str
    size_bytes: int
    sha256: str
    half: bool
    check: str


def render_card(manifest: Manifest, facts: CardFacts, stored: Stored) -> str:
    """The card as Markdown."""
    sections = {
        "Model details": [_table(_details(manifest, stored)), stored.check],
        "Intended use": [_plain(manifest.intended_use), _OUT_OF_SCOPE],
        "Factors": [_FACTORS],
        "Metrics": [_bullets(facts.metrics)],
        "Evaluation data": [_bullets(facts.evaluation_data)],
        "Training data": [_plain(manifest.training_data) or UNKNOWN, _table(facts.training_data), _known(manifest)],
        "Training procedure": [_table(facts.training) or UNKNOWN],
        "Quantitative analyses": [_performance(facts.performance)],
        "Ethical considerations": [_ETHICS, _DIGESTS if manifest.trained_on else ""],
        "Caveats and recommendations": [_bullets([*facts.caveats, _screening(manifest)])],
        "How it was made": [_commands(facts.commands), _table(facts.software)],
        "How to load it": [_loading(stored.file_name)],
    }
    title = [f"# {manifest.name}, version {_plain(manifest.version)}", f"**{RESEARCH_USE}**"]
    body = [part for name, parts in sections.items() for part in (f"## {name}", *parts) if part]
    return "\n\n".join([*title, *body]) + "\n"


def _details(manifest: Manifest, stored: Stored) -> dict[str, str]:
    height, width = manifest.input_size
    together = f"{manifest.members} x {manifest.network}, the mean of their logits"
    precision = "half (float16), widened to float32 when read" if stored.half else "single (float32)"
    return {
        "Kind": f"{together if manifest.members > 1 else manifest.network} (Tan and Le 2019, arXiv:1905.11946)",
        "Authors, licence, contact": UNKNOWN,
        "Date": str(manifest.training_date or "unknown"),
        "File": f"{stored.file_name}, {stored.size_bytes / 1e6:.1f} MB, SHA-256 {stored.sha256}",
        "Digest of the weights": f"SHA-256 {manifest.sha256}",
        "Precision of the weights": precision,
        "Input": f"{_VIEWS[manifest.view]}, 8-bit grey, brought to {height} x {width} px (height x width)",
        "Preprocessing": manifest.preprocessing,
        "Output": "; ".join(f"{c.name}: {c.label}{' (the finding)' if c.finding else ''}" for c in manifest.classes)
        + (
            f"; outputs beyond these, of {manifest.outputs}, are not looked at"
            * (manifest.outputs > len(manifest.classes))
        ),
        "Threshold": f"{manifest.threshold:.6g}: the finding is reported from this probability on",
        "Temperature": f"{manifest.temperature:.6g}: logits are divided by it (Guo et al. 2017, arXiv:1706.04599)",
        "Every result carries": ", ".join(manifest.notices) or "no notice of its own",
        "Explanation": "Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the last convolution, computed exactly",
    }


_VIEWS: Final = {
    "full": "a whole panoramic radiograph, bone bright",
    "crop": "a square crop below the mental foramen of a panoramic radiograph, bone bright",
}


def _known(manifest: Manifest) -> str:
    if not manifest.trained_on:
        return (
            "Digests of the pictures it was trained on: unknown, so that no program can tell whether a picture was "
            "among them."
        )
    listed = (
        f"The manifest lists the pixel digests of {len(manifest.trained_on)} pictures that had a part in the weights "
        "or in a choice; `training evaluate` refuses them."
    )
    if manifest.trained_on_is_whole:
        return listed
    return f"{listed} The training began with weights of which that is unknown, so that there may be others."


def _screening(manifest: Manifest) -> str:
    finding = manifest.classes[manifest.finding_index].label
    return (
        f"A classification as {finding} is a reason to look, never a diagnosis. Predictive values change with how "
        "frequent the finding is."
    )


def _performance(tables: Mapping[str, Mapping[str, str]]) -> str:
    return "\n\n".join(f"### {name}\n\n{_table(rows)}" for name, rows in tables.items() if rows) or UNKNOWN


def _commands(commands: Sequence[str]) -> str:
    if not commands:
        return UNKNOWN
    listed = "\n".join(commands)
    return f"```sh\n{listed}\n```"


def _loading(file_name: str) -> str:
    return f"""A worker takes it as it is: `worker run --model {file_name}`. In Python:

```python
from pathlib import Path

from panoramic.image import load_radiograph
from panoramic.model_file import load_model
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier

model = load_model(Path("{file_name}"))
radiograph = load_radiograph(Path("radiograph.png"), view=model.manifest.view)
batch = prepare(radiograph.pixels, input_size=model.manifest.input_size)[None]
(answer,) = Classifier(model).classify(batch)
print(answer.diagnosis, answer.probability)
```"""


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(sentence)}" for sentence in sentences) or UNKNOWN


def _table(rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {_cell(name)} | {_cell(text)} |" for name, text in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line of text, in which names that people chose cannot become Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<])", r"\\\1", " ".join(text.split()))
