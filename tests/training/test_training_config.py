"""What a run was asked for: options before a file before defaults, and every mistake told in a sentence."""

from pathlib import Path

import pytest

from panoramic.view import View
from training.errors import RunError
from training.fit.config import TrainingConfig, differences, read_config


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_published_training() -> None:
    config = TrainingConfig()
    # Dias et al. 2025: b7, 5 folds, 100 epochs, batch 4 (full) or 8 (crop), Adam 1e-3, 449 x 954 or the native square.
    assert (config.network, config.folds, config.epochs, config.batch) == ("efficientnet-b7", 5, 100, 4)
    assert (config.learning_rate, config.size_px) == (1e-3, (449, 954))
    crops = TrainingConfig(view=View.CROP, network="efficientnet-b3")
    assert (crops.batch, crops.size_px) == (8, (300, 300))


def test_option_goes_before_file_before_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'epochs = 7\nbatch-size = 6\nfolds = 3\ninput_size = "64x160"\nclasses = ["C1", "C2+C3"]\n')
    config = read_config({"epochs": 9, "folds": None, "classes": ()}, file=file)
    assert (config.epochs, config.batch_size, config.folds, config.seed) == (9, 6, 3, 0)
    assert config.input_size == (64, 160)
    assert config.classes == ("C1", "C2+C3")


def test_unknown_name_in_file_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    file = write(tmp_path, "epoch = 7\n")
    with pytest.raises(RunError, match=r"run\.toml sets epoch, but only these exist: view, network, folds, epochs"):
        read_config({}, file=file)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "resnet50"}, "network is 'resnet50', but must be one of efficientnet-b0, "),
        ({"view": "side"}, "view is side: input should be 'full' or 'crop'"),
        ({"folds": 1}, "folds is 1: input should be greater than or equal to 2"),
        ({"batch_size": 1}, "batch_size is 1: input should be greater than or equal to 2"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"input_size": "64"}, "input_size is '64', but must be height x width in pixels, for example 449x954"),
        ({"input_size": "8x8"}, "input_size is 8: input should be greater than or equal to 32"),
        ({"threshold_rule": "best"}, "threshold rule is 'best'; it must be"),
        ({"augmentation": "heavy"}, "augmentation is heavy: input should be 'on-the-fly', 'predecessor' or 'none'"),
        ({"seed": -1, "epochs": 0}, "epochs is 0: .*; seed is -1: "),
    ],
)
def test_value_that_is_not_allowed_is_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        read_config(options)


def test_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.toml is no TOML: "):
        read_config({}, file=write(tmp_path, "epochs 7"))
    with pytest.raises(RunError, match=r"none\.toml cannot be read: No such file"):
        read_config({}, file=tmp_path / "none.toml")


def test_differences_name_what_changes_the_result_and_no_circumstance() -> None:
    earlier = TrainingConfig(epochs=3, workers=0, out=Path("a"))
    assert differences(earlier, TrainingConfig(epochs=3, workers=4, threads=1, out=Path("b"), batch_size=4)) == []
    changed = differences(earlier, TrainingConfig(epochs=3, seed=5, input_size=(64, 160)))
    assert changed == ["input_size was 449, 954 and is now 64, 160", "seed was 0 and is now 5"]
