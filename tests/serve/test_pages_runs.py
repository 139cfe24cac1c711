"""The page Runs in a browser: running and finished runs, and comparisons; other folders are not shown."""

import asyncio
import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import uvicorn

from urnet.evaluation.evaluate import evaluate
from urnet.run_folder import Run
from urnet.serve.app import create_app
from urnet.serve.pages.components.curves import choose_ticks, draw_chart, make_curve
from urnet.serve.runs import compare_test_results, format_age, list_runs, read_history, recipe_differences
from urnet.serve.services import Services
from urnet.serve.settings import Settings


@pytest.fixture(scope="module")
def run_folders(served_run):
    """Runs next to the served one: `twin`, evaluated as well; `going`, whose third epoch is not written."""
    twin, going, strange = (served_run.parent / name for name in ("twin", "going", ".hidden"))
    evaluate(served_run)
    shutil.copytree(served_run, twin)
    recipe = (twin / "recipe.yaml").read_text(encoding="utf-8")
    (twin / "recipe.yaml").write_text(recipe.replace("epochs: 4", "epochs: 5"), encoding="utf-8")
    shutil.copytree(served_run, going, ignore=shutil.ignore_patterns("model", "evaluation"))
    history = (served_run / "history.csv").read_text(encoding="utf-8").splitlines()
    (going / "history.csv").write_text("\n".join(history[:3]) + "\n", encoding="utf-8")
    shutil.copytree(going, strange)
    yield served_run.parent
    for folder in (twin, going, strange, served_run / "evaluation"):
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_runs_are_accessible_at_every_width(open_page, axe, run_folders, width, scheme):
    for address in ("/runs?run=twin", "/runs?run=run&compare=twin"):
        page = open_page(address, width=width, scheme=scheme)
        page.wait_for_selector("svg.chart")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(page) == []


@pytest.mark.slow
def test_curves_follow_a_training(open_page, run_folders):
    page = open_page("/runs?run=going")
    page.wait_for_selector("svg.chart")
    assert "in epoch 2" in page.locator("svg.chart").first.get_attribute("aria-label")
    assert "unfinished" in page.locator("[role=status]").inner_text()
    history = (run_folders / "run" / "history.csv").read_text(encoding="utf-8").splitlines()
    with (run_folders / "going" / "history.csv").open("a", encoding="utf-8") as file:
        file.write(history[3] + "\n")
    page.wait_for_function("document.querySelector('svg.chart').ariaLabel.includes('in epoch 3')")


@pytest.mark.slow
def test_report_and_comparison_by_keyboard(open_page, run_folders):
    page = open_page("/runs")
    assert page.locator("[aria-current=true]").inner_text().startswith("run")
    assert "served" in page.locator("[aria-current=true]").inner_text()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Report of run").focus()
        page.keyboard.press("Enter")
    report = opened.value
    report.wait_for_selector("h1")
    assert report.url.endswith("/runs/report?run=run&part=test")
    page.get_by_label("Compare run with").select_option("twin")
    page.get_by_role("button", name="Compare").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs?run=run&compare=twin")
    page.wait_for_selector("text=No interval (all alike)")
    assert "train.epochs" in page.locator("main").inner_text()


