"""The final model of a cross-validation: its weights, its decision, its card, and what stands in its way."""

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from efficientnet_pytorch import EfficientNet
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from bench.untrained import untrained_network
from panoramic.manifest import RESEARCH_USE, DiagnosisClass, ModelDescription
from panoramic.model_file import load_model, save_model
from panoramic.runtime_torch import Classifier
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Dataset, find_dataset
from training.errors import ResourcesError, RunError
from training.fit.cli_final import register
from training.fit.config import TrainingConfig
from training.fit.decision import decide, threshold_after
from training.fit.final import FinalOptions, How, make_final, retraining_schedule
from training.fit.hardware import Hardware
from training.fit.history import Epoch, History
from training.fit.kfold import assignment_digest
from training.fit.model_card import CardFacts
from training.fit.publish import publish
from training.fit.run_folder import PREDICTIONS, RunFolder, RunRecord
from training.fit.temperature import scale, scale_threshold
from training.phantoms.phantom_set import write_set
from training.predictions import Predictions, write_predictions
from training.report.context import ReportContext
from training.report.page import write_report

SIZE = (64, 160)
KFOLD = "training kfold set --network efficientnet-b0 --folds 2"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four phantoms each of C1 and C3."""
    folder = tmp_path_factory.mktemp("data") / "set"
    write_set(folder, 12, size_px=(121, 292), processes=1)
    return find_dataset(folder)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(dataset: Dataset, cache_folder: Path) -> list[Prepared]:
    config = TrainingConfig(input_size=SIZE)
    return PictureCache(cache_folder, view=config.view, input_size=SIZE).prepare(dataset.pictures, processes=1)


@functools.cache
def body() -> dict[str, torch.Tensor]:
    """Weights through which a signal gets."""
    return dict(untrained_network().state_dict())


def fold_weights(seed: int) -> dict[str, torch.Tensor]:
    """Different from fold to fold."""
    generator = torch.Generator().manual_seed(seed)
    return body() | {"_fc.weight": 0.3 * torch.randn(2, 1280, generator=generator)}


def judged(prepared: list[Prepared], classes: tuple[DiagnosisClass, ...], *, fold: int, seed: int) -> Predictions:
    """Predictions that are too sure, and sometimes wrong, of half of the pictures."""
    part = prepared[fold::2]
    truths = np.array([item.picture.class_index for item in part])
    logits = 3 * np.random.default_rng(seed).standard_normal(len(part)) + 2 * (2 * truths - 1)
    finding = 1 / (1 + np.exp(-logits))
    return Predictions(
        classes=classes,
        names=tuple(item.picture.name for item in part),
        digests=tuple(item.digest for item in part),
        patients=tuple(item.picture.patient for item in part),
        folds=np.full(len(part), fold, np.int64),
        truths=truths,
        probabilities=np.stack([1 - finding, finding], axis=1),
        thresholds={fold: 0.3 + 0.1 * fold},
    )


def history(*rates: float, best: int) -> History:
    losses = [0.5 if place == best else 1.0 for place in range(1, len(rates) + 1)]
    epochs = [
        Epoch(train_loss=0.7, validation_loss=loss, learning_rate=rate)
        for loss, rate in zip(losses, rates, strict=True)
    ]
    return History(epochs=epochs)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, prepared: list[Prepared], cache_folder: Path
) -> Path:
    """A finished cross-validation of two folds, its numbers made up and its files real."""
    out = tmp_path_factory.mktemp("runs")
    classes = tuple(cls.as_answer() for cls in dataset.classes)
    config = TrainingConfig(
        network="efficientnet-b0", folds=2, epochs=5, input_size=SIZE, threshold_rule="youden", workers=0, threads=1,
        augmentation="none", out=out, cache=cache_folder, seed=3, patients="(.+)",
    ).resolved()  # fmt: skip
    run = RunFolder(out / "efficientnet-b0_set_Batch4_5Ep")
    run.create(
        RunRecord(
            config=config,
            classes=dataset.classes,
            dataset="set",
            dataset_sha256=assignment_digest(prepared),
            pictures=dataset.counts(),
            patients=8,
            starting_weights="none (random)",
            starting_weights_sha256="",
            hardware="1 x cpu, precision 32-true",
            versions={"torch": torch.__version__},
            command=KFOLD,
            started_at="2025-01-31T00:00:00+00:00",
        )
    )
    tests = []
    for fold in (0, 1):
        run.fold_path(fold).mkdir()
        described = ModelDescription(
            name=f"fold{fold}", version="1", network="efficientnet-b0", classes=classes, input_size=SIZE,
            trained_on=tuple(item.digest for item in prepared[1 - fold :: 2]),
        )  # fmt: skip
        save_model(run.model_path(fold), described, state_dict=fold_weights(fold))
        tests.append(judged(prepared, classes, fold=fold, seed=fold))
        run.write_fold(
            fold,
            validation=judged(prepared, classes, fold=fold, seed=12 + fold),
            test=tests[-1],
            history=history(1e-3, 1e-3, 1e-4, best=1 + fold),
        )
    together = replace(
        tests[0],
        **{name: getattr(tests[0], name) + getattr(tests[1], name) for name in ("names", "digests", "patients")},
        **{
            name: np.concatenate([getattr(test, name) for test in tests])
            for name in ("folds", "truths", "probabilities")
        },
        thresholds={0: 0.3, 1: 0.4},
    )
    write_predictions(run.path / PREDICTIONS, together)
    facts = {
        "Data": {"Data set": "set"},
        "Model": {"Network": "efficientnet-b0"},
        "Training": {"Seed": "3"},
        "Software": {"torch": torch.__version__},
    }
    context = ReportContext(
        "A run", facts, threshold_rule="youden", notes=("A note | for <all>.",), patients_known=True,
        training_known=True, resamples=50,
    )  # fmt: skip
    write_report(run.path, together, context=context)
    return run.path


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> RunFolder:
    return RunFolder(shutil.copytree(finished, tmp_path / finished.name))


def validation(run: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    parts = [run.validation(fold) for fold in (0, 1)]
    return np.concatenate([p.probabilities for p in parts]), np.concatenate([p.truths for p in parts])


def test_the_temperature_is_that_of_maximum_likelihood_and_every_decision_stays(run: RunFolder) -> None:
    probabilities, truths = validation(run)
    logits = np.log(probabilities[:, 1:] / probabilities[:, :1])
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits, truths).coef_[0, 0]

    decision = decide(run)

    assert decision.temperature.value == pytest.approx(1 / slope, rel=1e-3)
    assert abs(decision.temperature.value - 1) > 0.1, "a temperature of 1 would test little"
    unscaled = threshold_after([run.validation(0), run.validation(1)], 1.0, rule="youden")
    scaled = scale(probabilities, decision.temperature.value)[:, 1]
    np.testing.assert_array_equal(scaled >= decision.threshold, probabilities[:, 1] >= unscaled)
    for fold in decision.folds:
        part = run.validation(fold.fold)
        own = threshold_after([part], 1.0, rule="youden")
        assert fold.chosen == part.thresholds[fold.fold]
        assert fold.scaled == pytest.approx(scale_threshold(own, decision.temperature.value))


def test_a_fixed_threshold_is_carried_over_too() -> None:
    probabilities = np.array([[0.65, 0.35], [0.8, 0.2], [0.1, 0.9]])
    part = predictions_of(probabilities, np.array([1, 0, 1]))

    found = threshold_after([part], 2.0, rule="0.3")

    assert ((scale(probabilities, 2.0)[:, 1] >= found) == [True, False, True]).all()
    assert 0.3 < found < 0.5


def test_with_three_classes_the_rule_chooses_on_scaled_probabilities() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet([1, 1, 1], size=60)
    truths = np.array([rng.choice(3, p=p) for p in probabilities])
    part = predictions_of(probabilities, truths)

    found = threshold_after([part], 0.5, rule="sensitivity=0.8")

    logits = torch.from_numpy(np.log(probabilities)) / 0.5
    scaled = torch.softmax(logits, dim=1).numpy()[:, 2]
    with_finding = np.sort(scaled[truths == 2])[::-1]
    lowest_allowed = with_finding[int(np.ceil(0.8 * len(with_finding))) - 1]
    below = scaled[scaled < lowest_allowed].max()
    assert below < found <= lowest_allowed


def predictions_of(probabilities: np.ndarray, truths: np.ndarray) -> Predictions:
    n, n_classes = probabilities.shape
    classes = tuple(DiagnosisClass(name=f"C{i}", label=f"C{i}", finding=i == n_classes - 1) for i in range(n_classes))
    names = tuple(map(str, range(n)))
    return Predictions(classes, names, names, names, np.zeros(n, np.int64), truths, probabilities, {0: 0.5})


def test_the_ensemble_averages_the_folds_logits(run: RunFolder, prepared: list[Prepared], tmp_path: Path) -> None:
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    logits = []
    for fold in (0, 1):
        net = EfficientNet.from_name("efficientnet-b0", num_classes=2)
        net.load_state_dict(fold_weights(fold))
        with torch.inference_mode():
            logits.append(net.eval()(x))
    decision = decide(run)

    made = make_final(run, tmp_path / "e.safetensors", options=FinalOptions(How.ENSEMBLE, commands=["training final"]))

    model = load_model(made)
    manifest = model.manifest
    expected = torch.softmax((logits[0] + logits[1]).double() / 2 / decision.temperature.value, dim=1).numpy()
    answers = Classifier(model).classify(x.numpy())
    np.testing.assert_allclose([[*a.probabilities.values()] for a in answers], expected, atol=1e-5)
    assert (manifest.members, manifest.network, manifest.input_size) == (2, "efficientnet-b0", SIZE)
    assert (manifest.threshold, manifest.temperature) == (decision.threshold, decision.temperature.value)
    assert set(manifest.trained_on) == {item.digest for item in prepared}
    assert manifest.name == "efficientnet-b0-set-ensemble"
    assert (manifest.intended_use, manifest.notices) == (RESEARCH_USE, ())


def test_half_precision_and_the_demonstrations_notice(run: RunFolder) -> None:
    options = FinalOptions(How.ENSEMBLE, name="demo", version="3", half=True, demonstration=True, commands=["x"])

    made = make_final(run, None, options=options)

    assert made == run.path / "demo.safetensors"
    stored = safetensors.torch.load_file(made)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    manifest = load_model(made).manifest
    assert manifest.notices == ("demonstration_model",)
    assert "phantoms" in manifest.intended_use
    assert manifest.intended_use.endswith(RESEARCH_USE)
    card = (run.path / "demo.md").read_text()
    assert "half (float16)" in card
    assert "Every result carries | demonstration\\_model |" in card
    assert "Its figures say nothing of patients" in card


def recorded(run: RunFolder, **changes: object) -> None:
    """Let the run's record say something else."""
    path = run.path / "configuration.json"
    record = json.loads(path.read_text())
    record["config"] |= {name: changes.pop(name) for name in list(changes) if name in record["config"]}
    path.write_text(json.dumps(record | changes))


