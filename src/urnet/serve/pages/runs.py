"""The page Runs: curves, metrics and reports of all runs in the folder of the served one; comparison of two runs."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
from fastapi import FastAPI
from fastapi.responses import Response
from nicegui import ui

from urnet.benchmark.differences import metric_title
from urnet.errors import UrnetError
from urnet.html_pages import NO_VALUE, describe_intervals, format_interval
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.curves import Curve, draw_chart, make_curve
from urnet.serve.pages.components.elements import counted, fact_list, model_needed, notice, percent, table
from urnet.serve.pages.components.layout import link, page_frame, text, url
from urnet.serve.pages.components.run_comparison import ComparisonPanel
from urnet.serve.runs import Evaluation, ListedRun, best_epoch, list_runs, read_history, recipe_differences
from urnet.serve.services import Services

REFRESH_S = 2.0
"""Time between two checks of an unfinished run, in seconds."""

REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content-Security-Policy of reports: no scripts, nothing from elsewhere."""

LOSSES = (("training", "train_loss"), ("validation", "validation_loss"))
ACCURACIES = (
    ("training", "train_accuracy"),
    ("validation", "validation_accuracy"),
    ("macro recall", "validation_macro_recall"),
)
"""Names of the curves, and their columns in the history."""

LAST_EPOCHS = 10
"""Number of epochs in the table below the curves."""


def add(app: FastAPI, services: Services) -> None:
    """Add the page and the reports to the app."""

    @app.get("/runs/report", include_in_schema=False)
    async def report(run: str, part: str) -> Response:
        listed = (await asyncio.to_thread(list_runs, services.run)).get(run)
        evaluations = [] if listed is None else await asyncio.to_thread(listed.read_evaluations)
        path = next((evaluation.report for evaluation in evaluations if evaluation.split == part), None)
        if path is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "there is no such report in the folder of the served run")
        content = await asyncio.to_thread(path.read_bytes)
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    @ui.page("/runs")
    async def runs(run: str = "", compare: str = "") -> None:
        listed = await asyncio.to_thread(list_runs, services.run) if services.has_model else {}
        with page_frame("Runs", "/runs", styles="runs.css"):
            if not services.has_model:
                model_needed()
                return
            if not listed:
                notice("There are no runs: the served model is a bundle without its run folder.")
                return
            selected = listed.get(run) or next((one for one in listed.values() if _is_served(one, services.run)), None)
            selected = selected or next(iter(listed.values()))
            other = listed.get(compare) if compare != selected.name else None
            with ui.element("div").classes("runs"):
                _add_list(listed, selected, services.run)
                with ui.element("div"):
                    if other is None:
                        await _add_run(services.run, selected, list(listed))
                    else:
                        await _add_comparison(selected, other, services.comparison_threads)


def _add_list(listed: dict[str, ListedRun], selected: ListedRun, served: Path) -> None:
    with ui.element("section") as section:
        section.props["aria-label"] = "Runs"
        with ui.element("ul").classes("run-list"):
            for name, run in listed.items():
                with ui.element("li"):
                    entry = link(name, _page_url(run=name))
                    if name == selected.name:
                        entry.props("aria-current=true")
                    with entry:
                        served_note = "served, " if _is_served(run, served) else ""
                        text("span", f"{served_note}{run.state()}").classes("small soft")


async def _add_run(served: Path, run: ListedRun, names: list[str]) -> None:
    """Add the curves and metrics of one run; the curves follow an unfinished run."""
    text("h2", run.name)
    state = text("p", run.state()).props("role=status").classes("small soft")
    evaluations = await asyncio.to_thread(run.read_evaluations)
    facts = ui.element("div")
    curves = ui.element("div")
    shown: list[Any] = [None]

    async def show(current: ListedRun) -> None:
        state.set_text(current.state())
        if shown[0] == (current.written, current.finished):
            return
        shown[0] = (current.written, current.finished)
        try:
            history = await asyncio.to_thread(read_history, current.run)
        except UrnetError as error:
            curves.clear()
            with curves:
                notice(str(error), warn=True)
        else:
            _show_facts(facts, history)
            _show_curves(curves, history)

    async def refresh() -> None:
        current = (await asyncio.to_thread(list_runs, served)).get(run.name)
        if current is not None:
            await show(current)

    await show(run)
    if not run.finished:
        ui.timer(REFRESH_S, refresh)
    if evaluations:
        _add_metrics(run, evaluations)
    elif run.finished:
        notice(f"There are no metrics yet. Evaluate the run: urnet evaluate {run.name}")
    else:
        notice("Metrics appear here after the training and its evaluation.")
    others = [name for name in names if name != run.name]
    if others:
        _add_comparison_form(run, others)


def _add_comparison_form(run: ListedRun, others: list[str]) -> None:
    text("h2", "Compare")
    with ui.element("form").props("method=get").classes("filters") as form:
        form.props["action"] = url("/runs")
        first = ui.element("input").props("type=hidden name=run")
        first.props["value"] = run.name
        with ui.element("label"):
            text("span", f"Compare {run.name} with")
            with ui.element("select").props("name=compare"):
                for name in others:
                    text("option", name).props["value"] = name
        text("button", "Compare").props("type=submit").classes("button")


