"""Elements that several pages use: notices, facts, tables, progress bars, and the wording of times and labels."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from nicegui import ui

from urnet.serve.database.models import ReplacedLabel
from urnet.serve.database.names import person_key
from urnet.serve.pages.components.layout import link, shorten, text

NO_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><rect width="100" height="100" fill="#888"/>'
    '<text x="50" y="54" text-anchor="middle" font-size="11" font-family="sans-serif">no picture</text></svg>'
)
"""Placeholder for an image that cannot be shown."""


def notice(*paragraphs: str, warn: bool = False) -> ui.element:
    """Create a box with a message."""
    with ui.element("div").classes("notice warn" if warn else "notice") as element:
        for paragraph in paragraphs:
            text("p", paragraph)
    return element


def model_needed() -> None:
    """Say that a page needs a model, and what to do next."""
    with notice("This page needs a model: label cells, train a model on them, then serve it."):
        with ui.element("p"):
            link("Label cells", "/label")
        with ui.element("p"):
            command("urnet train cells.csv --recipe quick --out RUN")
        with ui.element("p"):
            command("urnet serve RUN")


def command(line: str) -> None:
    """Show a command for the terminal. Lines break between its words only, never within an option."""
    with text("code", "").classes("command"):
        for word in line.split(" "):
            text("span", f"{word} ")


def notice_list(messages: Sequence[str]) -> None:
    """Create a box with a list of warnings; nothing if there are none."""
    if messages:
        with ui.element("div").classes("notice warn").props("role=note"), ui.element("ul"):
            for message in messages:
                text("li", message)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 file" or "2,000 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share as text, such as "12.5 %"."""
    return f"{100 * share:.1f} %"


def format_time(at: str) -> str:
    """Return a time from the database as text."""
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%d %b %Y %H:%M UTC")


def replacement_notice(earlier: ReplacedLabel, user: str) -> str:
    """Return the message that a label replaces another one.

    Args:
        earlier: the replaced label.
        user: the person who gave the new label.
    """
    label = shorten(earlier.label) or "'skipped'"
    if person_key(earlier.person) == person_key(user):
        return f"This replaces your label {label} of {format_time(earlier.at)}."
    return f"This replaces the label {label} by {earlier.person}, {format_time(earlier.at)}."


def progress_bar(name: str) -> ui.element:
    """Create a progress bar; its properties `value` and `max` set the progress."""
    element = ui.element("progress")
    element.props["aria-label"] = name
    element.props["max"] = 1
    element.props["value"] = 0
    return element


def fact_list(facts: Mapping[str, str]) -> None:
    """Create a list of names and values."""
    with ui.element("dl").classes("facts"):
        for name, value in facts.items():
            with ui.element("div"):
                text("dt", shorten(name))
                text("dd", value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str, *, numeric_from: int = 1) -> ui.element:
    """Create a table that scrolls sideways if it is too wide.

    Args:
        head: titles of the columns.
        rows: texts of the cells; the first text names the row.
        name: name of the table for screen readers.
        numeric_from: index of the first column with numbers, which are aligned right.
    """
    with ui.element("div").classes("scroll fit").props("role=region tabindex=0") as element:
        element.props["aria-label"] = name
        with ui.element("table"):
            with ui.element("thead"), ui.element("tr"):
                for column, title in enumerate(head):
                    text("th", title).props("scope=col").classes("n" if column >= numeric_from else "")
            with ui.element("tbody"):
                for row in rows:
                    with ui.element("tr"):
                        text("th", shorten(row[0])).props("scope=row")
                        for column, value in enumerate(row[1:], 1):
                            text("td", value).classes("n" if column >= numeric_from else "")
    return element