def test_a_run_on_phantoms_makes_a_demonstration_without_being_told(run: RunFolder) -> None:
    recorded(run, phantoms=8)

    made = make_final(run, None, options=FinalOptions(How.ENSEMBLE))

    manifest = load_model(made).manifest
    assert manifest.notices == ("demonstration_model",)
    assert "phantoms" in manifest.intended_use
    assert manifest.training_data.startswith("Synthetic radiographs (phantoms), which say nothing of patients. set: ")
    card = made.with_suffix(".md").read_text()
    (evaluated,) = re.findall(r"## Evaluation data\n\n(.*?)\n## ", card, re.DOTALL)
    assert "on set, synthetic radiographs (phantoms): 8 pictures of 8 patients" in evaluated
    (trained,) = re.findall(r"## Training data\n\n(.*?)\n## ", card, re.DOTALL)
    assert trained.startswith("Synthetic radiographs (phantoms), which say nothing of patients.")


def test_without_patients_the_card_claims_no_separation_by_patient(run: RunFolder) -> None:
    recorded(run, patients="")  # of the configuration

    made = make_final(run, None, options=FinalOptions(How.ENSEMBLE))

    card = made.with_suffix(".md").read_text()
    assert "8 pictures (each counted as a patient of its own; patients unknown) (4 C1, 4 C3), each judged once" in card
    assert "whether it had seen other pictures of the same patient is unknown" in card
    assert "of 8 patients" not in card
    assert "had not seen its patient" not in card


