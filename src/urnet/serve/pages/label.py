"""The page Label: unlabelled cells one after another, with the paired image, and one key for each class."""

import asyncio
import secrets
from collections.abc import Callable
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
from urnet.serve.database.labels import CLAIMED_CODE, Labeller, LabelResult, LabelStore, QueuedCell
from urnet.serve.database.models import NOT_A_CELL, SKIPPED
from urnet.serve.database.names import make_single_line, person_key
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.class_editor import ClassEditor
from urnet.serve.pages.components.elements import (
    NO_PICTURE,
    command,
    fact_list,
    notice,
    percent,
    progress_bar,
    replacement_notice,
    table,
)
from urnet.serve.pages.components.keyboard import (
    REJECT,
    SKIP,
    UNDO,
    assign_keys,
    key_area,
    key_button,
    on_key,
    set_keys,
    shortcuts_switch,
)
from urnet.serve.pages.components.layout import button, export_link, page_frame, shorten, text, url, user_name
from urnet.serve.pages.components.responses import CACHED, download
from urnet.serve.pages.sessions import SessionData, current_session
from urnet.serve.services import Services
from urnet.serve.uploads.storage import UploadFolder, UploadStorage

CLAIM_SIZE = 8
"""Number of cells that a browser claims at a time: one on the screen, the others loaded in advance."""

MAX_PATH_LENGTH = 300
"""Maximum length of the path of a cell on the page, in characters."""

CROP_NAME = "Cell without stain"
PAIRED_NAMES = {
    "target_nuclei": "Nuclear fluorescence",
    "target": "Fluorescence",
    "target_stain": "Stain",
    "target_clean": "Clean rendering",
}
"""Names of the paired images, by column of the cells table."""

CLASSES_CHANGED = "the classes have changed meanwhile. Look at the keys, then label the cell again."
"""Message about a key that meant another class when it was pressed."""

UNREADABLE_ADVICE = "this cell cannot be read. Skip it, or mark it as not a cell."
"""Message about a cell that cannot be shown."""

REFRESH_S = 1.5
"""Time between two updates of the progress, in seconds."""


class LabelQueue:
    """The cells to label and their order, shared by all labellers.

    Args:
        services: the services with the cells, the model and the database.
    """

    def __init__(self, services: Services):
        assert services.store is not None
        assert services.images is not None
        self.services, self.labels, self.images = services, services.store.labels, services.images
        self.ranking = QueueRanking(services, self.images, self.labels)
        self.classes = services.label_classes()
        self.lock = asyncio.Lock()  # no label of a class is stored while the class is renamed or removed
        self.url_token = secrets.token_hex(4)  # browsers cache pictures; a cell of another server is another picture

    @property
    def name(self) -> str:
        """Name of the queue in the database."""
        return self.images.name

    async def change_classes(self, change: Callable[..., tuple[str, ...]], *names: object) -> None:
        """Call a function of the services that changes the classes and returns all of them.

        Raises:
            UrnetError: a name is not allowed, or a removed class has labels.
        """
        async with self.lock:
            self.classes = await asyncio.to_thread(change, *names)

    async def label(self, cell: QueuedCell, labeller: Labeller, label: str) -> LabelResult:
        """Store a label, unless its class was renamed or removed meanwhile, or the cell cannot be seen.

        Raises:
            StoreError: there is no such class any more, the cell cannot be read, or see `LabelStore.label`.
        """
        is_class = label not in (NOT_A_CELL, SKIPPED)
        if is_class and await asyncio.to_thread(self.images.find_problem, cell.path) != "":
            raise StoreError(UNREADABLE_ADVICE, code="labels.cell_unreadable")
        model = self.services.digest if cell.path in self.ranking.proposals else ""
        async with self.lock:
            if is_class and label not in self.classes:
                raise StoreError(CLASSES_CHANGED, code="labels.class_unknown")
            return await asyncio.to_thread(self.labels.label, cell.id, labeller, label, model=model)


