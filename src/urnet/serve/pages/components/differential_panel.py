"""The panel with the differential of a sample: estimates with intervals, counts, rejections and warnings."""

from nicegui import ui

from urnet.html_pages import NO_VALUE
from urnet.serve.classification_job import ClassificationJob
from urnet.serve.pages.components.elements import counted, fact_list, notice_list
from urnet.serve.pages.components.layout import button, text
from urnet.serve.services import NOT_CALIBRATED

MAX_NAMED_FILES = 10
"""Maximum number of unreadable files that are listed by name."""


def differential_panel(job: ClassificationJob | None) -> None:
    """Create the content of the panel."""
    if job is None or not job.images:
        text("p", "The share of each class appears here, with its 95 % interval.").classes("soft")
    elif job.needs_decision:
        _ask_for_partial_count(job)
    elif job.differential is None:
        _add_counts(job)
    else:
        _add_estimate(job)


def _add_estimate(job: ClassificationJob) -> None:
    sample = job.differential
    assert sample is not None
    values = sample.to_json()
    facts = {
        "Cells": f"{sample.cells:,}",
        "Counted": f"{sample.accepted:,}",
        "Rejected": f"{values['rejected_percent']:.1f} %",
    }
    if job.cropped.unreadable:
        files = len(job.uploads)
        facts = {"Files": f"{files - len(job.cropped.unreadable):,} of {files:,}"} | facts
    fact_list(facts)
    with ui.element("table").classes("shares"):
        text("caption", "Corrected estimate: share of each class, corrected for the confusion of the classifier")
        _add_head("Class", "Corrected, %", "95 % interval", "Counted")
        with ui.element("tbody"):
            for name, row in values["classes"].items():
                low, high = row["interval"]
                value = row["percent"]
                with ui.element("tr"):
                    _add_row_name(name)
                    text("td", NO_VALUE if value is None else f"{value:.1f}").classes("n value")
                    with ui.element("td").classes("wide"):
                        text("span", NO_VALUE if low is None else f"{low:.1f} to {high:.1f}").classes("interval")
                        if value is not None and low is not None:
                            _add_bar(value, low, high)
                    text("td", f"{row['count']:,}").classes("n")
    if sample.rejected:
        with ui.element("table").classes("shares"):
            text("caption", "Rejected cells by reason").classes("unseen")
            _add_head("Reason for rejection", "Cells")
            with ui.element("tbody"):
                for reason, number in sample.rejected.items():
                    with ui.element("tr"):
                        _add_row_name(reason)
                        text("td", f"{number:,}").classes("n")
    if job.is_running:
        text("p", "The estimate changes until all cells are classified.").classes("soft small")
    else:
        notice_list([*sample.warnings, *job.notes])


def _add_counts(job: ClassificationJob) -> None:
    """Show the counts alone, as long as there is no estimate."""
    if not job.can_count:
        notice_list([NOT_CALIBRATED[:1].upper() + NOT_CALIBRATED[1:] + "."])
    with ui.element("table").classes("shares"):
        _add_head("Class", "Counted")
        with ui.element("tbody"):
            counts = job.counts()
            for name in job.services.model.classes:
                with ui.element("tr"):
                    _add_row_name(name)
                    text("td", f"{counts[name]:,}").classes("n")
    if not job.is_running:
        notice_list(job.notes)


def _ask_for_partial_count(job: ClassificationJob) -> None:
    """List the unreadable files, and offer to count without them."""
    failed, files = job.cropped.unreadable, len(job.uploads)
    with ui.element("div").classes("notice warn").props("role=note"):
        text("p", f"{len(failed):,} of {counted(files, 'file')} cannot be read:")
        with ui.element("ul"):
            for answer in failed[:MAX_NAMED_FILES]:
                text("li", answer.reason)
            if len(failed) > MAX_NAMED_FILES:
                text("li", f"{len(failed) - MAX_NAMED_FILES:,} more, listed among the unusable cells")
        text("p", "A count of the other files is not a count of the whole sample.")
        text("p", "Repair the files and upload the sample again, or count without them.")
        button(f"Count the other {counted(files - len(failed), 'file')}", job.count_partial)


def _add_head(first: str, *others: str) -> None:
    with ui.element("thead"), ui.element("tr"):
        text("th", first).props("scope=col")
        for name in others:
            text("th", name).props("scope=col").classes("" if "interval" in name else "n")


def _add_row_name(name: str) -> None:
    """Add a name in a block of its own, which may be narrower than a long word."""
    with ui.element("th").props("scope=row"):
        text("span", name)


def _add_bar(value: float, low: float, high: float) -> None:
    with ui.element("span").classes("bar").props("aria-hidden=true") as bar:
        ui.element("i")
        ui.element("b")
    bar.style(f"--low:{low:.2f}%;--wide:{high - low:.2f}%;--at:{value:.2f}%")
