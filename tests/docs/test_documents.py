"""What the documents list is what the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from contract.errors import ErrorCode
from contract.jobs import JobRequest, JobResult
from contract.names import Keys
from contract.settings import ENVIRONMENT_PREFIX
from panoramic.radiograph import ImageWarning
from worker.screening import EXPLANATION_EMPTY, RUNTIME_FALLBACK
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def first_cells(title: str) -> set[str]:
    """The codes in the first column of the table under a title."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", CONTRACT, re.MULTILINE | re.DOTALL)
    assert section is not None
    cells = re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)}


def test_every_error_code_is_explained() -> None:
    assert first_cells("Error codes") == {code.value for code in ErrorCode}


def test_every_warning_is_explained() -> None:
    ours = {code.value for code in ImageWarning}
    ours |= {EXPLANATION_EMPTY, RUNTIME_FALLBACK, "demonstration_model"}
    assert first_cells("Warnings") == ours


def test_every_setting_is_explained() -> None:
    ours = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in WorkerSettings.model_fields}
    assert first_cells("Settings") == ours


def test_every_field_of_a_request_is_explained() -> None:
    assert first_cells("Request") == set(JobRequest.model_fields)


def test_every_key_is_explained() -> None:
    keys = Keys()
    ours = {getattr(keys, name) for name, kind in vars(Keys).items() if isinstance(kind, property)}
    ours |= {keys.job("{id}"), keys.result("{id}"), keys.ready("{node}")}
    assert first_cells("Keys in Redis") == {key + "*" if key.endswith(":") else key for key in ours}


def test_the_example_result_is_one() -> None:
    example = re.search(r"```json\n(\{\n.*?)```", CONTRACT, re.DOTALL)
    assert example is not None
    assert json.loads(JobResult.model_validate_json(example[1]).model_dump_json()) == json.loads(example[1])


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name
)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []
