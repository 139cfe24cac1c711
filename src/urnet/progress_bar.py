"""The epochs of a training on the terminal: a bar, or a line an epoch where the output goes to a file."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class EpochBar(Callback):
    """Shows epoch, loss, validation macro recall and time left.

    It is sent to spawned processes, so everything of the terminal is made where training starts.

    Args:
        stage: name of the stage.
        epochs: number of its epochs.
    """

    def __init__(self, stage: str, epochs: int):
        self.stage, self.epochs = stage, epochs
        self.bar: Progress | None = None
        self.began, self.first = 0.0, 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Show the bar; a resumed training starts it where it stopped."""
        if not trainer.is_global_zero:
            return
        self.began, self.first = time.monotonic(), trainer.current_epoch
        console = Console(highlight=False)
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description:<9}"),
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                speed_estimate_period=600,
            )
            fields = {"epoch": self.first + 1, "epochs": self.epochs, "figures": ""}
            self.bar.add_task(self.stage, total=self.epochs, completed=self.first, **fields)
            self.bar.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Move on by a batch."""
        if self.bar is not None:
            done = trainer.current_epoch + (index + 1) / trainer.num_training_batches
            self.bar.update(self.bar.tasks[0].id, completed=done, epoch=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Show the epoch's figures."""
        if not trainer.is_global_zero:
            return
        figures = _figures(trainer.callback_metrics)
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, figures=figures)
            return
        done = trainer.current_epoch + 1
        left = (time.monotonic() - self.began) / (done - self.first) * (self.epochs - done)
        print(f"{self.stage} epoch {done}/{self.epochs}  {figures}  left {left / 60:.1f} min", flush=True)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Leave the bar as it stands."""
        self._end()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self._end()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _figures(metrics: dict[str, Any]) -> str:
    shown = {"train_loss": "loss", "validation_loss": "validation loss", "validation_macro_recall": "macro recall"}
    found = {name: float(metrics[key]) for key, name in shown.items() if key in metrics}
    if "macro recall" in found:
        found.pop("validation loss", None)
    figures = [f"{name} {value:.4f}" if "loss" in name else f"{name} {value:.3f}" for name, value in found.items()]
    if "identity_error" in metrics:
        figures.append(f"identity error {100 * float(metrics['identity_error']):.1f} % of the image variance")
    return "  ".join(figures)
