"""The command `training evaluate`."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from panoramic.view import View
from training.command import faults_told
from training.errors import DatasetError
from training.progress import ProgressBars


def register(app: typer.Typer) -> None:
    """Add the command to the command line `training`."""
    app.command(epilog="Example: training evaluate model.safetensors radiographs/ --patients patients.csv")(evaluate)


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors, or a predecessor's .pth).")],
    dataset: Annotated[Path, typer.Argument(help="Folder with a sub-folder for each of the model's classes.")],
    *,
    patients: Annotated[
        str, typer.Option(help="Table (CSV with path and patient_id) or regular expression that tells patients apart.")
    ] = "",
    classes: Annotated[
        str,
        typer.Option(help="Folders of the model's classes where names differ: C1=healthy,C3=osteoporosis+porous."),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report, new or empty; by default evaluation_MODEL_DATASET.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps prepared pictures for other runs.")] = None,
    view: Annotated[View, typer.Option(help="What the pictures show; asked of a .pth only.")] = View.FULL,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at the network at once.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 2000,
) -> None:
    """Judge a saved model on pictures that it has not seen, and write a report."""
    with faults_told(), ExitStack() as stack:
        from panoramic.model_file import load_model
        from panoramic.runtime_torch import Classifier
        from training.data.patients import patient_rule
        from training.explain.new_folder import check_new
        from training.report.evaluate import Evaluation, now
        from training.report.evaluate import evaluate as judge

        place = out or Path(f"evaluation_{model.stem}_{dataset.absolute().name}")
        # A mistake shows before anything slow is done.
        check_new(place)
        wanted = Evaluation(
            folders=parse_classes(classes),
            patients=patient_rule(patients) if patients else None,
            batch_size=batch_size,
            seed=seed,
            resamples=resamples,
            made_at=now(),
        )
        runtime = Classifier(load_model(model, view=view), device=device)
        kept = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osteopan-")))
        bars = stack.enter_context(ProgressBars())
        preparing = bars.add("prepared")
        classifying = bars.add("classified")

        def found(n: int) -> None:
            preparing.expect(n)
            classifying.expect(n)

        page = judge(
            runtime,
            dataset,
            out=place,
            cache_folder=kept,
            wanted=wanted,
            on_found=found,
            on_prepared=preparing.advance,
            on_classified=classifying.advance,
        )
    typer.echo(page)


def parse_classes(text: str) -> dict[str, str]:
    """Folders by class name from text such as ``C1=healthy,C3=sick+porous``.

    Raises:
        DatasetError: The text is of another form, or names a class twice.
    """
    folders: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, folder = (piece.strip() for piece in part.partition("="))
        if not (name and equals and folder) or name in folders:
            raise DatasetError(
                f"classes is {text!r}; it must give each class once, as CLASS=FOLDER or CLASS=FOLDER+FOLDER, separated "
                "by commas"
            )
        folders[name] = folder
    return folders
