"""The page Review: confirm or correct the predictions of a sample, and see the differential after the review."""

import asyncio
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import Response
from nicegui import ui

from urnet.calibration.conformal import split_set
from urnet.counting.sample import Sample
from urnet.errors import StoreError
from urnet.html_pages import NO_VALUE
from urnet.serve.database.models import NOT_A_CELL
from urnet.serve.database.names import make_single_line, person_key
from urnet.serve.database.reviews import ReviewedPrediction, ReviewStore
from urnet.serve.database.store import Store
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.elements import (
    NO_PICTURE,
    counted,
    fact_list,
    format_time,
    model_needed,
    notice,
    percent,
    replacement_notice,
    table,
)
from urnet.serve.pages.components.keyboard import (
    CONFIRM,
    UNDO,
    assign_keys,
    key_area,
    key_button,
    on_key,
    shortcuts_switch,
)
from urnet.serve.pages.components.layout import export_link, page_frame, pager, select, shorten, text, url, user_name
from urnet.serve.pages.components.responses import CACHED, download
from urnet.serve.pages.sessions import SessionData, current_session
from urnet.serve.review_results import ReviewImages, count_after_review, estimate_differential
from urnet.serve.services import Services
from urnet.serve.uploads.storage import UploadFolder, UploadStorage

NO_FIGURES = (NO_VALUE, NO_VALUE)

PAGE_SIZE = 60
"""Maximum number of cells on one page."""

MAX_PATH_LENGTH = 300
"""Maximum length of the path of an image on the page, in characters."""

FILTERS: dict[str, Callable[[ReviewedPrediction], bool]] = {
    "All": lambda row: True,
    "Not reviewed": lambda row: row.corrected is None,
    "Reviewed": lambda row: row.corrected is not None,
    "Corrected": lambda row: row.corrected not in (None, row.predicted),
    "Rejected by the model": lambda row: bool(row.details.get("rejected")),
}
LEAST_CERTAIN_FIRST, SAMPLE_ORDER = "Least certain first", "Order of the sample"

ARROW_KEYS = """(event) => {
    if (!event.key.startsWith("Arrow")) return;
    const tiles = [...event.currentTarget.querySelectorAll("button")];
    const index = tiles.findIndex((tile) => tile.ariaPressed === "true");  // the focus may follow a moment later
    if (index < 0) return;
    const top = tiles[0].getBoundingClientRect().top;
    const columns = Math.max(1, tiles.filter((tile) => Math.abs(tile.getBoundingClientRect().top - top) < 2).length);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = tiles[index + step];
    event.preventDefault();
    if (next) { next.focus(); next.click(); }
}"""

FOCUS_SELECTED = """
if (document.activeElement.closest(".tile")) document.querySelector(".tile[aria-pressed=true]")?.focus();
"""
"""JavaScript that moves the focus to the selected tile, unless the focus is outside the tiles."""


