"""The commands `training final` and `training import`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from panoramic.view import View
from training.command import faults_told
from training.fit.cli import split_list
from training.progress import ProgressBars

_STOPPED = (
    "no model file was written; a retraining is kept up to its last whole epoch, and the same command goes on from "
    "there"
)

OutOption = Annotated[Path | None, typer.Option(metavar="FILE.safetensors", help="Model file to write.")]
NameOption = Annotated[str, typer.Option(help="By which a request asks for the model.", show_default=False)]
VersionOption = Annotated[str, typer.Option(help="Of the model.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: training final runs/efficientnet-b0_set_Batch4_30Ep --dataset set/ --half")(final)
    app.command("import", epilog="Example: training import efficientnet-b7_best.pth --out osteopan-b7.safetensors")(
        import_
    )


def final(
    run: Annotated[Path, typer.Argument(help="Folder of a finished cross-validation.", show_default=False)],
    *,
    how: Annotated[
        str, typer.Option(metavar="retrain|ensemble", help="One network trained on everything, or the folds' together.")
    ] = "retrain",
    dataset: Annotated[
        Path | None, typer.Option(help="The run's pictures: a folder with one sub-folder a class. For retrain.")
    ] = None,
    patients: Annotated[
        str | None, typer.Option(metavar="CSV|REGEX", help="As it was given to kfold, if the file has moved.")
    ] = None,
    out: OutOption = None,
    name: NameOption = "",
    version: VersionOption = "1",
    half: Annotated[bool, typer.Option("--half", help="Store half precision: half the size.")] = False,
    demonstration: Annotated[
        bool,
        typer.Option("--demonstration", help="Mark the model as trained on phantoms, where kfold could not tell."),
    ] = False,
    data_command: Annotated[
        list[str] | None, typer.Option(help="For the card: a command that made the data set. May be repeated.")
    ] = None,
) -> None:
    """Write the model that goes to the worker, with its card, from a finished cross-validation."""
    with faults_told(_STOPPED), ProgressBars(transient=True) as bars:
        from training.errors import RunError

        if how not in {"retrain", "ensemble"}:
            raise RunError(f"--how is {how!r}; it must be retrain or ensemble")
        import torch

        from training.data.dataset import find_dataset
        from training.data.patients import patient_rule
        from training.fit.final import FinalOptions, How, make_final
        from training.fit.run_folder import RunFolder

        folder = RunFolder(run)
        config = folder.configuration().config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        pictures = None
        if dataset is not None and how == How.RETRAIN:
            rule = patient_rule(config.patients if patients is None else patients)
            pictures = find_dataset(
                dataset, classes=config.classes, labels=config.labels, finding=config.finding, patients=rule
            )
        made = make_final(
            folder,
            out,
            options=FinalOptions(
                how=How(how),
                name=name,
                version=version,
                half=half,
                demonstration=demonstration,
                commands=(*(data_command or ()), _command()),
            ),
            dataset=pictures,
            on_prepared=bars.add("preparing pictures", total=len(pictures.pictures) if pictures else 0).advance,
        )
    typer.echo(made)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A predecessor's .pth file.", show_default=False)],
    *,
    view: Annotated[str, typer.Option(metavar="full|crop", help="What the network was trained on.")] = "full",
    out: OutOption = None,
    name: NameOption = "",
    version: VersionOption = "1",
    labels: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="What results call the classes, healthy first.", show_default=False),
    ] = None,
) -> None:
    """Make a model file, with a card, of a predecessor's checkpoint; weights and outputs stay as they are."""
    with faults_told("no model file was written"):
        from training.errors import RunError

        if view not in set(View):
            raise RunError(f"--view is {view!r}; it must be one of {', '.join(View)}")
        from training.fit.predecessor import import_checkpoint

        made = import_checkpoint(
            checkpoint,
            out,
            view=View(view),
            name=name,
            version=version,
            labels=split_list(labels) or (),
            command=_command(),
        )
    typer.echo(made)


def _command() -> str:
    return shlex.join(["training", *sys.argv[1:]])
