"""Names with markup in every report and on every page: shown as text, without a broken layout."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from urnet.benchmark.compare import compare
from urnet.counting.differential import count_cells
from urnet.evaluation.evaluate import evaluate
from urnet.fields.cropping.crop import CropSettings, crop_fields
from urnet.images.simulation.phantom import draw_field
from urnet.training.fit import train

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = "W" * 120
RUNS = '<img src=x onerror="window.hacked=1">'
DONOR = f"</td></table><script>window.hacked=2</script>{LONG}"
CLASSES = {
    "bar": f"</style></script><script>window.hacked=3</script>{LONG}",
    "disc": "<svg onload=window.hacked=4>",
    "ring": "' onmouseover=window.hacked=5 x='\"<b>{{ 7 * 7 }}",
}
FILE = "<img src=x onerror=window.hacked=6>&lt;b&gt;" + LONG


@pytest.fixture(scope="module")
def hostile(shapes, tiny, tmp_path_factory):
    """Train one epoch on cells with hostile classes, donors and files; copy the run, so that two can be compared."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for number, file in enumerate(sorted(shapes.rglob("*.png"))):
        name = f"{number}{FILE}.png"
        (folder / name).write_bytes(file.read_bytes())
        rows.append({"path": name, "label": CLASSES[file.parent.name], "donor": f"{number % 10}{DONOR}"})
    pd.DataFrame(rows).to_csv(folder / "cells.csv", index=False)
    runs = [folder / "runs" / f"{number}{RUNS}" for number in range(2)]
    train(folder / "cells.csv", tiny, runs[0], overrides=["train.epochs=1"])
    evaluate(runs[0])
    shutil.copytree(*runs)
    return folder, runs


@pytest.fixture(scope="module")
def reports(hostile, tmp_path_factory):
    """Write a report of each kind."""
    folder, runs = hostile
    out = tmp_path_factory.mktemp("reports")
    sample = out / f"S{FILE}"
    sample.mkdir()
    for number, file in enumerate(sorted(folder.glob("*.png"))[:20]):
        (sample / f"{number}{FILE}.png").write_bytes(file.read_bytes())
    counted = count_cells(runs[0], sample, out / f"counted{RUNS}", engine="torch")
    fields = out / "fields"
    fields.mkdir()
    field = draw_field(1, 0, 0, shape=(300, 300), cells=12, crop=32)
    name = f"{FILE}.tif"
    tifffile.imwrite(fields / name, field.brightfield, photometric="minisblack")
    labels = [*CLASSES.values()]
    truth = [{"field": name, "x": c.x, "y": c.y, "label": labels[k % 3]} for k, c in enumerate(field.cells)]
    pd.DataFrame(truth).to_csv(out / "truth.csv", index=False)
    crop_fields(fields, out / "cells", CropSettings(size=32), labels=out / "truth.csv")
    compared = compare(runs, out / f"compared{RUNS}").report
    return {
        "evaluation": runs[0] / "evaluation" / "test" / "report.html",
        "differential": counted.folder / "report.html",
        "crop": next((out / "cells").glob("*.html")),
        "comparison": Path(compared),
    }


WIDER = """(width) => [...document.querySelectorAll('body *')]
    .filter((one) => one.getBoundingClientRect().right > width + 1)
    .slice(0, 9)
    .map((one) => one.outerHTML.slice(0, 200))"""


class WatchedPage:
    """A browser page that records scripts, requests and layout that must not be there."""

    def __init__(self, browser, width: int):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.width, self.wrong = width, []
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("request", lambda request: self.wrong.append(request.url) if request.url.endswith("/x") else None)

    def check(self) -> str:
        """Check the page; return its text."""
        self.page.wait_for_timeout(300)
        for element in self.page.locator("[onmouseover]").all():
            self.wrong.append(element.inner_html())
        if self.page.evaluate("window.hacked ?? null") is not None:
            self.wrong.append("a script has run")
        if self.page.evaluate("document.documentElement.scrollWidth") > self.width:
            self.wrong += ["wider than the window:", *self.page.evaluate(WIDER, self.width)]
        assert self.wrong == []
        return self.page.inner_text("body")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("kind", ["evaluation", "differential", "crop", "comparison"])
def test_reports(browser, reports, kind, width):
    watched = WatchedPage(browser, width)
    watched.page.goto(reports[kind].as_uri())
    seen = watched.check()
    watched.page.close()
    assert "window.hacked" in seen


@pytest.fixture(scope="module")
def at(hostile, start_server, tmp_path_factory):
    folder, runs = hostile
    arguments = ("--cells", folder / "cells.csv", "--engine", "torch")  # which needs no export
    with start_server(runs[0], tmp_path_factory.mktemp("served"), *arguments) as address:
        yield address


@pytest.mark.parametrize("width", [400, 1280])
def test_pages(browser, at, tmp_path, width):
    watched = WatchedPage(browser, width)
    page = watched.page
    page.goto(at)
    rng = np.random.default_rng(0)
    files = []
    for number in range(3):
        pixels = rng.integers(60, 200, (24, 24)).astype(np.uint8)
        files.append(tmp_path / f"{number}{FILE}.png")
        Image.fromarray(pixels).save(files[-1])
    files.append(tmp_path / f"damaged{FILE}.png")
    files[-1].write_bytes(files[0].read_bytes()[:99])
    page.fill("#sample", DONOR[:100])
    page.set_input_files("#files", files)
    page.wait_for_selector(".status >> text=/images? classified/")
    assert "window.hacked" in watched.check()
    page.click(".cells button >> nth=0")
    page.wait_for_selector(".cell-dialog[open] .pictures img")
    watched.check()
    for path in ("/runs", "/about", "/label", "/review"):
        page.goto(at + path)
        page.wait_for_function("window.did_handshake")
        watched.check()
    page.goto(at + "/runs")
    for link in [one.get_attribute("href") for one in page.locator("main a").all()][:6]:
        page.goto(at + link if link.startswith("/") else link)
        watched.check()
    page.close()
