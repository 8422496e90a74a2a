"""A cross-validation on phantoms: what it leaves, that it is honest, that it goes on, and what it refuses."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from panoramic.image import load_radiograph
from panoramic.manifest import RESEARCH_USE
from panoramic.model_file import load_model
from panoramic.network import build
from panoramic.preprocess import prepare
from panoramic.radiograph import pixel_digest
from panoramic.runtime_torch import Classifier
from training.cli import app
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Dataset, find_dataset
from training.data.folds import draw_folds, write_folds
from training.data.patients import patient_rule
from training.errors import ResourcesError, RunError
from training.fit.checkpoints import BEST, LAST
from training.fit.config import TrainingConfig
from training.fit.final import FinalOptions, How, make_final
from training.fit.hardware import Hardware
from training.fit.kfold import kfold
from training.fit.memory import is_out_of_memory
from training.fit.module import FoldModule
from training.fit.run_folder import RunFolder
from training.fit.train import Feed, Trained, train_one
from training.fit.weights import starting_weights
from training.phantoms.phantom import draw_phantom, draw_truth
from training.phantoms.phantom_set import write_set
from training.report.checklists import CLAIM_2024, TRIPOD_AI

ROOT = Path(__file__).parents[2]
SIZE = (64, 160)
NAME = "efficientnet-b0_set_Batch4_2Ep"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    # The order of sums, and so the last bit, depends on their number.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of 24 phantoms, some patients having two."""
    folder = tmp_path_factory.mktemp("kfold")
    write_set(folder / "set", 36, 2, size_px=(121, 292), second_picture_share=0.4, processes=1)
    shutil.rmtree(folder / "set" / "C2")
    return folder


@pytest.fixture(scope="module")
def dataset(place: Path) -> Dataset:
    return find_dataset(place / "set", patients=patient_rule(str(place / "set" / "truth.csv")))


def configuration(place: Path, **changes: object) -> TrainingConfig:
    values = {
        "network": "efficientnet-b0", "folds": 2, "epochs": 2, "input_size": SIZE, "threshold_rule": "youden",
        "patients": str(place / "set" / "truth.csv"), "out": place / "runs", "cache": place / "cache",
    }  # fmt: skip
    return TrainingConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def run(place: Path, dataset: Dataset) -> RunFolder:
    """A finished run."""
    return RunFolder(kfold(dataset, configuration(place), hardware=Hardware(), progress_bar=False))


def weights_of(run: RunFolder) -> list[str]:
    return [load_model(run.model_path(fold)).manifest.sha256 for fold in run.folds_done()]


def command(place: Path, *more: str | Path) -> list[str]:
    return [
        sys.executable, "-m", "training", "kfold", str(place / "set"), "--network", "efficientnet-b0", "--folds", "2",
        "--epochs", "2", "--input-size", "64x160", "--threshold-rule", "youden", "--patients",
        str(place / "set" / "truth.csv"), "--cache", str(place / "cache"), "--threads", "1", *map(str, more),
    ]  # fmt: skip


def test_folder_has_the_predecessors_name_and_holds_everything(run: RunFolder) -> None:
    assert run.path.name == NAME
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    expected = {"configuration.json", "folds.json", "predictions.csv", "GT_vs_Predictions.json", "stats.txt"}
    expected |= {"report.html", "report.json"}
    for fold in (0, 1):
        expected |= {
            f"fold_{fold}/{name}" for name in ("model.safetensors", "validation.csv", "test.csv", "history.json")
        }
    assert {file for file in files if not file.startswith("tensorboard/")} == expected
    for fold in (0, 1):
        assert list((run.path / "tensorboard" / f"fold_{fold}").glob("events.out.tfevents.*"))


def test_record_says_what_was_done_with_which_data_and_versions(run: RunFolder, dataset: Dataset) -> None:
    record = run.configuration()
    assert record.config.batch_size == 4
    assert record.config.augmentation == "on-the-fly"
    assert record.pictures == dataset.counts()
    assert record.patients == len({picture.patient for picture in dataset.pictures}) < len(dataset.pictures)
    assert record.versions["torch"] == torch.__version__
    assert record.starting_weights == "none (random)"
    assert record.command == (
        f"training kfold {dataset.root} --network efficientnet-b0 --folds 2 --epochs 2 --input-size 64x160 "
        f"--patients {dataset.root / 'truth.csv'} --threshold-rule youden --out {run.path.parent} "
        f"--cache {run.path.parent.with_name('cache')}"
    )