def test_the_card_has_the_reports_numbers_and_the_commands(run: RunFolder, tmp_path: Path) -> None:
    options = FinalOptions(How.ENSEMBLE, commands=["training phantoms set --n 12", "training final run"])

    made = make_final(run, tmp_path / "m.safetensors", options=options)

    card = (tmp_path / "m.md").read_text()
    report = json.loads((run.path / "report.json").read_text())
    for part in ("pooled", "mean_of_folds"):
        auc = report[part]["auc"]
        assert f"| AUC | {auc['value']:.3f} (95 % interval {auc['low']:.3f} to {auc['high']:.3f}) |" in card
    assert f"```sh\ntraining phantoms set --n 12\n{KFOLD}\ntraining final run\n```" in card
    manifest = load_model(made).manifest
    assert f"Threshold {manifest.threshold:.4f}, chosen by the rule youden" in card
    assert f"Temperature {manifest.temperature:.4f}, fitted by maximum likelihood on 8 validation predictions" in card
    assert "8 pictures of 8 patients (4 C1, 4 C3)" in card
    assert "- A note | for \\<all>." in card
    assert manifest.sha256 in card
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    mitchell = ["Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"]
    mitchell += ["Quantitative analyses", "Ethical considerations", "Caveats and recommendations"]
    assert [heading for heading in headings if heading in mitchell] == mitchell


