"""All folds and runs share the decoded cells, with the same results."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from urnet.cells.audit import audit_cells
from urnet.cells.cache import arrays
from urnet.cells.read import read_cells
from urnet.cells.split import split_cells
from urnet.images.rows import LazyRows
from urnet.recipe import load_recipe
from urnet.training.data import prepare_data
from urnet.training.fit import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("URNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def built(monkeypatch):
    """Record how many cells were decoded for each new cache entry."""
    counts = []
    build = arrays._write_entry

    def counted(path, cells, *arguments):
        counts.append(len(cells))
        build(path, cells, *arguments)

    monkeypatch.setattr(arrays, "_write_entry", counted)
    return counts


def test_folds_and_repeated_runs_decode_once(shapes, tiny, built):
    cells = read_cells(shapes)
    audit = audit_cells(cells, near_copies=False)
    for seed in (0, 1):
        for fold in range(5):
            recipe = load_recipe(tiny, ["split.folds=5", f"split.fold={fold}", f"seed={seed}"])
            divided = split_cells(cells, recipe, audit)
            data = prepare_data(divided, recipe)
            for part, name in ((data.train, "train"), (data.validation, "validation")):
                assert isinstance(part.images, LazyRows)
                own = divided.part(name)
                expected = np.stack([own.read(index) for index in range(len(own))])[:, None]
                np.testing.assert_array_equal(part.images[:], expected)
                np.testing.assert_array_equal(part.labels, own.labels)
    assert built == [60]


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_and_without_the_cache(shapes, tiny, tmp_path, monkeypatch, built):
    def weights(name: str) -> dict[str, np.ndarray]:
        run = train(shapes, tiny, tmp_path / name, overrides=["train.epochs=2"])[0]
        return load_file(run.model / "model.safetensors")

    first, again = weights("first"), weights("again")
    assert built == [60]
    monkeypatch.setattr(arrays, "MIN_FREE_BYTES", 10**18)
    without = weights("without")
    assert first.keys() == again.keys() == without.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
        np.testing.assert_array_equal(without[name], values)
