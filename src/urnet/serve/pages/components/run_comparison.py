"""The comparison of two runs on the cells that both tested, with a progress bar and a button that cancels it.

A comparison belongs to the browser's session, not to the page: it continues while the page is closed.
"""

import asyncio
import logging
from concurrent.futures import Executor
from typing import Literal

import pandas as pd
from nicegui import ui

from urnet.benchmark.differences import (
    DIFFERENCE_COLUMNS,
    UNDECIDED_COLUMNS,
    format_difference_row,
    list_difference_notes,
    metric_title,
)
from urnet.errors import UrnetError
from urnet.serve.pages.components.elements import notice, progress_bar, table
from urnet.serve.pages.components.layout import button, text
from urnet.serve.pages.sessions import SessionData, current_session
from urnet.serve.runs import ListedRun, compare_test_results

logger = logging.getLogger(__name__)

COMPARISON = "comparison"
"""Name of the comparison in the data of a session."""

REFRESH_S = 0.4
"""Time between two checks for the result, in seconds."""

STATES = {
    "running": "Comparing the runs on their test split.",
    "done": "The comparison is finished.",
    "cancelled": "The comparison was cancelled.",
    "failed": "The runs cannot be compared.",
}
"""Text for each state of the comparison."""


class Comparison(SessionData):
    """A comparison of two runs that is computed in the background.

    Args:
        first: a run.
        second: another run.
        threads: threads for comparisons; pictures and API requests use others.

    Attributes:
        state: state of the computation.
        differences: result of `compare_test_results`, second run minus first; none until the state is `done`.
        error: why the comparison failed.
    """

    def __init__(self, first: ListedRun, second: ListedRun, threads: Executor):
        self.first, self.second = first, second
        self.state: Literal["running", "done", "cancelled", "failed"] = "running"
        self.differences: pd.DataFrame | None = None
        self.error = ""
        self._versions = _find_versions(first, second)
        self._task = asyncio.create_task(self._compute(threads))

    def is_current(self, first: ListedRun, second: ListedRun) -> bool:
        """Return whether this is the comparison of these runs, with their present predictions."""
        return self.state != "failed" and self._versions == _find_versions(first, second)

    @property
    def is_busy(self) -> bool:
        """Whether the computation is in progress."""
        return self.state == "running"

    def cancel(self) -> None:
        """Cancel the comparison. A thread that computes already ends by itself."""
        if self.state == "running":
            self._task.cancel()
            self.state = "cancelled"

    def close(self) -> None:
        """Cancel the comparison when the session ends, or compares other runs."""
        self.cancel()

    async def _compute(self, threads: Executor) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.differences = await loop.run_in_executor(threads, compare_test_results, self.first, self.second)
            self.state = "done"
        except UrnetError as error:
            self.error, self.state = str(error), "failed"
        except Exception:  # nothing awaits this task
            logger.exception("the comparison of %s and %s failed", self.first.name, self.second.name)
            self.error, self.state = "The comparison failed. The log of the server says why.", "failed"


class ComparisonPanel:
    """The part of the page Runs with the comparison of two runs.

    Args:
        first: a run.
        second: another run.
        threads: threads for comparisons.
    """

    def __init__(self, first: ListedRun, second: ListedRun, threads: Executor):
        self.first, self.second, self.threads, self.session = first, second, threads, current_session()
        self.comparison = self._find() or self._start()
        self._shown = self.comparison.state
        self.status = text("p", STATES[self._shown]).props("role=status").classes("small soft")
        self.content()
        ui.timer(REFRESH_S, self.refresh)

    def refresh(self) -> None:
        """Show a changed state."""
        if self.comparison.state != self._shown:
            self._shown = self.comparison.state
            self.status.set_text(STATES[self._shown])
            self.content.refresh()

    @ui.refreshable_method
    def content(self) -> None:
        """Show the progress or the result."""
        if self.comparison.state == "running":
            with ui.element("div").classes("comparing"):
                progress_bar("Comparison").props.pop("value")  # without a value, the bar shows that the end is unknown
                button("Cancel", self._cancel)
        elif self.comparison.state == "cancelled":
            button("Compare again", self._restart)
        elif self.comparison.state == "failed":
            notice(self.comparison.error)
        elif self.comparison.differences is not None:
            _add_table(self.comparison.differences, self.first.name, self.second.name)

    def _find(self) -> Comparison | None:
        comparison = self.session.data.get(COMPARISON)
        if isinstance(comparison, Comparison) and comparison.is_current(self.first, self.second):
            return comparison
        return None

    def _start(self) -> Comparison:
        previous = self.session.data.get(COMPARISON)
        if previous is not None:
            previous.close()
        comparison = self.session.data[COMPARISON] = Comparison(self.first, self.second, self.threads)
        return comparison

    def _cancel(self) -> None:
        self.comparison.cancel()
        self.refresh()

    def _restart(self) -> None:
        self.comparison = self._start()
        self.refresh()


def _add_table(differences: pd.DataFrame, first: str, second: str) -> None:
    text("p", f"{second} minus {first}, in percentage points.").classes("small soft")
    for note in list_difference_notes(differences):
        text("p", note).classes("small soft")
    shown = len(DIFFERENCE_COLUMNS) if differences["chance"].notna().any() else UNDECIDED_COLUMNS
    rows = [
        (metric_title(row["metric"]), *format_difference_row(row)[:shown]) for row in differences.to_dict("records")
    ]
    table(("Metric", *DIFFERENCE_COLUMNS[:shown]), rows, "Differences on the test split")


def _find_versions(*runs: ListedRun) -> list[tuple[str, float]]:
    """Return the name of each run and the modification time of its predictions; 0 without predictions."""
    return [(run.name, run.predictions.stat().st_mtime if run.predictions.is_file() else 0.0) for run in runs]
