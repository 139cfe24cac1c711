"""One job of a benchmark: train a recipe with one seed on one fold, test it, and store the results.

The folder of a job is a run folder with a folder `benchmark/` in it:

outcome.json         status, error, metrics and costs
predictions.csv.gz   one row per test cell
examples.npz         a few cells, raw, enhanced and with Grad-CAM; only for the first fold
"""

import json
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.benchmark.row import describe_run
from urnet.cells.audit import Audit
from urnet.cells.table import Cells
from urnet.errors import RecipeError
from urnet.files.atomic import atomic_file
from urnet.files.csv_tables import read_own_table, write_frame
from urnet.recipe import Recipe
from urnet.run_folder import Run

EXAMPLES_PER_CLASS = 2
TIMED = 3
"""Number of timed passes over the test part, after a first one that is not timed."""
TIMED_BATCH = 32


@dataclass(frozen=True)
class Job:
    """One training of a benchmark.

    Attributes:
        recipe: the recipe, with its seed and fold.
        folder: its run folder.
        repeat: number of the repeat of the folds.
    """

    recipe: Recipe
    folder: Path
    repeat: int = 0

    @property
    def title(self) -> str:
        """Name in messages."""
        return f"{self.recipe.name}, {describe_run(self.place)}"

    @property
    def place(self) -> dict[str, int]:
        """Seed, repeat and fold."""
        return {"seed": self.recipe.seed, "repeat": self.repeat, "fold": self.recipe.split.fold or 0}

    @property
    def outcome_path(self) -> Path:
        """File with status, error, metrics and costs."""
        return self.folder / "benchmark" / "outcome.json"

    @property
    def predictions_path(self) -> Path:
        """File with the predictions for the test cells."""
        return self.folder / "benchmark" / "predictions.csv.gz"

    @property
    def examples_path(self) -> Path:
        """File with images of a few cells."""
        return self.folder / "benchmark" / "examples.npz"

    def outcome(self) -> dict[str, Any]:
        """Read `status` (`done`, `failed` or `missing`), `error`, and the metrics of a finished job."""
        try:
            outcome = json.loads(self.outcome_path.read_text(encoding="utf-8"))
            if outcome["status"] != "done" or self.predictions_path.is_file():
                return outcome
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or damaged
            pass
        return {"status": "missing", "error": ""}

    def predictions(self) -> pd.DataFrame:
        """Read the predictions of a finished job, with `seed`, `repeat` and `fold`."""
        text = ("path", "label", "predicted", "source", "donor")
        table = read_own_table(self.predictions_path, text)
        return table.assign(**self.place)

    def examples(self) -> dict[str, np.ndarray]:
        """Read the images of a few cells; the result is empty for most jobs."""
        if not self.examples_path.is_file():
            return {}
        with np.load(self.examples_path) as arrays:
            return dict(arrays)

    def record_failure(self, error: str) -> None:
        """Store that the job failed, and why."""
        spent = self.outcome().get("train_seconds")
        self._write_outcome({"status": "failed", "error": " ".join(error.split()), "train_seconds": spent})

    def discard_outcome(self) -> float | None:
        """Delete the outcome of an earlier attempt, so that a new run folder can be created.

        Returns:
            Training time of that attempt, in seconds; None if it was killed.
        """
        spent = self.outcome().get("train_seconds") if Run(self.folder).recipe_path.is_file() else 0.0
        shutil.rmtree(self.outcome_path.parent, ignore_errors=True)
        return spent

    def _write_outcome(self, outcome: dict[str, Any]) -> None:
        with atomic_file(self.outcome_path) as file:
            file.write((json.dumps(outcome, indent=2, ensure_ascii=False) + "\n").encode())


