"""The commands `training check` and `training crops`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from panoramic.view import View
from training.command import faults_told
from training.data.coco import FolderBy
from training.progress import ProgressBars

#: The data set can be read, and something in it should be put right.
EXIT_WRONG = 1


def register(app: typer.Typer) -> None:
    """Add the commands that look at radiographs and cut them."""
    app.command(
        epilog="Example: training check radiographs/ --patients patients.csv. Exit code 1: something is wrong."
    )(check)
    app.command(epilog="Example: training crops annotations.json radiographs/ crops/")(crops)


def check(
    dataset: Annotated[Path, typer.Argument(help="Folder with one sub-folder a class.")],
    *,
    view: Annotated[View, typer.Option(help="What the pictures show.")] = View.FULL,
    patients: Annotated[
        str, typer.Option(metavar="CSV|REGEX", help="Whose each picture is: a table, or a pattern in the file names.")
    ] = "",
    classes: Annotated[
        str, typer.Option(metavar="A,B", help="Class folders in order, such as C1,C2+C3; by default C1,C3 or all.")
    ] = "",
    finding: Annotated[str, typer.Option(help="The class that is screened for; by default the last.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes to read with; by default one a core.")] = None,
) -> None:
    """Say what a data set consists of, and what is wrong with it."""
    from training.data.check import check_dataset
    from training.data.check_table import print_check
    from training.data.dataset import find_dataset
    from training.data.patients import patient_rule

    with faults_told("nothing was written"):
        wanted = tuple(name.strip() for name in classes.split(",")) if classes else ()
        found = find_dataset(dataset, classes=wanted, finding=finding, patients=patient_rule(patients))
        with ProgressBars() as bars:
            reading = bars.add("reading", total=len(found.pictures))
            answer = check_dataset(found, view=view, processes=processes, on_done=reading.advance)
    if as_json:
        typer.echo(json.dumps(answer.as_document(), indent=2))
    else:
        print_check(answer, Console())
    if answer.wrong:
        raise typer.Exit(EXIT_WRONG)


def crops(
    annotations: Annotated[Path, typer.Argument(metavar="COCO.json", help="Annotated regions in COCO's format.")],
    images: Annotated[Path, typer.Argument(help="Folder that the annotations' file names start from.")],
    out: Annotated[Path, typer.Argument(help="Folder for the crops, new or empty.")],
    *,
    side_px: Annotated[
        int,
        typer.Option(min=1, help="Side of a crop of a 1210x2925 px radiograph; it grows with the pixel count's root."),
    ] = 600,
    by: Annotated[
        FolderBy, typer.Option(help="Folders after the annotation's category, or after the radiograph's own folder.")
    ] = FolderBy.CATEGORY,
) -> None:
    """Cut a square around each annotated region, one folder a class.

    A crop is named after its radiograph and its annotation, so that `--patients "(.+)_"` keeps a radiograph's crops
    together afterwards.
    """
    from training.data.crops import cut_crops

    with faults_told(f"{out} was not made"), ProgressBars() as bars:
        cutting = bars.add("cutting")

        def advance(total: int) -> None:
            cutting.expect(total)
            cutting.advance()

        cut_crops(annotations, images, out, side_px=side_px, by=by, on_done=advance)
    typer.echo(out)