def test_every_picture_is_tested_once_by_a_network_that_knows_neither_it_nor_its_patient(
    run: RunFolder, dataset: Dataset
) -> None:
    digests = {p.name: pixel_digest(load_radiograph(p.path).pixels) for p in dataset.pictures}
    predictions = run.predictions()
    assert sorted(predictions.names) == sorted(digests)
    for fold in (0, 1):
        seen = set(load_model(run.model_path(fold)).manifest.trained_on)
        tested = {n for n, of in zip(predictions.names, predictions.folds, strict=True) if of == fold}
        assert seen == {digest for name, digest in digests.items() if name not in tested}
        patients = {p.name: p.patient for p in dataset.pictures}
        validation = set(run.validation(fold).names)
        parts = [tested, validation, set(digests) - tested - validation]
        owners = [{patients[name] for name in part} for part in parts]
        assert sum(map(len, owners)) == len(set.union(*owners))
        assert all({name[:2] for name in part} == {"C1", "C3"} for part in parts)


def test_predictions_are_what_the_worker_would_answer(run: RunFolder, dataset: Dataset) -> None:
    predictions = run.predictions()
    diagnoses = predictions.diagnoses()
    paths = {picture.name: picture.path for picture in dataset.pictures}
    thresholds = np.array([predictions.thresholds[fold] for fold in predictions.folds.tolist()])
    # Far enough from the threshold for a sum in another order not to matter.
    for index in np.argsort(np.abs(predictions.scores - thresholds))[-3:].tolist():
        model = load_model(run.model_path(int(predictions.folds[index])))
        pixels = load_radiograph(paths[predictions.names[index]]).pixels
        (answer,) = Classifier(model).classify(prepare(pixels, input_size=SIZE)[None])
        assert answer.probability == pytest.approx(predictions.scores[index], abs=1e-6)
        assert answer.class_index == diagnoses[index]


def test_threshold_is_the_validation_parts_own(run: RunFolder) -> None:
    for fold in (0, 1):
        validation = run.validation(fold)
        threshold = load_model(run.model_path(fold)).manifest.threshold
        assert validation.thresholds == run.test(fold).thresholds == {fold: threshold}
        rates = metrics.roc_curve(validation.positives, validation.scores, drop_intermediate=False)
        flagged = validation.scores >= threshold
        reached = flagged[validation.positives].mean() - flagged[~validation.positives].mean()
        assert reached == pytest.approx((rates[1] - rates[0]).max())


def test_stats_and_pairs_are_right(run: RunFolder) -> None:
    with (run.path / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    truths = [["C1", "C3"].index(row["truth"]) for row in rows]
    answers = [["C1", "C3"].index(row["prediction"]) for row in rows]
    assert json.loads((run.path / "GT_vs_Predictions.json").read_text()) == {"GT": truths, "Predictions": answers}
    text = (run.path / "stats.txt").read_text()
    assert text.startswith(RESEARCH_USE)
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and line[0].isalpha()}
    for column, chosen in (
        (0, [row["fold"] == "0" for row in rows]),
        (1, [row["fold"] == "1" for row in rows]),
        (4, [True for _ in rows]),
    ):
        t, a = (np.array(values)[chosen] for values in (truths, answers))
        scores = np.array([float(row["probability_C3"]) for row in rows])[chosen]
        expected = {
            "Precision": metrics.precision_score(t, a, zero_division=np.nan),
            "Recall": metrics.recall_score(t, a),
            "F1-score": metrics.f1_score(t, a),
            "Accuracy": metrics.accuracy_score(t, a),
            "AUC": metrics.roc_auc_score(t, scores),
            "Specificity": metrics.recall_score(t, a, pos_label=0),
        }
        for name, value in expected.items():
            assert float(table[name][column]) == pytest.approx(value, abs=5e-5, nan_ok=True), name


def test_history_names_the_best_epoch_and_checkpoints_are_cleared_away(run: RunFolder) -> None:
    for fold in (0, 1):
        epochs = run.history(fold).epochs
        losses = [epoch.validation_loss for epoch in epochs]
        assert len(epochs) == 2
        assert run.history(fold).best_epoch == losses.index(min(losses, key=lambda loss: loss or np.inf)) + 1
        assert [epoch.learning_rate for epoch in epochs] == [1e-3, 1e-3]


