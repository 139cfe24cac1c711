"""Write the reference pages that follow from the code: commands, recipe keys, server settings, error codes.

`mkdocs build` runs this file. The pages exist in the built site only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import mkdocs_gen_files
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click
from typer.main import get_command

import urnet
from urnet.cli.app import app
from urnet.recipe import Recipe
from urnet.serve.settings import Settings

SOURCE = Path(urnet.__file__).parent
LIMITS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def write(name: str, title: str, text: str) -> None:
    """Write a page of the reference."""
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        page.write(f"# {title}\n\n{text}\n")


def write_command_line() -> None:
    """Write the help of every command."""
    import typer

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="urnet"), name="urnet")
    write("command-line", "Command line", text.removeprefix("# `urnet`").strip())


def allowed_values(field: FieldInfo) -> str:
    """Return the range of a number or the choices of a word, or an empty text."""
    options = [
        f"{sign} {getattr(part, name)}"
        for part in metadata(field)
        for kind, (name, sign) in LIMITS.items()
        if isinstance(part, kind)
    ]
    choices = [f"`{choice}`" for choice in literal_choices(field.annotation)]
    if choices:
        options.append(f"one of {', '.join(choices)}")
    return ", ".join(options)


def literal_choices(annotation: Any) -> list[str]:
    """List the values of the `Literal` types within an annotation, as YAML writes them."""
    if get_origin(annotation) is Literal:
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in literal_choices(part)]


def metadata(field: FieldInfo) -> Iterator[Any]:
    """Iterate over the constraints of a field, including those of an optional value."""
    yield from field.metadata
    for option in get_args(field.annotation):
        for part in getattr(option, "__metadata__", ()):
            yield from getattr(part, "metadata", ())


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Iterate over the table rows of a model's keys, sections within it included."""
    for name, field in model.model_fields.items():
        section = next(
            (
                kind
                for kind in (field.annotation, *get_args(field.annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ),
            None,
        )
        optional = NoneType in get_args(field.annotation)
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        if section is None or optional:
            default = field.get_default(call_default_factory=True) if section is None else None
            shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
            yield f"| `{prefix}{name}` | {shown} | {allowed_values(field)} | {description} |"
        if section is not None:
            yield from rows(section, f"{prefix}{name}.")


def table(model: type[BaseModel]) -> str:
    """Return the table of all keys of a model."""
    return "\n".join(["| Key | Default | Range | Meaning |", "|---|---|---|---|", *rows(model)])


def codes() -> dict[str, str]:
    """Return every error code in the source with the message, or class, that it belongs to."""
    messages: dict[str, str] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    if (
                        isinstance(line, ast.Assign)
                        and getattr(line.targets[0], "id", "") == "code"
                        and isinstance(line.value, ast.Constant)
                    ):
                        messages[line.value.value] = (ast.get_docstring(node) or "").split("\n")[0]
            elif isinstance(node, ast.Call):
                code = next((word.value for word in node.keywords if word.arg == "code"), None)
                if isinstance(code, ast.Constant) and isinstance(code.value, str) and node.args:
                    messages.setdefault(code.value, message(node.args[0]))
    return messages


def message(node: ast.expr) -> str:
    """Return the text of a message, with … in place of its values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    return "…"


def write_error_codes() -> None:
    """Write the table of all error codes."""
    lines = [
        f"| `{code}` | {' '.join(text.split()).replace('|', chr(92) + '|')} |"
        for code, text in sorted(codes().items())
        if "." in code
    ]
    write(
        "error-codes",
        "Error codes",
        "Every error that you can mend has a stable code. The command line prints the message and exits with 2. The "
        "[HTTP API](http-api.md) answers with the code. In Python it is the attribute `code` of "
        "`urnet.errors.UrnetError`. In the messages, … stands for a value.\n\n"
        "| Code | Message or meaning |\n|---|---|\n" + "\n".join(lines),
    )


write_command_line()
write(
    "recipe-keys",
    "Recipe keys",
    "`--set KEY=VALUE` changes a key. The defaults below hold for a key that a recipe does not give; the shipped "
    "[recipes](recipes.md) give their own. Unknown keys and values outside the range are refused. The options of an "
    "[enhancer](enhancers.md) stand under `enhancer` as well.\n\n" + table(Recipe),
)
write(
    "server-settings",
    "Server settings",
    "`urnet serve RUN --set max_files=50 max_pixels=4000000` changes limits.\n\n" + table(Settings),
)
write_error_codes()
