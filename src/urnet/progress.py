"""Progress of long tasks: bars on a terminal or in a notebook, warnings as notes, or nothing."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import rich.progress
from rich.console import Console

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

Progress = Callable[[str, float], None]
"""Receives the name of a task and the share of it that is done, 0 to 1."""


class Reporter(Protocol):
    """Receiver of progress and messages."""

    def update(self, task: str, share: float) -> None:
        """Report the share of a task that is done, 0 to 1."""

    def notify(self, message: str) -> None:
        """Report a message."""

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """Return a Lightning callback that shows the epochs of a stage."""


class ProgressBars:
    """Progress bars, messages and the package's warnings, on a terminal or in a notebook; a context manager.

    Where the output goes to a file, only messages and warnings are written.

    Args:
        console: where to write. Markup must be off, since messages contain file names.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._lines = _NotebookLines()
        self._warnings = _WarningHandler(self)

    def __enter__(self) -> "ProgressBars":
        logging.getLogger("urnet").addHandler(self._warnings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("urnet").removeHandler(self._warnings)
        self._stop()

    def update(self, task: str, share: float) -> None:
        """Show the share of a task that is done, 0 to 1."""
        if self.console.is_jupyter:
            self._lines.update(task, share)
        if not self.console.is_terminal:
            return
        if self._bars is None:
            kind = rich.progress
            columns = (kind.TextColumn("{task.description:<22}"), kind.BarColumn(), kind.TimeElapsedColumn())
            self._bars = kind.Progress(*columns, console=self.console)
            self._bars.start()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=1.0)
        self._bars.update(self._tasks[task], completed=share)

    def notify(self, message: str) -> None:
        """Show a message."""
        self.console.print(message)

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """Return a Lightning callback that shows loss, validation macro recall and time left of a stage."""
        from urnet.progress_bar import EpochBar

        self._stop()
        return EpochBar(stage, epochs, animate=self.console.is_terminal)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}


class NoProgress:
    """A reporter that shows nothing."""

    def update(self, task: str, share: float) -> None:
        """Show nothing."""

    def notify(self, message: str) -> None:
        """Show nothing."""

    def epoch_bar(self, stage: str, epochs: int) -> "Callback":
        """Return a callback that does nothing."""
        from lightning.pytorch.callbacks import Callback

        return Callback()


class _NotebookLines:
    """One line of text for each task, which a notebook updates in place."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._percent: dict[str, int] = {}

    def update(self, task: str, share: float) -> None:
        """Show the share of a task, where its percentage has changed."""
        percent = round(100 * share)
        if self._percent.get(task) == percent:
            return
        from IPython.display import display

        self._percent[task] = percent
        content = {"text/plain": f"{task}: {percent} %"}
        if task in self._handles:
            self._handles[task].update(content, raw=True)
        else:
            self._handles[task] = display(content, raw=True, display_id=True)


class _WarningHandler(logging.Handler):
    """Logging handler that shows each warning of the package once, as a note."""

    def __init__(self, reporter: Reporter):
        super().__init__(logging.WARNING)
        self._reporter = reporter
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            self._reporter.notify(f"note: {message}")