def test_report_says_that_near_identical_pictures_were_not_looked_for(run: RunFolder) -> None:
    notes = json.loads((run.path / "report.json").read_text())["notes"]
    assert any(re.search("Near-identical pictures .* were not looked for; training check does", note) for note in notes)


def test_report_names_no_picture_and_no_patient(run: RunFolder, dataset: Dataset) -> None:
    page = (run.path / "report.html").read_text() + (run.path / "report.json").read_text()
    assert RESEARCH_USE in page
    for picture in dataset.pictures:
        assert picture.path.stem not in page
        assert picture.patient not in page


def test_run_on_phantoms_says_so_everywhere(run: RunFolder, dataset: Dataset) -> None:
    n = len(dataset.pictures)
    assert run.configuration().phantoms == n
    page, numbers = (run.path / "report.html").read_text(), json.loads((run.path / "report.json").read_text())
    told = f"All {n} pictures are synthetic radiographs (phantoms), drawn by a program"
    assert f"<h1>{numbers['title']}</h1>" in page
    assert numbers["title"].endswith("synthetic radiographs (phantoms)")
    assert numbers["notes"][0].startswith(told)
    assert numbers["facts"]["Data"]["Synthetic pictures"] == told
    for fold in (0, 1):
        manifest = load_model(run.model_path(fold)).manifest
        assert manifest.notices == ("demonstration_model",)
        assert "phantoms" in manifest.intended_use


def test_report_tells_preprocessing_and_design(run: RunFolder) -> None:
    facts = json.loads((run.path / "report.json").read_text())["facts"]
    assert facts["Model"]["Preprocessing"] == load_model(run.model_path(0)).manifest.preprocessing
    assert "stratified by class, grouped by patient;" in facts["Training"]["Design"]
    assert facts["Data"]["Folders left out"] == "none"


def test_report_of_an_earlier_versions_run_is_made_whole_by_going_on(run: RunFolder, place: Path, small: Path) -> None:
    earlier = RunFolder(shutil.copytree(run.path, small.parent / "runs" / NAME))
    path = earlier.path / "configuration.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in {"phantoms", "left_out"}}))
    (small / "C2").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        (small / "C2" / name).write_bytes(b"")
    dataset = find_dataset(small, patients=patient_rule(str(place / "set" / "truth.csv")))
    config = configuration(place, out=earlier.path.parent)

    kfold(dataset, config, resume=True, hardware=Hardware(), progress_bar=False)

    found = earlier.configuration()
    assert (found.phantoms, found.left_out) == (len(dataset.pictures), {"C2": 3})
    assert found.model_copy(update={"left_out": {}}) == run.configuration()
    numbers = json.loads((earlier.path / "report.json").read_text())
    assert numbers["facts"]["Data"]["Folders left out"] == "C2 (3 files)"
    claim = {row["item"]: row["answer"] for row in numbers["checklists"]["CLAIM 2024"]}
    assert claim["8"] == claim["10"] == "Folders left out: C2 (3 files)."
    assert weights_of(earlier) == weights_of(run)


