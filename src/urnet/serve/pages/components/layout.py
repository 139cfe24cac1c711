"""Parts that all pages share: header, navigation, styles, and the name of the person."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import nicegui
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from urnet.serve.database.names import MAX_NAME_LENGTH, make_printable, make_single_line
from urnet.serve.pages.sessions import this_session
from urnet.serve.services import Services

PAGES = (("Classify", "/"), ("Label", "/label"), ("Review", "/review"), ("Runs", "/runs"), ("About", "/about"))

LONGEST_TEXT = 4000
"""Longest text of one element, in characters: names of files and classes may be hostile."""

REMEMBER = "try { localStorage.setItem('urnet-name', name); } catch {}"
PROPOSE = """
    try { field.value ||= localStorage.getItem('urnet-name') || ''; } catch {}
    field.select();
"""
"""The browser keeps the name for after the server has started anew; one that keeps nothing is asked again."""


def get_services() -> Services:
    """What the pages serve."""
    return nicegui.app.state.services


@contextmanager
def frame(title: str, active: str) -> Iterator[None]:
    """The page around what is made within.

    Args:
        title: heading of the page.
        active: path of its entry in the navigation, such as "/label".
    """
    client = ui.context.client
    ui.add_head_html(f"<style>{styles()}</style>")
    ui.page_title(f"{title} · urnet")
    with client.layout:
        header = ui.element("header").classes("app")
    header.move(target_index=0)
    with header:
        link("Skip to the content", "#main").classes("skip")
        with ui.element("p").classes("product"):
            text("strong", "urnet")
            model = text("span", get_services().model.config.name).classes("model")
            model.props["title"] = f"model {get_services().digest}"
        with ui.element("nav").props('aria-label="Pages"'), ui.element("ul"):
            for name, path in PAGES:
                with ui.element("li"):
                    entry = link(name, path)
                    if path == active:
                        entry.props("aria-current=page")
        text("p", "Research use only").classes("research")
        with ui.element("div"):
            _person()
    content = client.content.parent_slot
    assert content is not None
    content.parent.props("id=main tabindex=-1")  # Quasar makes it the <main>
    client.content.classes("page")
    with client.content:
        text("h1", title)
        yield


LONGEST_LABEL = 60
"""Longest name of a class, sample or file in a button, list or tile, in characters."""


def short(name: str) -> str:
    """A name of a class, sample or file as it fits into a button, list or tile."""
    return make_single_line(name, LONGEST_LABEL)


class Text(TextElement):
    """An element that shows bounded, printable text, in which nothing is taken for HTML."""

    def _text_to_model_text(self, text: str) -> None:
        self._text = make_printable(text, LONGEST_TEXT)


def text(tag: str, content: str) -> TextElement:
    """An element that holds text; `set_text` changes it."""
    return Text(tag=tag, text=content)


def url(path: str) -> str:
    """The URL of a path of the server, below the root path by which this browser reaches it."""
    return ui.context.client.request.scope.get("root_path", "") + path


def link(label: str, to: str) -> TextElement:
    """A link to a path of the server, or to a part of the page such as "#main"."""
    made = text("a", label)
    made.props["href"] = to if to.startswith("#") else url(to)
    return made


def button(label: str, on_click: Callable[..., Any], *, kind: str = "") -> TextElement:
    """A button of the browser's own.

    Args:
        label: what it says.
        on_click: called when it is pressed, with the event where it takes one.
        kind: "main" for the one that goes on, "quiet" for one that looks like text.
    """
    return text("button", label).props("type=button").classes(f"button {kind}").on("click", on_click)


def select(label: str, options: list[str], value: str, on_change: Callable[[str], Any]) -> None:
    """One of several.

    Args:
        label: what is chosen.
        options: what there is.
        value: what is chosen now.
        on_change: called with what is chosen then, as the browser says it: it may be none of the options.
    """
    with ui.element("label"):
        text("span", f"{label} ")
        with ui.element("select") as made:
            for option in options:
                entry = text("option", short(option))
                entry.props["value"] = option
                if option == value:
                    entry.props("selected")
    made.on("change", lambda event: on_change(str(event.args)), js_handler="(event) => emit(event.target.value)")


async def who() -> str:
    """The name of the person in front of this browser, asked for once; "" where they closed the question."""
    session = this_session()
    if not session.name:
        await _ask_name()
    return session.name


async def _ask_name() -> None:
    session, answered = this_session(), asyncio.Event()

    def enter(event: Any) -> None:
        session.name = make_single_line(str(event.args), MAX_NAME_LENGTH)
        _person.refresh()
        answered.set()

    with ui.context.client.layout:
        dialog = ui.element("dialog").classes("ask")
    dialog.props["aria-labelledby"] = f"{dialog.html_id}-title"
    with dialog, ui.element("form") as form:
        title = text("h2", "Your name")
        title.props["id"] = f"{dialog.html_id}-title"
        text("p", "Each label and correction is kept with the name of the person who gave it.")
        text("label", "Name").props["for"] = f"{dialog.html_id}-name"
        field = ui.element("input").props(f"type=text required autocomplete=name maxlength={MAX_NAME_LENGTH}")
        field.props["id"] = f"{dialog.html_id}-name"
        field.props["value"] = session.name
        with ui.element("p").classes("buttons"):
            text("button", "Continue").props("type=submit").classes("button main")
            close = "(event) => event.target.closest('dialog').close()"
            text("button", "Not now").props("type=button").classes("button quiet").on("click", js_handler=close)
    form.on(
        "submit",
        enter,
        js_handler=f"""(event) => {{
            event.preventDefault();
            const name = event.target.querySelector('input').value;
            {REMEMBER}
            emit(name);
            event.target.closest('dialog').close();
        }}""",
    )
    dialog.on("close", answered.set, js_handler="() => emit()")
    ui.run_javascript(f"""
        const dialog = getHtmlElement('{dialog.html_id}'), field = dialog.querySelector('input');
        dialog.showModal();
        {PROPOSE}
    """)
    try:
        await answered.wait()
    finally:
        if not dialog.client.is_deleted:  # else the page was left with the question open
            dialog.delete()


@ui.refreshable
def _person() -> None:
    """Who is at the web application, in the header."""
    name = this_session().name
    made = button(name or "No name yet", _ask_name, kind="quiet person")
    made.props["aria-label"] = f"Name: {name}, change it" if name else "Say your name"


@cache
def styles() -> str:
    """The style sheet of all pages, and what the web application adds to it."""
    shared = files("urnet").joinpath("templates", "style.css").read_text(encoding="utf-8")
    own = files("urnet.serve.pages").joinpath("templates", "app.css").read_text(encoding="utf-8")
    return shared + own