def add(app: FastAPI, services: Services) -> None:
    """Add the page, its pictures and its export to the app."""
    opened: list[LabelQueue] = []
    lock = asyncio.Lock()

    async def open_queue() -> LabelQueue | None:
        """Return the queue, opened by the first request; none if the server has no cells."""
        if services.images is None or services.store is None:
            return None
        async with lock:
            if not opened:
                opened.append(await asyncio.to_thread(LabelQueue, services))
        return opened[0]

    @app.get("/label/cell/{token}/{cell}/{kind}", include_in_schema=False)
    async def picture(token: str, cell: int, kind: str) -> Response:
        queue = await open_queue()
        path = await asyncio.to_thread(queue.labels.find_path, queue.name, cell) if queue else None
        if queue is None or path is None or kind not in ("crop", "paired"):
            raise RequestError(HTTPStatus.NOT_FOUND, f"cell {cell}: the queue has no such picture")
        content = None
        if path in queue.images.rows:  # the cells table may have lost the row since
            pictures = await asyncio.to_thread(queue.images.image, path)
            content = pictures.crop if kind == "crop" else pictures.paired
        if content is None:
            return Response(NO_PICTURE, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
        return Response(content, media_type="image/png", headers=CACHED)

    @app.get("/label/cells.csv", include_in_schema=False)
    async def export() -> Response:
        queue = await open_queue()
        if queue is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "this server has no cells to label; start it with --cells CELLS")
        content = await asyncio.to_thread(_export_labels, queue.labels, queue.name, services.storage)
        return download("cells.csv", content, "text/csv; charset=utf-8")

    @ui.page("/label")
    async def label() -> None:
        with page_frame("Label", "/label", styles="label.css"):
            try:
                queue = await open_queue()
            except UrnetError as error:
                notice(str(error), warn=True)
                return
            if queue is None:
                notice("There are no cells to label. Start the server with cells: urnet serve --cells CELLS")
                return
            page = LabelPage(queue)
            page.build()
        await ui.context.client.connected()
        await page.begin()


@dataclass
class LabelSettings(SessionData):
    """Choices of a labeller, kept in the session. The claimed cells are in the database.

    Attributes:
        is_second_reader: whether the labeller gets cells that one other person has labelled, instead of new cells.
    """

    is_second_reader: bool = False


