"""The commands: parse, call, print.

Nothing heavy is imported here at the top, so that every `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from urnet import __version__
from urnet.errors import UrnetError

if TYPE_CHECKING:
    from urnet.cells.table import Cells
    from urnet.evaluation.evaluate import Evaluation
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


def main() -> None:
    """Run the command line; the user's own mistakes end in one line and exit code 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal's encoding lacks
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    command = typer.main.get_command(app)
    try:
        # Not by calling the command: typer would swallow what an interruption has to say.
        with command.make_context("urnet", _spread_set(arguments) or ["--help"]) as context:
            return int(command.invoke(context) or 0)
    except UrnetError as error:
        return _stop(error, 2)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt as stop:
        return _stop(stop.args[0] if stop.args else "interrupted", 130)
    except BrokenPipeError:
        return 1
    except MemoryError:
        return _stop("memory is full; use fewer or smaller images, a smaller batch or a narrower network", 2)
    except OSError as error:
        return _stop(f"{error.filename}: {error.strerror}" if error.filename else error, 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage; typer does not export the class that all of these share
            context = getattr(error, "ctx", None)
            return _stop(f"{error.format_message()} (see {context.command_path if context else 'urnet'} --help)", 2)
        raise


def _stop(reason: object, code: int) -> int:
    err.print(f"urnet: {reason}", style="red")
    return code


def _spread_set(arguments: list[str]) -> list[str]:
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


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="New folder for the cells and the run.")] = Path("urnet-demo"),
    seed: Annotated[int, typer.Option(help="Seed of cells and training.", min=0, max=SEED_MAX)] = 0,
) -> int:
    """Make phantom cells, train UR-Net at laptop scale, evaluate it: minutes on two cores, no download."""
    from urnet.cells.simulate import write_phantom
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.progress import Bars
    from urnet.training.fit import train as train_runs
    from urnet.training.run import refuse_existing

    refuse_existing(folder)
    with Bars(out) as bars:
        write_phantom(folder / "cells", 1200, seed=seed, progress=lambda share: bars.doing("draw phantom cells", share))
        run = train_runs(folder / "cells", "demo", folder / "run", seed=seed, watcher=bars)[0]
        evaluation = evaluate_run(run, progress=bars.doing)
    _show(evaluation)
    return 0


@app.command()
def train(
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New run folder.")],
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the training; the recipe's when not given.", min=0, max=SEED_MAX)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    devices: Annotated[int, typer.Option(help="Processes: GPUs, or processes on the CPU.", min=1)] = 1,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Train although a given split leaks.")] = False,
) -> int:
    """Train a run: audit, split, pre-training, joint training."""
    from urnet.progress import Bars
    from urnet.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())  # a mistake is said before torch is loaded, which takes seconds
    from urnet.training.fit import train as train_runs

    with Bars(out) as bars:
        runs = train_runs(
            cells,
            settings,
            folder,
            seed=seed,
            resume=resume,
            devices=devices,
            allow_leaks=allow_leaks,
            watcher=bars,
        )
    for run in runs:
        out.print(f"trained: {run.folder}")
    quoted = f'"{folder}"' if " " in str(folder) else folder
    out.print(f"next: urnet evaluate {quoted}")
    return 0


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a cross-validation.")],
    cells: Annotated[Path | None, typer.Option(help="Other cells; the run's own when not given.")] = None,
    split: Annotated[str, typer.Option(help="Part: train, validation or test.")] = "test",
    folder: Annotated[Path | None, typer.Option("--out", help="New folder; RUN/evaluation/… when not given.")] = None,
) -> int:
    """Evaluate a run: metrics.json, predictions.csv, figures/ and report.html."""
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.progress import Bars

    with Bars(out) as bars:
        evaluation = evaluate_run(run, cells, split=split, out=folder, progress=bars.doing)
    _show(evaluation)
    return 0


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders of images, or tables with a column 'path'.")],
    table: Annotated[Path, typer.Option("--out", help="New CSV.")],
    enhanced: Annotated[Path | None, typer.Option(help="New folder for the enhanced images.")] = None,
    cam: Annotated[Path | None, typer.Option(help="New folder for Grad-CAM pictures.")] = None,
) -> int:
    """Classify images; exit code 1 if some could not be read (their rows say why)."""
    from urnet.bundle import Model
    from urnet.predict import predict_files
    from urnet.progress import Bars

    model = Model.load(run)
    with Bars(out) as bars:
        done = predict_files(
            model, images, table, enhanced=enhanced, cam=cam, progress=lambda n, of: bars.doing("classify", n / of)
        )
    out.print(", ".join(f"{name} {count}" for name, count in done.counts.items()))
    out.print(f"{done.images - done.failed - done.left_out} of {done.images} images classified: {table}")
    if done.left_out:
        out.print(f"{done.left_out} tiles are padding of their archive and are not counted")
    if done.failed:
        return _stop(f"{done.failed} image(s) could not be used; the column 'error' says why", 1)
    return 0


