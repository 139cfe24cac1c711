"""The page Classify: upload files, see the classified cells, and the differential as it develops."""

from fastapi import FastAPI
from nicegui import ui

from urnet.serve.classification_job import ClassificationJob
from urnet.serve.pages.classify_routes import JOB, create_router
from urnet.serve.pages.components.cell_dialog import CellDialog
from urnet.serve.pages.components.cell_grid import CellGrid, CellSelection
from urnet.serve.pages.components.differential_panel import differential_panel
from urnet.serve.pages.components.elements import counted, model_needed
from urnet.serve.pages.components.layout import button, export_link, page_frame, template, text
from urnet.serve.pages.components.upload_panel import upload_panel
from urnet.serve.pages.sessions import Session, current_session
from urnet.serve.services import Services

REFRESH_S = 0.4
"""Time between two checks for changes, in seconds."""

ANNOUNCEMENTS = {
    "receiving": "Receiving files",
    "waiting": "Waiting for other samples",
    "cropping": "Detecting cells",
    "classifying": "Classifying",
}
"""Text for screen readers during each step. It has no numbers, because they change all the time."""


def add(app: FastAPI, services: Services) -> None:
    """Add the page and its routes to the app."""
    app.include_router(create_router(services))

    @ui.page("/")
    def classify() -> None:
        with page_frame("Classify", "/", styles="classify.css"):
            if not services.has_model:
                model_needed()
                return
            ui.add_head_html(f"<script>{template('classify.js')}</script>")
            ClassifyPage(services, current_session())


class ClassifyPage:
    """The page in one browser window."""

    def __init__(self, services: Services, session: Session):
        self.services, self.session = services, session
        selection = session.data.setdefault("classify-cells", CellSelection())
        assert isinstance(selection, CellSelection)
        self.selection = selection
        self._version: tuple[str, int] = ("", -1)
        self._asked: str | None = None
        self._result_state = ""
        upload_panel(services)
        with ui.element("div").classes("line status"):
            self.status = text("p", "").classes("grow")
            self.progress = ui.element("progress").props('aria-label="Classified"')
            self.cancel = button("Cancel", self._cancel)
            self.results()
        self.announcement = text("p", "").classes("unseen").props("role=status")
        with ui.element("div").classes("two-sides"):
            with ui.element("section").props("aria-labelledby=differential").classes("panel side"):
                text("h2", "Differential").props("id=differential")
                self.differential()
            with ui.element("section").props("aria-labelledby=cells"):
                text("h2", "Cells").props("id=cells")
                self.grid = CellGrid(
                    self.selection,
                    lambda: self.job,
                    lambda number: self.dialog.open(number),
                    list(services.model.classes),
                    services.model.calibration is not None,
                )
        self.dialog = CellDialog(services, self.selection, lambda: self.job)
        self._show_progress()
        self.refresh()
        ui.timer(REFRESH_S, self.refresh)

    @property
    def job(self) -> ClassificationJob | None:
        """The job of this browser."""
        job = self.session.data.get(JOB)
        return job if isinstance(job, ClassificationJob) else None

    def refresh(self) -> None:
        """Show what has changed."""
        job = self.job
        if job is None or (job.key, job.version) == self._version:
            return
        if self.selection.key != job.key:
            self.selection.key, self.selection.page, self.selection.cell = job.key, 0, None
        if self._version[0] != job.key:
            self.grid.clear()
        self._version = (job.key, job.version)
        self._show_progress()
        asked = job.key if job.images and job.needs_decision else None
        if asked is None or asked != self._asked:  # an open question stays as it is, with the focus
            self.differential.refresh()
        self._asked = asked
        self.grid.update()

    @ui.refreshable_method
    def results(self) -> None:
        """Offer the exports, and to save the predictions for review."""
        job = self.job
        if job is None or job.state == "receiving" or job.is_running or not job.images:
            return
        export_link("Export predictions (CSV)", f"/classify/{job.key}/predictions.csv").classes("button")
        if job.differential is not None:
            export_link("Export report (HTML)", f"/classify/{job.key}/report.html").classes("button")
        if job.save_message:
            text("span", job.save_message).classes("soft").props("role=status")
        if job.can_save:
            button("Save for review", job.save_for_review)

    @ui.refreshable_method
    def differential(self) -> None:
        """Show the differential."""
        differential_panel(self.job)

    def _show_progress(self) -> None:
        job = self.job
        running = job is not None and job.is_running
        self.progress.set_visibility(running)
        self.cancel.set_visibility(running)
        result_state = ""
        if job is None or job.state == "receiving":
            self.status.set_text("")
        else:
            self.status.set_text(f"{job.name}: {_describe_progress(job) if running else _describe_result(job)}")
            self.announcement.set_text(ANNOUNCEMENTS.get(job.state) or _describe_result(job))
            done, total = job.progress
            for prop, value in (("value", done), ("max", total)):
                if total:
                    self.progress.props[prop] = value
                else:  # a progress bar without values shows that the total is unknown
                    self.progress.props.pop(prop, None)
            if not running:
                has_estimate = job.differential is not None
                result_state = f"{job.key} {job.state} {has_estimate} {job.save_message} {job.is_saving}"
        if result_state != self._result_state:
            self._result_state = result_state
            self.results.refresh()

    def _cancel(self) -> None:
        if self.job is not None:
            self.job.cancel()


def _describe_progress(job: ClassificationJob) -> str:
    if job.state == "waiting":
        return "waiting for other samples to finish"
    if job.state == "cropping":
        return f"detecting cells in {counted(len(job.uploads), 'file')}"
    done, total = job.progress
    return f"{done:,} of {total:,} {'cells' if job.cropped.positions else 'files'} classified"


def _describe_result(job: ClassificationJob) -> str:
    if job.state == "failed":
        return f"failed: {job.error}"
    unusable = sum(not image.is_usable for image in job.images)
    result = f"{counted(len(job.images) - unusable, 'image')} classified"
    result += f", {unusable:,} unusable" if unusable else ""
    return f"cancelled; {result}" if job.state == "cancelled" else result