class LabelPage:
    """The page of one labeller."""

    def __init__(self, queue: LabelQueue):
        self.queue = queue
        self.user = ""
        self.session = current_session()
        settings = self.session.data.get("label")
        self.settings = replace(settings) if isinstance(settings, LabelSettings) else LabelSettings()
        self.claimed: list[QueuedCell] = []
        self.lock = asyncio.Lock()
        self.is_outdated = False
        self.classes: tuple[str, ...] | None = None
        self.keys: dict[str, str] = {}
        self.version = 0
        self.buttons: list[ui.element] = []
        self._used: dict[str, int] = {}
        self.editor: ClassEditor | None = None

    def build(self) -> None:
        """Create the elements of the page."""
        self.area = key_area([])
        with self.area, ui.element("div").classes("label"):
            with ui.element("section").classes("current") as current:
                current.props["aria-label"] = "Cell"
                with ui.element("div").classes("pair"):
                    self.crop = _add_figure(CROP_NAME)
                    self.paired_name = PAIRED_NAMES.get(self.queue.images.paired or "", "")
                    self.paired = _add_figure(self.paired_name) if self.paired_name else None
                self.path = text("p", "").classes("path soft small")
                self.problem = text("p", "").props("role=alert").classes("wrong small")
                self.result = text("p", "").props("role=status").classes("result")
                self.class_keys = ui.element("div").props('role=group aria-label="Classes"').classes("keys")
                with ui.element("div").props('role=group aria-label="Other actions"').classes("keys"):
                    self.other_keys = [key_button(REJECT, "Not a cell"), key_button(SKIP, "Skip")]
                    key_button(UNDO, "Undo")
            with ui.element("aside").classes("suggestion panel").props('aria-label="Suggested label"'):
                text("h2", "Suggested label")
                self.suggestion = ui.element("div")
            with ui.element("section").classes("side").props('aria-label="Progress and export"'):
                self._build_side()
        self.preload = ui.element("div").props("hidden")
        self._show_classes()
        on_key(self.press)
        ui.timer(REFRESH_S, self.refresh)

    def _build_side(self) -> None:
        if not self.queue.services.has_model:
            self.editor = ClassEditor(self._add_class, self._remove_class, self._rename_class)
        text("h2", "Progress")
        self.progress = progress_bar("Labelled cells")
        self.progress_text = text("p", "").classes("small")
        self.counts = ui.element("div")
        with ui.element("fieldset").classes("queue"):
            text("legend", "Cells to label")
            modes = (("new", "Unlabelled cells"), ("second", "Second reader: cells with one other person's label"))
            for value, name in modes:
                with ui.element("label"):
                    radio = ui.element("input").props(f"type=radio name=queue value={value}")
                    if (value == "second") == self.settings.is_second_reader:
                        radio.props("checked")
                    radio.on("change", self.change_mode, js_handler="(event) => emit(event.target.value)")
                    text("span", name)
        self.ranking_text = text("p", "").classes("small")
        with ui.element("div"):
            self.ranking_bar = progress_bar("Ranked cells")
            self.ranking_button = button("Stop", self.toggle_ranking, kind="quiet")
        text("h2", "Agreement")
        self.agreement = ui.element("div")
        text("h2", "Export")
        export_link("Cells table with labels (CSV)", "/label/cells.csv", "cells.csv")
        text("p", "Without non-cells, and without cells whose labels differ.").classes("small soft")
        if not self.queue.services.has_model:
            text("p", "Then train a model on the table:").classes("small soft")
            command("urnet train cells.csv --recipe quick --out RUN")
        shortcuts_switch()

    async def begin(self) -> None:
        """Ask for the user's name, then claim the first cells."""
        self.user = await user_name()
        self.queue.ranking.start()
        problem = await self._claim()
        if problem or not self.user:
            self.result.set_text(problem or "Sign in (top right) to label cells.")
        self.is_outdated = True
        await self.refresh()

    async def press(self, key: str, cell: str, version: str) -> None:
        """Handle a key or its button. A key for a cell or for classes that are no longer shown labels nothing."""
        if self.lock.locked():
            return
        async with self.lock:
            if not await self._update_user():
                return
            try:
                if key == UNDO:
                    await self._undo()
                elif self.claimed and cell == str(self.claimed[0].id):
                    if version != str(self.version) and key not in (SKIP, REJECT):
                        self.result.set_text(f"Not saved: {CLASSES_CHANGED}")
                    else:
                        await self._label(SKIPPED if key == SKIP else self.keys[key])
            except StoreError as error:  # the cell stays on the screen, unless another browser has claimed it
                if error.code == CLAIMED_CODE:
                    await self._claim()
                self.result.set_text(f"{'Not undone' if key == UNDO else 'Not saved'}: {error}")
        self.is_outdated = True

    async def change_mode(self, event: Any) -> None:
        """Switch between unlabelled cells and second readings."""
        async with self.lock:
            self.settings.is_second_reader = event.args == "second"
            self.session.data["label"] = replace(self.settings)
            with suppress(StoreError):  # claims expire anyway, and the next claim reports the problem
                await asyncio.to_thread(self.queue.labels.release, self.session.id)
            if problem := await self._claim():
                self.result.set_text(problem)

    async def _add_class(self, name: str) -> None:
        await self._change_classes(self.queue.services.add_label_classes, [name])

    async def _remove_class(self, name: str) -> None:
        await self._change_classes(self.queue.services.remove_label_class, name)

    async def _rename_class(self, name: str, new_name: str) -> None:
        await self._change_classes(self.queue.services.rename_label_class, name, new_name)
        self.is_outdated = True

    async def _change_classes(self, change: Callable[..., tuple[str, ...]], *names: object) -> None:
        await self.queue.change_classes(change, *names)
        self._show_classes()

    def toggle_ranking(self) -> None:
        """Stop or resume the ranking."""
        ranking = self.queue.ranking
        if ranking.state == "running":
            ranking.stop()
        else:
            ranking.start()
        self._show_ranking()

    async def refresh(self) -> None:
        """Show the progress, the agreement and the state of the ranking."""
        if self.session.user != self.user:
            await self._update_user()
        self._show_ranking()
        self._show_classes()
        if not self.is_outdated:
            return
        self.is_outdated = False
        labels, name = self.queue.labels, self.queue.name
        try:
            progress = await asyncio.to_thread(labels.progress, name)
            agreement = await asyncio.to_thread(labels.agreement, name)
        except StoreError as error:
            self.progress_text.set_text(str(error))
            return
        self.progress.props["value"] = progress.labelled
        self.progress.props["max"] = max(1, progress.cells)
        self.progress.update()
        own = sum(count for name, count in progress.people.items() if person_key(name) == person_key(self.user))
        self.progress_text.set_text(f"{progress.labelled:,} of {progress.cells:,} cells labelled, {own:,} by you")
        self._used = progress.labels
        self._show_classes()
        self.counts.clear()
        with self.counts:
            fact_list({label: f"{count:,}" for label, count in progress.labels.items()})
        self.agreement.clear()
        with self.agreement:
            if not agreement:
                text("p", "No cell has labels from two people yet.").classes("small soft")
                return
            rows = [
                (
                    f"{pair.first}, {pair.second}",
                    f"{pair.cells:,}",
                    f"{pair.agreed / pair.cells:.0%}",
                    "–" if pair.kappa is None else f"{pair.kappa:.2f}",
                )
                for pair in agreement
            ]
            table(("Labellers", "Cells", "Agreement", "Cohen's κ"), rows, "Agreement of each two labellers")
            text("p", "Both labellers saw the suggested labels, which increases the agreement.").classes("small soft")

    async def _update_user(self) -> bool:
        """Read the user's name; claim new cells for another user.

        Returns:
            Whether a user is signed in.
        """
        name = self.session.user or await user_name()
        if name != self.user:
            self.user = name
            if problem := await self._claim():
                self.result.set_text(problem)
        return bool(name)

    @property
    def labeller(self) -> Labeller:
        """The user and the browser session."""
        return Labeller(self.user, self.session.id)

    async def _label(self, label: str) -> None:
        cell = self.claimed[0]
        given = await self.queue.label(cell, self.labeller, label)
        self.claimed = self.claimed[1:]
        result = ["Skipped." if label == SKIPPED else f"Labelled {shorten(label)}."]
        if given.replaced is not None and given.replaced.label != label:
            result.append(replacement_notice(given.replaced, self.user))
        if given.others and not self.settings.is_second_reader:
            result.append(f"This cell also has a label by {', '.join(given.others)}; all labels are stored.")
        self.result.set_text(" ".join((*result, await self._claim() or self._announce_next())))

    async def _undo(self) -> None:
        undone = await asyncio.to_thread(self.queue.labels.undo, self.queue.name, self.labeller)
        if undone is None:
            self.result.set_text("There is nothing to undo in this browser.")
            return
        result = f"Undone: {shorten(undone.label) or 'skipped'}."
        if undone.claimed_by:
            self.result.set_text(f"{result} The cell is now open at {undone.claimed_by}.")
            return
        self.claimed = [undone.cell, *(cell for cell in self.claimed if cell.id != undone.cell.id)]
        await self._show()
        self.result.set_text(f"{result} {self._announce_next()}")

    async def _claim(self) -> str:
        """Claim the next cells and show the first one. After a failure, the claimed cells stay.

        Returns:
            Why the claim failed; empty if it succeeded.
        """
        problem = ""
        try:
            self.claimed = await asyncio.to_thread(self._claim_next) if self.user else []
        except StoreError as error:
            problem = str(error)
        await self._show()
        self.queue.images.prefetch(self.queue.labels)
        return problem

    def _claim_next(self) -> list[QueuedCell]:
        second = self.settings.is_second_reader
        return self.queue.labels.claim(self.queue.name, self.labeller, CLAIM_SIZE, second=second)

    def _show_classes(self) -> None:
        """Show the buttons, keys and editor of the present classes, which another labeller may have changed."""
        classes = self.queue.classes
        if self.editor is not None:
            self.editor.show(classes, self._used)
        if classes == self.classes:
            return
        self.classes = classes
        self.version += 1
        self.keys = assign_keys(classes)
        set_keys(self.area, [*self.keys, SKIP, UNDO], self.version)
        self.class_keys.clear()
        with self.class_keys:
            keys = [(key, label) for key, label in self.keys.items() if label != NOT_A_CELL]
            self.buttons = [key_button(key, label) for key, label in keys]
            if not keys:
                text("p", "Add the classes of your cells under Classes.").classes("soft")
        self._enable_buttons()

    def _enable_buttons(self) -> None:
        for element in (*self.buttons, *self.other_keys):
            element.props["aria-disabled"] = "true" if not self.claimed else "false"
            element.update()

    async def _show(self) -> None:
        problem = ""
        if self.claimed:
            problem = await asyncio.to_thread(self.queue.images.find_problem, self.claimed[0].path)
        cell = self.claimed[0] if self.claimed else None
        self.area.props["data-cell"] = "" if cell is None else str(cell.id)
        self.area.update()
        self.problem.set_text(make_single_line(f"T{UNREADABLE_ADVICE[1:]} Reason: {problem}.", 500) if problem else "")
        self._enable_buttons()
        # Only the file name: the name of the folder may be a class.
        self.path.set_text("" if cell is None else make_single_line(PurePath(cell.path).name, MAX_PATH_LENGTH))
        _set_picture(self.crop, self._picture_url(cell, "crop"), CROP_NAME)
        if self.paired is not None:
            _set_picture(self.paired, self._picture_url(cell, "paired"), self.paired_name)
        self._show_suggestion(cell)
        self.preload.clear()
        with self.preload:
            for following in self.claimed[1:]:
                for kind in ("crop", "paired") if self.paired is not None else ("crop",):
                    ui.element("img").props["src"] = self._picture_url(following, kind)
        if cell is None and self.user:
            if self.settings.is_second_reader:
                message = "There is no cell for a second reader, or all of them are open in other browsers."
            else:
                message = "All cells are labelled, or open in other browsers."
            self.result.set_text(message)

    def _show_suggestion(self, cell: QueuedCell | None) -> None:
        self.suggestion.clear()
        with self.suggestion:
            suggestions = []
            if cell is not None and cell.proposed:
                confidence = "" if cell.confidence is None else f", {percent(cell.confidence)}"
                suggestions.append((cell.proposed, f"cells table{confidence}"))
            if cell is not None and (proposal := self.queue.ranking.proposals.get(cell.path)) is not None:
                suggestions.append((proposal.label, f"model, {percent(proposal.probability)}"))
            for label, source in suggestions:
                with ui.element("p"):
                    text("strong", shorten(label))
                    text("span", source).classes("soft small")
            if not suggestions:
                text("p", "None yet." if cell is not None else "").classes("soft small")

    def _announce_next(self) -> str:
        return "Next cell." if self.claimed else "This was the last cell."

    def _picture_url(self, cell: QueuedCell | None, kind: str) -> str:
        return "" if cell is None else url(f"/label/cell/{self.queue.url_token}/{cell.id}/{kind}")

    def _show_ranking(self) -> None:
        ranking = self.queue.ranking
        running = ranking.state == "running"
        message = {
            "waiting": "",
            "running": f"The model ranks the cells: {ranking.done:,} of {ranking.total:,}.",
            "done": "Most informative cells first: the least certain ones, then the most different ones.",
            "stopped": f"The ranking was stopped after {ranking.done:,} of {ranking.total:,} cells.",
            "failed": "The ranking failed. The log of the server says why.",
        }[ranking.state]
        if message != self.ranking_text.text:
            self.ranking_text.set_text(message)
            self.ranking_bar.props["value"] = ranking.done
            self.ranking_bar.props["max"] = max(1, ranking.total)
            self.ranking_bar.update()
        self.ranking_bar.set_visibility(running)
        self.ranking_button.set_visibility(running or ranking.state in ("stopped", "failed"))
        self.ranking_button.set_text("Stop" if running else "Resume")


def _add_figure(name: str) -> ui.element:
    """Add a figure; return the element for its picture."""
    with ui.element("figure"):
        place = ui.element("div").classes("picture")
        text("figcaption", name)
    return place


def _set_picture(place: ui.element, url: str, name: str) -> None:
    """Show a picture. The previous one disappears at once, so that it cannot be mistaken for the new one."""
    place.clear()
    if url:
        with place:
            image = ui.element("img")
            image.props["src"] = url
            image.props["alt"] = name


def _export_labels(labels: LabelStore, queue: str, storage: UploadStorage) -> bytes:
    with closing(UploadFolder(storage)) as folder:
        path = folder.files / "cells.csv"
        labels.export_labels(queue, path)
        return path.read_bytes()
