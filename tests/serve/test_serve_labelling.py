"""Images of the cells to be labelled, and their order in the queue."""

import asyncio
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

from urnet.bundle.model import Model
from urnet.serve import active_learning, cell_images
from urnet.serve.active_learning import QueueRanking, compute_uncertainty, project_features, rank_cells
from urnet.serve.app import create_app
from urnet.serve.cell_images import CellImages
from urnet.serve.database.labels import Labeller
from urnet.serve.database.store import Store
from urnet.serve.server import _fill_queue, serve
from urnet.serve.services import Services
from urnet.serve.settings import Settings


def test_cells_are_ranked_by_uncertainty_and_diversity():
    unsure = compute_uncertainty(np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.4, 0.4, 0.2], [0.6, 0.35, 0.05]]))
    assert unsure == pytest.approx([1.0, 0.2, 1.0, 0.75])
    points = np.array([[0, 0], [0.1, 0], [5, 5], [0, 0.1], [9, 9]], np.float32)
    order = rank_cells(np.array([0.9, 0.8, 0.7, 0.6, 0.1]), points, band=4)
    assert order.tolist()[:2] == [0, 2]
    assert order.tolist()[-1] == 4
    assert rank_cells(np.zeros(0), np.zeros((0, 2))).tolist() == []
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20, 900))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    short = project_features(rows)
    whole = np.linalg.norm(rows[:, None] - rows[None], axis=2)[np.triu_indices(20, 1)]
    projected = np.linalg.norm(short[:, None] - short[None], axis=2)[np.triu_indices(20, 1)]
    assert np.abs(projected / whole - 1).max() < 0.5


