"""Files of a differential: a table, JSON, and a printable page for each sample."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from urnet.counting import shares
from urnet.counting.examples import REJECTED, Example
from urnet.counting.sample import Sample
from urnet.counting.shares import format_percent, list_share_texts
from urnet.files.csv_tables import write_frame
from urnet.html_pages import create_environment
from urnet.version import __version__

SAMPLES_FOLDER = "samples"


def write_reports(
    samples: Sequence[Sample],
    out: Path,
    *,
    run: str,
    source: str,
    model: str = "",
    date: str = "",
    simulated: str = "",
    notes: Sequence[str] = (),
    examples: Sequence[Mapping[str, Sequence[Example]]] = (),
) -> Path:
    """Write `differential.csv`, `differential.json` and `report.html`; several samples also get a page each.

    Args:
        samples: from `count_sample`; at least one.
        out: folder; files of these names are replaced.
        run: run folder of the model.
        source: what was counted.
        model: name of the model.
        date: date of the count, as printed.
        simulated: kinds of simulation that made the images; "" for real ones.
        notes: notes on all samples.
        examples: example crops of each sample, by predicted class.

    Returns:
        The page to open first: the sample's, or a list of several samples, whose pages are in `samples/`.

    Raises:
        OSError: a file cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "run": run,
        "source": source,
        "model": model,
        "date": date,
        "simulated": simulated,
        "notes": list(notes),
        "version": __version__,
    }
    # Linux allows file names that are not valid Unicode.
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    write_frame(out / "differential.csv", differential_table(samples))
    whole = about | {"samples": [sample.to_json() for sample in samples]}
    (out / "differential.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", **how)
    first = out / "report.html"
    if len(samples) == 1:
        first.write_text(render_page(samples[0], about, examples[0] if examples else {}), **how)
        return first
    (out / SAMPLES_FOLDER).mkdir(exist_ok=True)
    places = [f"{SAMPLES_FOLDER}/{number:03d}-{_slug(sample.name)}.html" for number, sample in enumerate(samples, 1)]
    for number, (sample, place) in enumerate(zip(samples, places, strict=True)):
        (out / place).write_text(render_page(sample, about, examples[number] if examples else {}), **how)
    listed = list(zip(samples, places, strict=True))
    first.write_text(_templates().get_template("samples.html.j2").render(listed=listed, about=about), **how)
    return first


def differential_table(samples: Sequence[Sample]) -> pd.DataFrame:
    """Make the table of `differential.csv`: a row for each sample and class, in per cent, empty where unknown."""
    rows = []
    for sample in samples:
        ends = np.full((len(sample.classes), 2), np.nan) if sample.em_interval is None else sample.em_interval
        for k, name in enumerate(sample.classes):
            rows.append(
                {
                    "sample": sample.name,
                    "class": name,
                    "count": int(sample.counts[k]),
                    "raw_percent": 100 * sample.raw[k],
                    "percent": 100 * sample.adjusted[k],
                    "low": 100 * sample.adjusted_interval[k, 0],
                    "high": 100 * sample.adjusted_interval[k, 1],
                    "em_percent": 100 * sample.em[k],
                    "em_low": 100 * ends[k, 0],
                    "em_high": 100 * ends[k, 1],
                    "cells": sample.cells,
                    "accepted": sample.accepted,
                    "rejected_percent": 100 * sample.rejected_share,
                }
            )
    return pd.DataFrame(rows).round(2)


def render_page(
    sample: Sample, about: Mapping[str, Any], examples: Mapping[str, Sequence[Example]] | None = None
) -> str:
    """Render the page of one sample as HTML; names are escaped.

    Args:
        sample: the sample.
        about: run, source, model, date, simulated, notes and version.
        examples: example crops by predicted class.
    """
    groups = [(name, (examples or {}).get(name, ())) for name in (*sample.classes, REJECTED)]
    return (
        _templates()
        .get_template("sample.html.j2")
        .render(
            sample=sample,
            about=about,
            shares=list_share_texts(sample),
            columns=shares,
            examples=[(name, crops) for name, crops in groups if crops],
        )
    )


def _templates() -> jinja2.Environment:
    templates = create_environment("urnet.counting")
    templates.filters |= {"percent": format_percent, "ends": _format_interval, "at": _bar_position}
    return templates


def _format_interval(interval: np.ndarray) -> str:
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def _bar_position(share: float) -> str:
    """Format the position of a share on a bar of 100 % width."""
    return f"{100 * share:.2f}%"


def _slug(name: str) -> str:
    """Make a file name that every file system accepts; the number before it distinguishes equal names."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:40] or "sample"
