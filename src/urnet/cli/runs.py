"""Commands about one model: train it, evaluate it, use it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from urnet.cli.app import SEED_MAX, CellsArgument, ExpectOption, RecipeOption, SetOption, app, out, print_error

if TYPE_CHECKING:
    from urnet.counting.sample import Sample
    from urnet.evaluation.evaluate import Evaluation

EngineOption = Annotated[str, typer.Option(help="What runs the networks: auto, torch, onnx or openvino.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="New folder for the cells and the run.")] = Path("urnet-demo"),
    seed: Annotated[int, typer.Option(help="Seed of cells and training.", min=0, max=SEED_MAX)] = 0,
) -> int:
    """Make phantom cells, train UR-Net at laptop scale, evaluate it: minutes on two cores, no download."""
    from urnet.cells.simulate import write_phantom
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.files.outputs import lock_output, refuse_existing
    from urnet.progress import ProgressBars
    from urnet.training.fit import train as train_runs

    with lock_output(folder, in_place=True) as claim, ProgressBars(out) as bars:
        if not claim.same_command:
            refuse_existing(folder)
        cells = folder / "cells"
        if not cells.is_dir():
            write_phantom(cells, 1200, seed=seed, progress=lambda share: bars.update("draw phantom cells", share))
        run = train_runs(cells, "demo", folder / "run", seed=seed, resume=True, reporter=bars)[0]
        evaluation = evaluate_run(run, progress=bars.update)
    _print_evaluation(evaluation)
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run; a finished one is accepted.")] = False,
    devices: Annotated[int, typer.Option(help="Processes: GPUs, or processes on the CPU.", min=1)] = 1,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Train although a given split leaks.")] = False,
) -> int:
    """Train a run: audit, split, pre-training, joint training."""
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())  # a mistake is said before torch is loaded, which takes seconds
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
    out.print(f"next: urnet evaluate {quote_path(folder)}")
    return 0


@app.command()
def distill(
    run: Annotated[Path, typer.Argument(help="Run folder of the teacher.")],
    student: Annotated[str, typer.Option(help="Recipe of the student: a shipped one or a YAML file.")] = "urnet-small",
    folder: Annotated[Path | None, typer.Option("--out", help="New run folder; RUN-STUDENT when not given.")] = None,
    overrides: SetOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the training; the recipe's when not given.", min=0, max=SEED_MAX)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run; a finished one is accepted.")] = False,
) -> int:
    """Train a small student that learns from a run, on the run's cells and split."""
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    load_recipe(student, overrides or ())  # a mistake is said before torch is loaded, which takes seconds
    from urnet.training.distill import distill as distill_run

    with ProgressBars(out) as bars:
        done = distill_run(run, student, folder, overrides=overrides or (), seed=seed, resume=resume, reporter=bars)
    out.print(f"trained: {done.folder}")
    student_path = quote_path(done.folder)
    out.print(f"next: urnet evaluate {student_path} and urnet compare {quote_path(run)} {student_path} --out …")
    return 0


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a cross-validation.")],
    cells: Annotated[Path | None, typer.Option(help="Other cells; the run's own when not given.")] = None,
    split: Annotated[str, typer.Option(help="Part: train, validation or test.")] = "test",
    folder: Annotated[Path | None, typer.Option("--out", help="New folder; RUN/evaluation/… when not given.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Evaluate a run: metrics.json, predictions.csv, figures/ and report.html."""
    from urnet.evaluation.evaluate import evaluate as evaluate_run
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        evaluation = evaluate_run(run, cells, split=split, out=folder, expect=expect, progress=bars.update)
    _print_evaluation(evaluation)
    return 0


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders of images, or tables with a column 'path'.")],
    table: Annotated[Path, typer.Option("--out", help="New CSV.")],
    enhanced: Annotated[Path | None, typer.Option(help="New folder for the enhanced images.")] = None,
    cam: Annotated[Path | None, typer.Option(help="New folder for Grad-CAM pictures.")] = None,
    engine: EngineOption = "auto",
    expect: ExpectOption = None,
) -> int:
    """Classify images; exit code 1 if some could not be read (their rows say why)."""
    from urnet.bundle.model import Model
    from urnet.calibration.conformal import COVERAGE, describe_coverage
    from urnet.predict import predict_files
    from urnet.progress import ProgressBars

    model = Model.load(run, expect=expect)
    with ProgressBars(out) as bars:
        done = predict_files(
            model,
            images,
            table,
            engine=engine,
            enhanced=enhanced,
            cam=cam,
            progress=bars.update,
        )
    out.print(", ".join(f"{name} {count}" for name, count in done.counts.items()))
    classified = done.images - done.failed - done.left_out
    out.print(f"{classified} of {done.images} images classified: {table}")
    if done.engines:
        out.print("engine: " + ", ".join(f"{name} ({count} images)" for name, count in done.engines.items()))
    if done.resumed:
        out.print(f"{done.resumed} of them were there already, of a prediction that was interrupted")
    if done.rejected:
        out.print(f"{done.rejected} show no countable cell and belong to no class; the column 'rejected' says why")
    if model.calibration is not None:
        out.print(f"column 'set': the classes that cannot be ruled out; {describe_coverage(COVERAGE)}")
    if done.left_out:
        out.print(f"{done.left_out} tiles are padding of their archive and are not counted")
    if done.failed:
        return print_error(done.failure_message, 1)
    return 0


@app.command()
def about(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    expect: ExpectOption = None,
) -> int:
    """Show what a model is: classes, input, calibration, digest, and whether its files fit their seal."""
    from urnet.bundle.about import model_facts
    from urnet.bundle.model import Model

    model = Model.load(run, expect=expect)
    for name, value in model_facts(model):
        out.print(f"{name + ':':<14} {value}")
    return 0


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    false_rejection: Annotated[float, typer.Option(help="Share of good cells that may be rejected.")] = 0.02,
    unknown: Annotated[
        Path | None, typer.Option(help="Cells of kinds that the training never had; says how well they are rejected.")
    ] = None,
) -> int:
    """Calibrate a trained model anew (training does it, too): probabilities, prediction sets, rejection."""
    from urnet.bundle.seal import read_seal
    from urnet.cells.read import read_cells
    from urnet.evaluation.out_of_distribution import measure_rejection
    from urnet.progress import ProgressBars
    from urnet.run_folder import Run
    from urnet.training.calibrate import calibrate as calibrate_run

    opened = Run.open(run)
    recipe = opened.recipe()
    strange = None if unknown is None else read_cells(unknown, tile=recipe.tile, image=recipe.image)
    with ProgressBars(out) as bars:
        done = calibrate_run(opened, false_rejection=false_rejection, progress=bars.update)
        table = measure_rejection(opened, strange, progress=bars.update) if strange is not None else None
    if seal := read_seal(opened.model):
        out.print(f"the model is sealed anew; its digest is now {seal.digest}")
    parts = ", ".join(f"{count} {name}" for name, count in done.parts.items() if count)
    out.print(f"temperature {done.temperature:.3f}; cells: {parts}")
    rejected, cells = int(done.confusion[:, -1].sum()), int(done.confusion.sum())
    out.print(f"{rejected} of {cells} cells of the {done.reference_part} part are rejected")
    if table is not None:
        for row in table.to_dict("records"):
            interval = _format_interval(100 * row["rejected_low"], 100 * row["rejected_high"], 1)
            share = f"{100 * row['rejected']:.1f} %{interval}"
            known = f"AUROC {row['auroc']:.3f}{_format_interval(row['auroc_low'], row['auroc_high'], 3)}, "
            name = row["label"] or f"the run's own {done.reference_part} part"
            out.print(f"{name}: {known if row['label'] else ''}rejected {share} of {row['cells']}")
    return 0


