"""The commands that explain a model: `training heatmaps` and `training sanity`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from panoramic.view import View
from training.command import faults_told
from training.progress import ProgressBars

#: The map does not change as the weights do.
EXIT_UNCHANGED = 1


class MapColours(StrEnum):
    """`panoramic.overlay.Colormap` by value: importing it here would bring OpenCV into every command."""

    INFERNO = "inferno"
    HOT = "hot"


ModelArgument = Annotated[Path, typer.Argument(help="Model file, .safetensors or the predecessor's .pth.")]
SeedOption = Annotated[int, typer.Option(help="The same seed draws the same pictures.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder to make; by default named after model and pictures.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda:N.")]
ViewOption = Annotated[View, typer.Option(help="What the pictures show; asked of a .pth only.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: training heatmaps model.safetensors dataset/C3 --n 20 --seed 1")(heatmaps)
    app.command(epilog="Exit code 1: the map does not change. Example: training sanity model.safetensors")(sanity)


def heatmaps(
    model: ModelArgument,
    class_folder: Annotated[Path, typer.Argument(help="Folder of pictures, full or crops as the model takes them.")],
    *,
    n: Annotated[int, typer.Option("--n", help="How many pictures, drawn at random.")] = 20,
    seed: SeedOption = 0,
    out: OutOption = None,
    view: ViewOption = View.FULL,
    colormap: Annotated[MapColours, typer.Option(help="Colours of the map.")] = MapColours.INFERNO,
    device: DeviceOption = "cpu",
) -> None:
    """Show what a model says of random pictures of a class, and which places its answers rest on."""
    with faults_told():
        from panoramic.model_file import load_model
        from panoramic.overlay import Colormap
        from panoramic.runtime_torch import Classifier
        from training.explain.heatmaps import draw_heatmaps

        classifier = Classifier(load_model(model, view=view), device=device)
        name = f"heatmaps_{classifier.model.manifest.name}_{class_folder.resolve().name}_seed{seed}"
        with ProgressBars(transient=True) as bars:
            page, drawn = draw_heatmaps(
                classifier,
                class_folder,
                out=out or Path(name),
                n=n,
                seed=seed,
                colormap=Colormap(colormap),
                on_done=bars.add("heat maps", total=n).advance,
            )
    shown, skipped = len(drawn.cases), sum(drawn.skipped.values())
    typer.echo(f"{shown} of {n} pictures shown" + (" (the folder has no more)" if shown < n else ""), err=True)
    if skipped:
        typer.echo(f"{skipped} skipped; {page.with_name('files.csv')} says which and why", err=True)
    typer.echo(page)


def sanity(
    model: ModelArgument,
    pictures_folder: Annotated[
        Path | None, typer.Argument(help="Folder of pictures; by default phantoms are drawn.")
    ] = None,
    *,
    n: Annotated[int, typer.Option("--n", help="How many pictures.")] = 4,
    seed: SeedOption = 0,
    out: OutOption = None,
    view: ViewOption = View.FULL,
    device: DeviceOption = "cpu",
) -> None:
    """Check that a model's map changes when its weights are made random, block by block (Adebayo et al. 2018)."""
    with faults_told():
        from panoramic.model_file import load_model
        from training.explain.sanity import step_names
        from training.explain.sanity_report import check_sanity

        loaded = load_model(model, view=view)
        with ProgressBars(transient=True) as bars:
            result = check_sanity(
                loaded,
                pictures_folder,
                out=out or Path(f"sanity_{loaded.manifest.name}_seed{seed}"),
                n=n,
                seed=seed,
                device=device,
                on_step=bars.add("weights made random", total=len(step_names(loaded))).advance,
            )
    if result.skipped:
        typer.echo(f"skipped as unusable: {result.skipped}", err=True)
    typer.echo(result.verdict.sentence, err=True)
    typer.echo(result.curve)
    raise typer.Exit(exit_code(result.verdict.changes))


def exit_code(changes: bool) -> int:
    """What `training sanity` ends with."""
    return 0 if changes else EXIT_UNCHANGED
