"""Crops read by threads: their order, and how far ahead they are read."""

import logging
import time
import warnings

import numpy as np
import pytest
import tifffile

from urnet.cells.read import find_images
from urnet.images.read import read_image, translate_decoder_errors
from urnet.prefetch import prefetch_cells


@pytest.fixture(scope="module")
def model(trained):
    return trained.load_model()


def test_cells_come_in_order_with_their_reasons(model, shapes, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    cells = find_images([shapes, tmp_path / "bad.png"])
    found = list(prefetch_cells(model, cells, 5, 16, skipped={7}))
    assert [read.index for read in found] == list(range(5, 61))
    for read in found:
        if read.index == 7:
            assert read.crop is None
            assert read.error == ""
        elif read.index == 60:
            assert read.crop is None
            assert "bad.png" in read.error
        else:
            assert np.array_equal(read.crop, model.resize_crop(cells.read(read.index)))


def test_the_number_of_prefetched_cells_is_bounded(model, shapes, monkeypatch):
    cells, fitted = find_images([shapes]), []
    resize = model.resize_crop
    monkeypatch.setattr(model, "resize_crop", lambda crop: fitted.append(1) or resize(crop))
    reader = prefetch_cells(model, cells, 0, 16)
    next(reader)
    time.sleep(0.2)
    assert len(fitted) <= 24  # the chunk that is being taken, and two that wait
    reader.close()
    time.sleep(0.1)
    done = len(fitted)
    time.sleep(0.1)
    assert len(fitted) == done


def test_an_unexpected_error_ends_the_prefetching(model, shapes, monkeypatch):
    def broken(crop):
        raise MemoryError

    monkeypatch.setattr(model, "resize_crop", broken)
    with pytest.raises(MemoryError):
        list(prefetch_cells(model, find_images([shapes]), 0, 16))


def test_prefetching_does_not_change_warnings_and_logs(model, draw, tmp_path, raises_code):
    cells = draw(tmp_path, 20)
    for number in range(20):
        tifffile.imwrite(cells / f"{number}.tif", np.zeros((24, 24), np.uint8))
    before, log = list(warnings.filters), logging.getLogger("tifffile").disabled
    list(prefetch_cells(model, find_images([cells]), 0, 64))
    assert list(warnings.filters) == before
    assert logging.getLogger("tifffile").disabled == log
    with raises_code("images.not_found"), translate_decoder_errors(tmp_path):
        read_image(tmp_path / "none.png")
    assert list(warnings.filters) == before
