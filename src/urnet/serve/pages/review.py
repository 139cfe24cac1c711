"""Review: predictions of a sample, what people correct in them, and the differential that comes of it."""

import asyncio
import io
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import Response
from nicegui import ui

from urnet.calibration.conformal import split_set
from urnet.errors import StoreError
from urnet.serve.database.models import NOT_A_CELL
from urnet.serve.database.names import make_single_line, person_key
from urnet.serve.database.reviews import ReviewedPrediction, ReviewStore
from urnet.serve.database.store import Store
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.elements import NO_PICTURE, facts, moment, notice, replaces, table, work_styles
from urnet.serve.pages.components.keyboard import board, class_keys, key_button, keys_switch, on_press
from urnet.serve.pages.components.layout import button, frame, select, short, text, url, who
from urnet.serve.pages.components.responses import CACHED, saved_as
from urnet.serve.pages.sessions import SessionData, this_session
from urnet.serve.review_results import ReviewImages, corrected_differential
from urnet.serve.services import Services
from urnet.serve.uploads.storage import UploadFolder, UploadStorage

TILES = 60
"""Cells on one page."""

LONGEST_PATH = 300
"""Longest path of an image that is shown, in characters."""

CONFIRM, TAKE_BACK = "c", "u"

SHOWN: dict[str, Callable[[ReviewedPrediction], bool]] = {
    "All": lambda row: True,
    "Nobody looked at": lambda row: row.corrected is None,
    "Looked at": lambda row: row.corrected is not None,
    "Corrected": lambda row: row.corrected not in (None, row.predicted),
    "Rejected by the model": lambda row: bool(row.details.get("rejected")),
}
UNSURE, AS_KEPT = "Least sure first", "As kept"

_WALK = """(event) => {
    if (!event.key.startsWith("Arrow")) return;
    const tiles = [...event.currentTarget.querySelectorAll("button")];
    const here = tiles.findIndex((tile) => tile.ariaPressed === "true");  // the focus may follow a moment later
    if (here < 0) return;
    const top = tiles[0].getBoundingClientRect().top;
    const across = Math.max(1, tiles.filter((tile) => Math.abs(tile.getBoundingClientRect().top - top) < 2).length);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const next = tiles[here + step];
    event.preventDefault();
    if (next) { next.focus(); next.click(); }
}"""

_FOLLOW = """
if (document.activeElement.closest(".sheet")) document.querySelector(".tile[aria-pressed=true]")?.focus();
"""


