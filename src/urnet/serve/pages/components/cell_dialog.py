"""The dialog with one cell: raw, enhanced and Grad-CAM pictures, probabilities, and the position in the field."""

from collections.abc import Callable

from nicegui import background_tasks, ui

from urnet.calibration.conformal import COVERAGE, describe_coverage
from urnet.errors import UrnetError
from urnet.serve.classification_job import ClassificationJob, ClassifiedImage
from urnet.serve.pages.components.cell_grid import CellSelection
from urnet.serve.pages.components.elements import notice, percent
from urnet.serve.pages.components.layout import CLOSE_DIALOG, pager, text, url
from urnet.serve.services import Services

COLORMAPS = {"viridis": "viridis", "blue-red": "jet"}
"""Colour maps of Grad-CAM, by name on the page: one for all kinds of colour vision, and the paper's."""

MOVE_SPLIT = "(event) => event.target.closest('dialog').style.setProperty('--split', event.target.value + '%')"
ARROW_KEYS = """(event) => {
    if (event.target.matches('input, select') || !['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    event.preventDefault();
    emit(event.key === 'ArrowRight' ? 1 : -1);
}"""


class CellDialog:
    """The dialog with one cell; the arrow keys step through the cells of the grid.

    Args:
        services: the services that classify.
        selection: the cells of the grid, and the cell in the dialog.
        find_job: returns the job of this browser.
    """

    def __init__(self, services: Services, selection: CellSelection, find_job: Callable[[], ClassificationJob | None]):
        self.services, self.selection, self.find_job = services, selection, find_job
        with ui.element("dialog").props("aria-labelledby=cell-title").classes("cell-dialog") as self.dialog:
            with ui.element("div").classes("line"):
                self.title = text("h2", "Cell").props("id=cell-title").classes("grow")
                pager(self.step, "cell")
                close = text("button", "Close").props("type=button").classes("button main")
                close.on("click", js_handler=CLOSE_DIALOG)
            self.content()
        self.dialog.on("keydown", lambda event: self.step(int(event.args)), js_handler=ARROW_KEYS)
        self.dialog.on("close", self._on_close, js_handler="() => emit()")
        if selection.cell is not None and find_job() is not None:
            self.open(selection.cell)

    def open(self, number: int) -> None:
        """Open the dialog with a cell."""
        if self._show(number):
            ui.run_javascript(f"getHtmlElement('{self.dialog.html_id}').showModal()")

    def step(self, by: int) -> None:
        """Show the next or previous cell of the grid."""
        job = self.find_job()
        if job is None or self.selection.cell is None:
            return
        numbers = [image.number for image in self.selection.apply(job)]
        index = numbers.index(self.selection.cell) if self.selection.cell in numbers else 0
        if 0 <= index + by < len(numbers):
            self._show(numbers[index + by])

    def _show(self, number: int) -> bool:
        job = self.find_job()
        if job is None or not 0 <= number < len(job.images):
            self.selection.cell = None
            return False
        self.selection.cell = number
        self.title.set_text(job.images[number].name)
        self.content.refresh()
        return True

    def _on_close(self) -> None:
        self.selection.cell = None

    @ui.refreshable_method
    def content(self) -> None:
        """Create the content of the dialog."""
        job = self.find_job()
        if job is None or self.selection.cell is None or self.selection.cell >= len(job.images):
            return
        image = job.images[self.selection.cell]
        if not image.is_usable:
            notice(f"This image cannot be used: {image.answer.error}", warn=True)
            return
        address = url(f"/classify/{job.key}/{image.number}")
        self._add_prediction(image)
        with ui.element("div").classes("pictures"):
            _add_picture(f"{address}/raw.png", "Raw", "scaled as the model's input")
            enhanced = _add_picture(f"{address}/enhanced.png", "Enhanced", "for the classifier, not for viewing")
            self._add_heat_map(address)
            _add_comparison(address)
        background_tasks.create(_show_correlation(job, image.number, enhanced))
        with ui.element("div").classes("cell-details"):
            self._add_probabilities(image)
            _add_position(job, image)

    def _add_prediction(self, image: ClassifiedImage) -> None:
        with ui.element("p").classes("verdict"):
            text("span", "Predicted class: ")
            text("strong", image.predicted)
            if image.rejected:
                text("span", "; not counted, ")
                text("strong", f"rejected: {image.rejected}").classes("wrong")
        if self.services.model.calibration is not None:
            with ui.element("p").classes("soft"):
                text("span", "Prediction set (classes that cannot be ruled out): ")
                text("b", ", ".join(image.prediction_set) or "none")
            text("p", f"{describe_coverage(COVERAGE).capitalize()}.").classes("soft small")

    def _add_heat_map(self, address: str) -> None:
        colormap = self.selection.colormap
        with ui.element("figure"):
            picture = ui.element("img").props(f'width=192 height=192 alt="Grad-CAM in {colormap}"')
            picture.props["src"] = f"{address}/{colormap}.png"
            picture.props["onerror"] = "this.closest('figure').classList.add('unavailable')"
            with ui.element("figcaption"):
                text("b", "Grad-CAM")
                text("span", " influence on the predicted class")
                with ui.element("span").classes(f"scale {colormap}"):
                    text("span", "low")
                    text("span", "high")
                with ui.element("span").classes("colormaps").props('role=radiogroup aria-label="Colours of Grad-CAM"'):
                    for name in COLORMAPS:
                        with ui.element("label"):
                            choice = ui.element("input").props("type=radio name=colormap")
                            choice.props["value"] = name
                            if name == colormap:
                                choice.props("checked")
                            text("span", name)
                            choice.on("change", lambda name=name: self._set_colormap(name))

    def _set_colormap(self, name: str) -> None:
        self.selection.colormap = name
        self.content.refresh()
        ui.run_javascript(f"document.querySelector('.cell-dialog input[value=\"{name}\"]')?.focus()")

    def _add_probabilities(self, image: ClassifiedImage) -> None:
        with ui.element("section").props("aria-labelledby=cell-probabilities"):
            text("h3", "Probabilities").props("id=cell-probabilities")
            with ui.element("table").classes("shares"), ui.element("tbody"):
                for name in self.services.model.classes:
                    share = image.answer.row[f"p_{name}"]
                    with ui.element("tr"):
                        text("th", name).props("scope=row")
                        text("td", percent(share)).classes("n value")
                        with ui.element("td").classes("wide"), ui.element("span").classes("bar plain") as bar:
                            ui.element("b")
                        bar.props("aria-hidden=true").style(f"--at:{100 * share:.2f}%")
            if self.services.model.calibration is None:
                text("p", "The model is not calibrated: a probability of 90 % does not mean 90 % correct.").classes(
                    "soft small"
                )


