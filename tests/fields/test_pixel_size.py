"""Pixel sizes in files that are rejected, in every format that states one."""

import math

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from test_microscopy import lif_planes, stack, write_czi, write_lif, write_nd2

from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.io.pixel_size import explain_implausible, is_plausible, square_pixel_um
from urnet.fields.io.read import describe_field
from urnet.images.simulation.phantom import draw_field


def write_ome(path, x, y="", unit=""):
    """An OME-TIFF whose XML has these attributes word by word."""
    size = f'PhysicalSizeX="{x}"' + (f' PhysicalSizeY="{y or x}"' if y is not None else "")
    units = f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="80" SizeY="60" SizeC="1" '
        f'SizeZ="1" SizeT="1" {size}{units}><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, stack(), description=xml.encode(), metadata=None)
    return path


def write_imagej(path, per_unit, unit):
    about = {"unit": unit} if unit else {}
    tifffile.imwrite(path, stack(), imagej=True, resolution=(per_unit, per_unit), metadata={"axes": "YX", **about})
    return path


STATED = {
    "OME 1 µm": (lambda p: write_ome(p / "f.ome.tif", "1.0", unit="µm"), 1.0),
    "OME 1 without a unit, which is µm": (lambda p: write_ome(p / "f.ome.tif", "1"), 1.0),
    "OME 1000 nm": (lambda p: write_ome(p / "f.ome.tif", "1000.0", unit="nm"), 1.0),
    "OME 1 pixel": (lambda p: write_ome(p / "f.ome.tif", "1.0", unit="pixel"), None),
    "OME 1 reference frame": (lambda p: write_ome(p / "f.ome.tif", "1.0", unit="reference frame"), None),
    "OME 0": (lambda p: write_ome(p / "f.ome.tif", "0.0"), None),
    "OME below 0": (lambda p: write_ome(p / "f.ome.tif", "-0.3"), None),
    "OME of no number": (lambda p: write_ome(p / "f.ome.tif", "unknown"), None),
    "OME infinite": (lambda p: write_ome(p / "f.ome.tif", "inf"), None),
    "OME 0.3 m": (lambda p: write_ome(p / "f.ome.tif", "0.3", unit="m"), 300_000.0),
    "OME 0.3 nm": (lambda p: write_ome(p / "f.ome.tif", "0.3", unit="nm"), 0.0003),
    "ImageJ 1 µm": (lambda p: write_imagej(p / "f.tif", 1.0, "um"), 1.0),
    "ImageJ 1 pixel": (lambda p: write_imagej(p / "f.tif", 1.0, "pixel"), None),
    "ImageJ 1 of nothing": (lambda p: write_imagej(p / "f.tif", 1.0, ""), None),
    "ImageJ 1 mm": (lambda p: write_imagej(p / "f.tif", 1.0, "mm"), 1000.0),
    "CZI 1 µm": (lambda p: write_czi(p / "f.czi", [{"data": stack()}], um=1.0), 1.0),
    "LIF 1 µm": (lambda p: write_lif(p / "f.lif", {"f": lif_planes(stack(1), um=1.0)}), 1.0),
    "ND2 without calibration": (lambda p: write_nd2(p / "f.nd2", [stack()[..., None]], um=-1.0), 1.0),
}


@pytest.mark.parametrize("case", STATED)
def test_uncalibrated_pixel_sizes_are_rejected(tmp_path, case):
    for name, package in (("CZI", "pylibCZIrw"), ("LIF", "liffile"), ("ND2", "nd2")):
        if case.startswith(name):
            pytest.importorskip(package)
    write, doubted = STATED[case]
    info = describe_field(write(tmp_path))
    assert info.pixel_um is None
    assert info.implausible_um == (None if doubted is None else pytest.approx(doubted))


@pytest.mark.parametrize("um", ["0.99", "1.01", "0.005", "5", "0.3225"])
def test_calibrated_pixel_sizes_are_accepted(tmp_path, um):
    info = describe_field(write_ome(tmp_path / "f.ome.tif", um))
    assert info.pixel_um == pytest.approx(float(um))
    assert info.implausible_um is None


@given(st.floats(), st.floats())
def test_every_size_has_an_answer(across, down):
    side = square_pixel_um([across, down])
    assert side is None or (math.isfinite(side) and side > 0)
    if side is not None and not is_plausible(side):
        assert "µm" in explain_implausible(side)


def test_a_rejected_pixel_size_gives_a_note_and_a_table_overrides_it(tmp_path, raises_code):
    pixels = draw_field(1, 0, 0, shape=(300, 300), cells=6, crop=32).brightfield
    (tmp_path / "fields").mkdir()
    about = {"axes": "YX", "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 1.0}
    tifffile.imwrite(tmp_path / "fields" / "a.ome.tif", pixels, metadata=about)
    done = crop_fields(tmp_path / "fields", tmp_path / "out", CropSettings(size=32))
    assert done.settings.pixel_um is None
    assert any("a.ome.tif states 1 µm" in note and "not accepted" in note for note in done.notes)
    assert "states 1 µm" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    with raises_code("fields.pixel_size_unknown") as caught:
        crop_fields(tmp_path / "fields", tmp_path / "b", CropSettings(size=32, width_um=20.0))
    assert all(word in str(caught.value) for word in ("a.ome.tif", "1 µm", "pixel_size_um"))
    table = pd.DataFrame([{"field": "a.ome.tif", "pixel_size_um": "1.0"}])
    table.to_csv(tmp_path / "fields" / "fields.csv", index=False)
    believed = crop_fields(tmp_path / "fields", tmp_path / "c", CropSettings(size=32))
    assert believed.settings.pixel_um == 1.0
    assert not any("accepted" in note for note in believed.notes)


def test_the_error_for_a_czi_without_pixel_size_names_the_file(tmp_path, raises_code):
    pytest.importorskip("pylibCZIrw")
    pixels = draw_field(1, 0, 0, shape=(300, 300), cells=6, crop=32).brightfield
    (tmp_path / "fields").mkdir()
    write_czi(tmp_path / "fields" / "a.czi", [{"data": np.asarray(pixels)}], um=None)
    assert len(crop_fields(tmp_path / "fields", tmp_path / "out", CropSettings(size=32)).table)
    with raises_code("fields.pixel_size_unknown") as caught:
        crop_fields(tmp_path / "fields", tmp_path / "b", CropSettings(size=32, width_um=20.0))
    assert all(word in str(caught.value) for word in ("a.czi", "pixel_size_um"))
