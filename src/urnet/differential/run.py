"""From fields, or from cells that are cut out already, to a differential count: `urnet differential`."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from urnet.bundle import Model
from urnet.cells.table import TABLE_NAME, find_images
from urnet.differential.report import write_reports
from urnet.differential.sample import Sample, count_sample
from urnet.errors import CellsError, RunError
from urnet.evaluation.scored import seen_in_training
from urnet.fields.crop import crop_fields
from urnet.fields.read import describe_field
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.predict import predict_files
from urnet.tables import read_table
from urnet.training.run import Run, refuse_existing

LARGER = 1.5
"""An image this many times larger than a model's crops is a field and no crop."""

Progress = Callable[[str, float], None]


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
    run: Path, source: Path, out: Path, *, coverage: float = 0.9, progress: Progress | None = None
) -> Differential:
    """Count the cells of each donor.

    Args:
        run: run folder or bundle of a calibrated model.
        source: fields (an image, a folder, a field table) or cells (a table, a folder of crops). A folder of images
            without a table holds fields where the model was trained on crops of `urnet crop` and the images are
            larger than those.
        out: new folder.
        coverage: of the prediction sets of single cells, 0 to 1.
        progress: called with what is done and the share of it.

    Raises:
        RunError: the model is not calibrated, or was not trained on crops of fields and gets some.
        CellsError: nothing to count.
        ImageError: a field cannot be read.
    """
    say = progress or (lambda what, share: None)
    run, source, out = Path(run), Path(source), Path(out)
    refuse_existing(out)
    model = Model.load(run)
    if model.calibration is None:
        raise RunError(
            f"{run}: the model is not calibrated, so its counts cannot be corrected; `urnet calibrate {run}` does it"
        )
    notes: list[str] = []
    cells = source
    if _holds_fields(source, model):
        if model.cropping is None:
            raise RunError(
                f"{source}: these are fields, but the model was not trained on crops of `urnet crop`, so that nobody "
                "knows how to cut them; cut them as the training's cells were, and give the crops"
            )
        cropped = crop_fields(source, out / "cells", model.cropping, again=True, progress=progress)
        # Labels are no business of a count, and every cell of a sample is still without one.
        notes += [note for note in cropped.notes if "no label" not in note]
        cells = out / "cells"
        if not len(cropped.table):
            raise CellsError(f"{source}: no cells were found, so there is nothing to count; {cells / 'report.html'}")
    out.mkdir(parents=True, exist_ok=True)
    done = predict_files(
        model,
        [cells],
        out / "predictions.csv",
        coverage=coverage,
        progress=lambda n, of: say("classify", n / of),
    )
    table = pd.read_csv(out / "predictions.csv", dtype=str, keep_default_na=False, encoding="utf-8")
    usable = table[table["error"] == ""]
    looked_at = find_images([cells], model.config.tile, model.config.image)
    told = looked_at.table.loc[usable.index]
    donors, simulated = told["donor"], ", ".join(sorted(set(told["simulated"]) - {""}))
    if Run(run).recipe_path.is_file():  # a bundle by itself no longer knows its cells
        say("compare with the training", 0.0)
        notes += seen_in_training(Run(run), cells, calibration=True)
    samples = []
    for donor in sorted(set(donors)):
        mine = usable[donors == donor]
        probabilities = mine[[f"p_{name}" for name in model.classes]].to_numpy(float)
        rejected = mine["rejected"].tolist()
        name = donor or (source.stem if len(set(donors)) == 1 else "donor not known")
        known = model.calibration.reference
        samples.append(count_sample(name, probabilities, rejected, known.confusion, model.classes, reference=known))
    if not samples:
        raise CellsError(f"{source}: no image could be used; the column 'error' of {out / 'predictions.csv'} says why")
    config = model.config
    report = write_reports(
        samples,
        out,
        run=str(run),
        source=str(source),
        model=f"{config.name}, seed {config.seed}",
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        simulated=simulated,
        notes=notes,
    )
    return Differential(out, samples, report, notes, done.failed)


def _holds_fields(source: Path, model: Model) -> bool:
    """Whether these are fields of view rather than crops."""
    if source.suffix.lower() == ".csv":
        return "path" not in read_table(source, ("path", "field", "brightfield")).columns
    if source.is_dir() and (source / TABLE_NAME).is_file():
        return False
    if source.is_dir() and (source / FIELD_TABLE).is_file():
        return True
    if model.config.tile is not None:
        return False
    first = source if source.is_file() else source / str(find_images([source]).table["path"].iloc[0])
    info = describe_field(first)
    size = model.config.size if model.cropping is None else model.cropping.size
    return model.cropping is not None and max(info.height, info.width) > LARGER * size
