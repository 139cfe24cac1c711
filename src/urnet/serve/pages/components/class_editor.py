"""The editor for the classes of a labelling queue, for servers without a model."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from urnet.errors import UrnetError
from urnet.serve.pages.components.elements import counted
from urnet.serve.pages.components.keyboard import assign_keys
from urnet.serve.pages.components.layout import button, text

VALUE = "(event) => emit(event.target.value)"
SUBMIT = """(event) => {
    event.preventDefault();
    const field = event.target.querySelector('input');
    emit(field.value);
    field.value = '';
}"""


class ClassEditor:
    """A list of classes with their keys: add a class, rename it, or remove it while no label uses it.

    Args:
        add_class: saves a new class; raises UrnetError if its name is not allowed.
        remove_class: removes a class; raises UrnetError if labels use it.
        rename_class: saves a new name of a class, also in its labels; raises UrnetError if it is not allowed.
    """

    def __init__(
        self,
        add_class: Callable[[str], Awaitable[None]],
        remove_class: Callable[[str], Awaitable[None]],
        rename_class: Callable[[str, str], Awaitable[None]],
    ):
        self.add_class, self.remove_class, self.rename_class = add_class, remove_class, rename_class
        self.names: tuple[str, ...] = ()
        self.counts: Mapping[str, int] = {}
        text("h2", "Classes").props("id=classes")
        self.list = ui.element("ul").props("aria-labelledby=classes").classes("class-list")
        with ui.element("form").classes("line") as form:
            field = ui.element("input").props("type=text required autocomplete=off maxlength=100")
            field.props["aria-label"] = "New class"
            field.props["placeholder"] = "New class"
            text("button", "Add").props("type=submit").classes("button")
        form.on("submit", self._add, js_handler=SUBMIT)
        self.problem = text("p", "").props("role=alert").classes("wrong small")

    def show(self, names: Sequence[str], counts: Mapping[str, int]) -> None:
        """Show the classes and their numbers of labels. Unchanged rows stay, and keep the focus."""
        if (tuple(names), counts) == (self.names, self.counts):
            return
        self.names, self.counts = tuple(names), dict(counts)
        keys = {name: key for key, name in assign_keys(names).items()}
        self.list.clear()
        with self.list:
            for name in self.names:
                with ui.element("li"):
                    text("kbd", keys[name].upper()).props["aria-hidden"] = "true"
                    field = ui.element("input").props("type=text autocomplete=off maxlength=100")
                    field.props["value"] = name
                    field.props["aria-label"] = f"Name of class {name}"
                    field.on("change", lambda event, name=name: self._rename(name, event), js_handler=VALUE)
                    number = self.counts.get(name, 0)
                    if number:
                        text("span", counted(number, "label")).classes("soft small")
                    else:
                        remove = button("Remove", lambda name=name: self._remove(name), kind="quiet")
                        remove.props["aria-label"] = f"Remove class {name}"

    async def _add(self, event: Any) -> None:
        await self._save(self.add_class(str(event.args)))

    async def _remove(self, name: str) -> None:
        await self._save(self.remove_class(name))

    async def _rename(self, name: str, event: Any) -> None:
        await self._save(self.rename_class(name, str(event.args)))

    async def _save(self, change: Awaitable[None]) -> None:
        try:
            await change
        except UrnetError as error:
            self.problem.set_text(f"{str(error)[:1].upper()}{str(error)[1:]}.")
            names, self.names = self.names, ()
            self.show(names, self.counts)  # shows the saved name again
        else:
            self.problem.set_text("")
