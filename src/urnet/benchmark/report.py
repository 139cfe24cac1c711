"""Write a comparison: report.html, results.csv, and each table and figure as a file."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.benchmark import figures, tables
from urnet.benchmark.convergence import warn_undertrained
from urnet.benchmark.differences import build_differences_table
from urnet.benchmark.published import published_accuracies
from urnet.benchmark.render import SIMULATED_NOTE, TableData, to_html, to_latex, to_markdown
from urnet.benchmark.row import ResultRow
from urnet.evaluation.evaluate import OPTIMISTIC, VERSIONS
from urnet.evaluation.figure_style import to_png
from urnet.evaluation.paired import paired_differences
from urnet.evaluation.report_figures import channels_last
from urnet.files.atomic import atomic_file
from urnet.files.csv_tables import write_frame
from urnet.html_pages import create_environment

MAX_CURVES = 8
"""Number of rows above which curves are not legible."""


OPTIONAL_FILES = (
    *("differences.csv", "tables/differences.md", "tables/differences.tex"),
    *("figures/differences-with-intervals.png", "figures/differences-with-simultaneous-intervals.png"),
    *("tables/optimism.md", "tables/optimism.tex"),
    *("figures/loss-and-accuracy-over-the-epochs.png", "figures/the-same-cells-through-every-enhancer.png"),
    *("figures/grad-cam-of-the-same-cells.png", "figures/share-of-grad-cam-on-the-cell.png"),
)
"""Files that depend on the rows; an earlier call may have left them."""


@dataclass
class Section:
    """A section of the report: title, text, table as HTML, and figures as title, caption and PNG."""

    title: str
    text: str = ""
    table: str = ""
    figures: list[tuple[str, str, bytes]] = field(default_factory=list)


@dataclass
class Page:
    """Content of the report, in order."""

    title: str
    dataset: str
    facts: dict[str, str]
    warnings: list[str]
    sections: list[Section] = field(default_factory=list)


def write_comparison(
    folder: Path,
    table: str,
    entries: Sequence[ResultRow],
    *,
    name: str,
    dataset: str,
    simulated: str = "",
    counts: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    optimistic: Sequence[ResultRow] = (),
) -> pd.DataFrame:
    """Write the tables and figures of a comparison; existing ones are replaced.

    Args:
        folder: gets `report.html`, `results.csv`, `differences.csv`, `tables/*.md`, `tables/*.tex`, `figures/*.png`.
        table: `table2`, `table3`, `table4`, `ablation` or `compare`.
        entries: the rows in order.
        name: name of the cells, for results.csv.
        dataset: one line that describes the cells.
        simulated: how the images were simulated; "" for real ones.
        counts: cells by class (rows) in an epoch, before and after balancing.
        optimistic: the same rows under protocol `paper`, if they exist.

    Returns:
        The paired differences, as in `differences.csv`; empty if there are none.
    """
    done = [entry for entry in entries if entry.metrics is not None]
    undertrained = warn_undertrained(done)
    warnings = [*undertrained, *_list_warnings(entries, simulated)]
    page = Page(tables.TITLES[table], dataset, _list_facts(entries), warnings)
    differences = _compute_differences(table, done)
    titles = {entry.name: entry.title for entry in done}
    written = tables.build_tables(table, entries, differences if len(differences) else None, simulated=simulated)
    page.sections += [Section(data.title, table=to_html(data)) for data in written.values()]
    if len(differences):
        written["differences"] = build_differences_table(differences, titles, simulated=simulated)
        page.sections.append(
            Section(
                "Differences",
                "Paired over the same cells. The verdict allows for chance in test cells and in training, and for the "
                "number of comparisons. Detectable is the smallest difference that this table would have shown.",
                to_html(written["differences"]),
                [
                    (
                        "Differences with intervals",
                        "95 % intervals, each for its own difference. The verdict allows for all comparisons.",
                        to_png(figures.draw_differences(differences, titles)),
                    )
                ],
            )
        )
    if bought := tables.build_optimism_table(done, optimistic):
        written["optimism"] = bought
        page.sections.append(
            Section(
                "What the paper's protocol buys",
                "The same rows and folds, with the epoch chosen on a test part that is augmented and balanced.",
                to_html(bought),
            )
        )
    if done:
        page.sections.append(Section("Figures", figures=_draw_figures(table, done, counts)))
    for data in written.values():
        data.warnings.extend(undertrained)
    _write_files(folder, table, page, written, entries, differences, name)
    return differences


def _write_files(
    folder: Path,
    table: str,
    page: Page,
    written: dict[str, TableData],
    entries: Sequence[ResultRow],
    differences: pd.DataFrame,
    name: str,
) -> None:
    for path in OPTIONAL_FILES:
        (folder / path).unlink(missing_ok=True)
    for stem, data in written.items():
        _write_text(folder / "tables" / f"{stem}.md", to_markdown(data))
        _write_text(folder / "tables" / f"{stem}.tex", to_latex(data))
    for section in page.sections:
        for title, _, png in section.figures:
            stem = "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")
            with atomic_file(folder / "figures" / f"{stem}.png") as file:
                file.write(png)
    write_frame(folder / "results.csv", tables.build_results_frame(entries, name, table))
    if len(differences):
        write_frame(folder / "differences.csv", differences)
    _write_text(
        folder / "report.html",
        create_environment("urnet.benchmark").get_template("comparison.html.j2").render(page=page),
    )


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def _list_facts(entries: Sequence[ResultRow]) -> dict[str, str]:
    runs = pd.concat([entry.runs for entry in entries])
    done = int((runs["status"] == "done").sum())
    folds, repeats = runs["fold"].nunique(), runs["repeat"].nunique() if "repeat" in runs else 1
    devices = sorted({entry.device for entry in entries} - {""})
    protocols = sorted({entry.recipe.protocol for entry in entries})
    return {
        "Protocol": ", ".join(f"{p} (optimistic)" if p == "paper" else p for p in protocols),
        "Folds": f"{repeats} × {folds}" if repeats > 1 else str(folds),
        "Seeds": str(runs["seed"].nunique()),
        "Runs done": f"{done} of {len(runs)}",
        "Trained on": ", ".join(devices) or "–",
        "Tables made with": ", ".join(f"{name} {version(name)}" for name in VERSIONS[:3])
        + f", Python {platform.python_version()}",
    }


def _list_warnings(entries: Sequence[ResultRow], simulated: str) -> list[str]:
    warnings = []
    if any(entry.recipe.protocol == "paper" for entry in entries):
        warnings.append(OPTIMISTIC)
    if simulated:
        warnings.append(SIMULATED_NOTE.format(simulated))
    runs = pd.concat([entry.runs.assign(name=entry.name) for entry in entries])
    if failed := int((runs["status"] == "failed").sum()):
        warnings.append(f"{failed} of {len(runs)} runs failed (see results.csv). The same command repeats them.")
    if missing := int((runs["status"] == "missing").sum()):
        warnings.append(f"{missing} of {len(runs)} runs are not trained yet. The same command trains them.")
    return warnings


def _compute_differences(table: str, done: Sequence[ResultRow]) -> pd.DataFrame:
    complete = {entry.name: entry for entry in done if entry.complete}
    pairs = [pair for pair in tables.list_comparisons(table, list(complete)) if set(pair) <= complete.keys()]
    if not pairs:
        return pd.DataFrame()
    classes = next(iter(complete.values())).metrics["classes"]
    return paired_differences({name: entry.predictions for name, entry in complete.items()}, pairs, classes)


def _draw_figures(
    table: str, done: Sequence[ResultRow], counts: tuple[pd.DataFrame, pd.DataFrame] | None
) -> list[tuple[str, str, bytes]]:
    drawn: list[tuple[str, str, bytes]] = []

    def add(title: str, caption: str, figure: object) -> None:
        drawn.append((title, caption, to_png(figure)))

    intervals = any(entry.metrics["accuracy"]["interval"] for entry in done)
    caption = (
        f"Dots {'with 95 %' if intervals else 'without'} intervals; the cross is the paper's value on its own cells."
    )
    add("Accuracy", caption, figures.draw_accuracy(done, published_accuracies(table)))
    add("Confusion matrices", "Rows: true classes. All folds together.", figures.draw_confusion_matrix(done))
    if len(done) <= MAX_CURVES:
        add(
            "Loss and accuracy over the epochs",
            "Mean over the folds, with their range.",
            figures.draw_training_curves(done),
        )
    if counts is not None:
        add("Cells by class", "Before and after balancing of the training part.", figures.draw_class_counts(*counts))
    pictured = [entry for entry in done if entry.examples]
    if pictured:
        raw, labels = (
            [channels_last(image) for image in pictured[0].examples["raw"].astype(np.float32)],
            list(pictured[0].examples["label"]),
        )
        enhancing = [entry for entry in pictured if entry.recipe.enhancer.name != "none"]
        enhanced = {
            entry.title: [channels_last(image) for image in entry.examples["enhanced"].astype(np.float32)]
            for entry in enhancing
        }
        if enhanced:
            add("The same cells through every enhancer", "", figures.draw_gallery(enhanced, raw, labels))
        cams = {entry.title: list(entry.examples["cam"]) for entry in pictured if "cam" in entry.examples}
        if cams:
            add("Grad-CAM of the same cells", "", figures.draw_cam_gallery(cams, raw, labels))
    if all("cam_share" in entry.predictions for entry in done):
        add(
            "Share of Grad-CAM on the cell",
            "The cell is segmented in the raw image. The line shows the share of a uniform map.",
            figures.draw_cam_share(done),
        )
    return drawn