def test_the_cards_program_runs(
    run: RunFolder, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_final(run, None, options=FinalOptions(How.ENSEMBLE))
    (program,) = re.findall(r"```python\n(.*?)```", made.with_suffix(".md").read_text(), re.DOTALL)
    (run.path / "radiograph.png").write_bytes(dataset.pictures[0].path.read_bytes())
    monkeypatch.chdir(run.path)

    exec(program, {})

    assert re.fullmatch(r"(Healthy Patient|Patient with Osteoporosis) 0\.\d+\n", capsys.readouterr().out)


def test_retraining_takes_everything_and_repeats_itself(
    run: RunFolder, dataset: Dataset, prepared: list[Prepared]
) -> None:
    def made(name: str) -> Path:
        options = FinalOptions(How.RETRAIN, name=name)
        return make_final(run, None, options=options, dataset=dataset, hardware=Hardware(), progress_bar=False)

    one, two = load_model(made("one")), load_model(made("two"))

    assert one.manifest.sha256 == two.manifest.sha256
    assert set(one.manifest.trained_on) == {item.digest for item in prepared}
    assert (one.manifest.members, one.manifest.outputs) == (1, 2)
    # The run was recorded before phantoms were looked for, and the pictures themselves are asked.
    assert run.configuration().phantoms is None
    assert one.manifest.notices == ("demonstration_model",)
    assert "all 8 pictures (4 C1, 4 C3) of 8 patients" in one.manifest.training_data
    # Batch norm's statistics are taken anew with the final weights: over all 8 pictures, in batches of 4.
    assert one.state_dict["_bn0.num_batches_tracked"] == 2
    assert not any(torch.equal(one.state_dict["_fc.weight"], fold_weights(fold)["_fc.weight"]) for fold in (0, 1))
    assert "trained anew on all pictures for 2 epochs" in (run.path / "one.md").read_text()
    assert not list(run.path.glob("**/*.ckpt"))
    assert not list(run.path.glob("final*"))


def test_the_schedule_is_the_folds_median() -> None:
    histories = [
        history(1e-3, 1e-3, 1e-3, 1e-4, best=4),
        history(1e-3, 1e-4, 1e-5, best=2),
        history(1e-3, 1e-3, 1e-4, 1e-4, 1e-4, best=3),
    ]

    assert retraining_schedule(histories) == pytest.approx((1e-3, 1e-3, 1e-4))
    assert retraining_schedule(histories[:2]) == pytest.approx((1e-3, 5.5e-4, 5.05e-4, 1e-4))


Spoil = Callable[[RunFolder], object]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: (run.fold_path(1) / "test.csv").unlink(), "has 1 of 2 folds done: finish it"),
        (lambda run: (run.path / "report.json").unlink(), "report.json cannot be read: No such file"),
        (lambda run: (run.path / "report.json").write_text("{}"), "report.json is damaged or of another version"),
        (lambda run: (run.path / "report.json").write_text("no"), "report.json is damaged or of another version"),
        (lambda run: (run.path / "configuration.json").unlink(), "configuration.json cannot be read"),
        (
            lambda run: save_model(
                run.model_path(1),
                ModelDescription(name="x", version="1", network="efficientnet-b0"),
                state_dict=fold_weights(1),
            ),
            r"input_size \(449, 954\), and the run was configured with \(64, 160\): the file is of another run",
        ),
        (lambda run: (run.path / "m.safetensors").write_text("mine"), "m.safetensors exists and is left as it is"),
    ],
)
def test_says_what_stands_in_the_way_and_writes_nothing(run: RunFolder, spoil: Spoil, sentence: str) -> None:
    spoil(run)
    before = sorted(run.path.rglob("*"))

    with pytest.raises(RunError, match=sentence):
        make_final(run, run.path / "m.safetensors", options=FinalOptions(How.ENSEMBLE))

    assert sorted(run.path.rglob("*")) == before


