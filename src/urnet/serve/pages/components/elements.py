"""Parts that the pages for labelling, reviewing and runs are made of."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from nicegui import ui

from urnet.serve.database.models import ReplacedLabel
from urnet.serve.database.names import person_key
from urnet.serve.pages.components.layout import short, text

NO_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><rect width="100" height="100" fill="#888"/>'
    '<text x="50" y="54" text-anchor="middle" font-size="11" font-family="sans-serif">no picture</text></svg>'
)
"""Stands for one that cannot be shown."""


def work_styles() -> None:
    """Put the style sheet of these pages into the page."""
    ui.add_head_html(f"<style>{_styles()}</style>")


def notice(message: str, *, warn: bool = False) -> ui.element:
    """Something that the reader should know."""
    with ui.element("div").classes("notice warn" if warn else "notice") as made:
        text("p", message)
    return made


def moment(at: str) -> str:
    """A time of the database in words."""
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%d %b %Y %H:%M UTC")


def replaces(earlier: ReplacedLabel, who: str) -> str:
    """Say that a label replaced another.

    Args:
        earlier: the label that was replaced.
        who: the person who replaced it.
    """
    label = short(earlier.label) or "'skipped'"
    if person_key(earlier.person) == person_key(who):
        return f"It replaces your earlier label {label} given at {moment(earlier.at)}."
    return f"It replaces the label {label} that {earlier.person} gave at {moment(earlier.at)}."


def meter(name: str) -> ui.element:
    """How far something is; its properties `value` and `max` say so."""
    made = ui.element("progress")
    made.props["aria-label"] = name
    made.props["max"] = 1
    made.props["value"] = 0
    return made


def facts(told: Mapping[str, str]) -> None:
    """Names and figures beside each other."""
    with ui.element("dl").classes("facts"):
        for name, value in told.items():
            with ui.element("div"):
                text("dt", short(name))
                text("dd", value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str, *, figures: int = 1) -> ui.element:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: of the columns.
        rows: of texts; the first one of each names the row.
        name: what it shows, for who cannot see it.
        figures: the first column that holds figures, which stand at the right.
    """
    with ui.element("div").classes("scroll fit").props("role=region tabindex=0") as made:
        made.props["aria-label"] = name
        with ui.element("table"):
            with ui.element("thead"), ui.element("tr"):
                for column, title in enumerate(head):
                    text("th", title).props("scope=col").classes("n" if column >= figures else "")
            with ui.element("tbody"):
                for row in rows:
                    with ui.element("tr"):
                        text("th", short(row[0])).props("scope=row")
                        for column, value in enumerate(row[1:], 1):
                            text("td", value).classes("n" if column >= figures else "")
    return made


@cache
def _styles() -> str:
    return files("urnet.serve.pages").joinpath("templates", "work.css").read_text(encoding="utf-8")