@app.command()
def benchmark(
    table: Annotated[str, typer.Argument(help="table2, table3, table4 or ablation.")],
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the benchmark; begun, or gone on with.")],
    folds: Annotated[
        str, typer.Option(help="Number of folds, or 'donor' to leave out one donor after the other.")
    ] = "5",
    seeds: Annotated[int, typer.Option(help="Trainings of each row and fold.", min=1, max=100)] = 1,
    scale: Annotated[str, typer.Option(help="paper, or laptop for what two cores can train.")] = "paper",
    protocol: Annotated[str, typer.Option(help="honest, or paper (optimistic).")] = "honest",
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(help="Rows to train and show, with commas between; all when not given.")] = "",
    jobs: Annotated[int | None, typer.Option(help="Runs at once on this machine, through Ray.", min=1)] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Make the tables of what is there; train nothing.")
    ] = False,
) -> int:
    """Fill a table of the paper with these cells; stopped anywhere, the same command goes on."""
    from urnet.progress import Bars
    from urnet.recipe import load_recipe

    load_recipe("net1", overrides or ())  # a mistake is said before torch is loaded
    from urnet.benchmark.run import run_benchmark

    with Bars(out) as bars:
        done = run_benchmark(
            table,
            cells,
            folder,
            folds=folds,
            seeds=seeds,
            scale=scale,
            protocol=protocol,
            overrides=overrides or (),
            only=[name.strip() for name in only.split(",") if name.strip()],
            jobs=jobs,
            ray=ray,
            train=not no_train,
            watcher=bars,
        )
    out.print((done.folder / "tables" / f"{table}.md").read_text(encoding="utf-8"))
    out.print(f"report: {done.report}")
    if done.failed:
        for failure in done.failed:
            err.print(failure)
        return _stop(f"{len(done.failed)} run(s) failed; the same command tries them again", 1)
    return 0


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or cross-validations; the first is the baseline.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the comparison.")],
) -> int:
    """Compare runs on the cells that all of them tested: tables, paired differences, figures."""
    from urnet.benchmark.compare import compare as compare_runs
    from urnet.progress import Bars

    with Bars(out) as bars:
        report = compare_runs(runs, folder, progress=bars.doing)
    out.print((folder / "tables" / "differences.md").read_text(encoding="utf-8"))
    out.print(f"report: {report}")
    return 0


@app.command()
def stress(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or cross-validations.")],
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the curves.")],
) -> int:
    """Recall against defocus, blur, noise, gain and illumination ramp."""
    from urnet.evaluation.stress import stress as stress_runs
    from urnet.progress import Bars

    with Bars(out) as bars:
        done = stress_runs(runs, cells, folder, progress=bars.doing)
    out.print(f"report: {done.report}")
    return 0


@app.command()
def audit(
    cells: CellsArgument,
    table: Annotated[
        Path | None, typer.Option("--out", help="New CSV with a row for each file of each finding.")
    ] = None,
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
) -> int:
    """Look for copies, leaks and unusable files; exit code 0 when clean, 1 with findings."""
    from urnet.cells.audit import audit_cells, tally
    from urnet.progress import Bars
    from urnet.recipe import load_recipe
    from urnet.training.run import refuse_existing

    if table is not None:
        refuse_existing(table, file=True)
    settings = load_recipe(recipe, overrides or ())
    with Bars(out) as bars:
        found = audit_cells(_read(cells, settings), progress=lambda share: bars.doing("audit", share))
    for note in found.notes:
        out.print(note)
    for finding in found.findings:
        out.print(f"{finding.kind}: {finding.detail}")
        for path in finding.paths:
            out.print(f"  {path}")
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        found.to_frame().to_csv(table, index=False, encoding="utf-8")
    kinds = [finding.kind for finding in found.findings]
    out.print(f"{len(kinds)} finding(s): {tally(kinds)}" if kinds else "clean")
    return 1 if kinds else 0


@app.command()
def split(
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the table with its split.")],
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
    augment_to: Annotated[
        int | None, typer.Option(help="Also write augmented training images, up to this number a class.", min=1)
    ] = None,
) -> int:
    """Write a cells table with its split (the images stay where they are)."""
    from urnet.cells.audit import audit_cells
    from urnet.cells.divide import divide
    from urnet.cells.table import TABLE_NAME
    from urnet.progress import Bars
    from urnet.recipe import load_recipe
    from urnet.training.run import refuse_existing, refuse_within

    refuse_existing(folder)
    refuse_within(folder, cells)
    settings = load_recipe(recipe, overrides or ())
    table = _read(cells, settings)
    with Bars(out) as bars:
        found = audit_cells(table, near=False, progress=lambda share: bars.doing("audit", share))
    divided = divide(table, settings, found)
    if augment_to is not None:
        from urnet.cells.augment import write_augmented

        divided = write_augmented(divided, folder, augment_to, seed=settings.split.seed)
    divided.write(folder / TABLE_NAME)
    _show_parts(divided)
    out.print(f"written: {folder / TABLE_NAME}")
    return 0


