"""Progress of the epochs of a training: a bar on a terminal, else one line for each epoch."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class EpochBar(Callback):
    """Lightning callback that shows epoch, loss, validation macro recall and time left.

    It can be sent to a spawned process: the console is opened where the training starts.

    Args:
        stage: name of the stage.
        epochs: number of its epochs.
        animate: show a bar that is redrawn, not one line for each epoch.
    """

    def __init__(self, stage: str, epochs: int, *, animate: bool = False):
        self.stage, self.epochs, self.animate = stage, epochs, animate
        self.bar: Progress | None = None
        self.start_time_s, self.start_epoch = 0.0, 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Open the bar; a resumed training begins at its last epoch."""
        if not trainer.is_global_zero:
            return
        self.start_time_s, self.start_epoch = time.monotonic(), trainer.current_epoch
        if self.animate:
            self.bar = Progress(
                TextColumn("{task.description:<9}"),
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(highlight=False),
                speed_estimate_period=600,
            )
            self.bar.add_task(
                self.stage,
                total=self.epochs,
                completed=self.start_epoch,
                epoch=self.start_epoch + 1,
                epochs=self.epochs,
                figures="",
            )
            self.bar.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Advance the bar by one batch."""
        if self.bar is not None:
            done = trainer.current_epoch + (index + 1) / trainer.num_training_batches
            self.bar.update(self.bar.tasks[0].id, completed=done, epoch=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Show the figures of the epoch."""
        if not trainer.is_global_zero:
            return
        figures = _format_metrics(trainer.callback_metrics)
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, figures=figures)
            return
        done = trainer.current_epoch + 1
        left = (time.monotonic() - self.start_time_s) / (done - self.start_epoch) * (self.epochs - done)
        print(f"{self.stage} epoch {done}/{self.epochs}  {figures}  left {left / 60:.1f} min", flush=True)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _format_metrics(metrics: dict[str, Any]) -> str:
    shown = {"train_loss": "loss", "validation_loss": "validation loss", "validation_macro_recall": "macro recall"}
    values = {name: float(metrics[key]) for key, name in shown.items() if key in metrics}
    if "macro recall" in values:
        values.pop("validation loss", None)
    figures = [f"{name} {value:.4f}" if "loss" in name else f"{name} {value:.3f}" for name, value in values.items()]
    if "identity_error" in metrics:
        figures.append(f"identity error {100 * float(metrics['identity_error']):.1f} % of the image variance")
    return "  ".join(figures)
