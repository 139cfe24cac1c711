"""Label: cells of `--cells`, with the fluorescence beside, one key a class."""

import asyncio
import secrets
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from nicegui import ui

from urnet.errors import StoreError, UrnetError
from urnet.serve.active_learning import QueueRanking
from urnet.serve.database.labels import CLAIMED_CODE, Labeller, LabelStore, QueuedCell
from urnet.serve.database.models import NOT_A_CELL, SKIPPED
from urnet.serve.database.names import make_single_line, person_key
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.elements import NO_PICTURE, facts, meter, notice, replaces, table, work_styles
from urnet.serve.pages.components.keyboard import board, class_keys, key_button, keys_switch, on_press
from urnet.serve.pages.components.layout import button, frame, short, text, url, who
from urnet.serve.pages.components.responses import CACHED, saved_as
from urnet.serve.pages.sessions import SessionData, this_session
from urnet.serve.services import Services
from urnet.serve.uploads.storage import UploadFolder, UploadStorage

CLAIMED = 8
"""Cells that a labeller has at a time: one on the screen, the others in the browser already."""

SKIP, UNDO = "s", "u"
PAIRED_NAMES = {
    "target_nuclei": "Nuclear fluorescence",
    "target": "Fluorescence",
    "target_stain": "Stain",
    "target_clean": "Clean rendering",
}
CROP = "The cell, without stain"
CALM = 1.5
"""Seconds between two looks at how far the queue is."""


class Queue:
    """What all labellers share: the cells, and the order that the model gives them."""

    def __init__(self, services: Services):
        assert services.store is not None
        assert services.images is not None
        self.services, self.labels, self.images = services, services.store.labels, services.images
        self.ranking = QueueRanking(services, self.images, self.labels)
        self.keys = class_keys(services.label_classes())
        self.mark = secrets.token_hex(4)  # another server's cell of this number is another picture


def add(app: FastAPI, services: Services) -> None:
    """Add the page, its pictures and its table."""
    opened: list[Queue] = []
    opening = asyncio.Lock()

    async def queue() -> Queue | None:
        """The queue, read when it is first asked for."""
        if services.images is None or services.store is None:
            return None
        async with opening:
            if not opened:
                opened.append(await asyncio.to_thread(Queue, services))
        return opened[0]

    @app.get("/label/cell/{mark}/{cell}/{what}", include_in_schema=False)
    async def picture(mark: str, cell: int, what: str) -> Response:
        found = await queue()
        path = await asyncio.to_thread(found.labels.find_path, found.images.name, cell) if found else None
        if found is None or path is None or what not in ("crop", "paired"):
            raise RequestError(HTTPStatus.NOT_FOUND, "there is no such cell in the queue")
        content = None
        if path in found.images.rows:  # else it was taken out of the table since
            pictures = await asyncio.to_thread(found.images.image, path)
            content = pictures.crop if what == "crop" else pictures.paired
        if content is None:
            return Response(NO_PICTURE, media_type="image/svg+xml", headers=CACHED)
        return Response(content, media_type="image/png", headers=CACHED)

    @app.get("/label/cells.csv", include_in_schema=False)
    async def exported() -> Response:
        found = await queue()
        if found is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "this server was started without --cells")
        content = await asyncio.to_thread(_exported, found.labels, found.images.name, services.storage)
        return saved_as("cells.csv", content, "text/csv; charset=utf-8")

    @ui.page("/label")
    async def label() -> None:
        work_styles()
        with frame("Label", "/label"):
            if services.images is None or services.store is None:
                notice("No cells to label here. Start the server with --cells, a cells table or a folder of crops.")
                return
            try:
                found = await queue()
            except UrnetError as error:
                notice(str(error), warn=True)
                return
            assert found is not None
            desk = Desk(found)
            desk.build()
        await ui.context.client.connected()
        await desk.begin()


@dataclass
class Place(SessionData):
    """What a labeller chose; kept for the browser's session. The cells themselves are claimed in the store.

    Attributes:
        second: whether to read what one other person has read, instead of new cells.
    """

    second: bool = False


