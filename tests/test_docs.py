"""The documentation: valid links, short pages, a tutorial that runs, and existing error codes."""

import re
from pathlib import Path
from shlex import split

import pytest

from urnet.cli import run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + [
    page
    for folder in ("tutorial", "how-to", "reference", "explanation")
    for page in sorted((DOCS / folder).glob("*.md"))
]
GENERATED = {"command-line.md", "recipe-keys.md", "server-settings.md", "error-codes.md"}
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
WORDS_MAX = 1200


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((DOCS / "results").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_lead_to_files(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and Path(target).name not in GENERATED:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "reliability.md"], ids=lambda page: page.name)
def test_a_page_is_read_in_a_few_minutes(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert len(text.split()) <= WORDS_MAX


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_codes_of_the_http_api_are_in_the_source():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    listed = re.findall(r"`([a-z_]+\.[a-z_]+)`", (DOCS / "reference" / "http-api.md").read_text(encoding="utf-8"))
    assert listed
    assert [code for code in listed if f'"{code}"' not in source] == []


SHORTER = {"train.epochs=8": "train.epochs=1 augment.per_class=64"}
"""Changes to the tutorial for its test: training takes a minute, and nothing that follows depends on its success."""


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial" / "fields_to_differential.md").read_text(encoding="utf-8")
    for longer, shorter in SHORTER.items():
        assert longer in text
        text = text.replace(longer, shorter)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "tutorial", "exec"), names)
        else:
            for line in code.strip().splitlines():
                assert run(split(line)[1:]) == 0, line
    assert len(blocks) >= 10


def test_the_notebook_is_the_tutorial():
    jupytext = pytest.importorskip("jupytext")
    page, notebook = (jupytext.read(DOCS / "tutorial" / f"fields_to_differential.{end}") for end in ("md", "ipynb"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in page.cells
    ]