def run_job(job: Job, cells: Cells, audit: Audit, reporter: Any = None) -> None:
    """Train and test a job. An interrupted job resumes after its last complete epoch.

    Args:
        job: what to train, and where.
        cells: all cells of the grid.
        audit: audit of these cells.
        reporter: receives messages and progress.

    Raises:
        UrnetError: the training failed, as `train` says.
    """
    from urnet.training.fit import train

    started, spent = time.monotonic(), job.discard_outcome()
    try:
        train(cells, job.recipe, job.folder, resume=True, audit=audit, reporter=reporter)
    finally:
        if spent is not None:
            spent += time.monotonic() - started
        if job.folder.is_dir():
            job._write_outcome({"status": "missing", "error": "", "train_seconds": spent})
    # Checkpoints of hundreds of finished runs would fill the disk.
    shutil.rmtree(Run(job.folder).checkpoints, ignore_errors=True)
    score_job(job, spent)


def score_job(job: Job, train_seconds: float | None = None) -> None:
    """Classify the test part of a trained run; store the predictions, then the outcome.

    Args:
        job: a job with a finished run.
        train_seconds: training time, if known.

    Raises:
        UrnetError: the run is not finished, or its cells cannot be read.
    """
    from urnet.evaluation.predictions import score_run_part
    from urnet.nets import count_macs, count_parameters

    run = Run.open(job.folder)
    scored = score_run_part(run, "test", None)
    model, rows = scored.model, scored.to_frame()
    examples: dict[str, np.ndarray] = {}
    try:
        shares, chance, cams = _compute_cam_shares(scored)
        rows = rows.assign(cam_share=shares.round(4), cam_chance=chance.round(4))
    except RecipeError:  # no feature maps to look at
        cams = None
    if not job.recipe.split.fold and not job.repeat:
        examples = _collect_examples(scored, cams)
    write_frame(job.predictions_path, rows)
    if examples:
        with atomic_file(job.examples_path) as file:
            np.savez_compressed(file, **examples)
    job._write_outcome(
        {
            "status": "done",
            "error": "",
            **scored.summary(),
            "train_seconds": train_seconds,
            "images_per_second": _measure_throughput(scored),
            "epoch": model.config.epoch,
            "parameters": count_parameters(model.joint),
            "macs": count_macs(model.joint, model.config.size, model.config.channels),
            "device": device_name(),
        }
    )


def device_name() -> str:
    """Name the GPU or processor of this machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} thread(s))"


def _measure_throughput(scored: Any) -> float:
    """Measure images per second through enhancer and classifier, in batches; the median of several passes."""
    inputs = scored.inputs(slice(0, 4 * TIMED_BATCH))
    seconds = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        for _ in scored.model.forward(inputs, TIMED_BATCH):
            pass
        seconds.append(time.perf_counter() - started)
    return len(inputs) / float(np.median(seconds[1:]))


def _compute_cam_shares(scored: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the share of the Grad-CAM mass on the cell, that of a uniform map, and the maps.

    Returns:
        Two arrays (N,), NaN where no outline of a cell is detected; and the maps (N, S, S).
    """
    import torch

    from urnet.benchmark.cam_share import cam_share, chance_share
    from urnet.evaluation.report_figures import channels_last
    from urnet.images.mask import segment_cell
    from urnet.nets.gradcam import grad_cam

    maps = grad_cam(scored.model.joint, torch.from_numpy(scored.inputs(slice(None))))
    crops = map(channels_last, scored.images)
    masks, has_mask = (np.stack(part) for part in zip(*map(segment_cell, crops), strict=True))
    shares, chance = (np.where(has_mask, share, np.nan) for share in (cam_share(maps, masks), chance_share(masks)))
    return shares, chance, maps


def _collect_examples(scored: Any, cams: np.ndarray | None) -> dict[str, np.ndarray]:
    """Collect a few cells of each class, the same for every recipe: raw, enhanced, label, Grad-CAM."""
    chosen = scored.examples(EXAMPLES_PER_CLASS)
    inputs = scored.inputs(chosen)
    _, enhanced = next(scored.model.forward(inputs, len(inputs)))
    arrays = {
        "raw": inputs.astype(np.float16),
        "enhanced": enhanced.astype(np.float16),
        "label": np.array([scored.model.classes[k] for k in scored.truth[chosen]]),
    }
    return arrays if cams is None else arrays | {"cam": cams[chosen].astype(np.float16)}
