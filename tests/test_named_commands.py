"""Commands that messages, help and documentation name exist, with their options; those of the first hour run."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import urnet
from urnet.cli import run
from urnet.cli.app import app, expand_set_options

SOURCE = Path(urnet.__file__).parent
ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"`+(urnet [^`]+)`+")


def find_texts() -> Iterator[tuple[str, str]]:
    """Yield every string of the source, with `x` for the values of f-strings, and where it stands."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node.value
            elif isinstance(node, ast.JoinedStr):
                texts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", "".join(texts)


def find_named_commands() -> list[tuple[str, str]]:
    """Find the commands in backticks in the source and on the pages, and where they stand."""
    texts = [*find_texts(), *((path.name, path.read_text(encoding="utf-8")) for path in PAGES if path.is_file())]
    return [(place, " ".join(code.split())) for place, text in texts for code in CODE.findall(text)]


def find_command_lines() -> list[tuple[str, str]]:
    """Find the command lines in the code blocks of the pages."""
    lines = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for block in re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            for line in re.sub(r"[\\^`]\n\s*", " ", block).splitlines():
                match = re.match(r"\s*(?:[$>] )?(?:.*&& )?(urnet [a-z].*)", line)
                if match:
                    lines.append((path.name, match[1]))
    return lines


def split_line(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    end = next((index for index, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
    return words[1:end]


@pytest.mark.slow
def test_commands_in_messages_and_texts_exist_with_their_options():
    named = find_named_commands()
    assert len(named) > 60
    wrong = []
    for place, text in named:
        name, *words = text.split()[1:]
        if name.startswith(("-", "COMMAND", "…", "<")) or not re.fullmatch(r"[a-z]+", name):
            continue
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} if name in COMMANDS else {}
        options = [word.split("=")[0].rstrip(",.;:)") for word in words if re.match(r"--[a-z]", word)]
        if name not in COMMANDS or not set(options) <= {*known, "--help"}:
            wrong.append((place, text))
    assert wrong == []


def test_command_lines_of_the_documentation_are_understood():
    lines = find_command_lines()
    assert len(lines) > 20
    wrong = []
    for place, line in lines:
        name, *arguments = expand_set_options(split_line(line))
        if "--help" in arguments:
            continue
        try:
            COMMANDS[name].make_context(name, arguments, resilient_parsing=False)
        except Exception as error:  # typer exports no common base class of its usage errors
            wrong.append((place, line, str(error)))
    assert wrong == []


SMALL = (
    *("--set", "input.size=24", "augment.per_class=12", "enhancer.width=4", "classifier.name=test_byobnet"),
    *("train.epochs=1", "train.batch_size=12"),
)


@pytest.mark.slow
def test_each_command_of_the_first_hour_names_the_next_one(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command, names = ["phantom", "--out", "my cells", "--cells", "90", "--size", "32", "--donors", "9"], []
    while command[0] != "serve":
        names.append(command[0])
        assert run([*command, *SMALL] if command[0] == "train" else command) == 0
        (following,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("next: urnet ")]
        command = split_line(following.removeprefix("next: "))
    assert names == ["phantom", "audit", "train", "evaluate"]
    COMMANDS["serve"].make_context("serve", command[1:])
    assert Path(command[1]).is_dir()


@pytest.mark.slow
def test_crops_without_labels_are_to_be_labelled(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["phantom", "--out", "cells", "--cells", "36", "--size", "32", "--fields", "1"]) == 0
    assert run(["crop", "cells/fields/field_000.tif", "--out", "crops", "--size", "48"]) == 0
    following = capfd.readouterr().out.splitlines()[-1]
    assert following.startswith("next: urnet label crops --classes ")
    name, *arguments = split_line(following.removeprefix("next: "))
    COMMANDS[name].make_context(name, arguments)
