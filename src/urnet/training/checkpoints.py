"""The best and the last epoch on disk, and the history beside them, each written whole or not at all."""

import csv
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

HISTORY_COLUMNS = (
    "stage",
    "epoch",
    "train_loss",
    "validation_loss",
    "train_accuracy",
    "validation_accuracy",
    "validation_macro_recall",
    "lr",
)


class WholeFileIO(TorchCheckpointIO):
    """Checkpoints are written beside their place and moved there, so that a killed process leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; on a full disk the old one stays and the attempt is removed."""
        final = Path(path)
        part = final.with_name(final.name + ".part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(final)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


class Keeper(Checkpoint):
    """After each epoch: a row of history, `best.ckpt` (weights) if it is the best so far, `last.ckpt` (everything).

    Args:
        folder: where the checkpoints go.
        history: the CSV that rows are added to.
        stage: `pretrain` or `train`.
        monitor: logged figure that decides which epoch is best.
        larger: whether larger is better.
    """

    def __init__(self, folder: Path, history: Path, stage: str, monitor: str, *, larger: bool):
        self.folder, self.history, self.stage = folder, history, stage
        self.monitor, self.larger = monitor, larger
        self.best: float | None = None
        self.best_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where the checkpoint stopped."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """History first: a row too many is cut off on resumption, a row too few could not be made up."""
        epoch = trainer.current_epoch + 1
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            add_row(self.history, {"stage": self.stage, "epoch": epoch, **figures})
        score = figures[self.monitor]
        if self.best is None or (score > self.best if self.larger else score < self.best):
            self.best, self.best_epoch = score, epoch
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        trainer.save_checkpoint(self.folder / "last.ckpt")


def add_row(path: Path, figures: dict[str, Any]) -> None:
    """Add a row to the history and flush it; figures that are no column are left out."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(figures)


def cut_history(path: Path, stage: str, epochs: int) -> None:
    """Remove the rows of a stage after `epochs`, and those of later stages: they will be made again."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    later = {"pretrain": ("train",), "train": ()}[stage]
    kept = [r for r in rows if r["stage"] not in later and (r["stage"] != stage or int(r["epoch"] or 0) <= epochs)]
    if kept == rows:
        return
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    part.replace(path)