@app.command()
def destain(
    stained: Annotated[Path, typer.Argument(help="Stained 8-bit RGB cells: a table or a folder per class.")],
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    size: Annotated[int, typer.Option(help="Edge of the crops in pixels.")] = 128,
    target: Annotated[str, typer.Option(help="Paired image that the table names: stained or clean.")] = "stained",
    seed: Annotated[int, typer.Option(help="Seed of the optics.", min=0)] = 0,
) -> int:
    """Simulate the stain-free look of stained cells ("simulated destaining")."""
    from urnet.cells.simulate import write_destained
    from urnet.progress import Bars

    with Bars(out) as bars:
        write_destained(
            stained, folder, size=size, target=target, seed=seed, progress=lambda share: bars.doing("destain", share)
        )
    out.print(f"simulated destaining: {folder}")
    return 0


@app.command()
def phantom(
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    cells: Annotated[int, typer.Option(help="Number of cells.", min=1)] = 1200,
    fields: Annotated[int, typer.Option(help="Number of whole fields of view.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Edge of the crops in pixels.")] = 48,
    donors: Annotated[int, typer.Option(help="Number of donors.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.", min=0)] = 0,
) -> int:
    """Draw phantom cells of three types, and fields of view with known positions."""
    from urnet.cells.simulate import write_phantom
    from urnet.progress import Bars

    with Bars(out) as bars:
        write_phantom(
            folder,
            cells,
            size=size,
            donors=donors,
            fields=fields,
            seed=seed,
            progress=lambda share: bars.doing("draw", share),
        )
    out.print(f"phantom cells: {folder}")
    return 0


@app.command()
def models() -> int:
    """List enhancers, classifiers and recipes, with parameters and GMAC."""
    from rich.table import Table

    from urnet.catalogue import classifier_sizes, enhancer_sizes, recipe_sizes

    for title, rows in (
        ("Enhancers (default options, colour, 200 x 200 px)", enhancer_sizes()),
        ("Classifiers (200 x 200 px, 3 classes; any other timm name works too)", classifier_sizes()),
        ("Recipes", recipe_sizes()),
    ):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("name")
        for column in ("parameters, M", "GMAC"):
            table.add_column(column, justify="right")
        table.add_column("")
        for row in rows:
            table.add_row(row.name, f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e9:.2f}", row.note)
        out.print(table)
        out.print()
    return 0


def _read(cells: Path, recipe: "Recipe") -> "Cells":
    """Cells as a recipe says that they are laid out."""
    from urnet.cells.table import read_cells

    return read_cells(cells, tile=recipe.tile, image=recipe.image, target=recipe.target, classes=recipe.classes)


def _show_parts(cells: "Cells") -> None:
    """How many cells of each class each part or fold has."""
    from rich.table import Table

    column = "split" if cells.has_split else "fold"
    parts = [name for name in sorted(set(cells.table[column])) if name]
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for part in parts:
        table.add_column(f"fold {part}" if column == "fold" else part, justify="right")
    for name in cells.classes:
        mine = cells.table[column][cells.table["label"] == name]
        table.add_row(name, *(str(int((mine == part).sum())) for part in parts))
    out.print(table)


def _show(evaluation: "Evaluation") -> None:
    """The table of an evaluation, the differential, and where the report is."""
    from rich.table import Table

    metrics = evaluation.metrics
    table = Table(
        title=f"{metrics['part']}: {metrics['n']} cells, protocol {metrics['protocol']}", box=None, pad_edge=False
    )
    table.add_column("class")
    for column in ("recall", "precision", "F1", "cells"):
        table.add_column(column, justify="right")
    for name, figures in metrics["per_class"].items():
        cells = [_percent(figures[key]) for key in ("recall", "precision", "f1")]
        table.add_row(name, *cells, str(figures["support"]))
    table.add_row("average", *(_percent(metrics[f"macro_{key}"]) for key in ("recall", "precision", "f1")), "")
    table.add_row("accuracy", _percent(metrics["accuracy"]), "", "", str(metrics["n"]))
    out.print(table)
    out.print(f"95 % intervals over {metrics['intervals']['groups']} {metrics['intervals']['unit']}s")
    differential = Table(title="differential, % of cells", box=None, pad_edge=False)
    for column in ("class", "counted", "true"):
        differential.add_column(column, justify="left" if column == "class" else "right")
    for name, share in metrics["differential"].items():
        differential.add_row(name, _interval(share["predicted_percent"], 1), f"{share['true_percent']:.1f}")
    out.print(differential)
    for fold in metrics["folds"] or []:
        out.print(f"fold {fold['fold']}: macro recall {100 * fold['macro_recall']:.1f}, {fold['n']} cells")
    if metrics["simulated"]:
        out.print(f"note: simulated images ({metrics['simulated']})")
    for warning in metrics["warnings"]:
        out.print(f"note: {warning}")
    out.print(f"report: {evaluation.report}")


def _percent(figure: dict[str, Any]) -> str:
    return _interval(figure, 100)


def _interval(figure: dict[str, Any], scale: float) -> str:
    """`83.3 (80.1–86.0)`."""
    if figure["value"] is None:
        return "–"
    text = f"{scale * figure['value']:.1f}"
    if figure["interval"] is None:
        return text
    low, high = figure["interval"]
    return f"{text} ({scale * low:.1f}–{scale * high:.1f})"
