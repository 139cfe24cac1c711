"""Images in several files: files of one request belong together, files of other requests are out of reach."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from urnet.fields.cropping.settings import CropSettings
from urnet.images.simulation.phantom import draw_field
from urnet.serve.uploads.worker import _Decoder, _UnreadableFiles

LIMITS = {"pixels": 10**8, "field": 10**8, "file": 10**9, "images": 100, "memory": 2**30}


def part(number: int, names: list[str], shape: tuple[int, int], types: str) -> bytes:
    """Write the OME-XML of two channels in two files."""
    data = "".join(
        f'<TiffData IFD="0" FirstC="{c}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID></TiffData>'
        for c, name in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(2))
    return (
        f'<?xml version="1.0"?><OME UUID="urn:uuid:{number}"><Image ID="Image:0" Name="f"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYCZT" Type="{types}" SizeX="{shape[1]}" SizeY="{shape[0]}" SizeC="2" SizeZ="1" SizeT="1">'
        f"{channels}{data}</Pixels></Image></OME>"
    ).encode()


def extract(folder, out):
    config = SimpleNamespace(tile=None, image=None)
    decoder = _Decoder(config, CropSettings(size=48, channel="0", light="none"), LIMITS)
    return decoder.extract_cells(folder, out, {}, _UnreadableFiles(lambda name: None, {}))


@pytest.fixture
def requests(tmp_path):
    """Folders of two requests with one channel each, under stored names."""
    pixels = draw_field(3, 0, 0, shape=(380, 420), cells=12, crop=48).brightfield
    names = ["bf.ome.tif", "dapi.ome.tif"]
    files = []
    for number in range(2):
        folder = tmp_path / f"request{number}" / "files"
        folder.mkdir(parents=True)
        files.append(folder / f"{number:06d}.tif")
        plane = pixels if number == 0 else np.roll(pixels, 7)
        xml = part(number, names, pixels.shape, str(pixels.dtype))
        tifffile.imwrite(files[-1], plane, description=xml, metadata=None, photometric="minisblack")
    return files


def test_two_uploads_of_one_request_are_one_field(requests, tmp_path):
    first, second = requests
    alone = extract(first.parent, tmp_path / "alone")
    assert list(alone["unreadable"]) == [first.name]
    message, code = alone["unreadable"][first.name]
    assert code == "images.companion_missing"
    assert "send all files of the set in one request" in message
    second.rename(first.parent / second.name)
    both = extract(first.parent, tmp_path / "both")
    assert both["unreadable"] == {}
    assert [one["name"] for one in both["seen"]] == [first.name]
    assert both["cells"] > 0
    assert any("one image" in note for note in both["notes"])


@pytest.mark.parametrize("name", ["../../request1/files/000001.tif", "..\\..\\request1\\files\\000001.tif", "{path}"])
def test_an_upload_cannot_reach_the_files_of_another_request(requests, tmp_path, name):
    first, second = requests
    reasons = set()
    for there in (True, False):
        if not there:
            second.unlink()
        with tifffile.TiffFile(first) as tif:
            pixels = tif.pages[0].asarray()
        xml = part(0, ["bf.ome.tif", name.format(path=second)], pixels.shape, str(pixels.dtype))
        tifffile.imwrite(first, pixels, description=xml, metadata=None, photometric="minisblack")
        result = extract(first.parent, tmp_path / f"out {there}")
        reasons.add(result["unreadable"][first.name])
    assert len(reasons) == 1
    assert reasons.pop()[1] == "images.companion_refused"
