"""CZI, ND2 and LIF through bioio: a CZI and a LIF file made here, and for ND2, which nothing writes, a small reader
that registers itself with bioio as the real ones do. Without the extra, the error says what to install.
"""

import importlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from urnet.errors import ImageError
from urnet.fields.read import describe_field, open_field

H, W = 60, 80


def stack(*lead: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, (*lead, H, W)).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["czi", "nd2", "LIF"])
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "bioio", None)
    (tmp_path / f"f.{suffix}").write_bytes(b"whatever")
    kind = suffix.upper()
    words = rf'f\.{suffix}: reading {kind} needs bioio.*pip install "urnet\[microscopy\]".*OME-TIFF'
    with pytest.raises(ImageError, match=words):
        describe_field(tmp_path / f"f.{suffix}")


def test_importing_the_reader_does_not_import_bioio():
    import subprocess

    code = "import sys, urnet.fields.read; sys.exit('bioio' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_czi(tmp_path):
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw.czi")
    planes = stack(2, 3)
    with czi.create_czi(str(tmp_path / "f.czi")) as out:
        for c in range(2):
            for z in range(3):
                out.write(data=planes[c, z][..., None], plane={"C": c, "Z": z, "T": 0})
        out.write_metadata(
            document_name="f", channel_names={0: "BF", 1: "DAPI"}, scale_x=0.25e-6, scale_y=0.25e-6, scale_z=1e-6
        )
    info = describe_field(tmp_path / "f.czi")
    assert (info.height, info.width, info.planes, info.channels, info.dtype) == (H, W, 3, ("BF", "DAPI"), "uint16")
    assert info.pixel_um == pytest.approx(0.25)
    assert not info.colour
    with open_field(tmp_path / "f.czi", channel="dapi", z="2") as field:
        np.testing.assert_array_equal(field.read(10, 20, 30, 40), planes[1, 2, 10:40, 20:60])
    with open_field(tmp_path / "f.czi", channel="0", z="max") as field:
        np.testing.assert_array_equal(field.read(0, 0, H, W), planes[0].max(axis=0))
    with pytest.raises(ImageError, match="2 channels"):
        open_field(tmp_path / "f.czi", z="0")


