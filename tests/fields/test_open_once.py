"""One command opens each field once, decodes it once, and detects its cells once."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from urnet.fields.cropping import crop, one_field
from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.field_or_crop import list_fields
from urnet.fields.io import pool as pool_module
from urnet.fields.io import single_image
from urnet.fields.io.pool import FieldPool
from urnet.fields.io.tiff.source import SegmentCache
from urnet.images.simulation.phantom import draw_field

NAMES = ("tiled.tif", "strips.tif", "image.png")
SETTINGS = CropSettings(size=32, nuclei="*_dapi.tif")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Three fields in three formats, each with a file of nuclei."""
    folder = tmp_path_factory.mktemp("fields")
    drawn = draw_field(5, 1, 0, shape=(260, 260), cells=8, crop=32)
    tifffile.imwrite(folder / "tiled.tif", drawn.brightfield, tile=(64, 64), compression="zlib")
    tifffile.imwrite(folder / "strips.tif", drawn.brightfield, rowsperstrip=32, compression="zlib")
    Image.fromarray((drawn.brightfield >> 4).astype(np.uint8)).save(folder / "image.png")
    for name in NAMES:
        tifffile.imwrite(folder / f"{Path(name).stem}_dapi.tif", drawn.nuclei, tile=(64, 64), compression="zlib")
    return folder


class Counts:
    """Numbers of times that a command opened, decoded, searched and listed each file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path):
        self.opened, self.decoded, self.detected, self.listed = (Counter() for _ in range(4))
        self._folder = folder.resolve()
        self._active = True  # an audit hook cannot be removed
        self._count(monkeypatch, pool_module, "open_source", lambda path: (self.opened, path.name))
        self._count(monkeypatch, single_image, "read_image", lambda path: (self.decoded, path.name))
        self._count(
            monkeypatch,
            SegmentCache,
            "_decode",
            lambda cache, page, index: (self.decoded, (cache._files.path.name, page.index, index)),
        )
        self._count(monkeypatch, one_field, "detect", lambda read, *_, **__: (self.detected, read.__self__.field.path))
        self._count(monkeypatch, crop, "measure_illumination", lambda field: (self.detected, ("light", field.path)))
        sys.addaudithook(self._hook)

    def _count(self, monkeypatch, owner, name, key) -> None:
        original = getattr(owner, name)

        def counted(*arguments, **more):
            counter, what = key(*arguments, **more)
            counter[what] += 1
            return original(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)

    def _hook(self, event: str, arguments: tuple) -> None:
        listing = self._active and event in ("os.listdir", "os.scandir")
        if listing and not isinstance(arguments[0], int) and Path(os.fsdecode(arguments[0])).resolve() == self._folder:
            self.listed["folder"] += 1

    def check(self) -> None:
        self._active = False
        assert set(self.opened) == {*NAMES, *(f"{Path(name).stem}_dapi.tif" for name in NAMES)}
        for counter in (self.opened, self.decoded, self.detected, self.listed):
            assert set(counter.values()) == {1}, counter


@pytest.mark.slow
def test_crop_opens_decodes_and_detects_each_field_once(fields, tmp_path, monkeypatch):
    counts = Counts(monkeypatch, fields)
    result = crop_fields(fields, tmp_path / "cells", SETTINGS)
    assert len(result.fields) == 3
    counts.check()


@pytest.mark.slow
def test_a_prediction_opens_each_field_once_from_the_first_check_on(fields, tmp_path, monkeypatch):
    settings = replace(SETTINGS, pixel_um=None)
    counts = Counts(monkeypatch, fields)
    with FieldPool() as pool:
        source = list_fields(fields, None, settings, pool)
        result = crop_fields(source, tmp_path / "cells", settings, for_prediction=True, pool=pool)
    assert len(result.fields) == 3
    counts.check()


@pytest.mark.slow
def test_a_small_pool_gives_the_same_pixels(fields, tmp_path, monkeypatch):
    expected = crop_fields(fields, tmp_path / "all", SETTINGS)
    monkeypatch.setattr(pool_module, "MAX_OPEN_FILES", 1)
    with FieldPool(max_cached_bytes=0) as pool:
        result = crop_fields(fields, tmp_path / "few", SETTINGS, pool=pool)
    assert result.table.equals(expected.table)
    for path in expected.table["path"]:
        assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "all" / path).read_bytes()