def _show_facts(place: ui.element, history: pd.DataFrame) -> None:
    facts = {"Epochs": f"{(history['stage'] == 'train').sum():,}"}
    pretraining = int((history["stage"] == "pretrain").sum())
    if pretraining:
        facts["Pre-training"] = counted(pretraining, "epoch")
    best = best_epoch(history)
    if best is not None:
        recall = percent(best["validation_macro_recall"])
        facts["Best epoch in validation"] = f"{best['epoch']:.0f}, macro recall {recall}"
    place.clear()
    with place:
        fact_list(facts)


def _show_curves(place: ui.element, history: pd.DataFrame) -> None:
    place.clear()
    with place:
        if history.empty:
            text("p", "Curves appear after the first epoch.").classes("soft")
            return
        with ui.element("div").classes("curves"):
            for stage, suffix in (("train", ""), ("pretrain", ", pre-training")):
                rows = history[history["stage"] == stage]
                _add_chart(f"Loss{suffix}", _make_curves(rows, LOSSES))
                _add_chart(f"Accuracy{suffix}", _make_curves(rows, ACCURACIES))
        with ui.element("details"):
            text("summary", "Last epochs as a table")
            columns = ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_recall", "lr")
            rows = [
                (f"{row['stage']} {row['epoch']:.0f}", *(_format_number(row[column]) for column in columns))
                for _, row in history.tail(LAST_EPOCHS)[::-1].iterrows()
            ]
            head = ("Epoch", "Training loss", "Validation loss", "Accuracy", "Macro recall", "Learning rate")
            table(head, rows, "Last epochs")


def _make_curves(rows: pd.DataFrame, columns: tuple[tuple[str, str], ...]) -> list[Curve]:
    epochs = rows["epoch"].tolist()
    return [make_curve(name, epochs, rows[column].tolist(), k + 1, k) for k, (name, column) in enumerate(columns)]


def _add_chart(title: str, curves: list[Curve]) -> None:
    svg = draw_chart(curves, title)
    if svg:
        with ui.element("figure"):
            text("figcaption", title)
            ui.html(svg, sanitize=False)


def _add_metrics(run: ListedRun, evaluations: list[Evaluation]) -> None:
    text("h2", "Metrics")
    for evaluation in evaluations:
        name = "Test split" if evaluation.split == "test" else evaluation.split
        text("h3", name)
        metrics = evaluation.metrics
        note = f"{metrics.get('n', 0):,} cells, {describe_intervals(metrics['intervals'])}"
        note += "; protocol paper, optimistic" if metrics.get("protocol") == "paper" else ""
        text("p", f"{note}.").classes("small soft")
        rows = [(metric_title(key), _format_metric(metrics[key]), "", "") for key in ("accuracy", "macro_recall")]
        rows += [
            (
                f"Recall of {label}",
                _format_metric(row["recall"]),
                _format_metric(row["precision"]),
                f"{row['support']:,}",
            )
            for label, row in metrics["per_class"].items()
        ]
        table(("Metric", "%", "Precision, %", "Cells"), rows, f"Metrics, {name.lower()}")
        if evaluation.report is not None:
            with ui.element("p"):
                address = "/runs/report?" + urlencode({"run": run.name, "part": evaluation.split})
                link(f"Report of {run.name}, {name.lower()} (new tab)", address).props("target=_blank rel=noopener")


async def _add_comparison(first: ListedRun, second: ListedRun, threads: Executor) -> None:
    text("h2", f"{first.name} and {second.name}")
    with ui.element("p"):
        link(f"Back to {first.name}", _page_url(run=first.name))
    try:
        histories = [await asyncio.to_thread(read_history, listed.run) for listed in (first, second)]
        differences = await asyncio.to_thread(recipe_differences, first.run, second.run)
    except UrnetError as error:
        notice(str(error), warn=True)
        return
    with ui.element("div").classes("curves"):
        for title, column in (
            ("Validation loss", "validation_loss"),
            ("Macro recall in validation", "validation_macro_recall"),
        ):
            curves = []
            for k, (listed, history) in enumerate(zip((first, second), histories, strict=True)):
                rows = history[history["stage"] == "train"]
                curves.append(make_curve(listed.name, rows["epoch"].tolist(), rows[column].tolist(), k + 1, k))
            _add_chart(title, curves)
    text("h2", "Metrics on the test split")
    ComparisonPanel(first, second, threads)
    text("h2", "Recipes")
    if differences:
        table(("Key", first.name, second.name), differences, "Differences between the recipes", numeric_from=3)
    else:
        text("p", "The recipes are the same.")


def _is_served(run: ListedRun, served: Path) -> bool:
    folder = served.resolve()
    return run.run.folder in (folder, folder.parent if folder.name == "model" else folder)


def _page_url(**query: str) -> str:
    return "/runs?" + urlencode(query)


def _format_metric(metric: Mapping[str, Any]) -> str:
    """Format a metric with its interval, which does not break over lines."""
    return format_interval(metric).replace("–", "\N{WORD JOINER}–\N{WORD JOINER}")


def _format_number(value: float) -> str:
    return NO_VALUE if pd.isna(value) else f"{value:.4g}"
