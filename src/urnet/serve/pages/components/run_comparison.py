"""Two runs compared on the cells that both tested: computed beside the page, which shows that and can stop it.

A comparison belongs to the browser's session: a page that comes back finds it under way, done, or cancelled.
"""

import asyncio
import logging
from concurrent.futures import Executor
from typing import Literal

import pandas as pd
from nicegui import ui

from urnet.benchmark.differences import (
    MISSING_INTERVAL_NOTES,
    format_difference_interval,
    format_points,
    format_verdict,
)
from urnet.errors import UrnetError
from urnet.serve.pages.components.elements import meter, notice, table
from urnet.serve.pages.components.layout import button, text
from urnet.serve.pages.sessions import SessionData, this_session
from urnet.serve.runs import ListedRun, compare_test_results

logger = logging.getLogger(__name__)

KEPT = "comparison"
LOOK_SECONDS = 0.4
"""How often the page looks whether it is done."""

NAMES = {"accuracy": "Accuracy", "macro_recall": "Macro recall"}
SPOKEN = {
    "running": "Comparing the two on their test part.",
    "done": "Compared.",
    "cancelled": "The comparison was cancelled.",
    "failed": "The two cannot be compared.",
}
"""What the page says of how far it is."""


class Comparison(SessionData):
    """The difference of two runs, being computed.

    Args:
        first: one.
        second: the other.
        threads: where it is computed; others than those that pictures and answers wait for.

    Attributes:
        state: how far it is.
        differences: second minus first (`compare_test_results`), when it is done.
        error: why it failed.
    """

    def __init__(self, first: ListedRun, second: ListedRun, threads: Executor):
        self.first, self.second = first, second
        self.state: Literal["running", "done", "cancelled", "failed"] = "running"
        self.differences: pd.DataFrame | None = None
        self.error = ""
        self._of = _stamps(first, second)
        self._task = asyncio.create_task(self._compute(threads))

    def is_of(self, first: ListedRun, second: ListedRun) -> bool:
        """Whether it is that of these two, with what they predict now."""
        return self.state != "failed" and self._of == _stamps(first, second)

    @property
    def is_busy(self) -> bool:
        """Whether it is being computed."""
        return self.state == "running"

    def cancel(self) -> None:
        """Wait for it no longer; what a thread has begun of it ends by itself."""
        if self.state == "running":
            self._task.cancel()
            self.state = "cancelled"

    def close(self) -> None:
        """Cancel it: the session is forgotten, or compares two others."""
        self.cancel()

    async def _compute(self, threads: Executor) -> None:
        try:
            computed = asyncio.get_running_loop().run_in_executor(
                threads, compare_test_results, self.first, self.second
            )
            self.differences = await computed
            self.state = "done"
        except UrnetError as error:
            self.error, self.state = str(error), "failed"
        except Exception:  # nobody waits for this task: what is not said here is never said
            logger.exception("%s and %s were not compared", self.first.name, self.second.name)
            self.error, self.state = "the server's log says why the two cannot be compared", "failed"


class Differences:
    """The part of the page with the comparison of two runs.

    Args:
        first: one.
        second: the other.
        threads: where they are compared.
    """

    def __init__(self, first: ListedRun, second: ListedRun, threads: Executor):
        self.first, self.second, self.threads, self.session = first, second, threads, this_session()
        self.mine = self._kept() or self._begin()
        self.shown = self.mine.state
        self.words = text("p", SPOKEN[self.shown]).props("role=status").classes("small soft")
        self.content()
        ui.timer(LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Show what is new."""
        if self.mine.state != self.shown:
            self.shown = self.mine.state
            self.words.set_text(SPOKEN[self.shown])
            self.content.refresh()

    @ui.refreshable_method
    def content(self) -> None:
        """How far it is, or what came of it."""
        if self.mine.state == "running":
            with ui.element("div").classes("under-way"):
                meter("Comparison").props.pop("value")  # how much there is to do, nobody knows
                button("Cancel", self._cancel)
        elif self.mine.state == "cancelled":
            button("Compare again", self._again)
        elif self.mine.state == "failed":
            notice(self.mine.error)
        elif self.mine.differences is not None:
            _table(self.mine.differences, self.first.name, self.second.name)

    def _kept(self) -> Comparison | None:
        kept = self.session.kept.get(KEPT)
        return kept if isinstance(kept, Comparison) and kept.is_of(self.first, self.second) else None

    def _begin(self) -> Comparison:
        before = self.session.kept.get(KEPT)
        if before is not None:
            before.close()
        made = self.session.kept[KEPT] = Comparison(self.first, self.second, self.threads)
        return made

    def _cancel(self) -> None:
        self.mine.cancel()
        self.look()

    def _again(self) -> None:
        self.mine = self._begin()
        self.look()


def _table(differences: pd.DataFrame, first: str, second: str) -> None:
    one, notes = differences.iloc[0], set(differences["note"])
    about = f"{second} minus {first}, in points, on the {one['cells']:,} cells that both tested."
    if "" in notes:
        about += " Paired 95 % intervals: where one holds 0, the difference could be chance."
        about += " One training of each says nothing of other trainings."
    text("p", about).classes("small soft")
    for note in notes & MISSING_INTERVAL_NOTES.keys():
        notice(MISSING_INTERVAL_NOTES[note])
    rows = [
        (
            NAMES.get(row["metric"], str(row["metric"]).replace("recall_", "Recall, ", 1)),
            format_points(row["difference"]),
            format_difference_interval(row),
            format_verdict(row),
        )
        for _, row in differences.iterrows()
    ]
    head = ("Figure", "Difference", "95 % interval", "Verdict")
    table(head, rows, "Differences on the test part")


def _stamps(*runs: ListedRun) -> list[tuple[str, float]]:
    """Names of runs, and when their predictions were written; 0 where there are none."""
    return [(one.name, one.predictions.stat().st_mtime if one.predictions.is_file() else 0.0) for one in runs]
