"""Progress of a command on the terminal; nothing but remarks where the output goes to a file."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.console import Console

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of it that is done, 0 to 1."""


class ProgressBars:
    """Shows what a command is doing. Use as a context; it is a `urnet.training.fit.Reporter`.

    Args:
        console: where to show it; without markup, since remarks name files.
    """

    def __init__(self, console: Console):
        self.console = console
        self.progress: rich.progress.Progress | None = None
        self.tasks: dict[str, Any] = {}
        self.remarks = _WarningHandler(self)

    def __enter__(self) -> "ProgressBars":
        logging.getLogger("urnet").addHandler(self.remarks)
        return self

    def __exit__(self, *problem: object) -> None:
        logging.getLogger("urnet").removeHandler(self.remarks)
        self._stop()

    def update(self, task: str, share: float) -> None:
        """Show the share of a task that is done, 0 to 1."""
        if not self.console.is_terminal:
            return
        if self.progress is None:
            kind = rich.progress
            columns = (kind.TextColumn("{task.description:<22}"), kind.BarColumn(), kind.TimeElapsedColumn())
            self.progress = kind.Progress(*columns, console=self.console)
            self.progress.start()
        if task not in self.tasks:
            self.tasks[task] = self.progress.add_task(task, total=1.0)
        self.progress.update(self.tasks[task], completed=share)

    def notify(self, message: str) -> None:
        """Show a message."""
        self.console.print(message)

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """A Lightning callback that shows the epochs of a stage: loss, validation macro recall, time left."""
        from urnet.progress_bar import EpochBar

        self._stop()
        return EpochBar(stage, epochs)

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress, self.tasks = None, {}


class NoProgress:
    """Watches a training and says nothing; it is a `urnet.training.fit.Reporter`."""

    def update(self, task: str, share: float) -> None:
        """Show nothing."""

    def notify(self, message: str) -> None:
        """Show nothing."""

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """A callback that does nothing."""
        from lightning.pytorch.callbacks import Callback

        return Callback()


class _WarningHandler(logging.Handler):
    """Shows what the package logs, each remark once."""

    def __init__(self, bars: ProgressBars):
        super().__init__(logging.WARNING)
        self.bars = bars
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.shown:
            self.shown.add(message)
            self.bars.notify(f"note: {message}")
