"""Count the cells of fields, or of crops, into a differential: `urnet differential`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.read import find_images
from urnet.cells.table import Cells
from urnet.counting.examples import ExampleCollector
from urnet.counting.report import differential_table, write_reports
from urnet.counting.sample import Sample, count_sample
from urnet.counting.shares import list_share_texts
from urnet.errors import CellsError, RunError
from urnet.evaluation.predictions import overlap_warnings, training_cell_keys
from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.result import CropResult
from urnet.fields.field_or_crop import list_fields
from urnet.fields.io.pool import FieldPool
from urnet.fields.table import check_output_location
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import format_csv
from urnet.files.outputs import refuse_existing
from urnet.predict import PADDING, predict_cells, summarize_reasons
from urnet.progress import Progress
from urnet.run_folder import find_run


@dataclass(frozen=True)
class Differential:
    """Result of `count_cells`.

    Attributes:
        folder: `differential.csv`, `differential.json`, `predictions.csv`, a page for each sample; of fields also
            `cells/`.
        samples: one for each donor.
        report: the page to open first.
        notes: what the user should know.
        failed: number of images that could not be used; their rows in `predictions.csv` hold the reason.

    Example:
        >>> differential = count_cells("run", "cells", "count")
        >>> list(differential.to_frame()[["sample", "class", "percent", "low", "high"]])
        ['sample', 'class', 'percent', 'low', 'high']
    """

    folder: Path
    samples: list[Sample]
    report: Path
    notes: list[str]
    failed: int

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each sample and class, in per cent, as in `differential.csv`."""
        return differential_table(self.samples)

    def __repr__(self) -> str:
        lines = [
            f"{sample.name}: " + ", ".join(f"{share.name} {share.corrected} %" for share in list_share_texts(sample))
            for sample in self.samples
        ]
        return "\n".join([f"Differential of {len(self.samples)} sample(s), corrected (95 % interval)", *lines])

    def _repr_html_(self) -> str:
        columns = ("sample", "class", "percent", "low", "high", "count")
        return self.to_frame()[list(columns)].to_html(index=False, border=0, float_format="{:.1f}".format)


