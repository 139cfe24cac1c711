"""One cell of a grid: train a recipe with one seed on one fold, test it, and keep what tables and figures need.

A cell is an ordinary run folder with a folder `benchmark/` in it:

outcome.json         done or failed, why, and what it cost
predictions.csv.gz   a row a test cell
examples.npz         the same few cells raw, enhanced and under Grad-CAM; of the first seed and fold alone
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

from urnet.cells.audit import Audit
from urnet.cells.table import Cells
from urnet.errors import RecipeError
from urnet.files.atomic import atomic_file
from urnet.files.csv_tables import read_own_table, write_frame
from urnet.recipe import Recipe
from urnet.run_folder import Run

EXAMPLES_PER_CLASS = 2
TIMED = 3
"""Passes over the test part that are timed, after one that is not."""
TIMED_BATCH = 32


@dataclass(frozen=True)
class Job:
    """A recipe with its seed and fold, and the run folder for it."""

    recipe: Recipe
    folder: Path

    @property
    def title(self) -> str:
        """What progress calls it."""
        return f"{self.recipe.name}, seed {self.recipe.seed}, fold {self.recipe.split.fold}"

    @property
    def outcome_path(self) -> Path:
        """How the cell came out."""
        return self.folder / "benchmark" / "outcome.json"

    @property
    def predictions_path(self) -> Path:
        """What it said of each test cell."""
        return self.folder / "benchmark" / "predictions.csv.gz"

    @property
    def examples_path(self) -> Path:
        """Pictures of the same few cells."""
        return self.folder / "benchmark" / "examples.npz"

    def outcome(self) -> dict[str, Any]:
        """`status` (`done`, `failed` or `missing`), `error`, and of cells that are done the figures."""
        try:
            found = json.loads(self.outcome_path.read_text(encoding="utf-8"))
            if found["status"] != "done" or self.predictions_path.is_file():
                return found
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or damaged
            pass
        return {"status": "missing", "error": ""}

    def predictions(self) -> pd.DataFrame:
        """The predictions of a cell that is done, with `seed` and `fold`."""
        text = ("path", "label", "predicted", "source", "donor")
        table = read_own_table(self.predictions_path, text)
        return table.assign(seed=self.recipe.seed, fold=self.recipe.split.fold or 0)

    def examples(self) -> dict[str, np.ndarray]:
        """The pictures that were kept; none of most cells."""
        if not self.examples_path.is_file():
            return {}
        with np.load(self.examples_path) as kept:
            return dict(kept)

    def record_failure(self, error: str) -> None:
        """Keep that the cell failed, and why."""
        spent = self.outcome().get("train_seconds")
        self._write_outcome({"status": "failed", "error": " ".join(error.split()), "train_seconds": spent})

    def discard_outcome(self) -> float | None:
        """Forget an earlier attempt's outcome, which would be in the way of a new run folder.

        Returns:
            The seconds that its training took; none where it was killed, so that they are not known.
        """
        spent = self.outcome().get("train_seconds") if Run(self.folder).recipe_path.is_file() else 0.0
        shutil.rmtree(self.outcome_path.parent, ignore_errors=True)
        return spent

    def _write_outcome(self, outcome: dict[str, Any]) -> None:
        with atomic_file(self.outcome_path) as file:
            file.write((json.dumps(outcome, indent=2, ensure_ascii=False) + "\n").encode())


def run_job(job: Job, cells: Cells, audit: Audit, reporter: Any = None) -> None:
    """Train, test and conclude a cell; an interrupted one goes on from its last whole epoch.

    Args:
        job: what to train and where.
        cells: the grid's cells, undivided.
        audit: of these cells.
        reporter: is told how it goes.

    Raises:
        UrnetError: what `train` raises.
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
    # Only an unfinished run needs them, and a grid of hundreds would fill the disk.
    shutil.rmtree(Run(job.folder).checkpoints, ignore_errors=True)
    score_job(job, spent)


def score_job(job: Job, train_seconds: float | None = None) -> None:
    """Classify the test part of a trained run once, and keep the answers, then the outcome.

    Args:
        job: its folder is a finished run.
        train_seconds: what the training took, where that is known.

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
    if not job.recipe.split.fold:
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
    """The processor or GPU that trains here."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} thread(s))"


def _measure_throughput(scored: Any) -> float:
    """Images per second through enhancer and classifier, of prepared inputs in batches; median of several passes."""
    inputs = scored.inputs(slice(0, 4 * TIMED_BATCH))
    seconds = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        for _ in scored.model.forward(inputs, TIMED_BATCH):
            pass
        seconds.append(time.perf_counter() - started)
    return len(inputs) / float(np.median(seconds[1:]))


def _compute_cam_shares(scored: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the Grad-CAM mass on the cell, and that of an even map, (N,) each, and the maps, (N, S, S).

    Both shares are NaN where no outline of a cell is found.
    """
    import torch

    from urnet.evaluation.cam_share import cam_share, chance_share
    from urnet.evaluation.report_figures import channels_last
    from urnet.images.mask import segment_cell
    from urnet.nets.gradcam import grad_cam

    maps = grad_cam(scored.model.joint, torch.from_numpy(scored.inputs(slice(None))))
    crops = map(channels_last, scored.images)
    masks, found = (np.stack(part) for part in zip(*map(segment_cell, crops), strict=True))
    shares, chance = (np.where(found, share, np.nan) for share in (cam_share(maps, masks), chance_share(masks)))
    return shares, chance, maps


def _collect_examples(scored: Any, cams: np.ndarray | None) -> dict[str, np.ndarray]:
    """A few cells of each class, the same for every recipe of a grid: raw, enhanced, Grad-CAM, label."""
    chosen = scored.examples(EXAMPLES_PER_CLASS)
    inputs = scored.inputs(chosen)
    _, enhanced = next(scored.model.forward(inputs, len(inputs)))
    kept = {
        "raw": inputs.astype(np.float16),
        "enhanced": enhanced.astype(np.float16),
        "label": np.array([scored.model.classes[k] for k in scored.truth[chosen]]),
    }
    return kept if cams is None else kept | {"cam": cams[chosen].astype(np.float16)}
