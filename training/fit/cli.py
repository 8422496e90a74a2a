"""The command `training kfold`."""

import csv
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.command import faults_told
from training.progress import ProgressBars

_STOPPED = (
    "what was done up to the last whole epoch is kept, and the same command with --resume goes on from there; no "
    "report was written"
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog="Example: training kfold radiographs/ --network efficientnet-b0 --epochs 30 --patients patients.csv"
    )(kfold)


def kfold(
    dataset: Annotated[Path, typer.Argument(help="Folder with one sub-folder a class.", show_default=False)],
    *,
    view: Annotated[
        str | None, typer.Option(metavar="full|crop", help="What the pictures show.", show_default="full")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="efficientnet-b0 to efficientnet-b7.", show_default="efficientnet-b7")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds.", show_default="5")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs of a fold.", show_default="100")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures a step, on each GPU.", show_default="4, for crops 8")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the first epoch.", show_default="0.001")] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH", help="At the network.", show_default="449x954, for crops the network's own"
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B+C", help="Classes in the order of the outputs.", show_default="C1,C3, or all folders"
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="X,Y", help="What results call them, in that order.")] = None,
    finding: Annotated[str | None, typer.Option(help="The class that is looked for.", show_default="the last")] = None,
    patients: Annotated[
        str | None,
        typer.Option(metavar="CSV|REGEX", help="Who is on which picture: a table, or a pattern for the file names."),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(metavar="on-the-fly|predecessor|none", help="Of the training part.", show_default="on-the-fly"),
    ] = None,
    class_weights: Annotated[
        bool | None,
        typer.Option("--class-weights/--no-class-weights", help="Count the rarer class more.", show_default="no"),
    ] = None,
    threshold_rule: Annotated[
        str | None,
        typer.Option(metavar="0.5|youden|sensitivity=0.9", help="Applied to the validation part.", show_default="0.5"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="none|imagenet|FILE", help="What training starts from.", show_default="none")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same folds, and on a CPU weights.", show_default="0")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="A fold ends after so many epochs without a lower validation loss.", show_default="20"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read pictures.", show_default="by the cores")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operation on the CPU.", show_default="PyTorch's choice")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="For options that are not given: the same names.")
    ] = None,
    folds_file: Annotated[
        Path | None, typer.Option(help="Folds of another run on the same data: its folds.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the run's folder is made.", show_default="runs")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where prepared pictures are kept.", show_default="the folder cache in --out")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")] = False,
) -> None:
    """Cross-validate a network: folds by patient, a validation part in each, the test part touched once; and report."""
    options = {
        "view": view,
        "network": network,
        "folds": folds,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "input_size": input_size,
        "classes": split_list(classes),
        "labels": split_list(labels),
        "finding": finding,
        "patients": patients,
        "augmentation": augmentation,
        "class_weights": class_weights,
        "threshold_rule": threshold_rule,
        "weights": weights,
        "seed": seed,
        "patience": patience,
        "workers": workers,
        "threads": threads,
        "folds_file": folds_file,
        "out": out,
        "cache": cache,
    }
    console = Console(stderr=True)
    bars = ProgressBars(transient=True, console=console)

    def say(sentence: str) -> None:
        bars.stop()
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    with faults_told(_STOPPED), bars:
        from training.fit.config import read_config

        wanted = read_config(options, file=config)
        from training.data.dataset import find_dataset
        from training.data.patients import patient_rule

        found = find_dataset(
            dataset,
            classes=wanted.classes,
            labels=wanted.labels,
            finding=wanted.finding,
            patients=patient_rule(wanted.patients),
        )
        import torch

        from training.fit.kfold import kfold as cross_validate

        if wanted.threads is not None:
            torch.set_num_threads(wanted.threads)
        preparing = bars.add("preparing pictures", total=len(found.pictures))
        made = cross_validate(found, wanted, resume=resume, say=say, on_prepared=preparing.advance)
    typer.echo(made)


def split_list(text: str | None) -> tuple[str, ...] | None:
    """The parts of a list with commas, where a part may stand in double quotes; None stays None."""
    if text is None:
        return None
    parts = next(csv.reader([text], skipinitialspace=True), [])
    return tuple(part.strip() for part in parts if part.strip())