def test_labels_of_the_test_part_cannot_change_the_weights(run: RunFolder, place: Path, dataset: Dataset) -> None:
    tested = set(run.test(0).names)
    lies = tuple(
        replace(picture, class_index=1 - picture.class_index) if picture.name in tested else picture
        for picture in dataset.pictures
    )
    config = configuration(place, out=place / "lies", folds_file=run.path / "folds.json")
    other = RunFolder(kfold(replace(dataset, pictures=lies), config, hardware=Hardware(), progress_bar=False))
    honest, deceived = run.test(0), other.test(0)
    assert np.array_equal(deceived.truths, 1 - honest.truths)
    assert weights_of(other)[0] == weights_of(run)[0]
    assert np.array_equal(deceived.probabilities, honest.probabilities)
    assert deceived.thresholds == honest.thresholds
    # In the other fold the same labels are trained on.
    assert weights_of(other)[1] != weights_of(run)[1]


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.timeout(600)
def test_stopped_and_killed_run_goes_on_to_the_same_result(run: RunFolder, place: Path) -> None:
    out = place / "stopped"
    folder = RunFolder(out / NAME)

    def begin(*more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command(place, "--out", out, *more), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    stopped = begin()
    wait_for(folder.fold_path(0) / LAST, stopped)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert "training: stopped. what was done up to the last whole epoch is kept" in said
    assert "--resume" in said
    assert "Traceback" not in said

    refused = subprocess.run(command(place, "--out", out), cwd=ROOT, text=True, capture_output=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "exists: go on with it by --resume" in refused.stderr

    killed = begin("--resume")
    wait_for(folder.fold_path(1) / LAST, killed)
    killed.kill()
    killed.communicate(timeout=120)
    assert folder.folds_done() == [0]
    first = folder.model_path(0).stat().st_mtime_ns

    going_on = begin("--resume")
    printed, said = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, said
    assert printed == f"{folder.path}\n"
    assert "1 of 2 folds are done" in said
    assert folder.model_path(0).stat().st_mtime_ns == first, "a finished fold is left as it is"
    # The same seed gave the same folds, and the interruptions changed nothing.
    assert (folder.path / "folds.json").read_bytes() == (run.path / "folds.json").read_bytes()
    assert weights_of(folder) == weights_of(run)
    assert (folder.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()
    assert not list(folder.path.rglob(f"*{LAST}*")) + list(folder.path.rglob(f"*{BEST}*"))


class Interrupted(PictureCache):
    """A cache whose reader is interrupted after so many pictures."""

    reads_left = 1_000_000

    def load(self, prepared: Prepared) -> NDArray[np.uint8]:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise KeyboardInterrupt
        return super().load(prepared)


class WithoutMemory(PictureCache):
    """A cache on a machine whose memory is full."""

    def load(self, _prepared: Prepared) -> NDArray[np.uint8]:
        raise MemoryError


def train(
    place: Path,
    dataset: Dataset,
    folder: Path,
    *,
    cache: type[PictureCache] = PictureCache,
    reads: int | None = None,
    contrary: bool = False,
    learning_rates: Sequence[float] = (),
    progress_bar: bool = False,
    **changes: object,
) -> Trained:
    """Train on nine pictures; contrary: steered by the same nine, each said to be of the other class."""
    config = configuration(place, **{"epochs": 4, **changes}).resolved()
    pictures = cache(place / "cache", view=config.view, input_size=SIZE)
    if isinstance(pictures, Interrupted) and reads is not None:
        pictures.reads_left = reads
    labels = np.array([picture.class_index for picture in dataset.pictures])
    prepared = pictures.prepare(dataset.pictures, processes=1)
    part = [0, 1, 2, 3, 14, 15, 16, 17, 18]
    return train_one(
        folder,
        Feed(pictures, [*prepared, *prepared], np.concatenate([labels, 1 - labels])),
        train=part,
        validation=[index + len(labels) for index in part] if contrary else [],
        outputs=2,
        config=config,
        starting=starting_weights("none", network=config.network, view=config.view),
        hardware=Hardware(),
        learning_rates=learning_rates,
        progress_bar=progress_bar,
    )


def test_retraining_without_validation_goes_on_to_the_same_weights(
    place: Path, dataset: Dataset, tmp_path: Path
) -> None:
    rates = [1e-3, 5e-4, 2e-4, 1e-4]
    whole = train(place, dataset, tmp_path / "whole", learning_rates=rates)
    assert [epoch.learning_rate for epoch in whole.history.epochs] == rates
    assert [epoch.validation_loss for epoch in whole.history.epochs] == [None] * 4
    with pytest.raises(KeyboardInterrupt):
        train(place, dataset, tmp_path / "parts", cache=Interrupted, reads=22, learning_rates=rates)
    # With a process that reads ahead as well.
    resumed = train(place, dataset, tmp_path / "parts", learning_rates=rates, workers=1)
    assert resumed.history == whole.history
    assert all(torch.equal(tensor, resumed.state_dict[name]) for name, tensor in whole.state_dict.items())


def test_validation_loss_lowers_the_learning_rate_and_ends_the_training(
    place: Path, dataset: Dataset, tmp_path: Path
) -> None:
    # The steering part says the contrary of the training part, so that its loss rises as the network learns.
    losses, rates = [], []
    trained = train(
        place, dataset, tmp_path / "fold", contrary=True, epochs=30, patience=9, augmentation="none", batch_size=9
    )
    for epoch in trained.history.epochs:
        assert epoch.validation_loss is not None
        losses.append(epoch.validation_loss)
        rates.append(epoch.learning_rate)
    assert len(losses) == trained.history.best_epoch + 9 < 30
    assert min(losses) == losses[-10] < losses[-1]
    expected = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(expected, factor=0.1, patience=5)
    for loss, rate in zip(losses, rates, strict=True):
        assert rate == expected.param_groups[0]["lr"]
        plateau.step(loss)
    assert rates[-1] == pytest.approx(1e-4)


def test_progress_bar_counts_epochs_from_one(
    place: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(place, dataset, tmp_path / "fold", epochs=1, progress_bar=True)
    shown = capsys.readouterr().err
    assert "Epoch 1/1" in shown
    assert "Epoch 0" not in shown


def test_running_out_of_memory_is_answered_with_what_to_change(place: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ResourcesError, match=r"batches of 4 pictures of 64x160: .*smaller --batch-size .*--input-size"):
        train(place, dataset, tmp_path / "fold", cache=WithoutMemory)


def test_pytorchs_own_words_for_a_full_memory_are_known() -> None:
    with pytest.raises(RuntimeError, match="memory") as full:
        torch.empty(2**50, dtype=torch.float64)
    assert is_out_of_memory(full.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RuntimeError, match="shape") as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(other.value)


def write_told_apart(folder: Path, *, shuffle: bool) -> None:
    """Pictures whose class shows in their contrast; shuffled, the folders say nothing of it."""
    folders = ["C1", "C3"] * 20
    if shuffle:
        folders = np.random.default_rng(4).permutation(folders).tolist()
    for place, name in enumerate(folders):
        pixels = draw_phantom(draw_truth(100 + place, "C1", size_px=(121, 292)))
        (folder / name).mkdir(parents=True, exist_ok=True)
        altered = (pixels * (1 if place % 2 else 0.15)).astype(np.uint8)
        cv2.imwrite(str(folder / name / f"{place}.png"), altered)


@pytest.mark.parametrize("shuffle", [False, True])
def test_shuffled_labels_are_guessed_and_true_ones_are_not(tmp_path: Path, shuffle: bool) -> None:
    write_told_apart(tmp_path / "set", shuffle=shuffle)
    config = TrainingConfig(
        network="efficientnet-b0", folds=2, epochs=4, input_size=SIZE, out=tmp_path / "out", augmentation="none"
    )
    run = kfold(find_dataset(tmp_path / "set"), config, hardware=Hardware(), progress_bar=False)
    auc = json.loads((run / "report.json").read_text())["pooled"]["auc"]
    if shuffle:
        assert auc["low"] < 0.5 < auc["high"]
    else:
        assert auc["low"] > 0.6


def test_nothing_is_claimed_of_patients_who_were_not_named_and_a_copy_is_no_patient(tmp_path: Path) -> None:
    write_told_apart(tmp_path / "set", shuffle=False)
    shutil.copy(tmp_path / "set" / "C1" / "0.png", tmp_path / "set" / "C3" / "copy.png")
    torch.save(build("efficientnet-b0", outputs=2).state_dict(), tmp_path / "found.pth")
    config = TrainingConfig(
        network="efficientnet-b0", folds=2, epochs=1, input_size=(32, 80), out=tmp_path / "out", augmentation="none",
        weights=str(tmp_path / "found.pth"),
    )  # fmt: skip
    run = RunFolder(kfold(find_dataset(tmp_path / "set"), config, hardware=Hardware(), progress_bar=False))
    numbers = json.loads((run.path / "report.json").read_text())
    assert run.configuration().patients == numbers["patients"] == 40
    assert (numbers["pictures"], numbers["patients_known"], numbers["phantoms"]) == (41, False, 0)
    facts = numbers["facts"]
    assert "Synthetic pictures" not in facts["Data"]
    assert facts["Data"]["Patients"].startswith("unknown: none were named")
    assert "stratified by class, each picture counted as a patient of its own;" in facts["Training"]["Design"]
    claim = {row["item"]: row for row in numbers["checklists"]["CLAIM 2024"]}
    assert claim["20"]["answer"] == "Picture: each picture was counted as a patient of its own; patients unknown."
    assert claim["20"]["lacks"] == "who is on which picture"
    manifest = load_model(run.model_path(0)).manifest
    assert manifest.notices == ()
    notes = " ".join(numbers["notes"])
    assert re.search(
        r"Pictures that are in the data set more than once: 1 \(.{8}\); in more than one class: 1\.", notes
    )
    # Nor of pictures that the starting weights may have seen, and so of whatever comes of them.
    assert "The starting weights (found.pth) do not say what they were trained on" in notes
    assert "whether its starting weights had seen it is unknown" in claim["19"]["answer"]
    assert claim["19"]["lacks"] == "what the starting weights were trained on; who is on which picture"
    final = load_model(make_final(run, None, options=FinalOptions(How.ENSEMBLE))).manifest
    assert [bool(one.trained_on) for one in (manifest, final)] == [True, True]
    assert [one.training_known for one in (manifest, final)] == [False, False]


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # of Lightning's own making
def test_weights_of_classes_count_alike_whatever_the_batches() -> None:
    """A part that lies sorted by class: a mean over the weights of a batch would cancel them."""
    weights = (0.5, 3.0)
    torch.manual_seed(0)
    x, truths = torch.randn(8, 3, 32, 32), torch.tensor([0] * 6 + [1] * 2)
    module = FoldModule(
        build("efficientnet-b0", outputs=2), learning_rate=1e-3, seed=0, stream=0, class_weights=weights
    )
    with torch.inference_mode():
        logits = module.eval()(x)
    of_each = torch.nn.functional.cross_entropy(logits, truths, reduction="none")
    expected = float((of_each * torch.tensor(weights)[truths]).mean())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for size in (2, 8):
        loader = DataLoader(TensorDataset(x, truths, truths), batch_size=size)
        (found,) = trainer.validate(module, loader, verbose=False)
        assert found["validation_loss"] == pytest.approx(expected, rel=1e-5), size


def test_every_word_of_the_checklists_finds_a_row_of_some_report(run: RunFolder, place: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "new", 12, 7, size_px=(121, 292), processes=1)
    shutil.rmtree(tmp_path / "new" / "C2")
    arguments = (run.model_path(0), tmp_path / "new", "--out", tmp_path / "report", "--resamples", "100")
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run.path, tmp_path / "report")]
    names = {
        name.casefold()
        for told_facts in reports
        for section, rows in told_facts["facts"].items()
        for name in (section, *rows)
    }
    asked = {word for item in (*CLAIM_2024, *TRIPOD_AI) for word in item.facts}
    assert [word for word in sorted(asked) if not any(word in name for name in names)] == []
    checked = CliRunner().invoke(app, ["check", str(place / "set"), "--json"]).stdout
    assert json.loads(checked)["fingerprint"]["digest"] == reports[0]["facts"]["Data"]["Digest of the data"]


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["kfold", *map(str, arguments)])
    return result.exit_code, result.stdout, re.sub(r"\s+", " ", result.stderr)


@pytest.fixture
def small(place: Path, tmp_path: Path) -> Path:
    """A copy of the data set that may be spoilt."""
    return shutil.copytree(place / "set", tmp_path / "set")


def refused(small: Path, place: Path, *more: str | Path) -> str:
    """The sentence by which a command is refused, after seeing that nothing was begun."""
    runs = small.parent / "runs"
    status, printed, said = invoke(
        small,
        "--network",
        "efficientnet-b0",
        "--input-size",
        "64x160",
        "--out",
        runs,
        "--cache",
        place / "cache",
        *more,
    )
    assert (status, printed) == (2, "")
    assert said.count("training: ") == 1
    assert "Traceback" not in said
    assert not list(runs.glob("*")) if runs.exists() else True
    return said


def test_empty_class_folder_is_named(small: Path, place: Path) -> None:
    shutil.rmtree(small / "C3")
    (small / "C3").mkdir()
    assert f"class folder {small / 'C3'} holds no pictures" in refused(small, place)


def test_one_class_is_not_enough(small: Path, place: Path) -> None:
    shutil.rmtree(small / "C3")
    assert "there is 1 class (C1), and at least 2 are needed" in refused(small, place)


def test_fewer_patients_than_folds_are_told(small: Path, place: Path) -> None:
    assert "use fewer folds or add patients" in refused(small, place, "--folds", "40")


def test_folds_that_cannot_be_are_told_before_any_picture_is_prepared(small: Path, place: Path, tmp_path: Path) -> None:
    names = [f"{name}/{path.name}" for name in ("C1", "C3") for path in sorted((small / name).iterdir())]
    drawn = draw_folds([name.startswith("C3") for name in names], names, folds=3, seed=0)
    write_folds(tmp_path / "folds.json", drawn, names, ["0" * 32 for _ in names])
    cache = tmp_path / "untouched"
    assert "use fewer folds or add patients" in refused(small, place, "--cache", cache, "--folds", "40")
    said = refused(small, place, "--cache", cache, "--folds-file", tmp_path / "folds.json")
    assert "has 3 folds, and 5 are asked for: give --folds 3" in said
    min((small / "C1").iterdir()).unlink()
    said = refused(small, place, "--cache", cache, "--folds-file", tmp_path / "folds.json", "--folds", "3")
    assert "names pictures that the data set does not hold" in said
    assert not cache.exists()


def test_unreadable_picture_is_named(small: Path, place: Path) -> None:
    (small / "C1" / "cut.png").write_bytes(min((small / "C1").iterdir()).read_bytes()[:300])
    assert "1 picture cannot be used" in refused(small, place)
    assert "C1/cut.png: " in refused(small, place)


def test_table_that_names_unknown_files_is_refused(small: Path, place: Path) -> None:
    (small / "who.csv").write_text((small / "truth.csv").read_text() + "C1/nobody.png,x,y" + ",1" * 24 + "\n")
    assert "names C1/nobody.png, which the data set does not hold" in refused(
        small, place, "--patients", small / "who.csv"
    )


def test_checkpoint_of_another_network_is_refused(small: Path, place: Path, run: RunFolder) -> None:
    said = refused(small, place, "--weights", run.model_path(0), "--network", "efficientnet-b1")
    assert "are of efficientnet-b0, and efficientnet-b1 is to be trained" in said


def test_starting_from_a_network_that_saw_the_pictures_is_refused(small: Path, place: Path, run: RunFolder) -> None:
    assert "every fold would be judged on pictures already seen" in refused(
        small, place, "--weights", run.model_path(0)
    )


def test_folds_of_other_pictures_are_refused(small: Path, place: Path, run: RunFolder) -> None:
    min((small / "C1").iterdir()).unlink()
    said = refused(small, place, "--folds", "2", "--folds-file", run.path / "folds.json")
    assert "names pictures that the data set does not hold" in said


def test_going_on_with_another_seed_is_refused(run: RunFolder, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    status, printed, said = invoke(*command(place, "--out", place / "runs", "--resume", "--seed", "5")[4:])
    assert (status, printed) == (2, "")
    assert "cannot be gone on with, since seed was 0 and is now 5" in said
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_going_on_with_other_epochs_or_batches_names_the_run_that_is_there(
    place: Path, dataset: Dataset, tmp_path: Path
) -> None:
    there = tmp_path / NAME
    there.mkdir()
    (tmp_path / "efficientnet-b0_set_two_Batch4_2Ep").mkdir()
    for change in ({"epochs": 3}, {"batch_size": 8}):
        config = configuration(place, out=tmp_path, cache=tmp_path / "cache", **change)
        with pytest.raises(RunError, match="does not exist, and there is (.*): to go on with that, give") as refusal:
            kfold(dataset, config, resume=True, hardware=Hardware(), progress_bar=False)
        assert f"there is {there}: to go on" in str(refusal.value)
    assert not (tmp_path / "cache").exists()


def test_going_on_with_other_folds_is_refused(run: RunFolder, place: Path, dataset: Dataset, tmp_path: Path) -> None:
    folds = json.loads((run.path / "folds.json").read_text())
    folds["folds"].reverse()
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    with pytest.raises(RunError, match=r"has other folds than .*which is gone on with: leave --folds-file out"):
        kfold(
            dataset,
            configuration(place, folds_file=tmp_path / "folds.json"),
            resume=True,
            hardware=Hardware(),
            progress_bar=False,
        )


def test_full_disk_ends_the_run_with_a_sentence_and_nothing_half_written(place: Path, run: RunFolder) -> None:
    out = place / "full"
    # 8 MB: enough for all small files, too little for the network's 16 MB.
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 16000; exec "$@"', "sh", *command(place, "--out", out)],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "was not written: " in done.stderr
    assert "free some space, then go on with --resume" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert list((out / NAME / "fold_0").iterdir()) == []
