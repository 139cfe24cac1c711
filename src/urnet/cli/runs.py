"""Commands about one model: train, evaluate and use it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from urnet.cli.app import (
    SEED_MAX,
    CellsArgument,
    ExpectOption,
    RecipeOption,
    SetOption,
    app,
    out,
    print_error,
    print_next,
)

if TYPE_CHECKING:
    from urnet.counting.sample import Sample
    from urnet.evaluation.result import Evaluation

EngineOption = Annotated[
    Literal["auto", "torch", "onnx", "openvino"], typer.Option(help="Library that runs the networks.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of the training; the recipe's when not given.", min=0, max=SEED_MAX)
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Accept a finished run as it is, too; an interrupted run continues anyway.")
]
RunArgument = Annotated[Path, typer.Argument(help="Run folder or bundle.")]

DEMO_CELLS = 1200
"""Number of phantom cells of the demo."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the cells and the run.")] = Path("urnet-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the cells and of the training.", min=0, max=SEED_MAX)] = 0,
) -> int:
    """Train and evaluate a small UR-Net on phantom cells.

    It takes minutes on two cores, and downloads no files. The same command continues an interrupted demo.
    """
    from urnet.cells.simulate import write_phantom
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.files.outputs import lock_output, refuse_existing
    from urnet.progress import ProgressBars
    from urnet.training.fit import train as train_runs

    with lock_output(folder, in_place=True) as lock, ProgressBars(out) as bars:
        if not lock.same_command and not _is_demo(folder, seed):
            refuse_existing(folder)
        cells = folder / "cells"
        if not cells.is_dir():
            write_phantom(cells, DEMO_CELLS, seed=seed, progress=lambda share: bars.update("draw phantom cells", share))
        run = train_runs(cells, "demo", folder / "run", seed=seed, resume=True, reporter=bars)[0]
        evaluation = evaluate_run(run, progress=bars.update)
    _print_evaluation(evaluation)
    print_next("serve", run.folder, "--cells", cells)
    return 0


def _is_demo(folder: Path, seed: int) -> bool:
    """Return whether a folder holds a demo with this seed, and nothing else."""
    from urnet.cells.simulate import is_phantom

    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "cells" in names and names <= {"cells", "run"} and is_phantom(folder / "cells", seed)


