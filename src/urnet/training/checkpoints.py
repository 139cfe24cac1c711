"""Checkpoints of the best and the last epoch, and the history of all epochs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from urnet.errors import RunError
from urnet.files.atomic import atomic_file
from urnet.run_folder import HISTORY_COLUMNS, NEW_HISTORY_COLUMNS
from urnet.training.logging import mute_lightning

STAGES = ("pretrain", "train")
"""Stages of a training, in order."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writer of checkpoints that are complete at any moment, so that training may be killed at any moment."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. If the disk is full, the old checkpoint stays."""
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        RunError: the file is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return {**checkpoint, "epoch": int(checkpoint["epoch"]), "state_dict": dict(checkpoint["state_dict"])}
    except OSError:
        raise
    except Exception as error:  # torch.load raises anything from EOFError to KeyError for a damaged file
        raise RunError(
            f"{path}: the checkpoint is damaged ({type(error).__name__}). Restore the file, or train into a new --out",
            code="run.checkpoint_damaged",
        ) from error


class CheckpointCallback(Checkpoint):
    """Callback that writes three things after each epoch.

    These are a row of the history, `best.ckpt` (weights) if the epoch is the best so far, and `last.ckpt` (everything
    that a resumed training needs).

    Args:
        folder: folder of the checkpoints.
        history: CSV file of the history.
        stage: `pretrain` or `train`.
        monitor: logged figure that decides which epoch is the best.
        larger: whether a larger figure is better.
    """

    def __init__(self, folder: Path, history: Path, stage: str, monitor: str, *, larger: bool):
        self.folder, self.history, self.stage = folder, history, stage
        self.monitor, self.larger = monitor, larger
        self.best: float | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Mute Lightning in a spawned process, which receives the callback by pickle."""
        self.__dict__.update(state)
        mute_lightning()

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint; the name of version 0.1.0, whose runs can be resumed."""
        return "Keeper"

    @property
    def best_path(self) -> Path:
        """Checkpoint with the weights of the best epoch, and the number of the epoch from 0."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """Checkpoint with the complete state after the last complete epoch."""
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint: the best figure so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint."""
        self.best = state["best"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the history, then the checkpoints.

        In this order a killed training leaves a row too many, which a resumed one removes, and never a row too few.
        """
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            append_history(self.history, {"stage": self.stage, "epoch": trainer.current_epoch + 1, **figures})
        # All processes write a checkpoint together, so the first one decides for all.
        score = trainer.strategy.broadcast(figures[self.monitor])
        if self.best is None or (score > self.best if self.larger else score < self.best):
            self.best = score
            trainer.save_checkpoint(self.best_path, weights_only=True)
        trainer.save_checkpoint(self.last_path)


def append_history(path: Path, figures: dict[str, Any]) -> None:
    """Append a row to the history and flush it. Figures without a column are ignored."""
    new = not path.is_file()
    columns = (
        NEW_HISTORY_COLUMNS if new else _choose_columns(path.read_text(encoding="utf-8").partition("\n")[0].split(","))
    )
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(figures)


def truncate_history(path: Path, stage: str, epochs: int) -> None:
    """Remove the rows of a stage after `epochs`, the rows of later stages, and an incomplete row.

    Raises:
        RunError: the file is no history.
    """
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    truncated = io.StringIO()
    writer = csv.DictWriter(truncated, _choose_columns(rows.fieldnames), lineterminator="\n")
    writer.writeheader()
    try:
        writer.writerows(
            row
            for row in rows
            if STAGES.index(row["stage"]) < STAGES.index(stage)
            or (row["stage"] == stage and int(row["epoch"]) <= epochs)
        )
    except (KeyError, TypeError, ValueError, csv.Error):
        raise RunError(
            f"{path}: this is not the history of a training. Restore the file, or remove it to continue",
            code="run.history_damaged",
        ) from None
    if truncated.getvalue() != text:
        with atomic_file(path) as file:
            file.write(truncated.getvalue().encode())


def _choose_columns(header: Sequence[str] | None) -> Sequence[str]:
    """Return the columns of a history with this header. Earlier versions wrote fewer, and a resumed run adds none."""
    return header if header and set(header) >= set(HISTORY_COLUMNS) else NEW_HISTORY_COLUMNS