class Desk:
    """The page of one labeller."""

    def __init__(self, queue: Queue):
        self.queue = queue
        self.who = ""
        self.session = this_session()
        kept = self.session.kept.get("label")
        self.place = replace(kept) if isinstance(kept, Place) else Place()
        self.claimed: list[QueuedCell] = []
        self.busy = asyncio.Lock()
        self.stale = False

    def build(self) -> None:
        """Make the page's parts."""
        keys = self.queue.keys
        self.board = board([*keys, SKIP, UNDO])
        with self.board, ui.element("div").classes("desk"):
            with ui.element("section").classes("the-cell") as top:
                top.props["aria-label"] = "The cell"
                with ui.element("div").classes("pair"):
                    self.crop = _figure(CROP)
                    self.paired_name = PAIRED_NAMES.get(self.queue.images.paired or "", "")
                    self.paired = _figure(self.paired_name) if self.paired_name else None
                self.path = text("p", "").classes("path soft small")
                self.said = text("p", "").props("role=status").classes("said")
                with ui.element("div").props('role=group aria-label="Label"').classes("keys"):
                    self.buttons = [key_button(key, label) for key, label in keys.items() if label != NOT_A_CELL]
                with ui.element("div").props('role=group aria-label="Other"').classes("keys"):
                    self.buttons += [key_button("n", "Not a cell"), key_button(SKIP, "Skip")]
                    key_button(UNDO, "Undo")
            with ui.element("aside").classes("proposed panel").props('aria-label="Proposed label"'):
                text("h2", "Proposed")
                self.proposed = ui.element("div")
            with ui.element("section").classes("state").props('aria-label="Progress"'):
                self._build_state()
        self.ahead = ui.element("div").props("hidden")
        on_press(self.pressed)
        ui.timer(CALM, self.refresh)

    def _build_state(self) -> None:
        text("h2", "Progress")
        self.progress = meter("Cells labelled")
        self.progress_note = text("p", "").classes("small")
        self.counts = ui.element("div")
        with ui.element("fieldset").classes("modes"):
            text("legend", "Which cells")
            for value, name in (("new", "New ones"), ("second", "Read by one other person, to measure agreement")):
                with ui.element("label"):
                    radio = ui.element("input").props(f"type=radio name=which value={value}")
                    if (value == "second") == self.place.second:
                        radio.props("checked")
                    radio.on("change", self.change_mode, js_handler="(event) => emit(event.target.value)")
                    text("span", name)
        self.ranking_note = text("p", "").classes("small")
        with ui.element("div"):
            self.ranking_bar = meter("Looked through by the model")
            self.ranking_button = button("Stop", self.toggle_ranking, kind="quiet")
        text("h2", "Agreement")
        self.agreement = ui.element("div")
        text("h2", "Download")
        download = text("a", "Cells table of the labelled cells (CSV)")
        download.props["href"] = url("/label/cells.csv")
        download.props["download"] = "cells.csv"
        text("p", "Without what is not a cell, and without cells whose labels disagree.").classes("small soft")
        keys_switch()

    async def begin(self) -> None:
        """Ask for the name, then for the first cell."""
        self.who = await who()
        self.queue.ranking.start()
        problem = await self._claim()
        if problem or not self.who:
            self.said.set_text(problem or "Say your name, above right: a label names who gave it.")
        self.stale = True
        await self.refresh()

    async def pressed(self, key: str, at: str) -> None:
        """A key, or its button; one that was meant for a cell that is no longer shown does nothing."""
        if self.busy.locked():
            return
        async with self.busy:
            if not await self._named():
                return
            try:
                if key == UNDO:
                    await self._undo()
                elif self.claimed and at == str(self.claimed[0].id):
                    await self._label(SKIPPED if key == SKIP else self.queue.keys[key])
            except StoreError as error:  # the cell stays on the screen, unless it is somebody else's now
                if error.code == CLAIMED_CODE:
                    await self._claim()
                self.said.set_text(f"{'Not taken back' if key == UNDO else 'Not kept'}: {error}")
        self.stale = True

    async def change_mode(self, event: Any) -> None:
        """New cells, or those that one other person has labelled."""
        async with self.busy:
            self.place.second = event.args == "second"
            self.session.kept["label"] = replace(self.place)
            with suppress(StoreError):  # the cells are free again in time, and claiming says what is wrong
                await asyncio.to_thread(self.queue.labels.release, self.session.id)
            if problem := await self._claim():
                self.said.set_text(problem)

    def toggle_ranking(self) -> None:
        """Stop the model, or let it go on."""
        ranking = self.queue.ranking
        if ranking.state == "running":
            ranking.stop()
        else:
            ranking.start()
        self._show_ranking()

    async def refresh(self) -> None:
        """Show how far the queue is."""
        if self.session.name != self.who:
            await self._named()
        self._show_ranking()
        if not self.stale:
            return
        self.stale = False
        labelling, name = self.queue.labels, self.queue.images.name
        try:
            done = await asyncio.to_thread(labelling.progress, name)
            agreed = await asyncio.to_thread(labelling.agreement, name)
        except StoreError as error:
            self.progress_note.set_text(str(error))
            return
        self.progress.props["value"] = done.labelled
        self.progress.props["max"] = max(1, done.cells)
        self.progress.update()
        own = sum(count for name, count in done.people.items() if person_key(name) == person_key(self.who))
        self.progress_note.set_text(f"{done.labelled:,} of {done.cells:,} cells; {own:,} by you")
        self.counts.clear()
        with self.counts:
            facts({**{label: f"{count:,}" for label, count in done.labels.items()}})
        self.agreement.clear()
        with self.agreement:
            if agreed:
                rows = [
                    (f"{one.first}, {one.second}", f"{one.cells:,}", f"{one.agreed / one.cells:.0%}", _kappa(one.kappa))
                    for one in agreed
                ]
                table(("Labellers", "Cells", "Same", "Cohen's κ"), rows, "Agreement of each two labellers")
                text("p", "Both saw what was proposed, which makes people agree more.").classes("small soft")
            else:
                text("p", "No two people have labelled the same cell yet.").classes("small soft")

    async def _named(self) -> bool:
        """Whether it is known who labels; another name gets cells of its own."""
        name = self.session.name or await who()
        if name != self.who:
            self.who = name
            if problem := await self._claim():
                self.said.set_text(problem)
        return bool(name)

    @property
    def labeller(self) -> Labeller:
        """The person and browser session that label."""
        return Labeller(self.who, self.session.id)

    async def _label(self, label: str) -> None:
        cell = self.claimed[0]
        proposal = self.queue.ranking.proposals.get(cell.path)
        model = self.queue.services.digest if proposal is not None else ""
        given = await asyncio.to_thread(self.queue.labels.label, cell.id, self.labeller, label, model=model)
        self.claimed = self.claimed[1:]
        said = ["Skipped." if label == SKIPPED else f"Labelled {short(label)}."]
        if given.replaced is not None and given.replaced.label != label:
            said.append(replaces(given.replaced, self.who))
        if given.others and not self.place.second:
            said.append(f"{', '.join(given.others)} labelled it meanwhile; all labels are kept.")
        self.said.set_text(" ".join((*said, await self._claim() or self._announced())))

    async def _undo(self) -> None:
        taken = await asyncio.to_thread(self.queue.labels.undo, self.queue.images.name, self.labeller)
        if taken is None:
            self.said.set_text("There is nothing of yours to take back in this browser.")
            return
        said = f"Taken back: {short(taken.label) or 'skipped'}."
        if taken.claimed_by:
            self.said.set_text(f"{said} {taken.claimed_by} is looking at that cell now.")
            return
        self.claimed = [taken.cell, *(one for one in self.claimed if one.id != taken.cell.id)]
        self._show()
        self.said.set_text(f"{said} {self._announced()}")

    async def _claim(self) -> str:
        """Claim the next cells, and show the first; where this fails, those claimed before stay.

        Returns:
            What is wrong; "" where nothing is.
        """
        problem = ""
        try:
            self.claimed = await asyncio.to_thread(self._next) if self.who else []
        except StoreError as error:
            problem = str(error)
        self._show()
        self.queue.images.prefetch(self.queue.labels)
        return problem

    def _next(self) -> list[QueuedCell]:
        queue, second = self.queue, self.place.second
        return queue.labels.claim(queue.images.name, self.labeller, CLAIMED, second=second)

    def _show(self) -> None:
        cell = self.claimed[0] if self.claimed else None
        self.board.props["data-at"] = "" if cell is None else str(cell.id)
        self.board.update()
        for made in self.buttons:
            made.props["aria-disabled"] = "false" if cell else "true"
            made.update()
        self.path.set_text(
            "" if cell is None else make_single_line(PurePath(cell.path).name, 300)
        )  # a folder may name a class
        _picture(self.crop, self._url(cell, "crop"), CROP)
        if self.paired is not None:
            _picture(self.paired, self._url(cell, "paired"), self.paired_name)
        self._show_proposed(cell)
        self.ahead.clear()
        with self.ahead:
            for coming in self.claimed[1:]:
                for what in ("crop", "paired") if self.paired is not None else ("crop",):
                    ui.element("img").props["src"] = self._url(coming, what)
        if cell is None and self.who:
            there = "no cell that one other person has labelled" if self.place.second else "no cell without a label"
            self.said.set_text(f"There is {there}, or others are looking at the last ones.")

    def _show_proposed(self, cell: QueuedCell | None) -> None:
        self.proposed.clear()
        with self.proposed:
            told = []
            if cell is not None and cell.proposed:
                sure = "" if cell.confidence is None else f" {cell.confidence:.2f}"
                told.append((cell.proposed, f"by the cells table{sure}"))
            if cell is not None and (proposal := self.queue.ranking.proposals.get(cell.path)) is not None:
                told.append((proposal.label, f"by the model {proposal.probability:.2f}"))
            for label, by in told:
                with ui.element("p"):
                    text("strong", short(label))
                    text("span", by).classes("soft small")
            if not told:
                text("p", "Nothing yet." if cell is not None else "").classes("soft small")

    def _announced(self) -> str:
        return "Next cell." if self.claimed else "That was the last one for now."

    def _url(self, cell: QueuedCell | None, what: str) -> str:
        return "" if cell is None else url(f"/label/cell/{self.queue.mark}/{cell.id}/{what}")

    def _show_ranking(self) -> None:
        ranking = self.queue.ranking
        running = ranking.state == "running"
        told = {
            "waiting": "",
            "running": f"The model looks for the most informative cells: {ranking.done:,} of {ranking.total:,}.",
            "done": "The most informative cells come first: those the model is least sure of, then the most different.",
            "stopped": f"Stopped after {ranking.done:,} of {ranking.total:,} cells; these are in order.",
            "failed": "The model could not look through the cells; the server's log says why.",
        }
        if told[ranking.state] != self.ranking_note.text:
            self.ranking_note.set_text(told[ranking.state])
            self.ranking_bar.props["value"] = ranking.done
            self.ranking_bar.props["max"] = max(1, ranking.total)
            self.ranking_bar.update()
        self.ranking_bar.set_visibility(running)
        self.ranking_button.set_visibility(running or ranking.state in ("stopped", "failed"))
        self.ranking_button.set_text("Stop" if running else "Go on")


def _figure(name: str) -> ui.element:
    with ui.element("figure").classes("cell"):
        place = ui.element("div").classes("picture")
        text("figcaption", name)
    return place


def _picture(place: ui.element, url: str, name: str) -> None:
    """Show a picture; the one before it goes at once, lest it be taken for this one."""
    place.clear()
    if url:
        with place:
            image = ui.element("img")
            image.props["src"] = url
            image.props["alt"] = name


def _kappa(kappa: float | None) -> str:
    return "–" if kappa is None else f"{kappa:.2f}"


def _exported(labelling: LabelStore, name: str, storage: UploadStorage) -> bytes:
    with closing(UploadFolder(storage)) as folder:
        out = folder.files / "cells.csv"
        labelling.export_labels(name, out)
        return out.read_bytes()