def test_retraining_wants_the_runs_own_pictures(run: RunFolder, dataset: Dataset) -> None:
    fewer = replace(dataset, pictures=dataset.pictures[1:])

    with pytest.raises(RunError, match="retraining needs the pictures: give --dataset, the folder set of the run"):
        make_final(run, None, options=FinalOptions(How.RETRAIN))
    with pytest.raises(
        RunError, match=r"set is not the data set of the run: .* over 7 pictures, and the run .* over 8"
    ):
        make_final(run, None, options=FinalOptions(How.RETRAIN), dataset=fewer)


@pytest.mark.parametrize(
    ("bias", "sentence"),
    [
        ([7e4, 0.0], "_fc.bias has values beyond 65504, the largest of half precision"),
        # Half precision has no 2049: a difference of one logit is gone.
        ([2049.0, 2048.0], r"m.safetensors was not written: read back, its probabilities differ by up to 0.231 from"),
    ],
)
def test_half_precision_that_changes_answers_is_refused(tmp_path: Path, bias: list[float], sentence: str) -> None:
    weights = fold_weights(0) | {"_fc.weight": torch.zeros(2, 1280), "_fc.bias": torch.tensor(bias)}
    described = ModelDescription(name="m", version="1", network="efficientnet-b0", input_size=SIZE)

    with pytest.raises(RunError, match=sentence):
        publish(tmp_path / "m.safetensors", described, weights=weights, facts=CardFacts(), half=True)

    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_to(run: RunFolder, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    with pytest.raises(ResourcesError, match="closed cannot be written to"):
        make_final(run, closed / "m.safetensors", options=FinalOptions(How.ENSEMBLE))


def test_the_command_prints_the_files_path(run: RunFolder, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    out = tmp_path / "m.safetensors"

    done = CliRunner().invoke(app, ["final", str(run.path), "--how", "ensemble", "--out", str(out), "--half"])
    wrong = CliRunner().invoke(app, ["final", str(run.path), "--how", "guess"])
    missing = CliRunner().invoke(app, ["final", str(run.path)])

    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert load_model(out).manifest.members == 2
    assert (wrong.exit_code, wrong.stderr) == (2, "training: --how is 'guess'; it must be retrain or ensemble\n")
    assert missing.exit_code == 2
    assert "give --dataset" in missing.stderr