def test_fluorescence_has_one_display_range_for_all_cells(served_run, draw, tmp_path):
    draw(tmp_path / "crops", 4, classes=("disc",), dtype=np.uint16, suffix=".tif")
    draw(tmp_path / "glow", 4, classes=("disc",), dtype=np.uint16, suffix=".tif")
    bright = np.asarray(Image.open(tmp_path / "glow" / "disc" / "000.tif"))
    Image.fromarray((bright // 2).astype(np.uint16)).save(tmp_path / "glow" / "disc" / "001.tif")
    rows = [{"path": f"crops/disc/{k:03d}.tif", "target": f"glow/disc/{k:03d}.tif" if k < 3 else ""} for k in range(4)]
    pd.DataFrame([*rows, {"path": "gone.tif", "target": ""}]).to_csv(tmp_path / "cells.csv", index=False)
    images = CellImages.open(tmp_path / "cells.csv", model=Model.load(served_run), run=served_run)
    seen = [images.image(path) for path in images.rows]
    assert images.paired == "target"
    glow = [np.asarray(Image.open(io.BytesIO(one.paired))).mean() for one in seen[:3]]
    assert glow[1] < glow[0] - 20
    assert abs(glow[2] - glow[0]) < 20
    assert Image.open(io.BytesIO(seen[0].crop)).size == (24, 24)
    assert seen[3].paired is None
    assert seen[4].crop is None
    assert "gone.tif" in seen[4].error


@pytest.mark.parametrize("target", ["glow.png", "paired/glow.png"])
def test_paired_images_in_class_folders_are_named_by_the_recipe(served_run, draw, tmp_path, monkeypatch, target):
    folder = draw(tmp_path / "cells", 1, classes=("disc",))
    (folder / "disc" / "000.png").rename(folder / "disc" / "bright.png")
    draw(tmp_path / "other", 1, classes=("ring",))
    (tmp_path / "other" / "ring" / "000.png").rename(folder / "disc" / "glow.png")
    if target != "glow.png":
        (folder / "disc" / "paired").mkdir()
        (folder / "disc" / "glow.png").rename(folder / "disc" / target)
    monkeypatch.setattr(cell_images, "_read_target", lambda run: target)
    images = CellImages.open(folder, model=Model.load(served_run), run=served_run)
    shown = {path.rpartition("/")[2]: images.image(path) for path in images.rows}
    assert shown["bright.png"].paired is not None
    assert shown["bright.png"].paired != shown["bright.png"].crop


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_ranking_orders_the_queue_and_can_be_stopped(served_run, shapes, tmp_path, stopped, monkeypatch, raises_code):
    monkeypatch.setattr(active_learning, "CHUNK_CELLS", 4)
    store = Store(tmp_path / "bench.db")
    services = Services.open(served_run, Settings(decoders=1), "onnx", store=store)
    images = CellImages.open(shapes, model=services.model, run=served_run)
    store.labels.add_cells(images.name, images.queue_rows())
    before = store.labels.list_next(images.name, 100)
    with raises_code("labels.classes_of_model"):
        services.add_label_classes(["bar"])

    async def work() -> QueueRanking:
        ranking = QueueRanking(services, images, store.labels)
        ranking.start()
        while ranking.state == "running":
            await asyncio.sleep(0.01)
            if stopped and ranking.done:
                ranking.stop()
        return ranking

    services.network.start()
    ranking = asyncio.run(work())
    services.network.stop()
    after = store.labels.list_next(images.name, 100)
    assert sorted(after) == sorted(before)
    if stopped:
        assert ranking.state == "stopped"
        assert 0 < ranking.done < 60
    else:
        assert (ranking.state, ranking.done, len(ranking.proposals)) == ("done", 60, 60)
        probabilities, _, _ = services.network.engine.run(services.model.read(ranking.images.cells))
        assert list(ranking.images.rows)[int(compute_uncertainty(probabilities).argmax())] == after[0]
    store.close()


def test_a_server_without_a_model_labels_in_a_fixed_random_order(shapes, tmp_path, send_files, raises_code):
    orders = []
    for name in ("one.db", "two.db"):
        images = CellImages.open(shapes)
        services = Services(Settings(), store=Store(tmp_path / name), images=images)
        _fill_queue(services, ["bar", "disc"])
        with TestClient(create_app(services), base_url="http://localhost") as client:
            assert client.get("/readyz").status_code == 200
            for answer in (client.get("/v1/model"), send_files(client, shapes / "disc" / "000.png")):
                assert (answer.status_code, answer.json()["code"]) == (503, "server.no_model")
            assert services.label_classes() == ("bar", "disc")
            assert services.add_label_classes(["ring"]) == services.label_classes() == ("bar", "disc", "ring")
            assert services.remove_label_class("bar") == services.label_classes() == ("disc", "ring")
            orders.append(services.store.labels.list_next(images.name, 100))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(images.rows) != orders[0]
    assert Image.open(io.BytesIO(images.image(orders[0][0]).crop)).size == (24, 24)
    services.store = Store(tmp_path / "two.db")
    (note,) = _fill_queue(services, ["bar", "DISC"])  # the same command after a change on the page
    assert "Not added: bar." in note
    assert services.label_classes() == ("disc", "ring")
    person = Labeller("Ada")
    services.store.labels.label(services.store.labels.claim(images.name, person)[0].id, person, "disc")
    assert _fill_queue(services, []) == []
    moved = Path(shutil.copytree(shapes, tmp_path / "moved"))
    services.images = CellImages.open(moved)
    (note,) = _fill_queue(services, [])
    assert f"no labels of these cells, but of {images.name}" in note
    services.store.close()
    with raises_code("serve.nothing"):
        serve(None, Settings())
    with raises_code("labels.class_duplicate"):
        serve(None, Settings(), cells=shapes, classes=["bar", "BAR"], port=0, database=tmp_path / "three.db")
    assert not (tmp_path / "three.db").exists()
    with raises_code("labels.classes_of_model"):
        serve(tmp_path, Settings(), classes=["bar"])


def test_labelling_loads_no_torch():
    """Torch takes most of the start of a server with a model."""
    code = "import sys, urnet.serve.app, urnet.serve.pages, urnet.serve.cell_images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