def add(app: FastAPI, services: Services) -> None:
    """Add the page, its pictures and its table."""
    pictures = ReviewImages(services)

    @app.get("/review/image/{digest}", include_in_schema=False)
    async def image(digest: str) -> Response:
        content = await pictures.read_png(digest)
        if content is None:
            return Response(NO_PICTURE, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
        return Response(content, media_type="image/png", headers=CACHED)

    @app.get("/review/cells.zip", include_in_schema=False)
    async def exported(sample: str) -> Response:
        store = services.store
        if store is None or sample not in await asyncio.to_thread(store.reviews.list_samples):
            raise RequestError(HTTPStatus.NOT_FOUND, f"no predictions of a sample {sample[:100]!r} are kept")
        content = await asyncio.to_thread(_exported, store.reviews, sample, services.storage)
        return saved_as("cells.zip", content, "application/zip")

    @ui.page("/review")
    async def review(sample: str = "") -> None:
        work_styles()
        with frame("Review", "/review"):
            if services.store is None:
                notice("Nothing is kept here. Start the server with --database.")
                return
            try:
                samples = await asyncio.to_thread(services.store.reviews.list_samples)
            except StoreError as error:
                notice(str(error), warn=True)
                return
            if not samples:
                notice("No predictions are kept yet. Classify a sample, and keep it for review.")
                return
            desk = Desk(services, services.store, samples, sample)
            desk.build()
        await ui.context.client.connected()
        await desk.load()


@dataclass
class Place(SessionData):
    """Where a reviewer is; kept for the browser's session, so that a page that was lost comes back there.

    Attributes:
        sample: which sample.
        which: which of its cells, of `SHOWN`.
        order: of them.
        page: of the sheet, from 0.
        chosen: number of the prediction.
    """

    sample: str = ""
    which: str = "All"
    order: str = UNSURE
    page: int = 0
    chosen: int | None = None


class Desk:
    """The page of one reviewer."""

    def __init__(self, services: Services, store: Store, samples: list[str], sample: str):
        self.services, self.review, self.samples = services, store.reviews, samples
        self.session = this_session()
        kept = self.session.kept.get("review")
        place = self.place = replace(kept) if isinstance(kept, Place) else Place()  # two windows go their own ways
        wanted = next((name for name in (sample, place.sample) if name in samples), samples[0])
        if wanted != place.sample:
            place.sample, place.page, place.chosen = wanted, 0, None
        self.keys = class_keys(services.model.classes)
        self.rows: dict[int, ReviewedPrediction] = {}
        self.shown: list[int] = []
        self.tiles: dict[int, ui.element] = {}
        self.busy = asyncio.Lock()

    def build(self) -> None:
        """Make the page's parts."""
        with ui.element("div").classes("filters"):
            select("Sample", self.samples, self.place.sample, self._other_sample)
            select("Show", list(SHOWN), self.place.which, self._other_filter)
            select("Order", [UNSURE, AS_KEPT], self.place.order, self._other_order)
        self.board = board([*self.keys, CONFIRM, TAKE_BACK])
        with self.board, ui.element("div").classes("review"):
            with ui.element("section").classes("cells") as cells:
                cells.props["aria-label"] = "Cells"
                self.note = text("p", "").classes("small soft")
                self.sheet = ui.element("ul").classes("sheet").on("keydown", js_handler=_WALK)
                with ui.element("div").classes("pages"):
                    self.back = button("Previous", lambda: self._turn(-1))
                    self.where = text("span", "").classes("small")
                    self.forth = button("Next", lambda: self._turn(1))
            with ui.element("section").classes("one panel") as one:
                one.props["aria-label"] = "The cell"
                self.one = ui.element("div").classes("told")
                self.said = text("p", "").props("role=status").classes("said")
                with ui.element("div").props('role=group aria-label="What it is"').classes("keys"):
                    for key, label in self.keys.items():
                        key_button(key, "Not a cell" if label == NOT_A_CELL else label)
                with ui.element("div").props('role=group aria-label="Other"').classes("keys"):
                    key_button(CONFIRM, "As predicted")
                    key_button(TAKE_BACK, "Take back")
                keys_switch()
            with ui.element("section").classes("counts"):
                text("h2", "Differential after review")
                self.counts = ui.element("div")
                text("h2", "Download")
                self.download = text("a", "Crops and cells table, to train on (ZIP)").props("download=cells.zip")
                text("p", "Holds the cells whose images are kept, under what they are called now.").classes(
                    "small soft"
                )
        on_press(self.pressed)

    async def load(self) -> None:
        """Read the sample, and show it."""
        try:
            rows = await asyncio.to_thread(self.review.read_reviewed, self.place.sample)
        except StoreError as error:
            self.note.set_text(str(error))
            return
        self.rows = {row.id: row for row in rows}
        self.download.props["href"] = url(f"/review/cells.zip?sample={quote(self.place.sample, safe='')}")
        self.download.update()
        self._arrange()
        self._show_counts()

    async def pressed(self, key: str, at: str) -> None:
        """A key or its button, meant for the cell that was shown then."""
        if self.busy.locked() or self.place.chosen is None or at != str(self.place.chosen):
            return
        async with self.busy:
            name = this_session().name or await who()
            if not name:
                self.said.set_text("Say your name, above right: a correction names who gave it.")
                return
            row = self.rows[self.place.chosen]
            try:
                if key == TAKE_BACK:
                    earlier = await asyncio.to_thread(self.review.undo_correction, row.id)
                    self.rows[row.id] = replace(row, corrected=None, reviewer=None)
                    said = f"Taken back: {short(row.predicted)}, as predicted."
                    if earlier is not None and person_key(earlier.person) != person_key(name):
                        said += f" {earlier.person} had called it {short(earlier.label)}, {moment(earlier.at)}."
                else:
                    label = row.predicted if key == CONFIRM else self.keys[key]
                    earlier = await asyncio.to_thread(self.review.correct, row.id, name, label)
                    self.rows[row.id] = replace(row, corrected=label, reviewer=name)
                    said = f"Kept: {short(label)}."
                    if earlier is not None and (earlier.label, person_key(earlier.person)) != (label, person_key(name)):
                        said += f" {replaces(earlier, name)}"
            except StoreError as error:
                self.said.set_text(f"{'Not taken back' if key == TAKE_BACK else 'Not kept'}: {error}")
                return
            self._fill_tile(row.id)
            self._show_counts()
            if key == TAKE_BACK:
                self._choose(row.id)
            else:
                self._choose(self._after(row.id), focus=True)
            self.said.set_text(said)

    def _after(self, number: int) -> int:
        """The next cell of this page of the sheet; the last one is followed by itself."""
        here = list(self.tiles)
        return here[min(here.index(number) + 1, len(here) - 1)]

    def _arrange(self) -> None:
        """Which cells are shown, in which order."""
        kept = [row for row in self.rows.values() if SHOWN[self.place.which](row)]
        if self.place.order == UNSURE:
            kept.sort(key=_probability)
        self.shown = [row.id for row in kept]
        self.place.page = min(self.place.page, max(0, len(kept) - 1) // TILES)
        self._show_sheet()

    def _show_sheet(self) -> None:
        here = self.shown[self.place.page * TILES : (self.place.page + 1) * TILES]
        self.sheet.clear()
        self.tiles = {}
        with self.sheet:
            for number in here:
                with ui.element("li"):
                    tile = ui.element("button").props("type=button tabindex=-1 aria-pressed=false").classes("tile")
                    tile.on("click", lambda number=number: self._choose(number))
                    self.tiles[number] = tile
                self._fill_tile(number)
        whole = max(1, -(-len(self.shown) // TILES))
        self.where.set_text(f"Page {self.place.page + 1} of {whole}")
        for made, off in ((self.back, self.place.page == 0), (self.forth, self.place.page + 1 >= whole)):
            made.props["disabled"] = off
            made.update()
        self.note.set_text(f"{len(self.shown):,} of {len(self.rows):,} cells")
        first = here[0] if here else None
        self._choose(self.place.chosen if self.place.chosen in here else first)

    def _fill_tile(self, number: int) -> None:
        row, tile = self.rows[number], self.tiles[number]
        tile.clear()
        with tile:
            _image(row)
            if row.corrected is None:
                text("span", short(row.predicted)).classes("mark")
            elif row.corrected == row.predicted:
                text("span", short(row.predicted)).classes("mark")
                text("span", f"confirmed, {row.reviewer}").classes("soft")
            else:
                text("span", short(row.corrected)).classes("mark")
                with ui.element("span"):
                    text("span", "was ").classes("unseen")
                    text("s", short(row.predicted)).classes("was")
                    text("span", f", {row.reviewer}").classes("soft")
            if row.corrected is None:
                rejected = row.details.get("rejected")
                text("span", short(f"rejected: {rejected}") if rejected else f"p = {_probability(row):.2f}").classes(
                    "soft"
                )

    def _choose(self, number: int | None, *, focus: bool = False) -> None:
        for known, tile in self.tiles.items():
            if known in (number, self.place.chosen):
                tile.props["aria-pressed"] = "true" if known == number else "false"
                tile.props["tabindex"] = "0" if known == number else "-1"
                tile.update()
        self.place.chosen = number
        self.session.kept["review"] = replace(self.place)
        self.board.props["data-at"] = "" if number is None else str(number)
        self.board.update()
        self.said.set_text("")
        self.one.clear()
        with self.one:
            if number is None:
                text("p", "No cell to show.")
                return
            _show_one(self.rows[number])
        if focus:  # but not away from a button that was pressed
            ui.run_javascript(_FOLLOW)

    def _show_counts(self) -> None:
        shares = corrected_differential(list(self.rows.values()), self.services.model.classes)
        rows = [
            (
                one.label,
                f"{one.predicted:,}",
                f"{one.counted:,}",
                "–" if one.share is None else f"{100 * one.share:.1f}",
                "–" if one.interval is None else f"{100 * one.interval[0]:.1f}–{100 * one.interval[1]:.1f}",
            )
            for one in shares
        ]
        looked = sum(row.corrected is not None for row in self.rows.values())
        self.counts.clear()
        with self.counts:
            table(("Class", "Predicted", "Now", "%", "95 % interval"), rows, "Differential after review")
            text(
                "p",
                f"{looked:,} of {len(self.rows):,} cells were looked at; the others count as the model called them, "
                "not corrected for its confusion. The interval is that of drawing these cells alone (Wilson).",
            ).classes("small soft")

    def _turn(self, step: int) -> None:
        if 0 <= (self.place.page + step) * TILES < len(self.shown):
            self.place.page += step
            self._show_sheet()

    async def _other_sample(self, sample: str) -> None:
        if sample in self.samples:
            self.place.sample, self.place.page, self.place.chosen = sample, 0, None
            await self.load()

    async def _other_filter(self, which: str) -> None:
        if which in SHOWN:
            self.place.which, self.place.page = which, 0
            await self.load()

    async def _other_order(self, order: str) -> None:
        self.place.order, self.place.page = UNSURE if order == UNSURE else AS_KEPT, 0
        await self.load()


def _image(row: ReviewedPrediction, alt: str = "") -> None:
    if row.image is None:
        text("span", "image not kept").classes("no-image small soft")
        return
    made = ui.element("img").props("loading=lazy")
    made.props["src"] = url(f"/review/image/{row.image}")
    made.props["alt"] = alt


def _show_one(row: ReviewedPrediction) -> None:
    with ui.element("div").classes("picture"):
        _image(row, f"Cell {row.path}")
    with ui.element("div"):
        _show_told(row)


def _show_told(row: ReviewedPrediction) -> None:
    text("p", make_single_line(row.path, LONGEST_PATH)).classes("path small soft")
    told = {"Predicted": short(row.predicted), "Probability": f"{_probability(row):.3f}"}
    if row.details.get("set"):
        told["Cannot be ruled out"] = ", ".join(map(short, split_set(str(row.details["set"]))))
    if row.details.get("rejected"):
        told["Rejected"] = short(str(row.details["rejected"]))
    if row.corrected is not None:
        told["Called now"] = f"{short(row.corrected)}, by {row.reviewer}"
    facts(told)
    text("p", f"Model {row.model[:8]}, urnet {row.version}, {moment(row.at)}").classes("small soft")


def _probability(row: ReviewedPrediction) -> float:
    """Of the class that the model named."""
    value = row.details.get(f"p_{row.predicted}")
    return float(value) if isinstance(value, int | float) else 0.0


def _exported(review: ReviewStore, sample: str, storage: UploadStorage) -> bytes:
    content = io.BytesIO()
    with closing(UploadFolder(storage)) as folder:
        review.export_reviewed(sample, folder.files)
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.files.iterdir()):
                archive.write(file, file.name)
    return content.getvalue()