@app.command()
def train(
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New run folder.")],
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = False,
    devices: Annotated[int, typer.Option(help="Number of GPUs, or of processes on the CPU.", min=1)] = 1,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Train although the given split leaks.")] = False,
) -> int:
    """Train a model on labelled cells.

    The steps are audit, split, pre-training, joint training and calibration. The same command continues an interrupted
    training.
    """
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())  # reports mistakes before torch is imported, which takes seconds
    from urnet.training.fit import train as train_runs

    with ProgressBars(out) as bars:
        runs = train_runs(
            cells,
            settings,
            folder,
            seed=seed,
            resume=resume,
            devices=devices,
            allow_leaks=allow_leaks,
            reporter=bars,
        )
    for run in runs:
        out.print(f"trained: {run.folder}")
    print_next("evaluate", folder)
    return 0


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a cross-validation.")],
    cells: Annotated[Path | None, typer.Option(help="Other cells; the run's own when not given.")] = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Part to evaluate.")] = "test",
    folder: Annotated[Path | None, typer.Option("--out", help="New folder; RUN/evaluation/… when not given.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Evaluate a run on its test cells.

    The results are metrics.json, predictions.csv, figures/ and report.html.
    """
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        evaluation = evaluate_run(run, cells, split=split, out=folder, expect=expect, progress=bars.update)
    _print_evaluation(evaluation)
    print_next("serve", run)
    return 0


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(help="Images, folders of images, or tables with a column 'path'.")],
    table: Annotated[Path, typer.Option("--out", help="New CSV.")],
    enhanced: Annotated[Path | None, typer.Option(help="New folder for the enhanced images.")] = None,
    cam: Annotated[Path | None, typer.Option(help="New folder for Grad-CAM images.")] = None,
    engine: EngineOption = "auto",
    expect: ExpectOption = None,
) -> int:
    """Classify images of single cells.

    The exit code is 1 if some images could not be read; their rows give the reason.
    """
    from urnet.bundle.model import Model
    from urnet.calibration.conformal import COVERAGE, describe_coverage
    from urnet.predict import predict_files
    from urnet.progress import ProgressBars

    model = Model.load(run, expect=expect)
    with ProgressBars(out) as bars:
        result = predict_files(
            model,
            images,
            table,
            engine=engine,
            enhanced=enhanced,
            cam=cam,
            progress=bars.update,
        )
    out.print(", ".join(f"{name} {count}" for name, count in result.counts.items()))
    classified = result.images - result.failed - result.left_out
    out.print(f"{classified} of {result.images} images classified: {table}")
    if result.engines:
        out.print("engine: " + ", ".join(f"{name} ({count} images)" for name, count in result.engines.items()))
    for note in result.notes:
        out.print(f"note: {note}")
    if result.resumed:
        out.print(f"{result.resumed} of them come from the interrupted prediction that was continued")
    if result.rejected:
        out.print(f"{result.rejected} are rejected as no countable cell; the column 'rejected' gives the reason")
    if model.calibration is not None:
        out.print(f"column 'set': the classes that are not excluded; {describe_coverage(COVERAGE)}")
    if result.left_out:
        out.print(f"{result.left_out} tiles are padding of their archive, and do not count")
    if result.failed:
        return print_error(result.failure_message, 1)
    print_next("serve", run)
    return 0


@app.command()
def about(
    run: RunArgument,
    expect: ExpectOption = None,
) -> int:
    """Show a model, and check its files.

    It shows classes, input, calibration and digest, and checks the files against their seal.
    """
    from urnet.bundle.about import model_facts
    from urnet.bundle.model import Model

    model = Model.load(run, expect=expect)
    for name, value in model_facts(model):
        out.print(f"{name + ':':<14} {value}")
    print_next("serve", run)
    return 0


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    false_rejection: Annotated[float, typer.Option(help="Share of countable cells that may be rejected.")] = 0.02,
    unknown: Annotated[
        Path | None, typer.Option(help="Cells of other classes than the training's; measures how many are rejected.")
    ] = None,
) -> int:
    """Calibrate a trained model again.

    It sets probabilities, prediction sets and rejection, as training does at its end.
    """
    from urnet.bundle.seal import read_seal
    from urnet.cells.read import read_cells
    from urnet.evaluation.out_of_distribution import measure_rejection
    from urnet.progress import ProgressBars
    from urnet.run_folder import Run
    from urnet.training.calibrate import calibrate as calibrate_run

    opened = Run.open(run)
    recipe = opened.recipe()
    unknown_cells = None if unknown is None else read_cells(unknown, tile=recipe.tile, image=recipe.image)
    with ProgressBars(out) as bars:
        calibration = calibrate_run(opened, false_rejection=false_rejection, progress=bars.update)
        table = None if unknown_cells is None else measure_rejection(opened, unknown_cells, progress=bars.update)
    if seal := read_seal(opened.model):
        out.print(f"the model has a new seal; its digest is {seal.digest}")
    parts = ", ".join(f"{count} {name}" for name, count in calibration.parts.items() if count)
    out.print(f"temperature {calibration.temperature:.3f}; cells: {parts}")
    rejected, cells = int(calibration.confusion[:, -1].sum()), int(calibration.confusion.sum())
    out.print(f"{rejected} of {cells} cells of the {calibration.reference_part} part are rejected")
    if table is not None:
        for row in table.to_dict("records"):
            interval = _format_interval(100 * row["rejected_low"], 100 * row["rejected_high"], 1)
            share = f"{100 * row['rejected']:.1f} %{interval}"
            known = f"AUROC {row['auroc']:.3f}{_format_interval(row['auroc_low'], row['auroc_high'], 3)}, "
            name = row["label"] or f"the run's own {calibration.reference_part} part"
            out.print(f"{name}: {known if row['label'] else ''}rejected {share} of {row['cells']}")
    print_next("evaluate", run)
    return 0


@app.command()
def differential(
    run: RunArgument,
    source: Annotated[Path, typer.Argument(help="Fields of view (image, folder, field table), or cells.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for counts and reports.")],
    coverage: Annotated[
        float, typer.Option(help="Share of cells whose prediction set holds the true class, 0 to 1.")
    ] = 0.9,
    engine: EngineOption = "auto",
    scene: Annotated[str | None, typer.Option(help="Name or number of the scene of every field.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Count the cells of each donor.

    Counts are corrected for the confusion of the classifier, and have 95 % intervals.
    """
    from urnet.counting.differential import count_cells
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        result = count_cells(
            run, source, folder, coverage=coverage, engine=engine, scene=scene, expect=expect, progress=bars.update
        )
    for sample in result.samples:
        _print_sample(sample)
    for note in result.notes:
        out.print(f"note: {note}")
    out.print(f"report: {result.report}")
    if result.failed:
        return print_error(f"{result.failed} image(s) could not be used; the column 'error' gives the reason", 1)
    print_next("serve", run)
    return 0


@app.command()
def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Option("--out", help="New file or folder.")],
    kind: Annotated[
        Literal["onnx", "openvino", "torch", "bioimageio", "hub"], typer.Option("--format", help="Format of the graph.")
    ] = "onnx",
    cells: Annotated[Path | None, typer.Option(help="Cells for the check; the run's own when not given.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; the exporter's default when not given.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Write a model for other programs.

    The written graph is checked against the model on cells.
    """
    from urnet.export.formats import export_run
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        result = export_run(run, kind, folder, cells=cells, opset=opset, expect=expect, progress=bars.update)
    out.print(
        f"checked on {result.parity.cells} cells: probabilities differ by at most {result.parity.difference:.1e}, "
        "no decision changes"
    )
    for note in result.notes:
        out.print(f"note: {note}")
    out.print(f"written: {result.path}")
    return 0


def _format_interval(low: float, high: float, decimals: int) -> str:
    """Format an interval in brackets."""
    return " (no interval)" if low != low else f" ({low:.{decimals}f}–{high:.{decimals}f})"


def _print_sample(sample: "Sample") -> None:
    """Print the differential of one sample."""
    from rich.table import Table

    from urnet.counting.shares import CORRECTED_PERCENT, COUNTED, COUNTED_PERCENT, list_share_texts

    title = f"{sample.name}: {sample.cells} cells, {100 * sample.rejected_share:.1f} % rejected"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("class", COUNTED.lower(), COUNTED_PERCENT.lower(), CORRECTED_PERCENT.lower()):
        table.add_column(column, justify="left" if column == "class" else "right")
    for share in list_share_texts(sample):
        table.add_row(share.name, share.counted, share.counted_percent, share.corrected)
    out.print(table)
    for warning in sample.warnings:
        out.print(f"note: {sample.name}: {warning}")


def _print_evaluation(evaluation: "Evaluation") -> None:
    """Print the metrics of an evaluation, the differential, and the path of the report."""
    from rich.table import Table

    from urnet.html_pages import describe_intervals, format_interval

    metrics = evaluation.metrics
    table = Table(
        title=f"{metrics['part']}: {metrics['n']} cells, protocol {metrics['protocol']}", box=None, pad_edge=False
    )
    table.add_column("class")
    for column in ("recall, %", "precision, %", "F1, %", "cells"):
        table.add_column(column, justify="right")
    for name, figures in metrics["per_class"].items():
        cells = [format_interval(figures[key]) for key in ("recall", "precision", "f1")]
        table.add_row(name, *cells, str(figures["support"]))
    table.add_row("average", *(format_interval(metrics[f"macro_{key}"]) for key in ("recall", "precision", "f1")), "")
    table.add_row("accuracy", format_interval(metrics["accuracy"]), "", "", str(metrics["n"]))
    out.print(table)
    out.print(describe_intervals(metrics["intervals"]))
    differential = Table(title="differential, % of cells", box=None, pad_edge=False)
    for column in ("class", "counted", "true"):
        differential.add_column(column, justify="left" if column == "class" else "right")
    for name, share in metrics["differential"].items():
        differential.add_row(name, format_interval(share["predicted_percent"], 1), f"{share['true_percent']:.1f}")
    out.print(differential)
    out.print(metrics["differential_note"])
    for fold in metrics["folds"] or []:
        out.print(f"fold {fold['fold']}: macro recall {100 * fold['macro_recall']:.1f}, {fold['n']} cells")
    if metrics["simulated"]:
        out.print(f"note: simulated images ({metrics['simulated']})")
    for warning in metrics["warnings"]:
        out.print(f"note: {warning}")
    out.print(f"report: {evaluation.report}")
