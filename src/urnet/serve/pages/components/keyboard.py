"""One key a class: which keys there are, and how a press reaches the page together with what was on the screen."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from urnet.serve.database.models import NOT_A_CELL
from urnet.serve.pages.components.layout import short, text

TAKEN = "cnsu"
"""Letters that mean something else: confirm, not a cell, skip, undo."""

PRESSED = "urnet_pressed"

_LISTEN = """
if (!window.urnetKeys) {
    window.urnetKeys = true;
    document.addEventListener("keydown", (event) => {
        const board = document.querySelector("[data-keys]");
        if (!board || event.ctrlKey || event.metaKey || event.altKey) return;
        if (document.querySelector(".switch input")?.checked === false) return;
        if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea, dialog")) return;
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        if (!board.dataset.keys.split(" ").includes(key)) return;
        event.preventDefault();
        if (!event.repeat || key.startsWith("Arrow")) emitEvent("urnet_pressed", [key, board.dataset.at]);
    });
}
"""


def class_keys(classes: Sequence[str]) -> dict[str, str]:
    """The key of each class: digits from 1, then letters; of "not a cell" it is n."""
    letters = [letter for letter in "abdefghijklmopqrtvwxyz" if letter not in TAKEN]
    free = [*"123456789", *letters]
    return {**dict(zip(free, classes, strict=False)), "n": NOT_A_CELL}


def board(keys: Sequence[str]) -> ui.element:
    """The part of a page whose keys work wherever the focus is, but for fields that one types into.

    Args:
        keys: as browsers name them, in lower case.

    Returns:
        An element whose property `data-at` is to say what is on the screen, so that a key that was pressed too soon
        is told from one that was meant.
    """
    made = ui.element("div").classes("board")
    made.props["data-keys"] = " ".join(keys)
    made.props["data-at"] = ""
    ui.add_body_html(f"<script>{_LISTEN}</script>")
    return made


def on_press(handle: Callable[[str, str], Awaitable[None]]) -> None:
    """Let a key or a button of the board be handled: called with the key, and what was on the screen."""

    async def pressed(event: Any) -> None:
        key, at = event.args
        await handle(str(key), str(at))

    ui.on(PRESSED, pressed)


def key_button(key: str, label: str, *, kind: str = "") -> TextElement:
    """A button that does what a key does, and shows the key."""
    made = text("button", "").props("type=button").classes(f"button key {kind}")
    made.props["aria-keyshortcuts"] = key.upper() if len(key) == 1 else key
    with made:
        shown = text("kbd", key.upper() if len(key) == 1 else key)
        shown.props["aria-hidden"] = "true"
        text("span", short(label))
    press = f"() => emitEvent('{PRESSED}', ['{key}', document.querySelector('[data-keys]').dataset.at])"
    return made.on("click", js_handler=press)


def keys_switch() -> None:
    """Lets keys be turned off, for those who steer the browser by voice (WCAG 2.1.4)."""
    with ui.element("label").classes("switch"):
        ui.element("input").props("type=checkbox checked")
        text("span", "Keys work")
