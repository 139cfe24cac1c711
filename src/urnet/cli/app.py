"""What all commands share: how they are run, how the user's mistakes are said, arguments that several take."""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from urnet.cpus import set_environment
from urnet.errors import UrnetError
from urnet.files.outputs import OutputCompleteError, command_scope
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.cells.table import Cells
    from urnet.recipe import Recipe

app = typer.Typer(
    name="urnet",
    help="Enhance and classify stain-free white blood cells with one jointly trained network.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True)

SEED_MAX = 2**32 - 1
"""NumPy's generators take no larger one."""

CellsArgument = Annotated[Path, typer.Argument(help="Cells table (CSV), or a folder with one folder a class.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; several may follow.")
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="A shipped recipe (`urnet models` lists them) or a YAML file.")
]

ExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect", metavar="DIGEST", help="Refuse any other model; 8 or more digits of what `urnet about` shows."
    ),
]


def main() -> None:
    """Run the command line; the user's own mistakes end in one line and exit code 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal's encoding lacks
    try:
        set_environment()
    except UrnetError as error:
        sys.exit(print_error(error, 2))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    command = typer.main.get_command(app)
    try:
        # Not by calling the command: typer would swallow what an interruption has to say.
        with (
            command_scope(_digest(arguments)),
            command.make_context("urnet", expand_set_options(arguments) or ["--help"]) as context,
        ):
            return int(command.invoke(context) or 0)
    except OutputCompleteError as done:
        out.print(str(done))
        return 0
    except UrnetError as error:
        return print_error(error, 2)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt as stop:
        return print_error(stop.args[0] if stop.args else "interrupted", 130)
    except BrokenPipeError:
        return 1
    except MemoryError:
        return print_error("memory is full; use fewer or smaller images, a smaller batch or a narrower network", 2)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        return print_error(f"{reason}{advice}", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage; typer does not export the class that all of these share
            context = getattr(error, "ctx", None)
            return print_error(
                f"{error.format_message()} (see {context.command_path if context else 'urnet'} --help)", 2
            )
        raise


_OUTPUTS = ("--out", "--enhanced", "--cam")
"""Options that name what a command writes."""


def _digest(arguments: list[str]) -> str:
    """A digest of the command, the folder that it runs in, and the files that it names: equal for a repeated one.

    Of a folder, the files directly in it count, without hidden ones, what the command itself writes, and the graphs
    that a prediction keeps in a bundle.
    """
    options = list(zip(["", *arguments], arguments, strict=False))
    split = [tuple(argument.split("=", 1)) for argument in arguments if "=" in argument]
    outputs = [Path(os.path.realpath(value)) for option, value in (*options, *split) if option in _OUTPUTS]

    def files(argument: str) -> Iterator[Path]:
        path = Path(argument)
        if path.is_dir():
            own = [output.name for output in outputs if output.parent == Path(os.path.realpath(path))]
            skipped = (".", "engine-", *(f"{name}.part" for name in own))
            files = (one for one in path.iterdir() if one.name not in own and not one.name.startswith(skipped))
            yield from sorted(one for one in files if one.is_file())
        elif path.is_file():
            yield path

    stamps = []
    for option, argument in options:
        if option in _OUTPUTS:
            continue
        with suppress(OSError, ValueError):  # no path
            stamps += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files(argument)]
    about = [__version__, str(Path.cwd()), arguments, stamps]
    return hashlib.sha256(json.dumps(about).encode("utf-8", "surrogateescape")).hexdigest()


_ADVICE = {
    errno.EACCES: "; allow it, or choose another place",
    errno.EPERM: "; allow it, or choose another place",
    errno.EROFS: "; choose a place that can be written",
    errno.ENOTDIR: "; a part of this path is a file: choose another place",
    errno.ENOSPC: ": the disk is full; make room on it, or choose another place",
}
"""What to do about errors of the system."""


def print_error(reason: object, code: int) -> int:
    """Say why a command ends, and return its exit code."""
    err.print(f"urnet: {reason}", style="red")
    return code


def expand_set_options(arguments: list[str]) -> list[str]:
    """`--set a=1 b=2` means `--set a=1 --set b=2`."""
    spread: list[str] = []
    taken = False  # whether the argument before this one was a value of --set
    for argument in arguments:
        if taken and "=" in argument and not argument.startswith("-"):
            spread.append("--set")
        taken = argument.startswith("--set=") or (spread[-1:] == ["--set"])
        spread.append(argument)
    return spread


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"urnet {__version__}")
        raise typer.Exit


@app.callback()
def _urnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Enhance and classify stain-free white blood cells with one jointly trained network."""


def read(cells: Path, recipe: "Recipe") -> "Cells":
    """Cells as a recipe says that they are laid out."""
    from urnet.cells.read import read_recipe_cells

    return read_recipe_cells(cells, recipe)