async def _show_correlation(job: ClassificationJob, number: int, caption: ui.element) -> None:
    """Add the correlation between the raw and the enhanced picture to a caption."""
    try:
        correlation = await job.enhancement_correlation(number)
    except UrnetError:  # the pictures themselves are missing too
        return
    if correlation is not None and not caption.is_deleted:
        with caption:
            text("span", f"; correlation with raw {correlation:.3f}")


def _add_picture(address: str, name: str, description: str) -> ui.element:
    """Add a picture; return its caption."""
    with ui.element("figure"):
        ui.element("img").props(f'width=192 height=192 src={address} alt="{name}"')
        with ui.element("figcaption") as caption:
            text("b", name)
            text("span", f" {description}")
    return caption


def _add_comparison(address: str) -> None:
    with ui.element("figure"):
        with ui.element("div").classes("compared"):
            ui.element("img").props(f'width=192 height=192 src={address}/enhanced.png alt=""')
            ui.element("img").props(f'width=192 height=192 src={address}/raw.png alt="" class=over')
        with ui.element("figcaption"), ui.element("label"):
            text("b", "Raw (left) and enhanced (right)")
            slider = ui.element("input").props("type=range min=0 max=100 step=1")
            slider.props["aria-label"] = "Share of the picture that is raw, in percent"
            slider.on("input", js_handler=MOVE_SPLIT)


def _add_position(job: ClassificationJob, image: ClassifiedImage) -> None:
    with ui.element("section").props("aria-labelledby=cell-position"):
        text("h3", "Position").props("id=cell-position")
        if image.place is None:
            file, sign, part = image.answer.path.rpartition("#")
            text("p", f"Part {part} of {file}" if sign else "This file holds one cell.")
            return
        field = job.cropped.fields[image.place.field]
        x, y = image.place.x, image.place.y
        text("p", f"{field.name}: x {x:.0f}, y {y:.0f} of {field.width} × {field.height} px")
        cropping = job.services.model.cropping
        radius = 0.5 * (cropping.size if cropping else 50)
        with ui.element("svg").classes("field") as picture:
            picture.props["viewBox"] = f"0 0 {field.width} {field.height}"
            picture.props["role"] = "img"
            picture.props["aria-label"] = f"The cell in {field.name}"
            background = ui.element("image").props("x=0 y=0")
            background.props["width"], background.props["height"] = field.width, field.height
            background.props["href"] = url(f"/classify/{job.key}/field/{image.place.field}.png")
            for style in ("halo", "mark"):
                ring = ui.element("circle").classes(style)
                ring.props["cx"], ring.props["cy"], ring.props["r"] = x, y, radius