@app.command()
def differential(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    source: Annotated[Path, typer.Argument(help="Fields of view (image, folder, field table), or cells.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for counts and reports.")],
    coverage: Annotated[float, typer.Option(help="Of the prediction sets of single cells.")] = 0.9,
    engine: EngineOption = "auto",
    scene: Annotated[str | None, typer.Option(help="Name or number of the scene of every field.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Count the cells of each donor, corrected for the classifier's own confusion, with intervals."""
    from urnet.counting.differential import count_cells
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        done = count_cells(
            run, source, folder, coverage=coverage, engine=engine, scene=scene, expect=expect, progress=bars.update
        )
    for sample in done.samples:
        _print_sample(sample)
    for note in done.notes:
        out.print(f"note: {note}")
    out.print(f"report: {done.report}")
    if done.failed:
        return print_error(f"{done.failed} image(s) could not be used; the column 'error' says why", 1)
    return 0


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    folder: Annotated[Path, typer.Option("--out", help="New file or folder.")],
    kind: Annotated[str, typer.Option("--format", help="onnx, openvino, torch, bioimageio or hub.")] = "onnx",
    cells: Annotated[Path | None, typer.Option(help="Cells to check it on; the run's own when not given.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; the exporter's own when not given.")] = None,
    expect: ExpectOption = None,
) -> int:
    """Write the model as one graph for other programs, checked against the original on real cells."""
    from urnet.export.formats import export_run
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        done = export_run(run, kind, folder, cells=cells, opset=opset, expect=expect, progress=bars.update)
    out.print(
        f"checked on {done.parity.cells} cells: probabilities differ by {done.parity.difference:.1e} at most, "
        "no decision changes"
    )
    for note in done.notes:
        out.print(f"note: {note}")
    out.print(f"written: {done.path}")
    return 0


def quote_path(path: Path) -> str:
    """A path as a shell takes it."""
    return f'"{path}"' if " " in str(path) else str(path)


def _format_interval(low: float, high: float, decimals: int) -> str:
    """An interval behind a figure, in brackets."""
    return " (no interval)" if low != low else f" ({low:.{decimals}f}–{high:.{decimals}f})"


def _print_sample(sample: "Sample") -> None:
    """One sample's differential."""
    from rich.table import Table

    title = f"{sample.name}: {sample.cells} cells, {100 * sample.rejected_share:.1f} % rejected"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("class", "counted", "counted, %", "corrected, % (95 % interval)"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for k, name in enumerate(sample.classes):
        low, high = 100 * sample.adjusted_interval[k]
        corrected = f"{100 * sample.adjusted[k]:.1f} ({low:.1f}–{high:.1f})" if sample.accepted else "–"
        raw = f"{100 * sample.raw[k]:.1f}" if sample.accepted else "–"
        table.add_row(name, str(int(sample.counts[k])), raw, corrected)
    out.print(table)
    for warning in sample.warnings:
        out.print(f"note: {sample.name}: {warning}")


def _print_evaluation(evaluation: "Evaluation") -> None:
    """The table of an evaluation, the differential, and where the report is."""
    from rich.table import Table

    from urnet.html_pages import describe_intervals, format_interval

    metrics = evaluation.metrics
    table = Table(
        title=f"{metrics['part']}: {metrics['n']} cells, protocol {metrics['protocol']}", box=None, pad_edge=False
    )
    table.add_column("class")
    for column in ("recall", "precision", "F1", "cells"):
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
