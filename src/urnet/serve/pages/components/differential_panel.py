"""The differential beside the cells: shares with their intervals, what was rejected, what to beware of."""

from nicegui import ui

from urnet.html_pages import NO_VALUE
from urnet.serve.classification_job import ClassificationJob
from urnet.serve.pages.components.layout import button, text
from urnet.serve.services import NOT_CALIBRATED

NAMED = 10
"""Files that cannot be read which are named one by one."""


def counts(mine: ClassificationJob | None) -> None:
    """What is counted so far."""
    if mine is None or not mine.seen:
        text("p", "Counted as cells arrive: the share of each class with its 95 % interval.").classes("soft")
        return
    if mine.is_undecided:
        _choice(mine)
        return
    sample = mine.counted
    if sample is None:
        _raw(mine)
        return
    told = sample.to_json()
    figures = [
        ("Cells", f"{sample.cells:,}"),
        ("Counted", f"{sample.accepted:,}"),
        ("Rejected", f"{told['rejected_percent']:.1f} %"),
    ]
    if mine.cut.unreadable:
        files = len(mine.uploads)
        figures.insert(0, ("Files", f"{files - len(mine.cut.unreadable):,} of {files:,}"))
    with ui.element("dl").classes("facts"):
        for name, value in figures:
            with ui.element("div"):
                text("dt", name)
                text("dd", value)
    with ui.element("table").classes("shares"):
        text("caption", "Share of each class, corrected for the classifier's confusion").classes("unseen")
        _head("Class", "%", "95 % interval", "Counted")
        with ui.element("tbody"):
            for name, one in told["classes"].items():
                low, high = one["interval"]
                value = one["percent"]
                with ui.element("tr"):
                    _row_head(name)
                    text("td", NO_VALUE if value is None else f"{value:.1f}").classes("n value")
                    with ui.element("td").classes("wide"):
                        text("span", NO_VALUE if low is None else f"{low:.1f} to {high:.1f}").classes("interval")
                        if value is not None and low is not None:
                            _bar(value, low, high)
                    text("td", f"{one['count']:,}").classes("n")
    if sample.rejected:
        with ui.element("table").classes("shares"):
            text("caption", "Rejected cells by reason").classes("unseen")
            _head("Rejected because", "Cells")
            with ui.element("tbody"):
                for reason, number in sample.rejected.items():
                    with ui.element("tr"):
                        _row_head(reason)
                        text("td", f"{number:,}").classes("n")
    if mine.is_running:
        text("p", "Figures change until all cells are there.").classes("soft small")
    else:
        _notes([*sample.warnings, *mine.notes])


def _raw(mine: ClassificationJob) -> None:
    """Counts that nothing corrects."""
    if not mine.can_count:
        _notes([NOT_CALIBRATED[:1].upper() + NOT_CALIBRATED[1:] + "."])
    with ui.element("table").classes("shares"):
        _head("Class", "Called")
        with ui.element("tbody"):
            found = mine.raw_counts()
            for name in mine.services.model.classes:
                with ui.element("tr"):
                    _row_head(name)
                    text("td", f"{found[name]:,}").classes("n")
    _notes([] if mine.is_running else mine.notes)


def _choice(mine: ClassificationJob) -> None:
    """What cannot be read, and whether to count without it."""
    lost, files = mine.cut.unreadable, len(mine.uploads)
    with ui.element("div").classes("notice warn").props("role=note"):
        text("p", f"{len(lost):,} of the {files:,} files cannot be read:")
        with ui.element("ul"):
            for one in lost[:NAMED]:
                text("li", one.reason)
            if len(lost) > NAMED:
                text("li", f"and {len(lost) - NAMED:,} more, among the cells that are not usable")
        text("p", "A count over the others is not the count of this sample. Send it again when they are mended, or:")
        button(f"Count the other {files - len(lost):,} file(s)", mine.count_readable)


def _head(first: str, *others: str) -> None:
    with ui.element("thead"), ui.element("tr"):
        text("th", first).props("scope=col")
        for name in others:
            text("th", name).props("scope=col").classes("" if "interval" in name else "n")


def _row_head(name: str) -> None:
    """A name in a block of its own, which can be narrower than a long word."""
    with ui.element("th").props("scope=row"):
        text("span", name)


def _bar(value: float, low: float, high: float) -> None:
    with ui.element("span").classes("bar").props("aria-hidden=true") as bar:
        ui.element("i")
        ui.element("b")
    bar.style(f"--low:{low:.2f}%;--wide:{high - low:.2f}%;--at:{value:.2f}%")


def _notes(notes: list[str]) -> None:
    if notes:
        with ui.element("div").classes("notice warn").props("role=note"), ui.element("ul"):
            for note in notes:
                text("li", note)