def in_view(page, cell) -> bool:
    box = cell.bounding_box()
    return box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_one_source_has_neither_interval_nor_verdict(open_page, run_folders, width):
    for name in ("slide", "slide-b"):
        shutil.copytree(run_folders / "run", run_folders / name)
        part = run_folders / name / "evaluation" / "test"
        rows = pd.read_csv(part / "predictions.csv", dtype=str, keep_default_na=False)
        rows.assign(source="slide").to_csv(part / "predictions.csv", index=False)
        metrics = json.loads((part / "metrics.json").read_text(encoding="utf-8"))
        metrics["intervals"] |= {"unit": "source image", "groups": 1}
        (part / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    try:
        page = open_page("/runs?run=slide&compare=slide-b", width=width)
        page.wait_for_selector("text=No interval (one group)")
        shown = page.get_by_role("region", name="Differences on the test split")
        rows = [row.locator("td").all() for row in shown.locator("tbody tr").all()]
        assert len(rows) == 5
        assert [[cell.inner_text() for cell in row[1:]] for row in rows] == [["no interval: one group"]] * 5
        assert all(in_view(page, cell) for row in rows for cell in row)
        assert "chance" not in shown.inner_text()
        page = open_page("/runs?run=slide", width=width)
        page.wait_for_selector("text=12 cells, no intervals: all cells come from one source image.")
    finally:
        for name in ("slide", "slide-b"):
            shutil.rmtree(run_folders / name)


@pytest.mark.slow
def test_metrics_without_described_intervals_are_left_out(run_folders):
    part = run_folders / "run" / "evaluation" / "test" / "metrics.json"
    whole = part.read_text(encoding="utf-8")
    run = list_runs(run_folders / "run")["run"]
    assert [one.split for one in run.read_evaluations()] == ["test"]
    try:
        part.write_text(json.dumps(json.loads(whole) | {"intervals": None}), encoding="utf-8")
        assert run.read_evaluations() == []
    finally:
        part.write_text(whole, encoding="utf-8")


def test_comparisons_use_their_own_threads(monkeypatch, run_folders):
    from urnet.serve.pages.components import run_comparison

    go, found = threading.Event(), list_runs(run_folders / "run")
    monkeypatch.setattr(run_comparison, "compare_test_results", lambda *runs: go.wait(60))

    async def many() -> str:
        with ThreadPoolExecutor(2) as threads:
            made = [run_comparison.Comparison(found["run"], found["twin"], threads) for _ in range(50)]
            await asyncio.sleep(0.1)
            try:
                return await asyncio.wait_for(asyncio.to_thread(str, "a picture"), 10)
            finally:
                busy = [one.is_busy for one in made]
                [one.cancel() for one in made]
                go.set()
                assert all(busy)
                assert not any(one.is_busy for one in made)

    with ThreadPoolExecutor(1) as threads:  # the browser's driver runs a loop in this thread
        assert threads.submit(lambda: asyncio.run(many())).result() == "a picture"


@pytest.fixture
def slowly(monkeypatch, served_run, run_folders, pages):
    """A server in this process whose comparisons wait for an event: its address, and the event."""
    from urnet.serve.pages.components import run_comparison

    go = threading.Event()

    def compare(*runs):
        assert go.wait(60)
        return compare_test_results(*runs)

    monkeypatch.setattr(run_comparison, "compare_test_results", compare)
    services = Services.open(served_run, Settings(decoders=1), "onnx")
    server = uvicorn.Server(uvicorn.Config(create_app(services, pages=pages), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", go
        go.set()
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_comparison_shows_progress_can_be_cancelled_and_continues_without_its_page(slowly, browser, axe):
    address, go = slowly
    page = browser.new_page()
    page.goto(f"{address}/runs?run=run&compare=twin")
    page.wait_for_selector("svg.chart")
    page.wait_for_selector("[role=status] >> text=Comparing the runs on their test split.")
    page.wait_for_function("window.did_handshake")
    assert page.locator("progress:indeterminate").count() == 1
    assert axe(page) == []
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=status] >> text=The comparison was cancelled.")
    assert page.locator("progress").count() == 0
    page.reload()
    page.get_by_role("button", name="Compare again").click()
    page.wait_for_selector("progress:indeterminate")
    page.reload()
    page.wait_for_selector("progress:indeterminate")
    go.set()
    page.wait_for_selector("[role=status] >> text=The comparison is finished.")
    page.wait_for_selector("text=No interval (all alike)")
    page.goto(f"{address}/runs?run=run&compare=going")
    page.wait_for_selector("text=going: the test split is not evaluated")
    page.close()


@pytest.mark.slow
def test_requests_name_runs_and_not_paths(open_page, run_folders, server_url, tmp_path):
    page = open_page("/runs?run=..%2F..%2F..&compare=%2Fetc")
    assert page.locator("[aria-current=true]").inner_text().startswith("run")
    shutil.copytree(run_folders / "run", tmp_path / "elsewhere")
    for run in ("../../etc", str(tmp_path / "elsewhere"), "../run", ".hidden", "run/evaluation"):
        for part in ("test", "../evaluation/test"):
            answer = page.request.get(f"{server_url}/runs/report", params={"run": run, "part": part})
            assert answer.status == 404, (run, part)
    assert page.request.get(f"{server_url}/runs/report", params={"run": "run", "part": "../test"}).status == 404
    answer = page.request.get(f"{server_url}/runs/report", params={"run": "run", "part": "test"})
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_runs_and_folds_are_listed(run_folders, tmp_path):
    names = {"run", "twin", "going"}
    assert set(list_runs(run_folders / "run")) == names
    assert set(list_runs(run_folders / "run" / "model")) == names
    for fold in ("fold0", "fold1"):
        shutil.copytree(run_folders / "going", tmp_path / "runs" / "cv" / fold)
    (tmp_path / "runs" / "no run").mkdir()
    assert set(list_runs(tmp_path / "runs" / "cv" / "fold0")) == {"cv/fold0", "cv/fold1"}
    assert list_runs(tmp_path / "gone" / "run") == {}
    assert not list_runs(run_folders / "run")["going"].finished


def test_incomplete_history_is_read(run_folders, raises_code, tmp_path):
    shutil.copytree(run_folders / "going", tmp_path / "run")
    run = Run(tmp_path / "run")
    whole = len(run.history())
    with run.history_path.open("a", encoding="utf-8") as file:
        file.write("train,4,0.1")
    assert len(read_history(run)) in (whole, whole + 1)
    with run.history_path.open("a", encoding="utf-8") as file:
        file.write(",0.x")
    assert len(read_history(run)) == whole
    run.history_path.write_text("a letter\n", encoding="utf-8")
    with raises_code("run.history_damaged"):
        read_history(run)


def test_comparison_of_test_results(run_folders, raises_code):
    found = list_runs(run_folders / "run")
    table = compare_test_results(found["run"], found["twin"])
    assert table["difference"].tolist()[:2] == [0, 0]
    assert recipe_differences(found["run"].run, found["twin"].run) == [("train.epochs", "4", "5")]
    with raises_code("run.not_evaluated"):
        compare_test_results(found["run"], found["going"])


@pytest.mark.slow
def test_chart_describes_its_curves_and_skips_missing_values():
    lines = [
        make_curve("training", [1, 2, 3], [0.5, np.nan, 0.1]),
        make_curve("<b>", [1], [0.1], 2, 1),
        make_curve("none", [1], [np.nan]),
    ]
    drawn = draw_chart(lines, 'Loss "of" it')
    assert drawn.count("<polyline") == 2
    assert "<b>" not in drawn
    assert "training 0.1 in epoch 3" in drawn
    assert "none" not in drawn.replace("fill", "")
    assert draw_chart([lines[2]], "Loss") == ""
    assert draw_chart([make_curve("flat", [1, 2], [0.3, 0.3])], "Loss")
    assert choose_ticks(0.13, 0.94, 4)[0] <= 0.13
    assert choose_ticks(0.13, 0.94, 4)[-1] >= 0.94
    assert choose_ticks(1, 40, 5, integers=True) == [10, 20, 30, 40]
    assert [format_age(5), format_age(300), format_age(7300), format_age(200_000)] == ["5 s", "5 min", "2 h", "2 d"]
