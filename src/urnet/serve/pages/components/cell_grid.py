"""The grid of classified cells, with filter, order and pages."""

from collections.abc import Callable
from dataclasses import dataclass

from nicegui import ui

from urnet.serve.classification_job import ClassificationJob, ClassifiedImage
from urnet.serve.pages.components.elements import percent
from urnet.serve.pages.components.layout import pager, select, text, url
from urnet.serve.pages.sessions import SessionData

PAGE_SIZE = 96
"""Maximum number of cells on one page of the grid."""

ALL, REJECTED, AMBIGUOUS, UNUSABLE = "all", "rejected", "ambiguous", "unusable"
UPLOAD_ORDER, LEAST_CERTAIN_FIRST = "upload", "certainty"
ORDERS = {UPLOAD_ORDER: "Upload order", LEAST_CERTAIN_FIRST: "Least certain first"}
CLASS = "class:"
"""Prefix of the filter for one class; a class may be called "all"."""

EMPTY = "Cells appear here as they are classified."


@dataclass
class CellSelection(SessionData):
    """Selection, order and page of the cells of a sample in one browser.

    Attributes:
        key: key of the job that the selection belongs to.
        filter: which cells are shown.
        order: order of the cells.
        page: index of the page.
        cell: number of the cell in the dialog; none if the dialog is closed.
        colormap: colour map of Grad-CAM.
    """

    key: str = ""
    filter: str = ALL
    order: str = UPLOAD_ORDER
    page: int = 0
    cell: int | None = None
    colormap: str = "viridis"

    def apply(self, job: ClassificationJob) -> list[ClassifiedImage]:
        """Return the selected cells, in order."""
        cells = [image for image in job.images if self._shows(image)]
        if self.order == LEAST_CERTAIN_FIRST:
            cells.sort(key=lambda image: image.probability if image.is_usable else 2.0)
        return cells

    def _shows(self, image: ClassifiedImage) -> bool:
        if self.filter == ALL:
            return True
        if not image.is_usable or self.filter == UNUSABLE:
            return not image.is_usable and self.filter == UNUSABLE
        if image.rejected or self.filter == REJECTED:
            return bool(image.rejected) and self.filter == REJECTED
        if self.filter == AMBIGUOUS:
            return len(image.prediction_set) > 1
        return self.filter == CLASS + image.predicted


class CellGrid:
    """The grid of cells on the page Classify.

    Args:
        selection: which cells are shown.
        find_job: returns the job of this browser.
        open_cell: called with the number of a cell that is clicked.
        classes: classes of the model.
        is_calibrated: whether the model rejects cells and gives prediction sets.
    """

    def __init__(
        self,
        selection: CellSelection,
        find_job: Callable[[], ClassificationJob | None],
        open_cell: Callable[[int], None],
        classes: list[str],
        is_calibrated: bool,
    ):
        self.selection, self.find_job, self.open_cell = selection, find_job, open_cell
        self._shown: list[int] = []
        calibrated = {REJECTED: "Rejected", AMBIGUOUS: "Several classes possible"} if is_calibrated else {}
        filters = {ALL: "All"} | {CLASS + name: name for name in classes} | calibrated | {UNUSABLE: "Unusable"}
        with ui.element("div").classes("line cell-filters"):
            select("Show", filters, selection.filter, self._set_filter)
            select("Order", ORDERS, selection.order, self._set_order)
            self._range = text("p", EMPTY).classes("soft grow")
            with ui.element("div").classes("turn"):
                self._pager = pager(self._turn, "page of cells")
        self._list = ui.element("ol").props("aria-labelledby=cells").classes("cells")
        for made in self._pager:
            made.set_visibility(False)

    def clear(self) -> None:
        """Remove all cells."""
        self._shown = []
        self._list.clear()

    def update(self) -> None:
        """Show the selected cells. Cells that are shown already stay, and keep the focus."""
        job, selection = self.find_job(), self.selection
        if job is None:
            return
        selected = selection.apply(job)
        last_page = max(0, (len(selected) - 1) // PAGE_SIZE)
        selection.page = min(selection.page, last_page)
        first = selection.page * PAGE_SIZE
        page = selected[first : first + PAGE_SIZE]
        if not job.images:
            self._range.set_text(EMPTY)
        elif not selected:
            self._range.set_text("No cell matches the filter.")
        else:
            self._range.set_text(f"{first + 1:,} to {first + len(page):,} of {len(selected):,}")
        for made, end in zip(self._pager, (0, last_page), strict=True):
            made.set_visibility(last_page > 0)
            made.props["aria-disabled"] = "true" if selection.page == end else "false"
        numbers = [image.number for image in page]
        if numbers[: len(self._shown)] != self._shown:
            self.clear()
        with self._list:
            for image in page[len(self._shown) :]:
                with ui.element("li"):
                    self._add_cell(job, image)
        self._shown = numbers

    def _add_cell(self, job: ClassificationJob, image: ClassifiedImage) -> None:
        with ui.element("button").props("type=button").classes("cell") as element:
            if not image.is_usable:
                element.classes("unusable")
                text("b", "unusable").classes("prediction")
                text("span", image.answer.error).classes("reason")
            else:
                picture = ui.element("img").props('alt="" width=96 height=96 loading=lazy')
                picture.props["src"] = url(f"/classify/{job.key}/{image.number}/raw.png")
                with ui.element("span").classes("prediction"):
                    text("b", image.predicted)
                    text("span", f" {percent(image.probability)}")
                if image.rejected:
                    element.classes("rejected")
                    text("span", f"rejected: {image.rejected}").classes("reason")
            text("span", image.name).classes("name")
        element.on("click", lambda: self.open_cell(image.number))

    def _set_filter(self, value: str) -> None:
        self.selection.filter, self.selection.page = value, 0
        self.update()

    def _set_order(self, value: str) -> None:
        self.selection.order, self.selection.page = value, 0
        self.update()

    def _turn(self, step: int) -> None:
        self.selection.page = max(0, self.selection.page + step)
        self.update()