def add(app: FastAPI, services: Services) -> None:
    """Add the page, its pictures and its export to the app."""
    pictures = ReviewImages(services)

    @app.get("/review/image/{digest}", include_in_schema=False)
    async def image(digest: str) -> Response:
        content = await pictures.read_png(digest)
        if content is None:
            return Response(NO_PICTURE, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
        return Response(content, media_type="image/png", headers=CACHED)

    @app.get("/review/cells.zip", include_in_schema=False)
    async def export(sample: str) -> Response:
        store = services.store
        if store is None or sample not in await asyncio.to_thread(store.reviews.list_samples):
            raise RequestError(HTTPStatus.NOT_FOUND, f"the database has no predictions of a sample {sample[:100]!r}")
        content = await asyncio.to_thread(_export_reviewed, store.reviews, sample, services.storage)
        return download("cells.zip", content, "application/zip")

    @ui.page("/review")
    async def review(sample: str = "") -> None:
        with page_frame("Review", "/review", styles="review.css"):
            if not services.has_model:
                model_needed()
                return
            if services.store is None:
                notice("The server has no database. Start it with --database FILE.")
                return
            try:
                samples = await asyncio.to_thread(services.store.reviews.list_samples)
            except StoreError as error:
                notice(str(error), warn=True)
                return
            if not samples:
                notice("There are no predictions to review. Classify a sample, then press Save for review.")
                return
            page = ReviewPage(services, services.store, samples, sample)
            page.build()
        await ui.context.client.connected()
        await page.load()


@dataclass
class ReviewSelection(SessionData):
    """Selection of a reviewer, stored in the session and restored when the page is reopened.

    Attributes:
        sample: name of the sample.
        filter: name of the filter, of `FILTERS`.
        order: order of the cells.
        page: index of the page.
        prediction: number of the selected prediction.
    """

    sample: str = ""
    filter: str = "All"
    order: str = LEAST_CERTAIN_FIRST
    page: int = 0
    prediction: int | None = None


class ReviewPage:
    """The page of one reviewer."""

    def __init__(self, services: Services, store: Store, samples: list[str], sample: str):
        self.services, self.reviews, self.samples = services, store.reviews, samples
        self.session = current_session()
        stored = self.session.data.get("review")
        selection = replace(stored) if isinstance(stored, ReviewSelection) else ReviewSelection()  # one for each window
        wanted = next((name for name in (sample, selection.sample) if name in samples), samples[0])
        if wanted != selection.sample:
            selection.sample, selection.page, selection.prediction = wanted, 0, None
        self.selection = selection
        self.keys = assign_keys(services.model.classes)
        self.rows: dict[int, ReviewedPrediction] = {}
        self.estimate: Sample | None = None
        self.shown: list[int] = []
        self.tiles: dict[int, ui.element] = {}
        self.lock = asyncio.Lock()

    def build(self) -> None:
        """Create the elements of the page."""
        selection = self.selection
        orders = (LEAST_CERTAIN_FIRST, SAMPLE_ORDER)
        with ui.element("div").classes("filters"):
            select("Sample", {name: name for name in self.samples}, selection.sample, self._set_sample)
            select("Show", {name: name for name in FILTERS}, selection.filter, self._set_filter)
            select("Order", {name: name for name in orders}, selection.order, self._set_order)
        self.area = key_area([*self.keys, CONFIRM, UNDO])
        with self.area, ui.element("div").classes("review"):
            with ui.element("section").classes("sheet") as sheet:
                sheet.props["aria-label"] = "Cells"
                self.summary = text("p", "").classes("small soft")
                self.sheet = ui.element("ul").classes("tiles-of-cells").on("keydown", js_handler=ARROW_KEYS)
                with ui.element("div").classes("pager"):
                    self.pager = pager(self._turn, "page of cells")
                    self.page_text = text("span", "").classes("small")
            with ui.element("section").classes("current panel") as current:
                current.props["aria-label"] = "Selected cell"
                self.current = ui.element("div").classes("cell-facts")
                self.result = text("p", "").props("role=status").classes("result")
                with ui.element("div").props('role=group aria-label="Correct to"').classes("keys"):
                    for key, label in self.keys.items():
                        key_button(key, "Not a cell" if label == NOT_A_CELL else label)
                with ui.element("div").props('role=group aria-label="Other actions"').classes("keys"):
                    key_button(CONFIRM, "Confirm")
                    key_button(UNDO, "Undo")
                shortcuts_switch()
            with ui.element("section").classes("counts"):
                text("h2", "Differential")
                self.counts = ui.element("div")
                text("h2", "Export")
                self.export = export_link("Crops and cells table for training (ZIP)", "/review/cells.zip", "cells.zip")
                text("p", "All cells with a stored image, with their labels after review.").classes("small soft")
        on_key(lambda key, cell, version: self.press(key, cell))  # the classes of a model do not change

    async def load(self) -> None:
        """Read the sample and show it."""
        try:
            rows = await asyncio.to_thread(self.reviews.read_reviewed, self.selection.sample)
            sample = self.selection.sample
            self.estimate = await asyncio.to_thread(estimate_differential, self.services, sample, rows)
        except StoreError as error:
            self.summary.set_text(str(error))
            return
        self.rows = {row.id: row for row in rows}
        self.export.props["href"] = url(f"/review/cells.zip?sample={quote(self.selection.sample, safe='')}")
        self.export.update()
        self._arrange()
        self._show_counts()

    async def press(self, key: str, cell: str) -> None:
        """Handle a key or its button. A key for a cell that is no longer shown does nothing."""
        number = self.selection.prediction
        if self.lock.locked() or number is None or cell != str(number):
            return
        async with self.lock:
            user = await user_name()
            if not user:
                self.result.set_text("Sign in (top right) to correct predictions.")
                return
            row = self.rows[number]
            try:
                result = await (self._undo(row, user) if key == UNDO else self._correct(row, key, user))
            except StoreError as error:
                self.result.set_text(f"{'Not undone' if key == UNDO else 'Not saved'}: {error}")
                return
            self._fill_tile(number)
            self._show_counts()
            if key == UNDO:
                self._select(number)
            else:
                self._select(self._next(number), focus=True)
            self.result.set_text(result)

    async def _correct(self, row: ReviewedPrediction, key: str, user: str) -> str:
        """Save a label; return the message about it."""
        label = row.predicted if key == CONFIRM else self.keys[key]
        earlier = await asyncio.to_thread(self.reviews.correct, row.id, user, label)
        self.rows[row.id] = replace(row, corrected=label, reviewer=user)
        result = f"Saved: {shorten(label)}."
        if earlier is not None and (earlier.label, person_key(earlier.person)) != (label, person_key(user)):
            result += f" {replacement_notice(earlier, user)}"
        return result

    async def _undo(self, row: ReviewedPrediction, user: str) -> str:
        """Remove the label; return the message about it."""
        earlier = await asyncio.to_thread(self.reviews.undo_correction, row.id)
        self.rows[row.id] = replace(row, corrected=None, reviewer=None)
        result = f"Undone. The prediction is {shorten(row.predicted)}."
        if earlier is not None and person_key(earlier.person) != person_key(user):
            result += f" The label {shorten(earlier.label)} was by {earlier.person}, {format_time(earlier.at)}."
        return result

    def _next(self, number: int) -> int:
        """Return the next cell on this page of tiles; the last cell is followed by itself."""
        tiles = list(self.tiles)
        return tiles[min(tiles.index(number) + 1, len(tiles) - 1)]

    def _arrange(self) -> None:
        """Filter and sort the cells."""
        rows = [row for row in self.rows.values() if FILTERS[self.selection.filter](row)]
        if self.selection.order == LEAST_CERTAIN_FIRST:
            rows.sort(key=_probability)
        self.shown = [row.id for row in rows]
        self.selection.page = min(self.selection.page, max(0, len(rows) - 1) // PAGE_SIZE)
        self._show_tiles()

    def _show_tiles(self) -> None:
        page = self.selection.page
        numbers = self.shown[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        self.sheet.clear()
        self.tiles = {}
        with self.sheet:
            for number in numbers:
                with ui.element("li"):
                    tile = ui.element("button").props("type=button tabindex=-1 aria-pressed=false").classes("tile")
                    tile.on("click", lambda number=number: self._select(number))
                    self.tiles[number] = tile
                self._fill_tile(number)
        pages = max(1, -(-len(self.shown) // PAGE_SIZE))
        self.page_text.set_text(f"Page {page + 1} of {pages}")
        for element, is_end in zip(self.pager, (page == 0, page + 1 >= pages), strict=True):
            element.props["disabled"] = is_end
            element.update()
        self.summary.set_text(f"{len(self.shown):,} of {len(self.rows):,} cells")
        selected = self.selection.prediction
        self._select(selected if selected in numbers else next(iter(numbers), None))

    def _fill_tile(self, number: int) -> None:
        row, tile = self.rows[number], self.tiles[number]
        tile.clear()
        with tile:
            _add_image(row)
            text("span", shorten(row.label)).classes("class")
            if row.corrected is None:
                rejected = row.details.get("rejected")
                text("span", shorten(f"rejected: {rejected}") if rejected else percent(_probability(row))).classes(
                    "soft"
                )
            elif row.corrected == row.predicted:
                text("span", f"confirmed by {row.reviewer}").classes("soft")
            else:
                with ui.element("span"):
                    text("span", "instead of ").classes("unseen")
                    text("s", shorten(row.predicted)).classes("replaced")
                    text("span", f", {row.reviewer}").classes("soft")

    def _select(self, number: int | None, *, focus: bool = False) -> None:
        for other, tile in self.tiles.items():
            if other in (number, self.selection.prediction):
                tile.props["aria-pressed"] = "true" if other == number else "false"
                tile.props["tabindex"] = "0" if other == number else "-1"
                tile.update()
        self.selection.prediction = number
        self.session.data["review"] = replace(self.selection)
        self.area.props["data-cell"] = "" if number is None else str(number)
        self.area.update()
        self.result.set_text("")
        self.current.clear()
        with self.current:
            if number is None:
                text("p", "No cell matches the filter.")
                return
            _add_cell(self.rows[number])
        if focus:
            ui.run_javascript(FOCUS_SELECTED)

    def _show_counts(self) -> None:
        rows = list(self.rows.values())
        shares = count_after_review(rows, self.services.model.classes)
        reviewed = sum(row.corrected is not None for row in rows)
        note = f"{reviewed:,} of {counted(len(rows), 'cell')} reviewed. "
        if rows and reviewed == len(rows):
            title = "Reviewed, %"
            figures = {share.label: _format_share(share.share, share.interval) for share in shares}
            note += "Reviewed: the share of each class after the review; the interval is for the number of cells."
        else:
            title = "Corrected, %"
            figures = _format_estimate(self.estimate)
            if self.estimate is None:
                note += "There is no estimate: the model is not calibrated, or another model made the predictions."
            else:
                note += "Corrected: the estimate from the predictions, as on the page Classify. "
                note += "It does not change until all cells are reviewed."
        self.counts.clear()
        with self.counts:
            table(
                ("Class", "Counted", "After review", title, "95 % interval"),
                [
                    (share.label, f"{share.counted:,}", f"{share.reviewed:,}", *figures.get(share.label, NO_FIGURES))
                    for share in shares
                ],
                "Differential",
            )
            text("p", note).classes("small soft")

    def _turn(self, step: int) -> None:
        if 0 <= (self.selection.page + step) * PAGE_SIZE < len(self.shown):
            self.selection.page += step
            self._show_tiles()

    async def _set_sample(self, sample: str) -> None:
        if sample in self.samples:
            self.selection.sample, self.selection.page, self.selection.prediction = sample, 0, None
            await self.load()

    async def _set_filter(self, name: str) -> None:
        if name in FILTERS:
            self.selection.filter, self.selection.page = name, 0
            await self.load()

    async def _set_order(self, order: str) -> None:
        self.selection.order = LEAST_CERTAIN_FIRST if order == LEAST_CERTAIN_FIRST else SAMPLE_ORDER
        self.selection.page = 0
        await self.load()


def _add_image(row: ReviewedPrediction, alt: str = "") -> None:
    if row.image is None:
        text("span", "no image stored").classes("no-image small soft")
        return
    image = ui.element("img").props("loading=lazy")
    image.props["src"] = url(f"/review/image/{row.image}")
    image.props["alt"] = alt


def _add_cell(row: ReviewedPrediction) -> None:
    """Add the picture and the facts of the selected cell."""
    with ui.element("div").classes("picture"):
        _add_image(row, f"Cell {row.path}")
    with ui.element("div"):
        text("p", make_single_line(row.path, MAX_PATH_LENGTH)).classes("path small soft")
        facts = {"Prediction": shorten(row.predicted), "Probability": percent(_probability(row))}
        if row.details.get("set"):
            facts["Prediction set"] = ", ".join(map(shorten, split_set(str(row.details["set"]))))
        if row.details.get("rejected"):
            facts["Rejected"] = shorten(str(row.details["rejected"]))
        if row.corrected is not None:
            facts["Label after review"] = f"{shorten(row.corrected)}, by {row.reviewer}"
        fact_list(facts)
        text("p", f"Model {row.model[:8]}, urnet {row.version}, {format_time(row.at)}").classes("small soft")


def _format_estimate(sample: Sample | None) -> dict[str, tuple[str, str]]:
    """Format the estimate of each class and its interval, in percent."""
    if sample is None:
        return {}
    ends = sample.adjusted_interval
    return {name: _format_share(sample.adjusted[k], ends[k]) for k, name in enumerate(sample.classes)}


def _format_share(share: float | None, interval: Sequence[float] | None) -> tuple[str, str]:
    """Format a share and its interval, in percent."""
    if share is None or interval is None or math.isnan(share):
        return NO_FIGURES
    return f"{100 * share:.1f}", f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def _probability(row: ReviewedPrediction) -> float:
    """Return the probability of the predicted class."""
    value = row.details.get(f"p_{row.predicted}")
    return float(value) if isinstance(value, int | float) else 0.0


def _export_reviewed(reviews: ReviewStore, sample: str, storage: UploadStorage) -> bytes:
    content = io.BytesIO()
    with closing(UploadFolder(storage)) as folder:
        reviews.export_reviewed(sample, folder.files)
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.files.iterdir()):
                archive.write(file, file.name)
    return content.getvalue()
