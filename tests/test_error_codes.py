"""Error codes: every error has a specific code of the form room.reason, and codes of the API stay."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import urnet
from urnet import errors
from urnet.errors import UrnetError

SOURCE = Path(urnet.__file__).parent
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}

GENERAL = {
    name: kind.code
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, UrnetError) and name != "LeakError"
}
"""General classes of errors with their codes. A `LeakError` has one meaning, so its code is specific."""

ALLOWED = {
    ("training/checks.py", "TrainingError"): "an error of a second process arrives as text, without its code",
}
"""Places that may raise an error with the general code of its class, with the reason."""

CODE = re.compile(r"[a-z]+\.[a-z0-9]+(_[a-z0-9]+)*")

CODES_OF_THE_API = {
    *("access.forbidden", "access.locked_out", "access.token_needed", "fields.unreadable", "images.companion_missing"),
    *("images.none_usable", "request.body_too_slow", "request.conflict", "request.file_name_missing"),
    *("request.files_missing", "request.gone", "request.invalid", "request.malformed", "request.method_not_allowed"),
    *("request.not_found", "request.too_large", "request.too_long", "request.too_many_files", "server.busy"),
    *("server.disk_full", "server.failed", "server.no_model", "server.unavailable", "server.uploads_full"),
}
"""Codes that docs/reference/http-api.md documents. Clients match them, so that none may go or change."""


def find_calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Find the calls that create an error of a general class."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in GENERAL:
                    yield file, node, name


def find_codes() -> set[str]:
    """Find the codes in the source: of classes, of calls and of tables."""
    return {
        node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    }


def given_codes(node: ast.Call) -> list[ast.expr]:
    """Return the values that the argument `code` of a call can have."""
    value = next((word.value for word in node.keywords if word.arg == "code"), None)
    if isinstance(value, ast.IfExp):
        return [value.body, value.orelse]
    return [] if value is None else [value]


def has_code(node: ast.ClassDef) -> bool:
    """Tell whether a class sets the attribute `code`."""
    return any(isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code" for line in node.body)


def test_every_error_has_a_specific_code():
    general = [
        (file, node.lineno, name)
        for file, node, name in find_calls()
        if (file, name) not in ALLOWED
        and (
            not (codes := given_codes(node))
            or any(isinstance(code, ast.Constant) and code.value in (None, *GENERAL.values()) for code in codes)
        )
    ]
    assert general == []


def test_every_exception_is_used():
    raised = {(file, name) for file, node, name in find_calls() if not given_codes(node)}
    assert set(ALLOWED) <= raised


def test_subclasses_have_codes_of_their_own():
    subclasses = [
        node
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & {*GENERAL, "LeakError"}
    ]
    assert [node.name for node in subclasses if not has_code(node)] == []


def test_codes_name_room_and_reason():
    given = {
        code.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for code in given_codes(node)
        if isinstance(code, ast.Constant) and isinstance(code.value, str)
    }
    assert len(given) > 100
    assert [code for code in sorted(given) if not CODE.fullmatch(code)] == []


def test_codes_of_the_api_stay():
    assert find_codes() >= CODES_OF_THE_API
    page = (Path(__file__).parents[1] / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| \d{3} \|", line)]
    assert {code for row in rows for code in re.findall(r"`([a-z]+\.[a-z_]+)`", row)} >= CODES_OF_THE_API
