"""Progress on the terminal: bars where there is one, a line an epoch where the output goes to a file."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


class Bars:
    """Shows what a command is doing. Use as a context; it is a `urnet.training.fit.Watcher`.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console):
        self.console = console
        self.progress: Progress | None = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *problem: object) -> None:
        self._stop()

    def doing(self, what: str, share: float) -> None:
        """One step of the preparation or of the evaluation, and how much of it is done, 0 to 1."""
        if not self.console.is_terminal:
            return
        if self.progress is None:
            self.progress = Progress(
                TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn(), console=self.console
            )
            self.progress.start()
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=1.0)
        self.progress.update(self.tasks[what], completed=share)

    def say(self, message: str) -> None:
        """Something that the user should know."""
        self.console.print(message, markup=False)

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """A Lightning callback that shows the epochs of a stage: loss, validation macro recall, time left."""
        self._stop()
        return _epoch_callback(stage, epochs)

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress, self.tasks = None, {}


def _epoch_callback(stage: str, epochs: int) -> "Callback":
    from lightning.pytorch.callbacks import Callback

    class EpochBar(Callback):
        """Made where Lightning is imported; holds nothing that cannot be sent to a spawned process."""

        bar: Progress | None = None
        began = 0.0
        first = 0

        def on_train_start(self, trainer: Any, module: Any) -> None:
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
                fields = {"epoch": self.first + 1, "epochs": epochs, "figures": ""}
                self.bar.add_task(stage, total=epochs, completed=self.first, **fields)
                self.bar.start()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if self.bar is not None:
                done = trainer.current_epoch + (index + 1) / trainer.num_training_batches
                self.bar.update(self.bar.tasks[0].id, completed=done, epoch=trainer.current_epoch + 1)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if not trainer.is_global_zero:
                return
            figures = _figures(trainer.callback_metrics)
            if self.bar is not None:
                self.bar.update(self.bar.tasks[0].id, figures=figures)
                return
            done = trainer.current_epoch + 1
            left = (time.monotonic() - self.began) / (done - self.first) * (epochs - done)
            print(f"{stage} epoch {done}/{epochs}  {figures}  left {left / 60:.1f} min", flush=True)

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            self._end()

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            self._end()

        def _end(self) -> None:
            if self.bar is not None:
                self.bar.stop()
                self.bar = None

    return EpochBar()


def _figures(metrics: dict[str, Any]) -> str:
    shown = {"train_loss": "loss", "validation_loss": "validation loss", "validation_macro_recall": "macro recall"}
    found = {name: float(metrics[key]) for key, name in shown.items() if key in metrics}
    if "macro recall" in found:
        found.pop("validation loss", None)
    return "  ".join(
        f"{name} {value:.4f}" if "loss" in name else f"{name} {value:.3f}" for name, value in found.items()
    )
