"""A run on disk: what is written is read again, and what is missing, damaged or another run's is told."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from training.classes import choose_classes
from training.errors import ResourcesError, RunError
from training.fit.checkpoints import WholeFiles, read_checkpoint, read_history
from training.fit.config import TrainingConfig
from training.fit.history import Epoch, History
from training.fit.preflight import check_places, run_bytes
from training.fit.run_folder import CONFIGURATION, RunFolder, RunRecord, run_folder_name
from training.predictions import Predictions

CLASSES = choose_classes(["C1", "C3"])


def record(**changes: object) -> RunRecord:
    values: dict[str, object] = {
        "config": TrainingConfig(network="efficientnet-b0").resolved(),
        "classes": CLASSES,
        "dataset": "set",
        "dataset_sha256": "a" * 64,
        "pictures": {"C1": 2, "C3": 1},
        "patients": 3,
        "starting_weights": "none (random)",
        "starting_weights_sha256": "",
        "hardware": "1 x cpu",
        "versions": {"torch": "2"},
        "command": "training kfold set",
        "started_at": datetime.now(UTC).isoformat(),
    }
    return RunRecord.model_validate(values | changes)


def predictions(fold: int) -> Predictions:
    return Predictions(
        classes=tuple(cls.as_answer() for cls in CLASSES),
        names=("C1/1.png", "C3/2.png"),
        digests=("0" * 32, "1" * 32),
        patients=("p", "q"),
        folds=np.full(2, fold),
        truths=np.array([0, 1]),
        probabilities=np.array([[0.75, 0.25], [0.1, 0.9]]),
        thresholds={fold: 0.3},
    )


def history(*losses: float) -> History:
    return History(epochs=[Epoch(train_loss=1, validation_loss=loss, learning_rate=1e-3) for loss in losses])


def test_name_is_the_predecessors() -> None:
    config = TrainingConfig(network="efficientnet-b5", epochs=30, batch_size=6)
    assert run_folder_name(config, "OPG C1xC3") == "efficientnet-b5_OPG C1xC3_Batch6_30Ep"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    written = record()
    run.create(written)
    assert run.configuration() == written
    assert run.folds_done() == []
    run.fold_path(1).mkdir()
    run.write_fold(1, validation=predictions(1), test=predictions(1), history=history(0.5, 0.2, 0.3))
    assert run.folds_done() == [1]
    assert run.history(1) == history(0.5, 0.2, 0.3)
    assert json.loads((run.fold_path(1) / "history.json").read_text())["best_epoch"] == 2
    assert run.validation(1).names == ("C1/1.png", "C3/2.png")
    assert run.test(1).thresholds == {1: 0.3}


def test_existing_folder_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"run exists: go on with it by --resume, or name another --out"):
        RunFolder(tmp_path / "run").create(record())
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"config": TrainingConfig(network="efficientnet-b0", seed=4).resolved()}, "since seed was 0 and is now 4"),
        (
            {"dataset_sha256": "b" * 64},
            r"the data set had 3 pictures of 3 patients \(digest aaaaaaaaaaaa\) and has now",
        ),
        ({"starting_weights_sha256": "c" * 64}, "the starting weights had the digest none and have now cccccccccccc"),
        (
            {"classes": choose_classes(["C1", "C3"], wanted=["C3", "C1"])},
            r"classes were C1 \(Healthy Patient\), C3 \(Patient with Osteoporosis, the finding\) and are now C3 ",
        ),
    ],
)
def test_going_on_with_something_else_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(record())
    run.require_same(record(versions={"torch": "3"}, hardware="4 x cuda"))
    with pytest.raises(RunError, match=sentence):
        run.require_same(record(**change))


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(
        RunError, match=r"configuration\.json cannot be read: No such file.*name the folder of a finished"
    ):
        run.configuration()
    run.create(record())
    with pytest.raises(RunError, match=r"validation\.csv cannot be read"):
        run.validation(0)
    with pytest.raises(RunError, match=r"predictions\.csv cannot be read"):
        run.predictions()
    run.fold_path(0).mkdir()
    (run.fold_path(0) / "history.json").write_text('{"best_epoch": 1, "epochs": [{"epoch": 1}]}')
    with pytest.raises(RunError, match=r"history\.json is damaged; delete the folder"):
        run.history(0)
    (run.path / CONFIGURATION).write_text('{"schema_version": 1}')
    with pytest.raises(RunError, match=r"configuration\.json is damaged or of another version of this program: config"):
        run.configuration()


def test_only_one_process_writes_at_a_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(record())
    with run.held(), pytest.raises(RunError, match="is being written to by another process"), run.held():
        raise AssertionError("held twice")
    with run.held():
        pass


def test_best_epoch_is_the_first_lowest_and_training_ends_in_time() -> None:
    found = history(0.9, 0.4, 0.6, 0.4)
    assert found.best_epoch == 2
    assert not found.ended(epochs=10, patience=3)
    assert found.ended(epochs=10, patience=2)
    assert found.ended(epochs=4, patience=100)
    assert not History().ended(epochs=1, patience=1)
    with pytest.raises(RunError, match="no epoch was trained"):
        _ = History().best_epoch


def test_without_validation_the_last_epoch_is_the_best() -> None:
    epoch = Epoch(train_loss=1, validation_loss=None, learning_rate=1e-3)
    found = History().then(epoch).then(epoch).then(epoch)
    assert found.best_epoch == 3
    assert not found.ended(epochs=4, patience=1)


class Planted:
    """An object whose unpickling would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_checkpoint_that_would_run_something_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "more": Planted(tmp_path / "trace")}, path)
    with pytest.raises(RunError, match=r"is damaged, or holds more than tensors and numbers \(nothing was run\)"):
        read_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    with pytest.raises(RunError, match="holds no history of epochs"):
        read_history(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"last\.ckpt is damaged.*go on with --resume, which trains this fold again"):
        read_history(path)


def test_checkpoint_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    files = WholeFiles()
    files.save_checkpoint({"epoch": 1}, path)
    (tmp_path / "held").mkdir()
    with pytest.raises(ResourcesError, match=r"last\.ckpt was not written: .*go on with --resume"):
        files.save_checkpoint({"epoch": 2}, tmp_path / "gone" / "last.ckpt")
    assert files.load_checkpoint(path) == {"epoch": 1}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["held", "last.ckpt"]


def test_run_that_the_disk_cannot_hold_is_refused_before_it_begins(tmp_path: Path) -> None:
    config = TrainingConfig(network="efficientnet-b0", folds=2, out=tmp_path / "out").resolved()
    # 4 M parameters of 4 bytes, twice for the folds, and seven times for the training's state.
    assert 9 * 16e6 < run_bytes(config, outputs=2) < 9 * 17e6 + 60e6
    check_places(config, pictures=10, outputs=2)
    with pytest.raises(ResourcesError, match=r"GB free, and the run needs about \d+\.\d GB there: free some space"):
        check_places(config, pictures=10**9, outputs=2)


def test_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = TrainingConfig(network="efficientnet-b0", out=tmp_path / "file").resolved()
    with pytest.raises(ResourcesError, match=r"file cannot be written to: File exists; name another --out or --cache"):
        check_places(config, pictures=1, outputs=2)
