"""Draw the rooms of the package and their imports, as `docs/images/architecture.svg`.

    python docs/figures/architecture.py

An arrow points from a room to a room that it imports. Arrows that follow from others are left out, and so are the
helpers that every room may use.
"""

import ast
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "urnet"
OUT = ROOT / "docs" / "images" / "architecture.svg"
HELPERS = {"errors", "files", "names", "version", "html_pages", "progress", "progress_bar", "cpus"}
HELPERS |= {"optional_packages", "resumable_table", "prefetch", "catalogue", "urnet"}
PURPOSE = {
    "images": "pixels, scaling, simulation",
    "cells": "table, split, audit, batches",
    "recipe": "an experiment",
    "nets": "enhancers, classifiers, joint model",
    "fields": "open, detect, crop, label",
    "calibration": "temperature, sets, rejection",
    "bundle": "a trained model",
    "run_folder": "what a training leaves",
    "training": "pre-training, joint training",
    "export": "formats and engines",
    "predict": "classify image files",
    "evaluation": "metrics, intervals, report",
    "counting": "the differential",
    "benchmark": "the paper's tables",
    "serve": "web application, HTTP API",
    "api": "Python interface",
    "cli": "commands",
}


def find_arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    arrows: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        room = parts[0] if parts != ("__init__",) else "urnet"
        arrows.setdefault(room, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("urnet."):
                arrows[room].add(node.module.split(".")[1])
    return {
        room: {target for target in targets if target != room and target not in HELPERS}
        for room, targets in arrows.items()
        if room not in HELPERS
    }


def reachable(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """Return all rooms below a room."""
    reached: set[str] = set()
    pending = list(arrows.get(room, ()))
    while pending:
        target = pending.pop()
        if target not in reached:
            reached.add(target)
            pending.extend(arrows.get(target, ()))
    return reached


def reduce_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows that do not follow from others."""
    return {
        room: {
            target
            for target in targets
            if not any(target in reachable(other, arrows) for other in targets if other != target)
        }
        for room, targets in arrows.items()
    }


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Return the level of each room: 0 for rooms without imports, else one above its highest import."""
    level_of: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in level_of:
            level_of[room] = 1 + max((level(target) for target in arrows.get(room, ())), default=-1)
        return level_of[room]

    for room in arrows:
        level(room)
    return level_of


def draw() -> None:
    """Draw the picture."""
    arrows = find_arrows()
    rank = levels(arrows)
    reduced = reduce_arrows(arrows)
    places: dict[str, tuple[float, float]] = {}

    def middle(room: str) -> float:
        above = [places[target][0] for target in reduced[room]]
        return sum(above) / len(above) if above else 0.0

    for number in range(max(rank.values()) + 1):
        row = sorted(sorted(room for room in rank if rank[room] == number), key=middle)
        places |= {room: ((column + 0.5) / len(row) * 12, -1.0 * number) for column, room in enumerate(row)}
    figure = Figure(figsize=(10, 0.82 * (number + 1) + 0.4), facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 12)
    axes.set_ylim(-number - 0.6, 0.6)
    axes.axis("off")
    for room, targets in reduced.items():
        for target in targets:
            (x0, y0), (x1, y1) = places[room], places[target]
            bend = 0.0 if abs(y0 - y1) < 1.5 else 0.12 * (1 if x0 >= x1 else -1)
            axes.add_patch(
                FancyArrowPatch(
                    (x0, y0 + 0.24),
                    (x1, y1 - 0.26),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color="#7a8b8f",
                    lw=0.9,
                    connectionstyle=f"arc3,rad={bend}",
                    zorder=1,
                )
            )
    for room, (x, y) in places.items():
        axes.add_patch(
            FancyBboxPatch(
                (x - 1.3, y - 0.22), 2.6, 0.44, boxstyle="round,pad=0.02,rounding_size=0.1", fc="#e6f2f1", ec="#00695c"
            )
        )
        axes.text(
            x, y + 0.06, f"{room}", ha="center", va="center", fontsize=10, weight="bold", color="#12302c", zorder=3
        )
        axes.text(x, y - 0.12, PURPOSE.get(room, ""), ha="center", va="center", fontsize=7.5, color="#35514d", zorder=3)
    figure.savefig(OUT, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw()