def count_cells(
    run: Path | str,
    source: Path | str,
    out: Path | str,
    *,
    coverage: float = COVERAGE,
    engine: str = "auto",
    scene: str | None = None,
    expect: str | None = None,
    progress: Progress | None = None,
) -> Differential:
    """Count the cells of each donor, corrected for the model's confusion, with 95 % intervals.

    Args:
        run: run folder or bundle of a calibrated model.
        source: fields (an image, a folder, a field table) or cells (a table, a folder of crops). A folder of images
            without a table holds fields if the model was trained on crops of `urnet crop` and the images are larger
            than those.
        out: new folder.
        coverage: share of each class's cells whose prediction set holds the true class, between 0 and 1.
        engine: engine that runs the networks: `auto`, `torch`, `onnx` or `openvino`.
        scene: name or number of the scene of every field; the training's when not given.
        expect: the first digits of the model's digest; another model is refused.
        progress: called with a stage and the share done.

    Returns:
        A sample for each donor; a donor without cells is a sample of none.

    Raises:
        RunError: the model is not calibrated (code `counting.not_calibrated`), or gets fields and was not trained on
            crops of fields (code `counting.cropping_unknown`).
        CellsError: no images, or none that can be used (code `counting.none_usable`).
        ImageError: a field cannot be read.

    Example:
        >>> differential = count_cells("run", "cells", "count")
        >>> [sample.name for sample in differential.samples]
        ['cells']
    """
    report_progress = progress or (lambda what, share: None)
    run, source, out = Path(run), Path(source), Path(out)
    refuse_existing(out)
    model = Model.load(run, expect=expect)
    if model.calibration is None:
        raise RunError(
            f"{run}: the model is not calibrated, so its counts cannot be corrected; run `urnet calibrate {run}`",
            code="counting.not_calibrated",
        )
    pool = FieldPool()
    fields = list_fields(source, model.config.tile, model.cropping, pool)
    if fields and model.cropping is None:
        raise RunError(
            f"{source}: these are fields, but the model was not trained on crops of `urnet crop`, so the settings for "
            "cutting them are not known; crop the cells as those of the training were cropped, and give the crops",
            code="counting.cropping_unknown",
        )
    if scene is not None and not fields:
        raise CellsError(
            f"{source}: these are crops, and only fields have scenes; leave --scene {scene} out",
            code="counting.scene_of_crops",
        )
    if fields:
        check_output_location(out, source)
    with pool, atomic_folder(out) as folder:
        cropped = None
        if fields:
            cropped = crop_fields(
                fields, folder / "cells", model.cropping, for_prediction=True, scene=scene, pool=pool, progress=progress
            )
            pool.close()
            cells = Cells(folder / "cells", cropped.table)
        else:
            cells = use_cached_crops(find_images([source], model.config.tile, model.config.image))
        trained_in = find_run(run)
        examples = ExampleCollector(cells.table["donor"].tolist(), model.config.scaling)
        predicted = predict_cells(
            model,
            cells,
            engine=engine,
            coverage=coverage,
            hash_crops=trained_in is not None,  # a bundle by itself does not know its cells
            on_classified=examples.add,
            progress=progress,
        )
        table = predicted.table
        if cropped is not None:  # the folder gets its name at the end
            table["path"] = [(out / "cells" / path).as_posix() for path in table["path"]]
            table["error"] = table["error"].str.replace(str(folder), str(out), regex=False)
        with (folder / "predictions.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(format_csv(list(table), table.itertuples(index=False, name=None)))
        notes = [] if cropped is None else list(cropped.notes)
        failed, reasons = predicted.summary.failed, summarize_reasons(predicted.summary.reasons)
        usable = len(table) - predicted.summary.left_out
        if failed and failed == usable:
            raise CellsError(
                f"{source}: none of its {failed} image(s) could be used: {reasons}", code="counting.none_usable"
            )
        if usable and trained_in is not None:
            report_progress("compare with the training", 0.0)
            keys = training_cell_keys(trained_in, calibration=True)
            notes += overlap_warnings(predicted.copy_keys, keys, calibration=True)
        if failed:
            notes.append(
                f"{failed} image(s) could not be used and belong to no sample: {reasons}; predictions.csv says which."
            )
        table = table.assign(donor=cells.table["donor"], simulated=cells.table["simulated"])
        samples = _count_samples(model, table[table["error"] != PADDING], cropped, source.stem)
        report = write_reports(
            [sample for _, sample in samples],
            folder,
            run=str(run),
            source=str(source),
            model=f"{model.config.name}, seed {model.config.seed}",
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            simulated=_name_simulations(table, cropped),
            notes=notes,
            examples=[examples.groups.get(donor, {}) for donor, _ in samples],
        )
    return Differential(out, [sample for _, sample in samples], out / report.name, notes, failed)


def _count_samples(
    model: Model, table: pd.DataFrame, cropped: CropResult | None, alone: str
) -> list[tuple[str, Sample]]:
    """Count a sample for each donor, also for donors without cells.

    Args:
        model: the calibrated model.
        table: predictions with the column `donor`.
        cropped: the fields, whose donors may have no cells.
        alone: name of the only sample if its donor is not known.

    Returns:
        Donor and sample.
    """
    assert model.calibration is not None
    fields = [] if cropped is None else cropped.fields
    donors = sorted({*table["donor"], *(field.row.donor for field in fields)})
    reference = model.calibration.reference
    samples = []
    for donor in donors:
        rows = table[(table["donor"] == donor) & (table["error"] == "")]
        probabilities = rows[[f"p_{name}" for name in model.classes]].to_numpy(float)
        name = donor or (alone if len(donors) == 1 else "donor not known")
        rejected = rows["rejected"].tolist()
        sample = count_sample(name, probabilities, rejected, reference.confusion, model.classes, reference=reference)
        samples.append((donor, sample))
    return samples


def _name_simulations(table: pd.DataFrame, cropped: CropResult | None) -> str:
    """Name the kinds of simulation that made the images; "" for real ones."""
    fields = [] if cropped is None else cropped.fields
    return ", ".join(sorted({*table["simulated"], *(field.row.simulated for field in fields)} - {""}))
