"""Cells and settings with which a run of a benchmark takes less than a second."""

from pathlib import Path

import pytest

SMALL = (
    *("input.size=32", "enhancer.width=2", "classifier.name=test_byobnet", "classifier.pretrained=false"),
    *("classifier.weights=null", "augment.per_class=16", "train.batch_size=16", "train.epochs=1"),
    *("pretrain.epochs=1", "pretrain.batch_size=16"),
)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Ninety simulated cells of five donors and three classes, 32 px; not to be changed."""
    from urnet.cells.simulate import write_phantom

    return write_phantom(tmp_path_factory.mktemp("phantoms") / "cells", 90, size=32, donors=5)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides with which every row of Table 3 and of the ablation trains in a moment."""
    return SMALL


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures, which take longest."""
    monkeypatch.setattr("urnet.benchmark.report._draw_figures", lambda *_: [])