def write_lif(path: Path, images: dict[str, np.ndarray], micrometres: float) -> None:
    """A minimal LIF file: a header in XML, then a block of memory for each image (C, H, W)."""

    def text(value: str) -> bytes:
        return value.encode("utf-16-le")

    elements, blocks = "", b""
    for number, (name, pixels) in enumerate(images.items()):
        C, height, width = pixels.shape
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
            f'Max="1" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="{c * height * width * 2}" BitInc="0"/>'
            for c in range(C)
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{axis}" NumberOfElements="{n}" Origin="0" '
            f'Length="{(n - 1) * micrometres * 1e-6:.9e}" Unit="m" BytesInc="{step}" BitInc="0"/>'
            for axis, n, step in ((1, width, 2), (2, height, 2 * width))
        )
        elements += (
            f'<Element Name="{name}" Visibility="1" CopyOption="1"><Data><Image TextDescription=""><ImageDescription>'
            f"<Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{pixels.nbytes}" MemoryBlockID="MemBlock_{number}"/><Children/></Element>'
        )
        label = text(f"MemBlock_{number}")
        head = b"\x2a" + struct.pack("<Q", pixels.nbytes) + b"\x2a" + struct.pack("<I", len(label) // 2) + label
        blocks += struct.pack("<II", 0x70, len(head)) + head + pixels.tobytes()
    xml = text(
        '<LMSDataContainerHeader Version="2"><Element Name="f" Visibility="1" CopyOption="1"><Data><Experiment/></Data>'
        f'<Memory Size="0" MemoryBlockID="MemBlock_none"/><Children>{elements}</Children></Element>'
        "</LMSDataContainerHeader>"
    )
    head = b"\x2a" + struct.pack("<I", len(xml) // 2) + xml
    path.write_bytes(struct.pack("<II", 0x70, len(head)) + head + blocks)


def test_lif(tmp_path):
    pytest.importorskip("bioio_lif")
    images = {"first": stack(2), "second": stack(2, seed=1)}
    write_lif(tmp_path / "f.lif", images, micrometres=0.5)
    info = describe_field(tmp_path / "f.lif")
    assert (info.height, info.width, info.planes, len(info.channels)) == (H, W, 1, 2)
    assert [name.rpartition("/")[2] for name in info.scenes] == ["first", "second"]
    assert info.pixel_um == pytest.approx(0.5, rel=0.02)
    for index, pixels in enumerate(images.values()):
        with open_field(tmp_path / "f.lif", channel="1", scene=str(index)) as field:
            np.testing.assert_array_equal(field.read(10, 20, 30, 40), pixels[1, 10:40, 20:60])


FAKE = """
import dask.array as da
import numpy as np
import xarray as xr
from bioio_base import reader, reader_metadata, types

class ReaderMetadata(reader_metadata.ReaderMetadata):
    @staticmethod
    def get_supported_extensions():
        return [".nd2"]

    @staticmethod
    def get_reader():
        return Reader

class Reader(reader.Reader):
    computed = 0

    @staticmethod
    def _is_supported_image(fs, path, **kwargs):
        with open(path, "rb") as file:
            return file.read(4) == b"FAKE"

    def __init__(self, image, fs_kwargs={}, **kwargs):
        self._path, self._fs = str(image), None

    @property
    def scenes(self):
        return ("P1", "P2")

    @property
    def physical_pixel_sizes(self):
        return types.PhysicalPixelSizes(1.0, 0.2, 0.2)

    def _read_delayed(self):
        shape = (2, 2, 3, 60, 80)
        whole = np.random.default_rng(self.current_scene_index).integers(0, 4000, shape).astype(np.uint16)
        def count(block):
            Reader.computed += 1
            return block
        lazy = da.from_array(whole, chunks=(1, 1, 1, 60, 80)).map_blocks(count, dtype=np.uint16, meta=whole[:0])
        return xr.DataArray(lazy, dims=list("TCZYX"), coords={"C": ["TD", "Hoechst"]})

    def _read_immediate(self):
        return self._read_delayed().compute()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A plugin on the path, found by its entry point as installed ones are."""
    plugins = pytest.importorskip("bioio.plugins")
    site = tmp_path / "site"
    (site / "fake_nd2").mkdir(parents=True)
    (site / "fake_nd2" / "__init__.py").write_text(FAKE, encoding="utf-8")
    info = site / "fake_nd2-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fake-nd2\nVersion: 1.0\nRequires-Dist: bioio-base>=1\n"
    )
    (info / "entry_points.txt").write_text("[bioio.readers]\nfake-nd2 = fake_nd2\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    plugins.plugins_by_ext_cache.clear()
    yield importlib.import_module("fake_nd2")
    plugins.plugins_by_ext_cache.clear()
    sys.modules.pop("fake_nd2", None)


def test_what_bioio_finds_by_itself_is_read(tmp_path, fake):
    (tmp_path / "f.nd2").write_bytes(b"FAKE")
    path = tmp_path / "f.nd2"
    info = describe_field(path)
    assert info.scenes == ("P1 t0", "P1 t1", "P2 t0", "P2 t1")
    assert (info.channels, info.planes, info.dtype) == (("TD", "Hoechst"), 3, "uint16")
    assert info.pixel_um == pytest.approx(0.2)
    whole = np.random.default_rng(1).integers(0, 4000, (2, 2, 3, H, W)).astype(np.uint16)
    fake.Reader.computed = 0
    with open_field(path, channel="hoechst", z="1", scene="P2 t1") as field:
        np.testing.assert_array_equal(field.read(10, 20, 30, 40), whole[1, 1, 1, 10:40, 20:60])
        np.testing.assert_array_equal(field.read(0, 0, H, W), whole[1, 1, 1])
    assert fake.Reader.computed == 1  # a small plane is read once and kept


def test_large_planes_are_read_in_regions(tmp_path, fake, monkeypatch):
    monkeypatch.setattr("urnet.fields.microscopy.WHOLE", 1000)
    (tmp_path / "f.nd2").write_bytes(b"FAKE")
    whole = np.random.default_rng(0).integers(0, 4000, (2, 2, 3, H, W)).astype(np.uint16)
    with open_field(tmp_path / "f.nd2", channel="0", z="2", scene="0") as field:
        for top in (0, 30):
            np.testing.assert_array_equal(field.read(top, 20, 30, 40), whole[0, 0, 2, top : top + 30, 20:60])


@pytest.mark.parametrize("suffix", ["czi", "nd2", "lif"])
def test_damaged_files(tmp_path, suffix):
    pytest.importorskip("bioio")
    for data in (b"", b"not such a file" * 100):
        (tmp_path / f"f.{suffix}").write_bytes(data)
        with pytest.raises(ImageError, match=rf"f\.{suffix}: "):
            describe_field(tmp_path / f"f.{suffix}")
