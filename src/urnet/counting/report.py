"""The differential on disk: a table, JSON, and one printable page a sample."""

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from urnet.counting.sample import Sample
from urnet.files.csv_tables import write_frame
from urnet.html_pages import NO_VALUE, create_environment
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
) -> Path:
    """Write `differential.csv`, `differential.json` and `report.html`; with several samples a page each beside it.

    Args:
        samples: what `count_sample` returned; at least one.
        out: folder; files of these names are replaced.
        run: the run whose model counted.
        source: what was counted.
        model: the model, in words.
        date: of the count, as it shall be printed.
        simulated: what of the images is simulated ("phantom"), or nothing.
        notes: what holds for all samples.

    Returns:
        The page to open first: the sample's, or with several samples the list of them, whose pages are in `samples/`.

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
    # A file name that is not valid Unicode, as Linux allows, must not stop the report.
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    write_frame(out / "differential.csv", differential_table(samples))
    whole = about | {"samples": [sample.to_json() for sample in samples]}
    (out / "differential.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", **how)
    first = out / "report.html"
    if len(samples) == 1:
        first.write_text(render_page(samples[0], about), **how)
        return first
    (out / SAMPLES_FOLDER).mkdir(exist_ok=True)
    places = [f"{SAMPLES_FOLDER}/{number:03d}-{_slug(sample.name)}.html" for number, sample in enumerate(samples, 1)]
    for sample, place in zip(samples, places, strict=True):
        (out / place).write_text(render_page(sample, about), **how)
    listed = list(zip(samples, places, strict=True))
    first.write_text(_templates().get_template("samples.html.j2").render(listed=listed, about=about), **how)
    return first


def differential_table(samples: Sequence[Sample]) -> pd.DataFrame:
    """What `differential.csv` holds: a row a sample and class, in per cent; empty where there is no figure."""
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


def render_page(sample: Sample, about: dict[str, Any]) -> str:
    """One sample's page as HTML. Names may hold any characters: everything is escaped."""
    return _templates().get_template("sample.html.j2").render(sample=sample, about=about)


def _templates() -> jinja2.Environment:
    made = create_environment("urnet.counting")
    made.filters |= {"share": _share, "ends": _ends, "at": _at}
    return made


def _share(share: float) -> str:
    return NO_VALUE if math.isnan(share) else f"{100 * share:.1f}"


def _ends(interval: np.ndarray) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _at(share: float) -> str:
    """Place on a bar that is 100 % long."""
    return f"{100 * share:.2f}%"


def _slug(name: str) -> str:
    """A name that every file system takes; the number before it tells equal ones apart."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:40] or "sample"
