"""From fields, or from cells that are cut out already, to a differential count: `urnet differential`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from urnet.bundle.model import Model
from urnet.cells.read import find_images
from urnet.counting.report import write_reports
from urnet.counting.sample import Sample, count_sample
from urnet.errors import CellsError, RunError
from urnet.evaluation.predictions import training_overlap
from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.result import CropResult
from urnet.fields.field_or_crop import list_fields
from urnet.fields.io.pool import FieldPool
from urnet.fields.table import FieldRow, check_output_location
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import format_csv, read_own_table, write_frame
from urnet.files.outputs import refuse_existing
from urnet.predict import PADDING, predict_files, summarize_reasons
from urnet.progress import Progress
from urnet.run_folder import find_run


@dataclass(frozen=True)
class Differential:
    """What `count_cells` wrote.

    Args:
        folder: `differential.csv`, `differential.json`, `predictions.csv`, a page a sample, and of fields `cells/`.
        samples: donor by donor.
        report: the page to open first.
        notes: what the user should know.
        failed: images that could not be used; their rows in `predictions.csv` say why.
    """

    folder: Path
    samples: list[Sample]
    report: Path
    notes: list[str]
    failed: int


def count_cells(
    run: Path,
    source: Path,
    out: Path,
    *,
    coverage: float = 0.9,
    engine: str = "auto",
    scene: str | None = None,
    expect: str | None = None,
    progress: Progress | None = None,
) -> Differential:
    """Count the cells of each donor.

    Args:
        run: run folder or bundle of a calibrated model.
        source: fields (an image, a folder, a field table) or cells (a table, a folder of crops). A folder of images
            without a table holds fields where the model was trained on crops of `urnet crop` and the images are
            larger than those.
        out: new folder.
        coverage: of the prediction sets of single cells, 0 to 1.
        engine: what runs the networks: `auto`, `torch`, `onnx` or `openvino`.
        scene: name or number of the scene of every field; the training's when not given.
        expect: the first digits of the model's digest; another model is refused.
        progress: called with what is done and the share of it.

    Returns:
        What was counted. A donor of whom no cell was found is a sample without cells.

    Raises:
        RunError: the model is not calibrated, or was not trained on crops of fields and gets some.
        CellsError: nothing to look at, or no image that could be used.
        ImageError: a field cannot be read.
    """
    say = progress or (lambda what, share: None)
    run, source, out = Path(run), Path(source), Path(out)
    refuse_existing(out)
    model = Model.load(run, expect=expect)
    if model.calibration is None:
        raise RunError(
            f"{run}: the model is not calibrated, so its counts cannot be corrected; `urnet calibrate {run}` does it"
        )
    pool = FieldPool()
    fields = list_fields(source, model.config.tile, model.cropping, pool)
    if fields and model.cropping is None:
        raise RunError(
            f"{source}: these are fields, but the model was not trained on crops of `urnet crop`, so that nobody "
            "knows how to cut them; cut them as the training's cells were, and give the crops"
        )
    if scene is not None and not fields:
        raise CellsError(f"{source}: these are cells and not fields, so --scene {scene} names nothing; leave it out")
    if fields:
        check_output_location(out, source)
    with pool, atomic_folder(out) as folder:
        cells, cropped, notes = source, None, []
        if fields:
            cells = folder / "cells"
            cropped = crop_fields(
                fields, cells, model.cropping, for_prediction=True, scene=scene, pool=pool, progress=progress
            )
            pool.close()
            notes += cropped.notes
        table, reasons = _classify(model, cells, cropped, folder, out, coverage, engine, say)
        failed = sum(reasons.values())
        if len(table) and failed == len(table):
            raise CellsError(f"{source}: none of its {failed} image(s) could be used: {summarize_reasons(reasons)}")
        trained_in = find_run(run)
        if len(table) and trained_in is not None:  # a bundle by itself no longer knows its cells
            say("compare with the training", 0.0)
            notes += training_overlap(trained_in, cells, calibration=True)
        if failed:
            notes.append(
                f"{failed} image(s) could not be used and belong to no sample: {summarize_reasons(reasons)}; "
                "predictions.csv says which."
            )
        samples = _count(model, table, cropped, source.stem)
        report = write_reports(
            samples,
            folder,
            run=str(run),
            source=str(source),
            model=f"{model.config.name}, seed {model.config.seed}",
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            simulated=", ".join(sorted({*table["simulated"], *(row.simulated for row in _rows(cropped))} - {""})),
            notes=notes,
        )
    return Differential(out, samples, out / report.name, notes, failed)


def _rows(cropped: CropResult | None) -> list[FieldRow]:
    return [one.row for one in cropped.fields] if cropped is not None else []


def _classify(
    model: Model,
    cells: Path,
    cropped: CropResult | None,
    folder: Path,
    out: Path,
    coverage: float,
    engine: str,
    say: Progress,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write `predictions.csv`; its rows with their `donor` and `simulated`, and why images could not be used."""
    path = folder / "predictions.csv"
    if cropped is not None and not len(cropped.table):
        nothing = pd.DataFrame(columns=["path", "predicted", *model.prediction_columns, "engine", "error"])
        write_frame(path, nothing)
        return nothing.assign(donor="", simulated=""), {}
    done = predict_files(model, [cells], path, engine=engine, coverage=coverage, progress=say)
    table = read_own_table(path)
    if cropped is not None:  # the folder gets its name when all of it is there
        for column in ("path", "error"):
            for shown in (Path.as_posix, str):
                table[column] = table[column].str.replace(shown(folder), shown(out), regex=False)
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(format_csv(list(table), table.itertuples(index=False, name=None)))
    told = find_images([cells], model.config.tile, model.config.image).table
    table = table.assign(donor=told["donor"], simulated=told["simulated"])
    return table[table["error"] != PADDING], done.reasons


def _count(model: Model, table: pd.DataFrame, cropped: CropResult | None, alone: str) -> list[Sample]:
    """A sample a donor, those without cells as well; `alone` names the only one of a donor that is not known."""
    assert model.calibration is not None
    donors = sorted({*table["donor"], *(row.donor for row in _rows(cropped))})
    known = model.calibration.reference
    samples = []
    for donor in donors:
        mine = table[(table["donor"] == donor) & (table["error"] == "")]
        probabilities = mine[[f"p_{name}" for name in model.classes]].to_numpy(float)
        name = donor or (alone if len(donors) == 1 else "donor not known")
        rejected = mine["rejected"].tolist()
        samples.append(count_sample(name, probabilities, rejected, known.confusion, model.classes, reference=known))
    return samples
