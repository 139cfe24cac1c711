"""The best and the last epoch on disk, and the history beside them."""

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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints are whole at any moment, so that training can be killed at any moment."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; on a full disk the old one stays."""
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        RunError: it is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return {**checkpoint, "epoch": int(checkpoint["epoch"]), "state_dict": dict(checkpoint["state_dict"])}
    except OSError:
        raise
    except Exception as error:  # torch.load answers damage with anything from EOFError to KeyError
        raise RunError(
            f"{path}: the checkpoint is damaged ({type(error).__name__}); restore the file, or train to a new --out"
        ) from error


class CheckpointCallback(Checkpoint):
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keepers come to life again in spawned processes, which nobody has told to be quiet."""
        self.__dict__.update(state)
        mute_lightning()

    @property
    def best_path(self) -> Path:
        """Weights of the best epoch, and its number from 0 under `epoch`."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """All that is needed to go on after the last whole epoch."""
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where the checkpoint stopped."""
        self.best = state["best"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """History first: a row too many is cut off on resumption, a row too few could not be made up."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            append_history(self.history, {"stage": self.stage, "epoch": trainer.current_epoch + 1, **figures})
        # Writing is done together, so the first process decides for all.
        score = trainer.strategy.broadcast(figures[self.monitor])
        if self.best is None or (score > self.best if self.larger else score < self.best):
            self.best = score
            trainer.save_checkpoint(self.best_path, weights_only=True)
        trainer.save_checkpoint(self.last_path)


def append_history(path: Path, figures: dict[str, Any]) -> None:
    """Add a row to the history and flush it; figures that are no column are left out."""
    new = not path.is_file()
    columns = NEW_HISTORY_COLUMNS if new else _columns(path.read_text(encoding="utf-8").partition("\n")[0].split(","))
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(figures)


def _columns(header: Sequence[str] | None) -> Sequence[str]:
    """Give the columns of a history with this header; earlier versions wrote fewer, and a resumed run adds none."""
    return header if header and set(header) >= set(HISTORY_COLUMNS) else NEW_HISTORY_COLUMNS


def truncate_history(path: Path, stage: str, epochs: int) -> None:
    """Remove the rows of a stage after `epochs`, those of later stages, and half a row: they will be made again.

    Raises:
        RunError: the file is no history.
    """
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    whole = io.StringIO()
    writer = csv.DictWriter(whole, _columns(rows.fieldnames), lineterminator="\n")
    writer.writeheader()
    try:
        writer.writerows(
            row
            for row in rows
            if STAGES.index(row["stage"]) < STAGES.index(stage)
            or (row["stage"] == stage and int(row["epoch"]) <= epochs)
        )
    except (KeyError, TypeError, ValueError, csv.Error):
        raise RunError(f"{path}: not the history of a training; restore the file, or remove it to go on") from None
    if whole.getvalue() != text:
        with atomic_file(path) as file:
            file.write(whole.getvalue().encode())
