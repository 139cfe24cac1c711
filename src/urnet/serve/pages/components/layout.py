"""The layout of all pages: header, navigation, style sheets, sign-in, and the basic elements."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import nicegui
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from urnet.serve.database.names import MAX_NAME_LENGTH, make_printable, make_single_line
from urnet.serve.pages.sessions import current_session

PAGES = (("Classify", "/"), ("Label", "/label"), ("Review", "/review"), ("Runs", "/runs"), ("About", "/about"))

MAX_TEXT_LENGTH = 4000
"""Maximum length of the text of one element, in characters. Names of files and classes may be hostile."""

MAX_LABEL_LENGTH = 60
"""Maximum length of the name of a class, sample or file in a button, list or tile, in characters."""

STORE_NAME = "try { localStorage.setItem('urnet-name', name); } catch {}"
RESTORE_NAME = """
    try { field.value ||= localStorage.getItem('urnet-name') || ''; } catch {}
    field.select();
"""
"""JavaScript that keeps the user's name in the browser, so that a restarted server can suggest it."""

CLOSE_DIALOG = "(event) => event.target.closest('dialog').close()"


@contextmanager
def page_frame(title: str, path: str, *, styles: str = "") -> Iterator[None]:
    """Build the page around the elements that are created within.

    Args:
        title: heading of the page.
        path: path of the page in the navigation, such as "/label".
        styles: name of the page's own style sheet, such as "label.css".
    """
    client = ui.context.client
    ui.add_head_html(f"<style>{_style_sheet(styles)}</style>")
    ui.page_title(f"{title} · urnet")
    with client.layout:
        header = ui.element("header").classes("app")
    header.move(target_index=0)
    with header:
        link("Skip to content", "#main").classes("skip")
        with ui.element("p").classes("product"):
            text("strong", "urnet")
            _model_name()
        with ui.element("nav").props('aria-label="Pages"'), ui.element("ul"):
            for name, target in PAGES:
                with ui.element("li"):
                    entry = link(name, target)
                    if target == path:
                        entry.props("aria-current=page")
        text("p", "Research use only").classes("research")
        with ui.element("div"):
            _user_button()
    content = client.content.parent_slot
    assert content is not None
    content.parent.props("id=main tabindex=-1")  # Quasar makes it the <main>
    client.content.classes("page")
    with client.content:
        text("h1", title)
        yield


def _model_name() -> None:
    services = nicegui.app.state.services
    name = text("span", services.title).classes("model")
    name.props["title"] = f"model {services.digest}" if services.has_model else "cells to label; no model"


def shorten(name: str) -> str:
    """Shorten the name of a class, sample or file to fit a button, list or tile."""
    return make_single_line(name, MAX_LABEL_LENGTH)


class Text(TextElement):
    """An element with bounded, printable text. HTML in the text is not interpreted."""

    def _text_to_model_text(self, text: str) -> None:
        self._text = make_printable(text, MAX_TEXT_LENGTH)


def text(tag: str, content: str) -> TextElement:
    """Create an element with text; `set_text` changes it."""
    return Text(tag=tag, text=content)


def url(path: str) -> str:
    """Return the URL of a path of the server, below the root path of this browser's requests."""
    return ui.context.client.request.scope.get("root_path", "") + path


def link(label: str, target: str) -> TextElement:
    """Create a link to a path of the server, or to a part of the page such as "#main"."""
    element = text("a", label)
    element.props["href"] = target if target.startswith("#") else url(target)
    return element


def export_link(label: str, target: str, filename: str = "") -> TextElement:
    """Create a link that downloads a path of the server.

    Args:
        label: text of the link.
        target: path of the file on the server.
        filename: name of the saved file; the server names it where empty.
    """
    element = link(label, target)
    element.props["download"] = filename or True
    return element


