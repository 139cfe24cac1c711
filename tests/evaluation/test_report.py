"""The report: complete, escaped, and one file without external resources."""

import base64
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from urnet.evaluation.judgement import judge
from urnet.evaluation.metrics import score
from urnet.evaluation.report import Report, render_report, write_report
from urnet.evaluation.report_figures import Mistake, ReportFigure
from urnet.statistics.donors import choose_groups

NAMES = ['<script>alert("x")</script>', "a & 'b'", "单核细胞 très"]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.fixture
def facts() -> dict:
    truth = np.array([0, 0, 1, 1] * 10)
    predicted = np.array([0, 1, 1, 1] * 10)
    groups, intervals = choose_groups(None, [f"{i}.png" for i in range(40)])
    metrics = score(truth, np.eye(3)[predicted], NAMES, groups)
    return {
        "title": "White cells <5 µm & more",
        "run": "runs/été",
        "dataset": "40 cells of Ünïversity",
        "protocol": "honest",
        "judgement": judge(metrics, intervals, None),
        "metrics": metrics,
        "intervals": intervals,
        "counts": pd.DataFrame({"train": [1000, 20, 3], "test": [20, 20, 0]}, index=NAMES),
        "recipe": "name: net4\nnote: <b>&\n",
        "versions": {"urnet": "0.1.0", "torch": "2.9"},
        "seed": 7,
        "figures": [ReportFigure("curves", "Loss <curves>", "Loss & epochs", PIXEL)],
        "mistakes": [Mistake("cells/x<y>\"'.png", NAMES[0], NAMES[1], 0.987, PIXEL)],
    }


class Tags(HTMLParser):
    """Parser that checks that tags are closed in order, and records all attributes."""

    VOID = frozenset(("meta", "img", "br", "link"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def visible(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", page.split("</style>")[1])


def test_file_is_whole_and_opens_offline(tmp_path, facts):
    path = tmp_path / "rapport été.html"
    write_report(path, Report(**facts))
    page = path.read_text(encoding="utf-8")
    tags = parse(page)
    for tag, attributes in tags.seen:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "href" not in attributes
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_names_are_escaped(facts):
    page = render_report(Report(**facts))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "note: &lt;b&gt;&amp;" in page
    assert "单核细胞 très" in page
    assert "White cells &lt;5 µm &amp; more" in page
    parse(page)


def test_headings_descend_by_one_and_pictures_have_texts(facts):
    tags = parse(render_report(Report(**facts)))
    levels = [int(tag[1]) for tag, _ in tags.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= level + 1 for level, later in itertools.pairwise(levels))
    pictures = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert len(pictures) == 2
    assert all(attributes["alt"] for attributes in pictures)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in tags.seen if "aria-labelledby" in attributes} <= set(ids)


def test_shows_figures_with_intervals(facts):
    text = visible(render_report(Report(**facts)))
    metrics = facts["metrics"]
    low, high = metrics["macro_recall"]["interval"]
    assert f"{100 * metrics['macro_recall']['value']:.1f} %" in text
    assert f"({100 * low:.1f}–{100 * high:.1f})" in text
    assert "the intervals are over source images" in text
    assert "no true cells in this part" in text
    assert "1,020" in text  # cells of the first class in all parts
    assert "For research use only" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_only_the_papers_protocol_is_called_optimistic(facts):
    assert "optimistic" not in visible(render_report(Report(**facts)))
    assert "These figures are optimistic" in visible(render_report(Report(**facts | {"protocol": "paper"})))


def test_the_page_opens_with_the_judgement_then_the_matrix_and_the_mistakes(facts):
    page = render_report(Report(**facts))
    text = " ".join(visible(page).split())
    order = ("The model is right for 30 of 40 cells: 75.0 %", "Always naming", "The most frequent confusion: 10 of 20")
    places = [text.index(words) for words in (*order, "Not reliable yet:", "98.7 %", "Results")]
    assert places == sorted(places)
    rows = re.findall(r'--share:([\d.]+)%"', page)
    assert rows[:5] == ["35.0", "35.0", "0.0", "0.0", "100.0"]
    assert "No cell was classified wrongly" in visible(render_report(Report(**facts | {"mistakes": []})))


def test_simulation_and_warnings_are_shown_when_there(facts):
    assert "simulated" not in visible(render_report(Report(**facts)))
    judgement = judge(facts["metrics"], facts["intervals"], None, simulated="simulated destaining")
    shown = visible(render_report(Report(**facts | {"judgement": judgement}, warnings=["12 cells were seen <before>"])))
    assert "the images are simulated (simulated destaining)" in shown
    assert "12 cells were seen &lt;before&gt;" in shown


def test_without_figures_there_is_no_empty_section(facts):
    page = render_report(Report(**facts | {"figures": [], "mistakes": []}))
    assert ">Figures<" not in page
    parse(page)


def test_notes_may_stand_among_the_warnings(facts):
    notes = facts["metrics"].pop("notes")
    text = visible(render_report(Report(**facts, warnings=notes)))
    assert text.count("no true cells in this part") == 1


def test_part_of_one_group_has_no_intervals(facts):
    groups, intervals = choose_groups(None, ["one.png"] * 40)
    metrics = score(np.array([0, 1, 2, 1] * 10), np.eye(3)[[0, 1, 2, 0] * 10], NAMES, groups)
    judgement = judge(metrics, intervals, None)
    page = render_report(Report(**facts | {"metrics": metrics, "intervals": intervals, "judgement": judgement}))
    assert "none: one source image<" in page
    assert "No value has an interval: all cells come from one source image" in page
    assert "95 % interval" not in page
    assert "bootstrap" not in page
    assert "too narrow" not in page
    parse(page)


def test_file_name_that_is_no_unicode(tmp_path, facts):
    path = tmp_path / "report.html"
    write_report(path, Report(**facts | {"mistakes": [Mistake("cell\udcff.png", "a", "b", 0.5, PIXEL)]}))
    assert "cell\\udcff.png" in path.read_text(encoding="utf-8")


def test_the_page_has_styles_for_dark_small_and_printed_pages(facts):
    page = render_report(Report(**facts))
    for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width", "overflow-x: auto"):
        assert rule in page


def luminance(colour: list[float]) -> float:
    """Relative luminance of WCAG 2.2 of a colour (3,) in 0..255."""
    scaled = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in scaled]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figures_of_the_confusion_matrix_are_readable_at_every_share_in_both_schemes(facts):
    shares = [*range(0, 101, 5), 51, 49]
    matrices = [[[share, 100 - share, 0], [0, 1, 0], [0, 0, 1]] for share in shares]
    pages = [render_report(Report(**facts | {"metrics": facts["metrics"] | {"confusion_matrix": m}})) for m in matrices]
    cells = [cell for page in pages for cell in re.findall(r'<td( class="dark")? style="--share:([\d.]+)%"', page)]
    assert len(cells) == 9 * len(shares)
    for block in re.findall(r":root \{[^}]*--page[^}]*\}", pages[0]):  # light, then dark
        colours = {}
        for name, value in re.findall(r"--(\w+): #(\w+)", block):
            full = value if len(value) == 6 else "".join(2 * digit for digit in value)
            colours[name] = [int(full[k : k + 2], 16) for k in (0, 2, 4)]
        for dark, share in cells:
            part = float(share) / 100
            mixed = [
                part * one + (1 - part) * other for one, other in zip(colours["accent"], colours["track"], strict=True)
            ]
            low, high = sorted((luminance(mixed), luminance(colours["card" if dark else "ink"])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (dark, share)
