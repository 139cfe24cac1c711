"""Classify: files in, cells with classes out, and the differential as it fills in."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from nicegui import ui

from urnet.serve.classification_job import ClassificationJob, Seen
from urnet.serve.pages.classify_routes import KEPT, routes
from urnet.serve.pages.components.cell_dialog import CellDialog
from urnet.serve.pages.components.differential_panel import counts
from urnet.serve.pages.components.layout import button, frame, select, text, url
from urnet.serve.pages.sessions import Session, SessionData, this_session
from urnet.serve.services import Services

PAGE = 96
"""Cells that are shown at once."""

LOOK_SECONDS = 0.4
"""How often a page looks whether there is something new."""

SPOKEN = {
    "receiving": "Receiving files",
    "waiting": "Waiting until other samples are done",
    "cutting": "Looking for cells",
    "classifying": "Classifying",
}
"""What a screen reader is told while work goes on; figures that change all the time it is spared."""

ALL, REJECTED, SEVERAL, FAILED = "all", "rejected", "several classes possible", "not usable"
AS_SENT, DOUBTFUL = "as sent", "least sure first"


@dataclass
class View(SessionData):
    """What a browser looks at.

    Attributes:
        key: of the classification that it belongs to.
        chosen: which cells are shown, and in which order.
        order: see there.
        page: of them, from 0.
        cell: the one that is shown large; none where none is.
        colours: of its Grad-CAM.
    """

    key: str = ""
    chosen: str = ALL
    order: str = AS_SENT
    page: int = 0
    cell: int | None = None
    colours: str = "viridis"

    def cells(self, mine: ClassificationJob) -> list[Seen]:
        """The cells that are chosen, in order."""
        found = [one for one in mine.seen if self._shows(one)]
        if self.order == DOUBTFUL:
            found.sort(key=certainty)
        return found

    def _shows(self, one: Seen) -> bool:
        if self.chosen == ALL:
            return True
        if one.answer.error or self.chosen == FAILED:
            return bool(one.answer.error) and self.chosen == FAILED
        if one.rejected or self.chosen == REJECTED:
            return bool(one.rejected) and self.chosen == REJECTED
        return len(one.set) > 1 if self.chosen == SEVERAL else one.answer.row["predicted"] == self.chosen


def certainty(one: Seen) -> float:
    """The largest probability; images without any come last."""
    return probability(one) if not one.answer.error else 2.0


def probability(one: Seen) -> float:
    """Of the class that was predicted."""
    return one.answer.row[f"p_{one.answer.row['predicted']}"]


def add(app: FastAPI, services: Services) -> None:
    """Add the page and what its script asks for."""
    app.include_router(routes(services))

    @ui.page("/")
    def classify() -> None:
        with frame("Classify", "/"):
            ui.add_head_html(f"<style>{_file('classify.css')}</style><script>{_file('classify.js')}</script>")
            _Page(services, this_session())


@cache
def _file(name: str) -> str:
    return files("urnet.serve.pages").joinpath("templates", name).read_text(encoding="utf-8")


class _Page:
    """The page in one browser window."""

    def __init__(self, services: Services, session: Session):
        self.services, self.session = services, session
        self.view = session.kept.setdefault("classify-view", View())
        self.last: tuple[str, int] = ("", -1)
        self.asks: str | None = None
        self.ended = ""
        self.shown: list[int] = []
        self._send()
        with ui.element("div").classes("line status"):
            self.words = text("p", "").classes("grow")
            self.bar = ui.element("progress").props('aria-label="Classified"')
            self.stop = button("Cancel", self._cancel)
            self.results()
        self.spoken = text("p", "").classes("unseen").props("role=status")
        with ui.element("div").classes("two-sides"):
            with ui.element("section").props("aria-labelledby=differential").classes("panel side"):
                text("h2", "Differential").props("id=differential")
                self.differential()
            with ui.element("section").props("aria-labelledby=cells").classes("all-cells"):
                text("h2", "Cells").props("id=cells")
                self._choice()
                self.grid = ui.element("ol").props("aria-labelledby=cells").classes("cells")
        self.dialog = CellDialog(services, self.view, lambda: self.mine)
        self._show_progress()
        self.look()
        ui.timer(LOOK_SECONDS, self.look)

    @property
    def mine(self) -> ClassificationJob | None:
        """What this browser classifies."""
        found = self.session.kept.get(KEPT)
        return found if isinstance(found, ClassificationJob) else None

    def look(self) -> None:
        """Show what is new."""
        mine = self.mine
        if mine is None or (mine.key, mine.changes) == self.last:
            return
        if self.view.key != mine.key:
            self.view.key, self.view.page, self.view.cell = mine.key, 0, None
        if self.last[0] != mine.key:
            self.shown = []
            self.grid.clear()
        self.last = (mine.key, mine.changes)
        self._show_progress()
        asks = mine.key if mine.seen and mine.is_undecided else None
        if asks is None or asks != self.asks:  # a question that stands is left alone, for whoever is about to answer
            self.differential.refresh()
        self.asks = asks
        self._show_cells()

    def _show_progress(self) -> None:
        mine = self.mine
        running = mine is not None and mine.is_running
        self.bar.set_visibility(running)
        self.stop.set_visibility(running)
        if mine is None or mine.state == "receiving":
            self.words.set_text("")
            ended = ""
        else:
            self.words.set_text(f"{mine.name}: {_progress(mine) if running else _ended(mine)}")
            done, total = _share(mine)
            for prop, value in (("value", done), ("max", total)):
                if total:
                    self.bar.props[prop] = value
                else:  # how much there is, nobody knows
                    self.bar.props.pop(prop, None)
            ended = (
                "" if running else f"{mine.key} {mine.state} {mine.counted is None} {mine.reviewing} {mine.is_keeping}"
            )
            self.spoken.set_text(SPOKEN.get(mine.state) or _ended(mine))
        if ended != self.ended:
            self.ended = ended
            self.results.refresh()

    def _cancel(self) -> None:
        if self.mine is not None:
            self.mine.cancel()

    def _send(self) -> None:
        limit = self.services.settings.sample_files
        cuts = self.services.model.calibration is not None and self.services.model.cropping is not None
        what = "crops of single cells, or fields of view, whose cells are cut out" if cuts else "crops of single cells"
        with ui.element("section").props('id=drop aria-label="Files"').classes("panel drop"):
            with ui.element("div").classes("line"):
                with ui.element("div"):
                    text("label", "Name of the sample").props("for=sample")
                    sample = ui.element("input").props("id=sample type=text maxlength=100 autocomplete=off")
                    sample.props["placeholder"] = "sample"
                if cuts:
                    with ui.element("div"):
                        text("label", "Pixel size of fields, µm").props("for=pixel-size")
                        pixel = ui.element("input").props("id=pixel-size type=number min=0.001 max=1000 step=any")
                        pixel.props["placeholder"] = "as the files say"
                for which, label in (("files", "Choose files"), ("folder", "Choose a folder")):
                    text("button", label).props(f"type=button id=choose-{which}").classes(
                        "button main" if which == "files" else "button"
                    )
                    field = ui.element("input").props(f"type=file id={which} multiple hidden tabindex=-1")
                    field.props["aria-label"] = label
                    if which == "folder":
                        field.props("webkitdirectory")
                    else:
                        field.props["accept"] = ".png,.jpg,.jpeg,.bmp,.tif,.tiff"
                text("p", f"or drop them here: {what}; PNG, JPEG, BMP or TIFF, up to {limit:,} files.").classes("soft")
            with ui.element("div").props("id=sending hidden").classes("sending"):
                ui.element("progress").props('id=sending-bar value=0 max=1 aria-label="Files sent"')
                text("span", "").props("id=sending-text")
                text("span", "").props("id=sending-error role=alert").classes("wrong")
                text("button", "Stop sending").props("type=button id=stop-sending").classes("button")

    @ui.refreshable_method
    def results(self) -> None:
        """What can be taken home when all is done."""
        mine = self.mine
        if mine is None or mine.state == "receiving" or mine.is_running or not mine.seen:
            return
        _download("Download CSV", f"/classify/{mine.key}/predictions.csv")
        if mine.counted is not None:
            _download("Download the sample report", f"/classify/{mine.key}/report.html")
        if mine.reviewing:
            text("span", mine.reviewing).classes("soft").props("role=status")
        if mine.can_keep:
            button("Keep for review", mine.keep)

    @ui.refreshable_method
    def differential(self) -> None:
        """The counts of what is there."""
        counts(self.mine)

    def _choice(self) -> None:
        calibrated = [REJECTED, SEVERAL] if self.services.model.calibration is not None else []
        with ui.element("div").classes("line choice"):
            select("Show", [ALL, *self.services.model.classes, *calibrated, FAILED], self.view.chosen, self._choose)
            select("Order", [AS_SENT, DOUBTFUL], self.view.order, self._order)
            self.range = text("p", "Cells appear here as they are classified.").classes("soft grow")
            with ui.element("div").classes("turn"):
                self.turns = [
                    button(name, lambda by=by: self._turn(by)) for name, by in (("Previous", -1), ("Next", 1))
                ]
                for made, name in zip(self.turns, ("Previous", "Next"), strict=True):
                    made.props["aria-label"] = f"{name} page of cells"
                    made.set_visibility(False)

    def _show_cells(self) -> None:
        """Bring the grid up to date; cells that are there stay, and so does the focus on one of them."""
        mine = self.mine
        if mine is None:
            return
        chosen = self.view.cells(mine)
        last = max(0, (len(chosen) - 1) // PAGE)
        self.view.page = min(self.view.page, last)
        first = self.view.page * PAGE
        page = chosen[first : first + PAGE]
        span = f"{first + 1:,} to {first + len(page):,} of {len(chosen):,}" if chosen else "none of these"
        self.range.set_text(f"Cells: {span}" if mine.seen else "Cells appear here as they are classified.")
        for made, end in zip(self.turns, (0, last), strict=True):
            made.set_visibility(last > 0)
            made.props["aria-disabled"] = "true" if self.view.page == end else "false"
        numbers = [one.number for one in page]
        if numbers[: len(self.shown)] != self.shown:
            self.grid.clear()
            self.shown = []
        with self.grid:
            for one in page[len(self.shown) :]:
                with ui.element("li"):
                    self._cell(mine, one)
        self.shown = numbers

    def _cell(self, mine: ClassificationJob, one: Seen) -> None:
        with ui.element("button").props("type=button").classes("cell") as made:
            if one.answer.error:
                made.classes("failed")
                text("b", "not usable").classes("call")
                text("span", one.answer.error).classes("reason")
            else:
                picture = ui.element("img").props('alt="" width=96 height=96 loading=lazy')
                picture.props["src"] = url(f"/classify/{mine.key}/{one.number}/raw.png")
                with ui.element("span").classes("call"):
                    text("b", one.answer.row["predicted"])
                    text("span", f" {100 * probability(one):.1f} %")
                if one.rejected:
                    made.classes("rejected")
                    text("span", f"rejected: {one.rejected}").classes("reason")
            text("span", one.name).classes("name")
        made.on("click", lambda: self.dialog.open(one.number))

    def _choose(self, chosen: str) -> None:
        self.view.chosen, self.view.page = chosen, 0
        self._show_cells()

    def _order(self, order: str) -> None:
        self.view.order, self.view.page = order, 0
        self._show_cells()

    def _turn(self, step: int) -> None:
        self.view.page = max(0, self.view.page + step)
        self._show_cells()


def _download(label: str, to: str) -> None:
    made = text("a", label).classes("button").props("download")
    made.props["href"] = url(to)


def _share(mine: ClassificationJob) -> tuple[int, int]:
    """What is done, of how much; of 0 where nobody knows."""
    if mine.state != "classifying":
        return 0, 0
    if mine.cut.positions:
        return len(mine.seen) - len(mine.cut.unreadable), len(mine.cut.positions)
    return mine.files_done, len(mine.cut.sources)


def _progress(mine: ClassificationJob) -> str:
    if mine.state == "waiting":
        return "waiting until other samples are done"
    if mine.state == "cutting":
        return f"looking through {len(mine.uploads):,} file(s) for fields and their cells"
    done, total = _share(mine)
    return f"{done:,} of {total:,} {'cells' if mine.cut.positions else 'files'} classified"


def _ended(mine: ClassificationJob) -> str:
    if mine.state == "failed":
        return f"failed: {mine.error}"
    unusable = sum(bool(one.answer.error) for one in mine.seen)
    words = f"{len(mine.seen) - unusable:,} image(s) classified"
    words += f", {unusable:,} not usable" if unusable else ""
    return f"cancelled; {words}" if mine.state == "cancelled" else words