def button(label: str, on_click: Callable[..., Any], *, kind: str = "") -> TextElement:
    """Create a native button.

    Args:
        label: text of the button.
        on_click: called on a click, with the event if it takes an argument.
        kind: "main" for the page's main action, "quiet" for a button that looks like text.
    """
    return text("button", label).props("type=button").classes(f"button {kind}").on("click", on_click)


def select(label: str, options: Mapping[str, str], value: str, on_change: Callable[[str], Any]) -> None:
    """Create a native drop-down list.

    Args:
        label: text before the list.
        options: text of each option, by value.
        value: value of the selected option.
        on_change: called with the value that the browser sends, which may be none of the options.
    """
    with ui.element("label"):
        text("span", label)
        with ui.element("select") as element:
            for option, name in options.items():
                entry = text("option", shorten(name))
                entry.props["value"] = option
                if option == value:
                    entry.props("selected")
    element.on("change", lambda event: on_change(str(event.args)), js_handler="(event) => emit(event.target.value)")


def pager(turn: Callable[[int], Any], noun: str) -> list[TextElement]:
    """Create the buttons "Previous" and "Next".

    Args:
        turn: called with -1 or 1.
        noun: what the buttons step through, for screen readers.
    """
    buttons = []
    for label, step in (("Previous", -1), ("Next", 1)):
        buttons.append(button(label, lambda step=step: turn(step)))
        buttons[-1].props["aria-label"] = f"{label} {noun}"
    return buttons


async def user_name() -> str:
    """Return the name of the signed-in user; ask for it once. Empty if the user closes the question."""
    session = current_session()
    if not session.user:
        await _ask_name()
    return session.user


async def _ask_name() -> None:
    session, answered = current_session(), asyncio.Event()

    def enter(event: Any) -> None:
        session.user = make_single_line(str(event.args), MAX_NAME_LENGTH)
        _user_button.refresh()
        answered.set()

    with ui.context.client.layout:
        dialog = ui.element("dialog").classes("sign-in")
    dialog.props["aria-labelledby"] = f"{dialog.html_id}-title"
    with dialog, ui.element("form") as form:
        title = text("h2", "Sign in")
        title.props["id"] = f"{dialog.html_id}-title"
        text("p", "Your name is stored with each label and correction that you give.")
        text("label", "Name").props["for"] = f"{dialog.html_id}-name"
        field = ui.element("input").props(f"type=text required autocomplete=name maxlength={MAX_NAME_LENGTH}")
        field.props["id"] = f"{dialog.html_id}-name"
        field.props["value"] = session.user
        with ui.element("p").classes("buttons"):
            text("button", "Continue").props("type=submit").classes("button main")
            text("button", "Not now").props("type=button").classes("button quiet").on("click", js_handler=CLOSE_DIALOG)
    form.on(
        "submit",
        enter,
        js_handler=f"""(event) => {{
            event.preventDefault();
            const name = event.target.querySelector('input').value;
            {STORE_NAME}
            emit(name);
            event.target.closest('dialog').close();
        }}""",
    )
    dialog.on("close", answered.set, js_handler="() => emit()")
    ui.run_javascript(f"""
        const dialog = getHtmlElement('{dialog.html_id}'), field = dialog.querySelector('input');
        dialog.showModal();
        {RESTORE_NAME}
    """)
    try:
        await answered.wait()
    finally:
        if not dialog.client.is_deleted:  # a closed page has deleted it already
            dialog.delete()


@ui.refreshable
def _user_button() -> None:
    """Show the user's name in the header, or "Sign in"."""
    name = current_session().user
    element = button(name or "Sign in", _ask_name, kind="quiet user")
    if name:
        element.props["aria-label"] = f"Signed in as {name}; change the name"


@cache
def template(name: str) -> str:
    """Read a style sheet or script of the pages."""
    return files("urnet.serve.pages").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _style_sheet(own: str) -> str:
    """Join the style sheets of the reports, of all pages, and of one page."""
    shared = files("urnet").joinpath("templates", "style.css").read_text(encoding="utf-8")
    return shared + template("app.css") + (template(own) if own else "")
