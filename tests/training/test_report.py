"""The page and its numbers: self-contained, accessible, without file names, the same for the same input."""

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from panoramic.manifest import HEALTHY_OR_OSTEOPOROSIS, RESEARCH_USE, DiagnosisClass
from training.errors import ResourcesError
from training.predictions import Predictions
from training.report.checklists import CLAIM_2024, MISSING, TRIPOD_AI, Item, fill_in
from training.report.page import CaseImages, ReportContext, write_report

N = 60
FACTS = {"Data": {"Data set": "phantoms"}, "Software": {"torch": "2.0", "Made at": "2026-01-02T03:04:05Z"}}


def predictions(*, folds: int = 2, classes: int = 2) -> Predictions:
    rng = np.random.default_rng(1)
    truths = np.arange(N) % classes
    raw = rng.random((N, classes)) + np.eye(classes)[truths] * 0.4
    names = [*HEALTHY_OR_OSTEOPOROSIS[:1], DiagnosisClass(name="C2", label="Between", finding=False)][: classes - 1]
    return Predictions(
        classes=(*names, HEALTHY_OR_OSTEOPOROSIS[1]),
        names=tuple(f"C1/Maria-Silva-{i}.png" for i in range(N)),
        digests=tuple(f"{i * 7919 + 4096:08x}{i:024x}" for i in range(N)),
        patients=tuple(f"Maria {i}" for i in range(N)),
        folds=np.arange(N) // 3 % folds,
        truths=truths,
        probabilities=raw / raw.sum(axis=1, keepdims=True),
        thresholds=dict.fromkeys(range(folds), 0.5),
    )


def explain(index: int) -> CaseImages:
    pixels = np.full((30, 70), index, np.uint8)
    png = io.BytesIO()
    Image.fromarray(np.full((40, 900, 3), 100, np.uint8)).save(png, "PNG")
    return CaseImages(pixels, png.getvalue())


