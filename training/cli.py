"""The command line `training`: phantoms, and everything that makes a model.

Exit codes: 0 done; 1 done, and `training check` found something wrong, or `training sanity` a map that does not change
with the weights; 2 something that the user gave cannot be used, and a sentence on stderr says what; 130 stopped by
Ctrl-C.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from training.command import faults_told
from training.data import cli as data_cli
from training.explain import cli as explain_cli
from training.fit import cli as fit_cli
from training.fit import cli_final
from training.phantoms.truth import MEAN_SIZE_PX, CorticalClass
from training.progress import ProgressBars
from training.report import cli as report_cli

_MEAN_SIZE = "x".join(map(str, MEAN_SIZE_PX))

app = typer.Typer(
    name="training",
    help="Phantoms, data sets, cross-validation, evaluation and model files. For research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SizeOption = Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Size of a picture in pixels.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same bytes.")]


@app.callback()
def _training() -> None:
    """Keep `training` a group of commands however few there are."""


@app.command(epilog="Example: training phantoms phantoms/ --n 60 --size 605x1462")
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder for the set, new or empty.")],
    *,
    n: Annotated[int, typer.Option("--n", help="Number of pictures, balanced over the classes.")] = 400,
    seed: SeedOption = 0,
    size: SizeOption = _MEAN_SIZE,
    classes: Annotated[str, typer.Option(help="Which classes to draw, with commas between them.")] = "C1,C2,C3",
    second_picture_share: Annotated[float, typer.Option(help="Share of patients who have two pictures, 0 to 1.")] = 0.0,
    processes: Annotated[int | None, typer.Option(help="Processes to draw with; by default one a core.")] = None,
) -> None:
    """Write a set of synthetic radiographs, one folder a class, with their truth in truth.csv."""
    from training.phantoms.phantom_set import write_set

    with faults_told(f"{out} holds the pictures written so far, each whole, and no truth.csv"), ProgressBars() as bars:
        table = write_set(
            out,
            n,
            seed,
            size_px=parse_size(size),
            second_picture_share=second_picture_share,
            classes=parse_classes(classes),
            processes=processes,
            on_written=bars.add("phantoms", total=max(n, 0)).advance,
        )
    typer.echo(table)


@app.command(epilog="Example: training phantom demo.png --class C3 --seed 7")
def phantom(
    file: Annotated[Path, typer.Argument(help="PNG file to write.")],
    *,
    seed: SeedOption = 0,
    cls: Annotated[CorticalClass, typer.Option("--class", help="Cortical class.")] = CorticalClass.C1,
    size: SizeOption = _MEAN_SIZE,
) -> None:
    """Write one synthetic radiograph."""
    from training.phantoms.phantom import draw_truth
    from training.phantoms.phantom_set import write_phantom

    with faults_told(f"{file} was not written"):
        if file.suffix.lower() != ".png":
            raise ValueError(f"{file} must end in .png: phantoms are written as PNG alone")
        if file.exists():
            raise FileExistsError(f"{file} exists and is left as it is: name a new file")
        if not file.parent.is_dir():
            raise FileNotFoundError(f"{file.parent} is not a folder: create it, or name a file in another one")
        write_phantom(file, draw_truth(seed, cls, size_px=parse_size(size)))
    typer.echo(file)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from text such as `1210x2925`.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(f"size is {text!r}, but must be height x width in pixels, for example {_MEAN_SIZE}")
    return int(match[1]), int(match[2])


def parse_classes(text: str) -> tuple[CorticalClass, ...]:
    """Cortical classes from text such as `C1,C3`.

    Raises:
        ValueError: one of them does not exist.
    """
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(CorticalClass)]
    if unknown:
        raise ValueError(f"classes names {', '.join(unknown)}, but there are only {', '.join(CorticalClass)}")
    return tuple(CorticalClass(name) for name in names)


for _part in (data_cli, fit_cli, report_cli, explain_cli, cli_final):
    _part.register(app)


def main() -> None:
    """Entry point of `training`."""
    app()
