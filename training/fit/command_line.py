"""The command that asks for a configuration: every option written out, none hidden in a file."""

import csv
import io
import shlex
from pathlib import Path

from training.fit.config import TrainingConfig


def kfold_command(dataset: Path, config: TrainingConfig) -> str:
    """The `training kfold` that does what a configuration says, whether options or a file had said it.

    Paths stay as they were given, so that relative ones hold in the folder where the command was run.

    Args:
        dataset: Its folder.
        config: Options that have the value which they have by default are left out.
    """
    config = config.resolved()
    plain = TrainingConfig()
    # What a default is can depend on these three.
    usual = TrainingConfig(view=config.view, network=config.network, out=config.out).resolved()
    words = ["training", "kfold", str(dataset)]
    for name in TrainingConfig.model_fields:
        value = getattr(config, name)
        if value == getattr(plain if name in {"view", "network", "out"} else usual, name):
            continue
        option = "--" + name.replace("_", "-")
        words += [option] if value is True else [option, _as_text(name, value)]
    return shlex.join(words)


def _as_text(name: str, value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if name == "input_size":
        return "x".join(map(str, value))
    line = io.StringIO()
    # A label may hold a comma, and is quoted then.
    csv.writer(line, lineterminator="").writerow(value)
    return line.getvalue()
