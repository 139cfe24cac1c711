"""Tables of a comparison: values, failed runs, compared pairs, and unusual names in every format."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from urnet.benchmark.differences import build_differences_table
from urnet.benchmark.render import TableData, to_html, to_latex, to_markdown
from urnet.benchmark.row import ResultRow
from urnet.benchmark.tables import build_results_frame, build_tables, list_comparisons
from urnet.evaluation.metrics import score
from urnet.evaluation.paired import paired_differences
from urnet.recipe import load_recipe
from urnet.statistics.donors import choose_groups

CLASSES = ("granulocyte", "lymphocyte", "monocyte")
ODD = 'a|b_{c} & <d> 50 % "e" #1 $x^2~ \\z'

SKILLS = {"net1": 0.3, "net2": 0.31, "net4": 0.95}


def entry(
    name: str, skill: float, *, title: str = "", classes=CLASSES, statuses=("done",) * 2, seed: int = 0
) -> ResultRow:
    """A row whose model is right with probability `skill`; `statuses` are those of its folds."""
    rng, n = np.random.default_rng(seed), 240
    truth = np.random.default_rng(9).choice(
        len(classes), n, p=np.array([6, 3, 1, 1][: len(classes)]) / (10 if len(classes) == 3 else 11)
    )
    called = np.where(rng.random(n) < skill, truth, (truth + 1) % len(classes))
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "label": np.array(classes)[truth],
            "predicted": np.array(classes)[called],
            **{f"p_{label}": (called == k) * 0.8 + 0.1 for k, label in enumerate(classes)},
            "source": [f"s{i}" for i in range(n)],
            "seed": 0,
            "fold": np.arange(n) % len(statuses),
        }
    )
    runs = pd.DataFrame(
        {
            "seed": 0,
            "fold": range(len(statuses)),
            "status": statuses,
            "error": ["out of memory" if status == "failed" else "" for status in statuses],
            "accuracy": 0.5,
            "macro_recall": 0.4,
            "train_seconds": 1234.4,
            "images_per_second": 87.6,
            "epoch": 3,
        }
    )
    table = table[table["fold"].map(runs["status"]) == "done"]
    metrics = None
    if len(table):
        order = {label: k for k, label in enumerate(classes)}
        groups, description = choose_groups(None, table["source"].tolist())
        truth, shares = table["label"].map(order).to_numpy(), table[[f"p_{label}" for label in classes]].to_numpy()
        metrics = score(truth, shares, classes, groups) | {"intervals": description}
    size = (42_500_000, 6_700_000_000) if metrics else (0, 0)
    return ResultRow(name, title or name, load_recipe("net1"), runs, table, pd.DataFrame(), metrics, *size, "a CPU")


@pytest.fixture(scope="module")
def nets() -> list[ResultRow]:
    return [
        entry("net1", 0.6, title="Net1"),
        entry("net2", 0.7, title="Net2", statuses=("done", "failed"), seed=1),
        entry("net3", 0.7, title="Net3", statuses=("failed", "failed"), seed=2),
        entry("net4", 0.9, title="Net4", seed=3),
    ]


def compared(table: str, entries: list[ResultRow]) -> pd.DataFrame:
    done = {one.name: one.predictions for one in entries if one.metrics}
    return paired_differences(done, list_comparisons(table, list(done)), entries[0].metrics["classes"])


def test_overview_gives_figure_interval_paper_and_costs(nets):
    data = build_tables("table3", nets)["table3"]
    rows = {row[0]: row for row in data.rows}
    accuracy = nets[0].metrics["accuracy"]
    low, high = accuracy["interval"]
    assert data.header[-1][:4] == ["Model", "Runs", "Accuracy, %", "Paper, %"]
    assert rows["Net1"][1] == "2 of 2"
    assert rows["Net1"][2] == f"{100 * accuracy['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    assert rows["Net1"][3] == "80.3"
    assert rows["Net1"][5:] == ["42.5", "6.70", "1,234", "88"]
    assert any("validation part" in note for note in data.notes)
    assert any("augmented and balanced" in note for note in data.notes)


def test_failed_and_missing_runs_are_marked(nets):
    rows = {row[0]: row for row in build_tables("table3", nets)["table3"].rows}
    assert rows["Net2"][1] == "1 of 2"
    assert rows["Net3"] == ["Net3", "failed: out of memory"]
    notes = build_tables("table3", nets)["table3"].notes
    assert "Net2, seed 0, fold 1 failed: out of memory." in notes
    unfinished = build_tables("table3", [entry("net1", 0.6, statuses=("missing", "missing"))])
    assert unfinished["table3"].rows == [["net1", "not run yet"]]
    assert all(to_html(data) and to_markdown(data) and to_latex(data) for data in unfinished.values())


def test_the_class_table_has_the_papers_values_for_its_classes_only(nets):
    data = build_tables("table3", nets)["table3-classes"]
    headings = [row[0] for row in data.rows if len(row) == 1]
    assert headings == ["Recall", "Precision", "F1 score"]
    net4 = next(row for row in data.rows if row[0] == "Net4")  # of recall
    assert net4[3::2] == ["91.5", "92.6", "65.9", "83.3"] or net4[3::2] == ["91.5", "92.6", "65.9", "83.4"]
    other = [entry("net1", 0.7, classes=("G1", "S", "G2", "M"))]
    data = build_tables("table3", other)["table3-classes"]
    assert data.header == [["Model", "G1, %", "S, %", "G2, %", "M, %", "Average, %"]]
    assert not any("Paper" in note for note in data.notes)


def test_ablation_gives_differences_to_net4_and_marks_chance():
    folds = ("done",) * 5
    entries = [
        entry("net4", 0.95, title="Net4", statuses=folds),
        entry("net3", 0.95, seed=4, statuses=folds),
        entry("net1", 0.3, seed=5, statuses=folds),
    ]
    differences = compared("ablation", entries)
    data = build_tables("ablation", entries, differences)["ablation"]
    rows = {row[0]: row for row in data.rows}
    assert data.header == [
        ["", "Accuracy", "Macro recall", "", "", "Recall of monocyte"],
        ["Model", "%", "%", "to Net4, points", "detectable, points", "%"],
    ]
    assert rows["Net4"][3:5] == ["–", "–"]
    assert rows["net3"][3].endswith("°")
    assert rows["net1"][3].startswith("−")
    assert not rows["net1"][3].endswith("°")
    assert float(rows["net1"][4]) > 0
    assert any("secondary" in note for note in data.notes)
    plain = build_tables("compare", entries)["compare"]
    assert plain.header == [["Model", "Accuracy, %", "Macro recall, %", "Recall of monocyte, %"]]


def test_the_differences_table_has_verdicts():
    folds = ("done",) * 5
    entries = [entry(name, skill, seed=k, statuses=folds) for k, (name, skill) in enumerate(SKILLS.items())]
    data = build_differences_table(compared("table3", entries), {"net4": "Net4", "net1": "Net1"}, ["macro_recall"])
    rows = {row[0]: row for row in data.rows}
    assert data.header == [["Difference", "Points", "Interval", "p (Holm)", "Detectable, points", "Verdict"]]
    assert rows["Net4 against Net1"][5] == "higher"
    assert rows["net2 against Net1"][5] == "could be chance"
    assert re.fullmatch(r"[+−]?\d+\.\d to [+−]?\d+\.\d", rows["net2 against Net1"][2])
    assert 0 < float(rows["net2 against Net1"][4]) < 100
    assert any("3 comparisons" in note for note in data.notes)
    assert any("t over 5 folds" in note for note in data.notes)
    assert any("nothing is known of other donors" in note for note in data.notes)
    assert not any("No verdict" in note for note in data.notes)


def test_one_training_each_has_intervals_and_no_verdict():
    single = [entry("net1", 0.3, statuses=("done",)), entry("net4", 0.95, statuses=("done",), seed=3)]
    data = build_differences_table(compared("table3", single))
    cells = [row for row in data.rows if len(row) > 1]
    assert {tuple(row[3:]) for row in cells} == {("–", "–", "no verdict: one training each")}
    assert all(re.fullmatch(r"[+−]?\d+\.\d to [+−]?\d+\.\d", row[2]) for row in cells)
    assert any("these two trained models; nothing is known of other trainings" in note for note in data.notes)
    assert not any("Holm" in note for note in data.notes)


def alone(one: ResultRow) -> ResultRow:
    """The same row with all its cells of a single source."""
    table = one.predictions.assign(source="one.tif")
    groups, description = choose_groups(None, table["source"].tolist())
    truth = pd.Categorical(table["label"], CLASSES).codes.astype(int)
    shares = table[[f"p_{label}" for label in CLASSES]].to_numpy()
    metrics = score(truth, shares, CLASSES, groups) | {"intervals": description}
    return replace(one, predictions=table, metrics=metrics)


def test_one_source_gives_no_interval_and_no_verdict_in_any_format():
    entries = [alone(entry("net4", 0.9)), alone(entry("net1", 0.6, seed=5))]
    differences = compared("ablation", entries)
    data = build_differences_table(differences)
    assert {tuple(row[2:]) for row in data.rows if len(row) > 1} == {("no interval: one group", "–", "–", "–")}
    against = build_tables("ablation", entries, differences)["ablation"]
    assert against.rows[1][3].endswith("(no interval)")
    assert against.rows[1][4] == "–"
    for table in (data, against, *build_tables("table3", entries).values()):
        for write in (to_markdown, to_latex, to_html):
            text = write(table)
            assert "one source image" in text or "one donor or source image" in text
            for wrong in ("chance:", "could be chance", "°", "circ", "95", "0.0 to 0.0", "too narrow", "nan", "NaN"):
                assert wrong not in text, (wrong, text)


def test_pairs_to_compare():
    nets = ["net1", "net2", "net3", "net4"]
    assert list_comparisons("table3", nets) == [
        ("net1", "net2"), ("net1", "net3"), ("net1", "net4"), ("net2", "net3"), ("net3", "net4"),
    ]  # fmt: skip
    grid = [f"{enhancer}-{classifier}" for enhancer in ("unet", "resunet") for classifier in ("vgg16", "resnet101")]
    assert set(list_comparisons("table2", grid)) == {
        ("unet-vgg16", "resunet-vgg16"),
        ("unet-resnet101", "resunet-resnet101"),
        ("unet-vgg16", "unet-resnet101"),
        ("resunet-vgg16", "resunet-resnet101"),
    }
    assert list_comparisons("table4", ["net1", "clahe", "net4"]) == [
        ("net1", "clahe"),
        ("net1", "net4"),
        ("clahe", "net4"),
    ]
    assert list_comparisons("ablation", ["net4", "net3", "net1", "net1-stem"]) == [
        ("net4", "net3"), ("net4", "net1"), ("net4", "net1-stem"), ("net1", "net1-stem"),
    ]  # fmt: skip
    assert list_comparisons("compare", ["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    for table in ("table2", "table3", "table4", "ablation", "compare"):
        assert list_comparisons(table, []) == []
        assert list_comparisons(table, ["net2"]) == []


def test_results_have_a_row_a_run(nets):
    found = build_results_frame(nets, "cells", "table3")
    assert len(found) == 8
    assert list(found)[:10] == [
        "dataset", "table", "recipe", "seed", "repeat", "fold", "accuracy", "macro_recall", "recall_granulocyte",
        "recall_lymphocyte",
    ]  # fmt: skip
    assert list(found)[-8:] == [
        "parameters", "gmac", "train_seconds", "images_per_second", "epoch", "protocol", "status", "error",
    ]  # fmt: skip
    cells = nets[0].predictions.query("fold == 1 and label == 'monocyte'")
    row = found.query("recipe == 'net1' and fold == 1").iloc[0]
    assert row["recall_monocyte"] == pytest.approx((cells["predicted"] == "monocyte").mean())
    failed = found.query("recipe == 'net2' and fold == 1").iloc[0]
    assert (failed["status"], failed["error"]) == ("failed", "out of memory")
    assert np.isnan(failed["recall_monocyte"])


def test_html_is_well_formed_and_every_row_as_wide_as_the_header(nets):
    tables = [*build_tables("table3", nets).values(), build_differences_table(compared("table3", nets))]
    for data in tables:
        root = ElementTree.fromstring(to_html(data).replace("&nbsp;", " "))
        for row in root.iter("tr"):
            width = sum(int(cell.get("colspan", 1)) for cell in row)
            if row.find("td") is not None or row.get("class") == "group":
                assert width == len(data.header[-1])


@pytest.mark.parametrize("write", [to_markdown, to_latex, to_html])
def test_odd_names_are_escaped(write):
    text = write(TableData(ODD, [["Model", ODD]], [[ODD], [ODD, "1.0"]], [ODD]))
    if write is to_markdown:
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
        assert "\\<d>" in text
    elif write is to_latex:
        assert not re.search(r"(?<!\\)[%#]", text)
        assert r"a|b\_\{c\} \& \textless{}d\textgreater{} 50 \% " in text
        assert r"\$x\textasciicircum{}2\textasciitilde{} \textbackslash{}z" in text
    else:
        assert "<d>" not in text
        ElementTree.fromstring(text)


def test_every_table_names_the_simulation(nets):
    for data in build_tables("table4", nets, simulated="simulated destaining").values():
        assert any("simulated destaining" in note for note in data.notes)