def context(**changes: Any) -> ReportContext:
    given: dict[str, Any] = {
        "title": "A run",
        "facts": FACTS,
        "threshold_rule": "youden",
        "shortcuts": {"brightness": np.random.default_rng(2).random(N)},
        "patients_known": True,
        "training_known": True,
        "resamples": 100,
    }
    return ReportContext(**given | changes)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder: Path, of: Predictions, given: ReportContext) -> tuple[str, dict[str, Any]]:
    path = write_report(folder, of, context=given)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The page and its numbers, with pictures."""
    return written(tmp_path_factory.mktemp("report"), predictions(), context(explain=explain))


def test_page_is_well_formed_and_asks_for_nothing_from_outside(report: tuple[str, dict[str, Any]]) -> None:
    text, _ = report
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    targets = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert targets
    assert all(target.startswith(("#", "data:image/jpeg;base64,")) for target in targets)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text


def test_page_says_what_it_is_for_before_anything_else(report: tuple[str, dict[str, Any]]) -> None:
    text, numbers = report
    assert 0 < text.index(RESEARCH_USE) < text.index("<h1>")
    assert numbers["intended_use"] == RESEARCH_USE


def test_page_can_be_read_without_seeing_it(report: tuple[str, dict[str, Any]]) -> None:
    page = Page(report[0])
    assert page.all("html")[0]["lang"] == "en"
    images, drawings = page.all("img"), page.all("svg")
    assert len(images) == 24
    assert all(image["alt"] for image in images)
    named = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(named) == len(drawings) == 6
    assert all(attributes["aria-label"] for attributes in named)
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    headings = [name for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_drawings_are_valid_and_share_no_identity(report: tuple[str, dict[str, Any]]) -> None:
    text, _ = report
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 6
    identities = Counter(
        element.get("id") for drawing in drawings for element in ET.fromstring(drawing).iter() if element.get("id")
    )
    assert identities
    assert max(identities.values()) == 1
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', "".join(drawings)))
    assert used <= set(identities)


def test_neither_page_nor_numbers_hold_file_names_or_patients(report: tuple[str, dict[str, Any]]) -> None:
    text, numbers = report
    for content in (text, json.dumps(numbers)):
        assert "Maria" not in content
        assert ".png" not in content


def test_what_the_user_wrote_is_text_and_no_markup(tmp_path: Path) -> None:
    text, _ = written(
        tmp_path, predictions(), context(title="<script>a</script>", notes=["<b>x"], facts={"<i>": {"<u>": "<s>"}})
    )
    assert not Page(text).all("script")
    assert "&lt;script&gt;a&lt;/script&gt;" in text
    assert {"i", "u", "s"} & {tag for tag, _ in Page(text).tags} == set()


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        write_report(folder, predictions(), context=context(explain=explain))
    for name in ("report.html", "report.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_numbers_are_those_of_the_page(report: tuple[str, dict[str, Any]]) -> None:
    of = predictions()
    text, numbers = report
    assert numbers["schema_version"] == 1
    assert numbers["pooled"]["auc"]["value"] == pytest.approx(roc_auc_score(of.positives, of.scores), abs=1e-6)
    assert numbers["intervals"] == {
        "method": "percentile bootstrap over patients, within folds",
        "level": 0.95,
        "resamples": 100,
        "seed": 0,
    }
    groups = [numbers["pooled"], numbers["mean_of_folds"], *numbers["folds"].values()]
    assert len(groups) == 4
    for group in groups:
        assert len(group) == 13
        for key, found in group.items():
            assert set(found) == {"value", "low", "high", "n", "undefined"}
            if key == "ece" and group is not numbers["pooled"]:
                # 30 pictures a fold make three bins of ten.
                assert (found["value"], found["undefined"]) == (None, 100)
                continue
            assert f"{found['value']:.3f}".replace("-", "−") in text
            assert f"{found['low']:.3f} to {found['high']:.3f}".replace("-", "−") in text
    assert numbers["folds"]["1"]["auc"]["n"] == int((of.folds == 1).sum())
    assert sum(map(sum, numbers["confusion_matrix"]["counts"])) == N
    assert numbers["shortcuts"]["brightness"]["auc"]["value"] is not None


def test_three_classes_are_all_in_the_matrix(tmp_path: Path) -> None:
    text, numbers = written(tmp_path, predictions(classes=3), context())
    assert np.array(numbers["confusion_matrix"]["counts"]).shape == (3, 3)
    assert numbers["pooled"]["macro_f1"]["value"] is not None
    assert numbers["pooled"]["overall_accuracy"]["value"] is not None
    assert "Diagnosed: Between" in text
    assert "There are 3 classes." in text


def test_undefined_is_said(tmp_path: Path) -> None:
    of = predictions(folds=1)
    nobody = Predictions(
        of.classes, of.names, of.digests, of.patients, of.folds, np.zeros(N, np.int64), of.probabilities, of.thresholds
    )
    text, numbers = written(tmp_path, nobody, context(shortcuts={}))
    assert numbers["pooled"]["auc"] == {"value": None, "low": None, "high": None, "n": N, "undefined": 100}
    assert numbers["curves"]["roc"] is None
    assert "<td>pooled</td><td>AUC</td><td>100</td>" in text
    assert re.search(r"<dt>AUC</dt><dd>undefined</dd>", text)


def test_saved_model_has_neither_folds_nor_their_mean(tmp_path: Path) -> None:
    text, numbers = written(tmp_path, predictions(folds=1), context(shortcuts={}))
    assert numbers["mean_of_folds"] == {}
    assert 'id="folds"' not in text
    assert "one saved model" in text


def answers(numbers: dict[str, Any], checklist: str = "CLAIM 2024") -> dict[str, tuple[str | None, str | None]]:
    """What is answered and what is lacking, by item."""
    return {row["item"]: (row["answer"], row["lacks"]) for row in numbers["checklists"][checklist]}


def test_page_on_phantoms_says_so_before_any_number(tmp_path: Path) -> None:
    text, numbers = written(tmp_path, predictions(), context(phantoms=N, notes=["Another."]))
    assert "<h1>A run, synthetic radiographs (phantoms)</h1>" in text
    assert "<title>A run, synthetic radiographs (phantoms)</title>" in text
    told = "All 60 pictures are synthetic radiographs (phantoms), drawn by a program."
    assert 0 < text.index(told) < text.index('<dl class="cards">')
    assert numbers["notes"] == [f"{told} Phantoms are not patients: this says nothing of patients.", "Another."]
    assert numbers["title"] == "A run, synthetic radiographs (phantoms)"
    assert numbers["phantoms"] == N
    limits, _ = answers(numbers)["40"]
    assert limits is not None
    assert limits.startswith("Phantoms are not patients")


def test_few_phantoms_are_counted_and_none_are_not_mentioned(
    tmp_path: Path, report: tuple[str, dict[str, Any]]
) -> None:
    _, numbers = written(tmp_path, predictions(), context(phantoms=7))
    assert numbers["notes"][0].startswith("7 of 60 pictures are synthetic radiographs (phantoms)")
    text, numbers = report
    assert numbers["phantoms"] == 0
    # The data set of these tests is called phantoms; nothing else speaks of them.
    assert text.count("phantoms") == text.count("<td>phantoms</td>") + text.count("Data set: phantoms.")
    assert "synthetic" not in text


def test_separation_by_patient_is_claimed_only_where_patients_are_known(
    tmp_path: Path, report: tuple[str, dict[str, Any]]
) -> None:
    text, numbers = report
    assert answers(numbers)["20"] == ("Patient: all pictures of a patient are in the same part.", None)
    assert "60 pictures of 60 patients" in text
    assert "never saw its patient" in text
    assert numbers["patients_known"]

    text, numbers = written(tmp_path, predictions(), context(patients_known=False))
    assert not numbers["patients_known"]
    assert "patients unknown" in numbers["intervals"]["method"]
    answer, lacks = answers(numbers)["20"]
    assert answer == "Picture: each picture was counted as a patient of its own; patients unknown."
    assert lacks == "who is on which picture"
    answer, lacks = answers(numbers)["19"]
    assert answer is not None
    assert "other pictures of the same patient is unknown" in answer
    assert lacks == "who is on which picture"
    assert answers(numbers, "TRIPOD+AI")["12a"][1] == "who is on which picture"
    assert answers(numbers)["35"][1] == "those excluded beforehand; who is on which picture"
    assert "60 pictures (each counted as a patient of its own; patients unknown)" in text
    for claim in ("of 60 patients", "never saw its patient", "had not seen its patient", "resamples of patients"):
        assert claim not in text


def test_cross_validation_from_unknown_weights_claims_no_unseen_pictures(tmp_path: Path) -> None:
    for known in (True, False):
        text, numbers = written(tmp_path, predictions(), context(training_known=known))
        answer, lacks = answers(numbers)["19"]
        assert answer is not None
        assert ("had not seen its patient" in answer, "they do not say what they were trained on" in answer) == (
            known,
            not known,
        )
        assert lacks == (None if known else "what the starting weights were trained on")
        assert ("had not seen its patient" in text) == known
    _, numbers = written(tmp_path, predictions(), context(pretrained=True))
    answer, _ = answers(numbers)["19"]
    assert answer is not None
    assert "other pictures of the same patient cannot be told" in answer
    assert "had not seen its patient" not in answer


def test_saved_model_claims_no_more_than_digests_can_tell(tmp_path: Path) -> None:
    of = predictions(folds=1)
    _, numbers = written(tmp_path, of, context(shortcuts={}, training_known=True))
    answer, lacks = answers(numbers)["19"]
    assert answer == (
        "No picture with identical pixels had a part in the model's training or in any choice; re-encoded or resized "
        "copies, and other pictures of the same patients, cannot be recognised."
    )
    assert lacks is None
    _, numbers = written(tmp_path, of, context(shortcuts={}, training_known=False))
    answer, lacks = answers(numbers)["19"]
    assert answer == (
        "Whether the model was trained on these pictures cannot be checked: the model does not say what it was trained "
        "on."
    )
    assert lacks == "what the model was trained on"


def test_preprocessing_and_what_was_left_out_answer_their_items(tmp_path: Path) -> None:
    facts = {"Data": {"Folders left out": "C2 (12 files)"}, "Model": {"Preprocessing": "some-version/1"}}
    _, numbers = written(tmp_path, predictions(), context(facts=facts))
    claim = answers(numbers)
    assert claim["8"] == ("Folders left out: C2 (12 files).", "criteria, and why")
    assert claim["10"][0] == "Folders left out: C2 (12 files)."
    for answer, _ in (claim["9"], answers(numbers, "TRIPOD+AI")["7"]):
        assert answer is not None
        assert re.match(r"Every picture, whatever its class: .*rolling ball of radius 180 px", answer)
        assert answer.endswith("Preprocessing: some-version/1.")


def test_page_says_over_which_bins_the_calibration_error_is_taken(tmp_path: Path) -> None:
    text, _ = written(tmp_path, predictions(), context())
    told = " ".join(text.split())
    assert "for the pooled value 6, drawn once from all pictures; for a fold, and so for the mean of the folds," in told
    assert "Where fewer than 5 are possible it is undefined." in told


def test_difference_of_pooled_and_mean_auc_is_explained(report: tuple[str, dict[str, Any]]) -> None:
    text, _ = report
    assert "averaged as well as pooled" in text
    assert "calibrations" in text


def test_hardest_cases_are_the_most_wrong_with_small_pictures(report: tuple[str, dict[str, Any]]) -> None:
    of = predictions()
    text, numbers = report
    negatives = np.flatnonzero(~of.positives)
    worst = negatives[np.argsort(-of.scores[negatives])][:6]
    assert [case["digest"] for case in numbers["hardest_cases"]["without_finding"]] == [
        of.digests[i][:8] for i in worst
    ]
    positives = np.flatnonzero(of.positives)
    worst = positives[np.argsort(of.scores[positives])][:6]
    assert [case["digest"] for case in numbers["hardest_cases"]["with_finding"]] == [of.digests[i][:8] for i in worst]
    embedded = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    sizes = set()
    for data in embedded:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            sizes.add(image.size)
    assert sizes == {(70, 30), (720, 32)}


def test_checklists_are_whole_and_say_what_is_missing(report: tuple[str, dict[str, Any]]) -> None:
    assert [item.number for item in CLAIM_2024] == [str(k) for k in range(1, 45)]
    numbers = [int(re.sub(r"\D", "", item.number)) for item in TRIPOD_AI]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 28))
    assert len({item.number for item in TRIPOD_AI}) == len(TRIPOD_AI)
    text, told = report
    for name in ("CLAIM 2024", "TRIPOD+AI"):
        assert f"<h3>{name}</h3>" in text
    missing = [row for rows in told["checklists"].values() for row in rows if row["answer"] is None]
    assert text.count(MISSING) == len(missing) > 0
    funding = [row for row in told["checklists"]["CLAIM 2024"] if row["item"] == "44"]
    assert funding == [{"item": "44", "asks": "Funding, and the role of who gave it", "answer": None, "lacks": None}]


def test_item_is_answered_from_statements_and_facts() -> None:
    items = (
        Item("1", "A", "a", ("known",), ("software",), lacks="more"),
        Item("2", "A", "b", (), ("weights",)),
        Item("3", "A", "c", ("unknown",), lacks="all"),
    )
    facts = {"Software": {"torch": "2.0"}, "Model": {"Starting weights": "none.", "Network": "b0"}}
    first, second, third = fill_in(items, known={"known": "Said.", "unknown": ""}, facts=facts)
    assert (first.answer, first.lacks) == ("Said. torch: 2.0.", "more")
    assert (second.answer, second.lacks) == ("Starting weights: none.", "")
    assert (third.answer, third.lacks) == ("", "")


def test_full_or_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourcesError, match="report.json was not written: No such file or directory"):
        write_report(tmp_path / "nowhere", predictions(), context=context())
