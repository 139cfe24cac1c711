"""The differential on disk: content of the files for any names, and complete pages."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from urnet.counting.examples import PER_GROUP, ExampleCollector
from urnet.counting.report import write_reports
from urnet.counting.sample import count_sample
from urnet.counting.shares import list_share_texts
from urnet.images.scale import Scaling

CLASSES = ("granulocyte", "monocyte", "lymphocyte")
KNOWN = np.rint(1000 * np.array([[0.93, 0.04, 0.02, 0.01], [0.12, 0.84, 0.03, 0.01], [0.03, 0.01, 0.95, 0.01]]))


def sample(name="donor 7", called=(60, 8, 32), rejected=("out of focus", "debris", "debris"), classes=CLASSES):
    probabilities = np.vstack([0.1 + 0.7 * np.eye(3)[np.repeat([0, 1, 2], called)], np.full((len(rejected), 3), 1 / 3)])
    return count_sample(name, probabilities, [""] * sum(called) + list(rejected), KNOWN, classes)


def test_one_sample_has_one_page_with_everything(tmp_path):
    one = sample()
    page = write_reports(
        [one], tmp_path, run="runs/a", source="slides", model="UR-Net", date="2024-05-17", simulated="phantom",
        notes=["3 of these cells were trained on."],
    )  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html"
    for part in ("donor 7", "runs/a", "slides", "UR-Net", "2024-05-17", "Simulated images: phantom", "trained on"):
        assert part in text
    for part in ("research use only", "out of focus", "too wide", "Method", *CLASSES):
        assert part in text
    for k in range(3):
        assert f"{100 * one.adjusted[k]:.1f}" in text
        assert f"({100 * one.adjusted_interval[k, 0]:.1f}–{100 * one.adjusted_interval[k, 1]:.1f})" in text
    assert not (tmp_path / "samples").exists()


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    text = write_reports([sample()], tmp_path, run="r", source="s").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link", text)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))


def test_pages_show_example_cells_with_their_prediction(tmp_path):
    examples = ExampleCollector(["donor 7"] * 9, Scaling(0.0, 255.0, "uint8"))
    crop = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    for index in range(8):
        examples.add(index, {"predicted": "monocyte", "p_monocyte": "0.973", "rejected": ""}, crop)
    examples.add(8, {"predicted": "monocyte", "p_monocyte": "0.9", "rejected": "out of focus"}, crop)
    write_reports([sample()], tmp_path, run="r", source="s", examples=[examples.groups["donor 7"]])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<img") == PER_GROUP + 1
    assert text.count("<span>97 %</span>") == PER_GROUP
    assert "<span>out of focus</span>" in text


def test_one_function_gives_the_texts_of_all_places():
    texts = list_share_texts(sample())
    assert [(one.name, one.counted, one.counted_percent) for one in texts] == [
        ("granulocyte", "60", "60.0"),
        ("monocyte", "8", "8.0"),
        ("lymphocyte", "32", "32.0"),
    ]
    assert re.fullmatch(r"\d+\.\d \(\d+\.\d–\d+\.\d\)", texts[1].corrected)
    assert {one.corrected_percent for one in list_share_texts(sample("empty", (0, 0, 0), ()))} == {"–"}


def test_the_table_and_the_json_hold_the_figures(tmp_path):
    one = sample()
    write_reports([one], tmp_path, run="r", source="s")
    table = pd.read_csv(tmp_path / "differential.csv")
    assert table["class"].tolist() == list(CLASSES)
    assert table["count"].tolist() == [60, 8, 32]
    assert table["percent"].to_numpy() == pytest.approx(100 * one.adjusted, abs=0.01)
    assert table[["low", "high"]].to_numpy() == pytest.approx(100 * one.adjusted_interval, abs=0.01)
    held = json.loads((tmp_path / "differential.json").read_text(encoding="utf-8"))
    (written,) = held["samples"]
    assert written["rejected"] == {"debris": 2, "out of focus": 1}
    assert written["classes"]["monocyte"]["count"] == 8
    assert written["more_cells_needed"] == one.cells_needed.cells
    assert written["warnings"] == list(one.warnings)


def test_several_samples_are_listed_with_a_page_each(tmp_path):
    names = ["CON", "con", "a/b: c?", "Ünï", "", "x" * 300]
    samples = [sample(name) for name in names] + [sample("empty", (0, 0, 0), ())]
    first = write_reports(samples, tmp_path, run="r", source="s")
    links = re.findall(r'href="([^"]+)"', first.read_text(encoding="utf-8"))
    assert len({link.lower() for link in links}) == len(samples)
    for link, one in zip(links, samples, strict=True):
        assert re.fullmatch(r"samples/[A-Za-z0-9._-]{1,60}", link)
        assert one.name.split("/")[0] in (tmp_path / link).read_text(encoding="utf-8")
    assert len(pd.read_csv(tmp_path / "differential.csv")) == 3 * len(samples)
    assert json.loads((tmp_path / "differential.json").read_text(encoding="utf-8"))["samples"][-1]["accepted"] == 0


def test_names_are_escaped(tmp_path):
    named = sample("<b>&", rejected=("<i>",), classes=("<u>", "b", "c"))
    for name, samples in (("one", [named]), ("two", [named, named])):
        write_reports(samples, tmp_path / name, run="<s>", source="s", notes=["<em>"])
        for page in (tmp_path / name).rglob("*.html"):
            assert not re.search("<b>|<i>|<u>|<s>|<em>", page.read_text(encoding="utf-8"))


def test_a_name_with_invalid_unicode_does_not_stop_the_report(tmp_path):
    write_reports([sample("d\udcff")], tmp_path, run="r", source="s")
    assert "udcff" in (tmp_path / "differential.csv").read_text(encoding="utf-8")
