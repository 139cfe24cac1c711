"""The command line: how a command is run, how its errors are printed, and the arguments that several share."""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from urnet.cpus import set_environment
from urnet.errors import UrnetError
from urnet.files.outputs import OutputCompleteError, command_scope
from urnet.version import __version__

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
"""Maximum seed of NumPy's generators."""

CellsArgument = Annotated[Path, typer.Argument(help="Cells table (CSV), or a folder with one folder for each class.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe. Can be repeated.")
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="Name of a shipped recipe (see `urnet models`), or a YAML file.")
]

ExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect",
        metavar="DIGEST",
        help="Required digest of the model, at least 8 digits (see `urnet about`).",
    ),
]


def main() -> None:
    """Run the command line. Errors of the user are printed in one line and give exit code 2."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what the terminal's encoding lacks
    try:
        set_environment()
    except UrnetError as error:
        sys.exit(print_error(error, 2))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    command = typer.main.get_command(app)
    try:
        # Calling the command would let typer replace the message of an interruption.
        with (
            command_scope(_digest(arguments)),
            command.make_context("urnet", expand_set_options(arguments) or ["--help"]) as context,
        ):
            return int(command.invoke(context) or 0)
    except OutputCompleteError as complete:
        out.print(str(complete))
        return 0
    except UrnetError as error:
        return print_error(error, 2)
    except typer.Exit as stop:
        return stop.exit_code
    except KeyboardInterrupt as stop:
        return print_error(stop.args[0] if stop.args else "interrupted", 130)
    except BrokenPipeError:
        return 1
    except MemoryError:
        return print_error("memory is full. Use fewer or smaller images, a smaller batch or a narrower network", 2)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        return print_error(f"{reason}{advice}", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage; typer exports no common base class of these errors
            message = error.format_message().replace("Value error, ", "")
            failed = getattr(error, "ctx", None)
            return print_error(f"{message} (see {failed.command_path if failed else 'urnet'} --help)", 2)
        raise


_OUTPUTS = ("--out", "--enhanced", "--cam")
"""Options that name the output of a command."""


def _digest(arguments: list[str]) -> str:
    """Compute a digest of the command, its working folder and its input files; a repeated command has the same.

    Of an input folder, only the files directly in it count. Hidden files, outputs of the command, and graphs that
    engines store in a bundle do not count.
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
        with suppress(OSError, ValueError):  # not a path
            stamps += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files(argument)]
    about = [__version__, str(Path.cwd()), arguments, stamps]
    return hashlib.sha256(json.dumps(about).encode("utf-8", "surrogateescape")).hexdigest()


_ADVICE = {
    errno.EACCES: ". Change the permissions, or choose another folder",
    errno.EPERM: ". Change the permissions, or choose another folder",
    errno.EROFS: ". Choose a folder on a drive that can be written",
    errno.ENOTDIR: ". A part of this path is a file; choose another folder",
    errno.ENOSPC: ". The disk is full; free space on it, or choose another folder",
}
"""Fixes for errors of the operating system."""


def print_error(reason: object, code: int) -> int:
    """Print the reason why a command ends, and return its exit code."""
    err.print(f"urnet: {reason}", style="red")
    return code


def expand_set_options(arguments: list[str]) -> list[str]:
    """Expand `--set a=1 b=2` to `--set a=1 --set b=2`."""
    expanded: list[str] = []
    follows_value = False  # whether the argument before this one was a value of --set
    for argument in arguments:
        if follows_value and "=" in argument and not argument.startswith("-"):
            expanded.append("--set")
        follows_value = argument.startswith("--set=") or (expanded[-1:] == ["--set"])
        expanded.append(argument)
    return expanded


def _version(requested: bool) -> None:
    if requested:
        out.print(f"urnet {__version__}")
        raise typer.Exit


@app.callback()
def _urnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Enhance and classify stain-free white blood cells with one jointly trained network."""


def print_next(*command: str | Path) -> None:
    """Print the command that usually follows, such as `next: urnet evaluate run`."""
    out.print(" ".join(["next: urnet", *map(quote, command)]))


def quote(argument: str | Path) -> str:
    """Quote an argument for a shell where it needs quotes."""
    return str(argument) if re.fullmatch(r"[\w@%+=:,./\\*-]+", str(argument)) else f'"{argument}"'
