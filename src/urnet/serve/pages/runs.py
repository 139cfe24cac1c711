"""Runs: curves of those beside the served one, live while they go on, their figures and reports, two compared."""

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

from urnet.errors import UrnetError
from urnet.html_pages import NO_VALUE, describe_intervals, format_interval
from urnet.serve.http.errors import RequestError
from urnet.serve.pages.components.curves import Line, chart, line
from urnet.serve.pages.components.elements import facts, notice, table, work_styles
from urnet.serve.pages.components.layout import frame, link, text, url
from urnet.serve.pages.components.run_comparison import NAMES, Differences
from urnet.serve.runs import Evaluation, ListedRun, best_epoch, list_runs, read_history, recipe_differences
from urnet.serve.services import Services

LIVE = 2.0
"""Seconds between two looks at a run."""

HARMLESS = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a report may do in the browser: show itself."""

LOSSES = (("training", "train_loss"), ("validation", "validation_loss"))
SHARES = (
    ("training", "train_accuracy"),
    ("validation", "validation_accuracy"),
    ("macro recall", "validation_macro_recall"),
)


def add(app: FastAPI, services: Services) -> None:
    """Add the page and the reports."""

    @app.get("/runs/report", include_in_schema=False)
    async def report(run: str, part: str) -> Response:
        listed = (await asyncio.to_thread(list_runs, services.run)).get(run)
        found = [] if listed is None else await asyncio.to_thread(listed.read_evaluations)
        page = next((one.report for one in found if one.split == part), None)
        if page is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "there is no such report beside the served run")
        content = await asyncio.to_thread(page.read_bytes)
        about = {"Content-Security-Policy": HARMLESS, "Cache-Control": "no-store"}
        return Response(content, media_type="text/html; charset=utf-8", headers=about)

    @ui.page("/runs")
    async def runs(run: str = "", beside: str = "") -> None:
        work_styles()
        found = await asyncio.to_thread(list_runs, services.run)
        with frame("Runs", "/runs"):
            if not found:
                notice("There is no run beside the served model: it is a bundle that stands alone.")
                return
            chosen = found.get(run) or next((one for one in found.values() if _is_served(one, services.run)), None)
            chosen = chosen or next(iter(found.values()))
            other = found.get(beside) if beside != chosen.name else None
            with ui.element("div").classes("runs"):
                _list(found, chosen, services.run)
                with ui.element("div"):
                    if other is None:
                        await _one(services.run, chosen, found)
                    else:
                        await _two(chosen, other, services.comparison_threads)


def _list(found: dict[str, ListedRun], chosen: ListedRun, served: Path) -> None:
    with ui.element("section") as made:
        made.props["aria-label"] = "Runs"
        with ui.element("ul").classes("run-list"):
            for name, one in found.items():
                with ui.element("li"):
                    to = link(name, _address(run=name))
                    if name == chosen.name:
                        to.props("aria-current=true")
                    mark = "served, " if _is_served(one, served) else ""
                    with to:
                        text("span", f"{mark}{one.state()}").classes("small soft")


async def _one(served: Path, chosen: ListedRun, found: dict[str, ListedRun]) -> None:
    text("h2", chosen.name)
    state = text("p", chosen.state()).props("role=status").classes("small soft")
    figures = await asyncio.to_thread(chosen.read_evaluations)
    about = ui.element("div")
    curves = ui.element("div")
    last: list[Any] = [None]

    async def look(current: ListedRun) -> None:
        state.set_text(current.state())
        if last[0] == (current.written, current.finished):
            return
        last[0] = (current.written, current.finished)
        try:
            history = await asyncio.to_thread(read_history, current.run)
        except UrnetError as error:
            history = None
            curves.clear()
            with curves:
                notice(str(error), warn=True)
        if history is not None:
            _facts(about, history)
            _curves(curves, history)

    async def again() -> None:
        now = (await asyncio.to_thread(list_runs, served)).get(chosen.name)
        if now is not None:
            await look(now)

    await look(chosen)
    if not chosen.finished:
        ui.timer(LIVE, again)
    if figures:
        _figures(chosen, figures)
    else:
        notice("Not evaluated yet: run `urnet evaluate` on it." if chosen.finished else "Figures come after training.")
    others = [name for name in found if name != chosen.name]
    if others:
        text("h2", "Compare")
        with ui.element("form").props("method=get").classes("filters") as form:
            form.props["action"] = url("/runs")
            hidden = ui.element("input").props("type=hidden name=run")
            hidden.props["value"] = chosen.name
            with ui.element("label"):
                text("span", f"{chosen.name} with")
                with ui.element("select").props("name=beside"):
                    for name in others:
                        text("option", name).props["value"] = name
            text("button", "Compare").props("type=submit").classes("button")


def _facts(place: ui.element, history: pd.DataFrame) -> None:
    trained = history[history["stage"] == "train"]
    told = {"Epochs": f"{len(trained):,}"}
    before = int((history["stage"] == "pretrain").sum())
    if before:
        told["Pre-training"] = f"{before:,} epochs"
    best = best_epoch(history)
    if best is not None:
        told["Best in validation"] = f"epoch {best['epoch']:.0f}: macro recall {best['validation_macro_recall']:.3f}"
    place.clear()
    with place:
        facts(told)


def _curves(place: ui.element, history: pd.DataFrame) -> None:
    place.clear()
    with place:
        if history.empty:
            text("p", "The curves begin with the first epoch.").classes("soft")
            return
        with ui.element("div").classes("curves"):
            for stage, name in (("train", ""), ("pretrain", " of the pre-training")):
                rows = history[history["stage"] == stage]
                _chart(f"Loss{name}", _lines(rows, LOSSES))
                _chart(f"Accuracy{name}", _lines(rows, SHARES))
        with ui.element("details"):
            text("summary", "The last epochs in figures")
            columns = ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_recall", "lr")
            last = history.tail(10)[::-1]
            rows = [
                (f"{row['stage']} {row['epoch']:.0f}", *(_number(row[column]) for column in columns))
                for _, row in last.iterrows()
            ]
            head = ("Epoch", "Training loss", "Validation loss", "Accuracy", "Macro recall", "Rate")
            table(head, rows, "The last epochs")


def _lines(rows: pd.DataFrame, columns: tuple[tuple[str, str], ...]) -> list[Line]:
    epochs = rows["epoch"].tolist()
    return [line(name, epochs, rows[column].tolist(), k + 1, k) for k, (name, column) in enumerate(columns)]


def _chart(title: str, lines: list[Line]) -> None:
    drawn = chart(lines, title)
    if drawn:
        with ui.element("figure"):
            text("figcaption", title)
            ui.html(drawn, sanitize=False)


def _figures(chosen: ListedRun, found: list[Evaluation]) -> None:
    text("h2", "Figures")
    for one in found:
        name = "Test part" if one.split == "test" else one.split
        text("h3", name)
        metrics = one.metrics
        note = f"{metrics.get('n', 0):,} cells, {describe_intervals(metrics['intervals'])}"
        note += "; protocol paper, optimistic" if metrics.get("protocol") == "paper" else ""
        text("p", f"{note}.").classes("small soft")
        rows = [(NAMES[key], _figure(metrics[key]), "", "") for key in NAMES]
        rows += [
            (f"Recall, {label}", _figure(row["recall"]), _figure(row["precision"]), f"{row['support']:,}")
            for label, row in metrics["per_class"].items()
        ]
        table(("Figure", "%", "Precision, %", "Cells"), rows, f"Figures, {name}")
        if one.report is not None:
            with ui.element("p"):
                to = link(f"Report of {chosen.name}, {name.lower()} (new tab)", "")
                to.props["href"] = url("/runs/report?" + urlencode({"run": chosen.name, "part": one.split}))
                to.props("target=_blank rel=noopener")


async def _two(first: ListedRun, second: ListedRun, threads: Executor) -> None:
    text("h2", f"{first.name} and {second.name}")
    with ui.element("p"):
        link(f"Back to {first.name}", _address(run=first.name))
    try:
        histories = [await asyncio.to_thread(read_history, one.run) for one in (first, second)]
        changed = await asyncio.to_thread(recipe_differences, first.run, second.run)
    except UrnetError as error:
        notice(str(error), warn=True)
        return
    with ui.element("div").classes("curves"):
        for title, column in (("Validation loss", "validation_loss"), ("Macro recall", "validation_macro_recall")):
            rows = [history[history["stage"] == "train"] for history in histories]
            lines = [
                line(one.name, part["epoch"].tolist(), part[column].tolist(), k + 1, k)
                for k, (one, part) in enumerate(zip((first, second), rows, strict=True))
            ]
            _chart(f"{title} in validation" if column != "validation_loss" else title, lines)
    text("h2", "On the test part")
    Differences(first, second, threads)
    text("h2", "Recipes")
    if changed:
        table(("Key", first.name, second.name), changed, "Keys in which the recipes differ", figures=9)
    else:
        text("p", "The recipes are the same.")


def _is_served(one: ListedRun, served: Path) -> bool:
    here = served.resolve()
    return one.run.folder in (here, here.parent if here.name == "model" else here)


def _address(**asked: str) -> str:
    return "/runs?" + urlencode(asked)


def _figure(figure: Mapping[str, Any]) -> str:
    """A figure whose interval stays on one line."""
    return format_interval(figure).replace("–", "\N{WORD JOINER}–\N{WORD JOINER}")


def _number(value: float) -> str:
    return NO_VALUE if pd.isna(value) else f"{value:.4g}"
