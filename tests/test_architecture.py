"""Rooms import only from rooms above them, and no modules import each other in a circle."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import urnet

SOURCE = Path(urnet.__file__).parent

ARROWS = """
version            |
errors             |
names              |
html_pages         |
progress_bar       |
optional_packages  | errors
cpus               | errors
progress           | progress_bar
files              | errors names
resumable_table    | errors files
recipe             | errors
images             | errors
statistics         |
calibration        | errors files
cells              | errors files images names recipe version
nets               | calibration cells errors recipe
catalogue          | nets recipe
fields             | cells errors files html_pages images names progress version
bundle             | calibration cells cpus errors fields files images nets version
prefetch           | cells cpus errors
run_folder         | bundle cells errors fields files images recipe
training           | bundle calibration cells cpus errors fields files images nets progress recipe run_folder
export             | bundle calibration cells cpus errors files html_pages nets optional_packages progress run_folder version
predict            | bundle calibration cells errors export files images nets prefetch progress resumable_table
evaluation         | bundle calibration cells errors files html_pages images names nets progress run_folder statistics training
counting           | bundle calibration cells errors evaluation fields files html_pages images predict progress run_folder statistics version
benchmark          | cells cpus errors evaluation files html_pages images nets progress recipe run_folder statistics training
serve              | benchmark bundle calibration cells counting cpus errors evaluation export fields files html_pages images nets \
                     names predict prefetch run_folder version
api                | benchmark bundle cells counting errors evaluation fields progress recipe run_folder training
urnet              | api version
cli                | *
"""  # noqa: E501
"""The rooms of `src/urnet` from the ground up: a room, and the rooms above it in this list that it may import."""

MAX_MODULES = 15
"""Maximum number of modules in one folder."""


def parse_arrows(text: str) -> dict[str, set[str]]:
    rows = [line.split("|") for line in text.replace("\\\n", " ").strip().splitlines()]
    table = {room.strip(): set(targets.split()) for room, targets in rows}
    return {room: set(table) if targets == {"*"} else targets for room, targets in table.items()}


ALLOWED = parse_arrows(ARROWS)
MODULES = {
    "urnet." + ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def find_imports(module: str) -> Iterator[tuple[str, bool]]:
    """Yield the modules of this package that a module imports anywhere, and whether only type checkers do so."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "urnet":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "urnet"]
        for name in names:
            if name != module:
                yield name, node in typing


def room_of(module: str) -> str:
    """Name of the room that a module belongs to; `urnet` is the package's own interface."""
    return module.split(".")[1] if "." in module else "urnet"


IMPORTS = {module: set(find_imports(module)) for module in MODULES}


def find_circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Find the groups of nodes that reach each other (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                circles.append(set(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return circles


def find_new_arrows() -> dict[tuple[str, str], set[str]]:
    """Find the arrows that the table does not allow: a module, a room, and the modules that it imports there."""
    arrows: dict[tuple[str, str], set[str]] = {}
    for module, imports in IMPORTS.items():
        for target, _ in imports:
            room = room_of(target)
            if room not in {room_of(module), *ALLOWED.get(room_of(module), ())}:
                arrows.setdefault((module, room), set()).add(target)
    return arrows


def test_every_room_stands_in_the_table_once():
    rooms = {room_of(module) for module in MODULES}
    assert rooms == set(ALLOWED)


def test_rooms_import_only_what_the_table_allows():
    assert find_new_arrows() == {}


def test_the_table_allows_only_arrows_that_point_up():
    order = list(ALLOWED)
    down = [
        (room, target)
        for room, targets in ALLOWED.items()
        for target in targets
        if order.index(target) > order.index(room)
    ]
    assert down == []


def test_the_table_allows_no_more_than_the_code_needs():
    used = {(room_of(module), room_of(target)) for module, imports in IMPORTS.items() for target, _ in imports}
    allowed = {(room, target) for room, targets in ALLOWED.items() for target in targets if room != "cli"}
    assert allowed - used == set()


@pytest.mark.parametrize("kind", ["modules", "sub-rooms"])
def test_there_are_no_circles(kind):
    graph: dict[str, set[str]] = {}
    for module, imports in IMPORTS.items():
        for target, only_typing in imports:
            ends = [module, target] if kind == "modules" else [node_of(module), node_of(target)]
            if not only_typing and ends[0] != ends[1]:
                graph.setdefault(ends[0], set()).add(ends[1])
    assert find_circles(graph) == []


def node_of(module: str) -> str:
    """The sub-room of a module, such as `urnet.fields.io`; a module directly in a room stands for itself."""
    return ".".join(module.split(".")[:3])


def test_circles_are_found():
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert find_circles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_rooms_are_at_most_two_levels_deep():
    assert [name for name in MODULES if name.count(".") > 4] == []


def test_no_folder_holds_too_many_modules():
    folders: dict[str, int] = {}
    for path in MODULES.values():
        if path.name != "__init__.py":
            folder = path.parent.relative_to(SOURCE).as_posix()
            folders[folder] = folders.get(folder, 0) + 1
    assert {folder: count for folder, count in folders.items() if count > MAX_MODULES} == {}
