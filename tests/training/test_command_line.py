"""The command of a configuration, read again by the command line itself."""

import shlex
from pathlib import Path

import pytest
import typer

from panoramic.view import View
from training.cli import app
from training.data.augment import Augmentation
from training.fit.cli import split_list
from training.fit.command_line import kfold_command
from training.fit.config import TrainingConfig, read_config


def understood(command: str) -> tuple[Path, TrainingConfig]:
    """What `training kfold` takes a command for."""
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("training", "kfold")
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    options = dict(group.commands[name].make_context(name, arguments).params)
    assert options.pop("config") is None
    assert options.pop("resume") is False
    dataset = options.pop("dataset")
    options |= {name: split_list(options[name]) for name in ("classes", "labels")}
    return Path(dataset), read_config(options)


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(),
        TrainingConfig(view=View.CROP, network="efficientnet-b3", out=Path("elsewhere")),
        TrainingConfig(
            view=View.CROP,
            network="efficientnet-b2",
            folds=4,
            epochs=7,
            batch_size=16,
            learning_rate=3e-05,
            input_size=(160, 340),
            classes=("C1", "C2+C3"),
            labels=("Healthy, or nearly", 'So-called "porous"'),
            finding="C2+C3",
            patients=r"(.+?)_\d 'x'",
            augmentation=Augmentation.PREDECESSOR,
            class_weights=True,
            threshold_rule="sensitivity=0.9",
            weights="runs/first run/fold_0/model.safetensors",
            seed=5,
            patience=3,
            workers=0,
            threads=2,
            folds_file=Path("folds.json"),
            out=Path("my runs"),
            cache=Path("cache"),
        ),
    ],
)
def test_command_is_understood_as_the_configuration_that_it_is_of(config: TrainingConfig) -> None:
    dataset, found = understood(kfold_command(Path("my set"), config))
    assert dataset == Path("my set")
    assert found.resolved() == config.resolved()


def test_options_of_a_file_are_written_out_and_defaults_are_not(tmp_path: Path) -> None:
    file = tmp_path / "finish.toml"
    file.write_text('network = "efficientnet-b0"\nepochs = 4\nbatch-size = 4\nweights = "learnt/model.safetensors"\n')
    config = read_config({"threads": 2, "workers": 0}, file=file)
    assert kfold_command(Path("finish"), config) == (
        "training kfold finish --network efficientnet-b0 --epochs 4 --weights learnt/model.safetensors --workers 0 "
        "--threads 2"
    )
