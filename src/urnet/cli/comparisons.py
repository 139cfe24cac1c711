"""Commands about several models: benchmark, comparison, stress test, sizes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from urnet.cli.app import CellsArgument, SetOption, app, err, out, print_error, print_next


@app.command()
def benchmark(
    table: Annotated[
        Literal["table2", "table3", "table4", "ablation"], typer.Argument(help="Table of the paper, or the ablation.")
    ],
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the benchmark: a new one, or one to continue.")],
    folds: Annotated[str, typer.Option(help="Number of folds, or 'donor' to leave one donor out in each fold.")] = "5",
    repeats: Annotated[
        int, typer.Option(help="Number of times that the cells are divided into folds; 3 for a paper.", min=1, max=100)
    ] = 1,
    seeds: Annotated[int, typer.Option(help="Number of trainings of each row and fold.", min=1, max=100)] = 1,
    scale: Annotated[
        Literal["paper", "laptop"], typer.Option(help="Size of networks and images; laptop trains on two cores.")
    ] = "paper",
    protocol: Annotated[
        Literal["honest", "paper"],
        typer.Option(help="Choice of epochs and test cells; paper gives optimistic results."),
    ] = "honest",
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(help="Rows to train and show, separated by commas; all when not given.")] = "",
    jobs: Annotated[int | None, typer.Option(help="Number of parallel runs on this machine; needs Ray.", min=1)] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Write the tables of the finished runs; train nothing.")
    ] = False,
) -> int:
    """Fill a table of the paper with these cells.

    The same command continues an interrupted benchmark.
    """
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    load_recipe("net1", overrides or ())  # reports mistakes before torch is imported
    from urnet.benchmark.run import run_benchmark

    with ProgressBars(out) as bars:
        result = run_benchmark(
            table,
            cells,
            folder,
            folds=folds,
            repeats=repeats,
            seeds=seeds,
            scale=scale,
            protocol=protocol,
            overrides=overrides or (),
            only=[name.strip() for name in only.split(",") if name.strip()],
            jobs=jobs,
            ray=ray,
            train=not no_train,
            reporter=bars,
        )
    out.print((result.folder / "tables" / f"{table}.md").read_text(encoding="utf-8"))
    out.print(f"report: {result.report}")
    if result.failed:
        for failure in result.failed:
            err.print(failure)
        return print_error(f"{len(result.failed)} run(s) failed; the same command repeats them", 1)
    return 0


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or cross-validations; the first is the baseline.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the comparison.")],
) -> int:
    """Compare runs on the same test cells.

    The results are tables, paired differences with intervals, and figures.
    """
    from urnet.benchmark.compare import compare as compare_runs
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        comparison = compare_runs(runs, folder, progress=bars.update)
    out.print((folder / "tables" / "differences.md").read_text(encoding="utf-8"))
    out.print(f"report: {comparison.report}")
    return 0


@app.command()
def stress(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or cross-validations.")],
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the curves.")],
) -> int:
    """Measure the recall on degraded images.

    The images are degraded by defocus, blur, noise, gain and an illumination ramp.
    """
    from urnet.evaluation.stress import run_stress_test
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        result = run_stress_test(runs, cells, folder, progress=bars.update)
    out.print(f"report: {result.report}")
    return 0


@app.command()
def models() -> int:
    """List enhancers, classifiers and recipes."""
    from rich.table import Table

    from urnet.catalogue import list_classifier_sizes, list_enhancer_sizes, list_recipe_sizes

    for title, rows in (
        ("Enhancers (default options, colour, 200 x 200 px)", list_enhancer_sizes()),
        ("Classifiers (200 x 200 px, 3 classes; any other timm name works too)", list_classifier_sizes()),
        ("Recipes", list_recipe_sizes()),
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
    print_next("train", "CELLS", "--recipe", "quick", "--out", "run")
    return 0
