"""One cell, large: raw, enhanced and Grad-CAM side by side, what is said of it, and where it lies in its field."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nicegui import ui

from urnet.calibration.conformal import COVERAGE, describe_coverage
from urnet.serve.classification_job import ClassificationJob, Seen
from urnet.serve.pages.classify_routes import MAPS
from urnet.serve.pages.components.layout import button, text, url
from urnet.serve.services import Services

if TYPE_CHECKING:
    from urnet.serve.pages.classify import View

SLIDE = "(event) => event.target.closest('dialog').style.setProperty('--cut', event.target.value + '%')"
KEYS = """(event) => {
    if (event.target.matches('input, select') || !['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    emit(event.key === 'ArrowRight' ? 1 : -1);
}"""


class CellDialog:
    """The dialog with a cell; arrow keys go on to the next one that the grid shows.

    Args:
        services: what classified it.
        view: what the browser looks at; says which cell.
        mine: what it classifies.
    """

    def __init__(self, services: Services, view: "View", mine: Callable[[], ClassificationJob | None]):
        self.services, self.view, self.mine = services, view, mine
        with ui.element("dialog").props("aria-labelledby=cell-title").classes("cell-view") as self.dialog:
            with ui.element("div").classes("line"):
                self.title = text("h2", "Cell").props("id=cell-title").classes("grow")
                for label, step in (("Previous", -1), ("Next", 1)):
                    button(label, lambda step=step: self.step(step)).props["aria-label"] = f"{label} cell"
                text("button", "Close").props("type=button").classes("button main").on(
                    "click", js_handler="(event) => event.target.closest('dialog').close()"
                )
            self.content()
        self.dialog.on("keydown", lambda event: self.step(int(event.args)), js_handler=KEYS)
        self.dialog.on("close", self._closed, js_handler="() => emit()")
        if view.cell is not None and mine() is not None:
            self.open(view.cell)

    def open(self, number: int) -> None:
        """Open the dialog with a cell."""
        if self._show(number):
            ui.run_javascript(f"getHtmlElement('{self.dialog.html_id}').showModal()")

    def _show(self, number: int) -> bool:
        mine = self.mine()
        if mine is None or not 0 <= number < len(mine.seen):
            self.view.cell = None
            return False
        self.view.cell = number
        self.title.set_text(mine.seen[number].name)
        self.content.refresh()
        return True

    def step(self, by: int) -> None:
        """Go on to another cell of those that the grid shows."""
        mine = self.mine()
        if mine is None or self.view.cell is None:
            return
        numbers = [one.number for one in self.view.cells(mine)]
        here = numbers.index(self.view.cell) if self.view.cell in numbers else 0
        if 0 <= here + by < len(numbers):
            self._show(numbers[here + by])

    def _closed(self) -> None:
        self.view.cell = None

    @ui.refreshable_method
    def content(self) -> None:
        """What is shown of it."""
        mine = self.mine()
        if mine is None or self.view.cell is None or self.view.cell >= len(mine.seen):
            return
        one = mine.seen[self.view.cell]
        if one.answer.error:
            with ui.element("div").classes("notice warn"):
                text("p", f"This image cannot be used: {one.answer.error}")
            return
        address = url(f"/classify/{mine.key}/{one.number}")
        self._verdict(one)
        with ui.element("div").classes("pictures"):
            _picture(f"{address}/raw.png", "Raw", "as it came, on the model's scale")
            _picture(f"{address}/enhanced.png", "Enhanced", "for the classifier, not the eye")
            self._heat(address)
            _compared(address)
        with ui.element("div").classes("facts-of-cell"):
            self._probabilities(one)
            _where(mine, one)

    def _verdict(self, one: Seen) -> None:
        with ui.element("p").classes("verdict"):
            text("span", "Classified as ")
            text("strong", one.answer.row["predicted"])
            if one.rejected:
                text("span", "; ")
                text("strong", f"rejected: {one.rejected}").classes("wrong")
                text("span", ", so it is not counted")
        if self.services.model.calibration is not None:
            with ui.element("p").classes("soft"):
                text("span", "Classes that cannot be ruled out (prediction set): ")
                text("b", ", ".join(one.set) or "none")
            text("p", f"{describe_coverage(COVERAGE).capitalize()}.").classes("soft small")

    def _heat(self, address: str) -> None:
        with ui.element("figure"):
            picture = ui.element("img").props(f'width=192 height=192 alt="Grad-CAM in {self.view.colours}"')
            picture.props["src"] = f"{address}/{self.view.colours}.png"
            picture.props["onerror"] = "this.closest('figure').classList.add('none')"
            with ui.element("figcaption"):
                text("b", "Grad-CAM")
                text("span", " what spoke for the class")
                with ui.element("span").classes(f"scale {self.view.colours}"):
                    text("span", "little")
                    text("span", "much")
                with ui.element("span").classes("colours").props('role=radiogroup aria-label="Colours of Grad-CAM"'):
                    for name in MAPS:
                        with ui.element("label"):
                            choice = ui.element("input").props("type=radio name=colours")
                            choice.props["value"] = name
                            if name == self.view.colours:
                                choice.props("checked")
                            text("span", name)
                            choice.on("change", lambda name=name: self._colour(name))

    def _colour(self, name: str) -> None:
        self.view.colours = name
        self.content.refresh()
        ui.run_javascript(f"document.querySelector('.cell-view input[value=\"{name}\"]')?.focus()")

    def _probabilities(self, one: Seen) -> None:
        with ui.element("section").props("aria-labelledby=cell-probabilities"):
            text("h3", "Probabilities").props("id=cell-probabilities")
            with ui.element("table").classes("shares"), ui.element("tbody"):
                for name in self.services.model.classes:
                    share = 100 * one.answer.row[f"p_{name}"]
                    with ui.element("tr"):
                        text("th", name).props("scope=row")
                        text("td", f"{share:.1f} %").classes("n value")
                        with ui.element("td").classes("wide"), ui.element("span").classes("bar plain") as bar:
                            ui.element("b")
                        bar.props("aria-hidden=true").style(f"--at:{share:.2f}%")
            if self.services.model.calibration is None:
                text("p", "Not calibrated: no shares of right answers.").classes("soft small")


def _picture(address: str, name: str, about: str) -> None:
    with ui.element("figure"):
        ui.element("img").props(f'width=192 height=192 src={address} alt="{name}"')
        with ui.element("figcaption"):
            text("b", name)
            text("span", f" {about}")


def _compared(address: str) -> None:
    with ui.element("figure"):
        with ui.element("div").classes("compared"):
            ui.element("img").props(f'width=192 height=192 src={address}/enhanced.png alt=""')
            ui.element("img").props(f'width=192 height=192 src={address}/raw.png alt="" class=over')
        with ui.element("figcaption"), ui.element("label"):
            text("b", "Raw to enhanced")
            slider = ui.element("input").props("type=range min=0 max=100 step=1")
            slider.props["aria-label"] = "How much of the picture is raw, per cent"
            slider.on("input", js_handler=SLIDE)


def _where(mine: ClassificationJob, one: Seen) -> None:
    with ui.element("section").props("aria-labelledby=cell-place"):
        text("h3", "Where it lies").props("id=cell-place")
        if one.place is None:
            _, sign, part = one.answer.path.rpartition("#")
            text("p", f"In {one.answer.path.rpartition('#')[0]}, part {part}" if sign else "A file of its own.")
            return
        field = mine.cut.fields[one.place.field]
        text("p", f"{field.name}: x {one.place.x:.0f}, y {one.place.y:.0f} of {field.width} × {field.height} px")
        cropping = mine.services.model.cropping
        radius = 0.5 * (cropping.size if cropping else 50)
        with ui.element("svg").classes("field") as picture:
            picture.props["viewBox"] = f"0 0 {field.width} {field.height}"
            picture.props["role"] = "img"
            picture.props["aria-label"] = f"The cell in {field.name}"
            image = ui.element("image").props("x=0 y=0")
            image.props["width"], image.props["height"] = field.width, field.height
            image.props["href"] = url(f"/classify/{mine.key}/field/{one.place.field}.png")
            for r, kind in ((radius, "halo"), (radius, "mark")):
                ring = ui.element("circle").classes(kind)
                ring.props["cx"], ring.props["cy"], ring.props["r"] = one.place.x, one.place.y, r
