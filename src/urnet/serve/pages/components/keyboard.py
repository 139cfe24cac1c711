"""Keyboard shortcuts: one key for each class. Each key press names the cell that was on the screen."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from urnet.serve.database.models import NOT_A_CELL
from urnet.serve.pages.components.layout import shorten, text

CONFIRM, REJECT, SKIP, UNDO = "c", "n", "s", "u"
"""Keys that are not assigned to classes: confirm, not a cell, skip, undo."""

CLASS_KEYS = [*"123456789", *(letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in "cnsu")]
"""Keys of the classes, in order."""

KEY_EVENT = "urnet_key"

_LISTENER = """
if (!window.urnetKeys) {
    window.urnetKeys = true;
    document.addEventListener("keydown", (event) => {
        const area = document.querySelector("[data-keys]");
        if (!area || event.ctrlKey || event.metaKey || event.altKey) return;
        if (document.querySelector(".switch input")?.checked === false) return;
        if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea, dialog")) return;
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        if (!area.dataset.keys.split(" ").includes(key)) return;
        event.preventDefault();
        if (event.repeat && !key.startsWith("Arrow")) return;
        emitEvent("urnet_key", [key, area.dataset.cell, area.dataset.version]);
    });
}
"""


def assign_keys(classes: Sequence[str]) -> dict[str, str]:
    """Assign a key to each class; digits first, then letters. The key of "not a cell" is N."""
    return {**dict(zip(CLASS_KEYS, classes, strict=False)), REJECT: NOT_A_CELL}


def key_area(keys: Sequence[str]) -> ui.element:
    """Create the part of a page that has keyboard shortcuts. They work everywhere but in text fields and dialogs.

    Args:
        keys: names of the keys as browsers report them, in lower case.

    Returns:
        An element. Its property `data-cell` must name the cell on the screen, so that late key presses are recognised.
    """
    element = ui.element("div")
    set_keys(element, keys)
    element.props["data-cell"] = ""
    ui.add_body_html(f"<script>{_LISTENER}</script>")
    return element


def set_keys(area: ui.element, keys: Sequence[str], version: int = 0) -> None:
    """Change the keys of a `key_area`.

    Args:
        area: the element.
        keys: names of the keys as browsers report them, in lower case.
        version: number of this assignment of keys, so that late key presses are recognised.
    """
    area.props["data-keys"] = " ".join(keys)
    area.props["data-version"] = version
    area.update()


def on_key(handle: Callable[[str, str, str], Awaitable[None]]) -> None:
    """Register the handler of keys and key buttons.

    Args:
        handle: called with the key, and the cell and the version of the keys on the screen.
    """

    async def pressed(event: Any) -> None:
        key, cell, version = event.args
        await handle(str(key), str(cell), str(version))

    ui.on(KEY_EVENT, pressed)


def key_button(key: str, label: str) -> TextElement:
    """Create a button that does the same as a key, and shows the key."""
    element = text("button", "").props("type=button").classes("button key")
    name = key.upper() if len(key) == 1 else key
    element.props["aria-keyshortcuts"] = name
    with element:
        text("kbd", name).props["aria-hidden"] = "true"
        text("span", shorten(label))
    shown = "document.querySelector('[data-keys]').dataset"
    press = f"() => emitEvent('{KEY_EVENT}', ['{key}', {shown}.cell, {shown}.version])"
    return element.on("click", js_handler=press)


def shortcuts_switch() -> None:
    """Create a switch that turns the shortcuts off, for users who control the browser by voice (WCAG 2.1.4)."""
    with ui.element("label").classes("switch"):
        ui.element("input").props("type=checkbox checked")
        text("span", "Keyboard shortcuts")
