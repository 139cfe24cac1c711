"""Images in several files: files are found by name in their own folder only, and are read once."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from urnet.errors import ImageError
from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.duplicates import drop_duplicate_planes
from urnet.fields.io.read import describe_field, open_field
from urnet.fields.table import FieldRow
from urnet.images.montage import read_crop
from urnet.images.simulation.phantom import draw_field

H, W = 40, 56
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**16, shape or (H, W)).astype(np.uint16)


def tiff_data(name: str | None, uuid: str, *, ifd: int = 0, c: int = 0, z: int = 0, t: int = 0, count: int = 1) -> str:
    file = "" if name is None else f' FileName="{name}"'
    return (
        f'<TiffData IFD="{ifd}" FirstC="{c}" FirstZ="{z}" FirstT="{t}" PlaneCount="{count}">'
        f"<UUID{file}>{uuid}</UUID></TiffData>"
    )


def ome(images: list[tuple[str, str]], uuid: str | None, *, c: int = 1, z: int = 1, t: int = 1, size=(H, W)) -> str:
    """OME-XML of images, each by its name and `TiffData` elements."""
    channels = "".join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(c))
    body = "".join(
        f'<Image ID="Image:{k}" Name="{name}"><Pixels ID="Pixels:{k}" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="{size[1]}" SizeY="{size[0]}" SizeC="{c}" SizeZ="{z}" SizeT="{t}">{channels}{data}</Pixels></Image>'
        for k, (name, data) in enumerate(images)
    )
    own = "" if uuid is None else f' UUID="{uuid}"'
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}"{own}>{body}</OME>'


def write(path: Path, stack: np.ndarray, xml: str | None) -> None:
    with tifffile.TiffWriter(path) as out:
        for number, page in enumerate(stack if stack.ndim == 3 else [stack]):
            description = xml.encode() if xml is not None and number == 0 else None
            out.write(page, description=description, metadata=None, photometric="minisblack", contiguous=False)


def read(path: Path, **choice: str) -> np.ndarray:
    with open_field(path, **choice) as field:
        return field.read(0, 0, field.info.height, field.info.width)


def positions(folder: Path, number: int = 3, size=(H, W), draw=pixels) -> list[np.ndarray]:
    """Write a set with one file per position; each file names all others."""
    planes = [draw(seed) for seed in range(number)]
    names = [f"pos_{k}.ome.tif" for k in range(number)]
    images = [(f"Pos{k}", tiff_data(names[k], f"urn:uuid:{k}")) for k in range(number)]
    for k, plane in enumerate(planes):
        write(folder / names[k], plane, ome(images, f"urn:uuid:{k}", size=size))
    return planes


def test_every_file_of_a_set_exposes_all_scenes(tmp_path):
    planes = positions(tmp_path)
    for k in range(3):
        path = tmp_path / f"pos_{k}.ome.tif"
        info = describe_field(path)
        assert info.scenes == ("Pos0", "Pos1", "Pos2")
        assert info.files == tuple(tmp_path / f"pos_{n}.ome.tif" for n in range(3))
        for scene, plane in enumerate(planes):
            np.testing.assert_array_equal(read(path, scene=str(scene)), plane)


def test_a_renamed_set_is_found_by_its_uuids(tmp_path, raises_code):
    """Uploads are stored so: in one folder, under names that the server chooses."""
    planes = positions(tmp_path)
    for k in range(3):
        (tmp_path / f"pos_{k}.ome.tif").rename(tmp_path / f"{k:06d}.tif")
    for scene, plane in enumerate(planes):
        np.testing.assert_array_equal(read(tmp_path / "000001.tif", scene=f"Pos{scene}"), plane)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "000002.tif").rename(tmp_path / "elsewhere" / "000002.tif")
    with raises_code("images.companion_missing"):
        describe_field(tmp_path / "000001.tif")


@pytest.mark.parametrize("uuid", ["urn:uuid:7", None])
def test_a_renamed_single_file_is_read(tmp_path, uuid):
    plane = pixels(0)
    write(tmp_path / "upload.tif", plane, ome([("f", tiff_data("scan.ome.tif", "urn:uuid:7"))], uuid))
    np.testing.assert_array_equal(read(tmp_path / "upload.tif"), plane)
    write(tmp_path / "upload.tif", plane, ome([("f", tiff_data("D:\\old\\scan.ome.tif", "urn:uuid:7"))], "urn:uuid:7"))
    np.testing.assert_array_equal(read(tmp_path / "upload.tif"), plane)


def test_files_with_one_uuid_are_identified_by_name(tmp_path):
    names = ["a.ome.tif", "b.ome.tif"]
    data = "".join(tiff_data(name, "urn:uuid:1", c=c) for c, name in enumerate(names))
    planes = [pixels(0), pixels(1)]
    for name, plane in zip(names, planes, strict=True):
        write(tmp_path / name, plane, ome([("f", data)], "urn:uuid:1", c=2))
    for c, plane in enumerate(planes):
        np.testing.assert_array_equal(read(tmp_path / "b.ome.tif", channel=str(c)), plane)


@pytest.mark.parametrize("companion", ["set.companion.ome", "master.ome.tif"])
def test_metadata_in_a_companion(tmp_path, companion):
    planes = [pixels(0), pixels(1)]
    data = [("A", tiff_data("a.ome.tif", "urn:uuid:a")), ("B", tiff_data("b.ome.tif", "urn:uuid:b"))]
    if companion.endswith("tif"):
        data.append(("M", tiff_data("master.ome.tif", "urn:uuid:m")))
        write(tmp_path / companion, pixels(2), ome(data, "urn:uuid:m"))
    else:
        (tmp_path / companion).write_text(ome(data, "urn:uuid:m"), encoding="utf-8")
    for name, plane in zip("ab", planes, strict=True):
        pointer = f'<BinaryOnly MetadataFile="{companion}" UUID="urn:uuid:m"/>'
        write(tmp_path / f"{name}.ome.tif", plane, f'<OME xmlns="{SCHEMA}" UUID="urn:uuid:{name}">{pointer}</OME>')
    for k, plane in enumerate(planes):
        np.testing.assert_array_equal(read(tmp_path / "b.ome.tif", scene=str(k)), plane)
    assert describe_field(tmp_path / "b.ome.tif").files == describe_field(tmp_path / "a.ome.tif").files


@pytest.mark.parametrize("xml", [ome([("x", tiff_data("pos_1.ome.tif", "urn:uuid:9"))], "urn:uuid:9"), None])
def test_a_file_with_the_right_name_and_another_uuid_is_not_read(tmp_path, xml, raises_code):
    planes = positions(tmp_path)
    (tmp_path / "pos_1.ome.tif").rename(tmp_path / "renamed.tif")
    write(tmp_path / "pos_1.ome.tif", pixels(9), xml)
    np.testing.assert_array_equal(read(tmp_path / "pos_0.ome.tif", scene="1"), planes[1])  # the renamed one
    (tmp_path / "renamed.tif").unlink()
    with raises_code("images.companion_missing"):
        describe_field(tmp_path / "pos_0.ome.tif")


def test_files_of_a_set_that_have_changed_names_are_read_by_their_uuids(tmp_path):
    planes = positions(tmp_path, 2)
    for old, new in (("pos_0", "x"), ("pos_1", "pos_0"), ("x", "pos_1")):
        (tmp_path / f"{old}.ome.tif").rename(tmp_path / f"{new}.ome.tif")
    for given in (0, 1):
        for scene in (0, 1):
            np.testing.assert_array_equal(read(tmp_path / f"pos_{given}.ome.tif", scene=str(scene)), planes[scene])


@pytest.mark.parametrize("companion", ["set.companion.ome", "master.ome.tif"])
def test_metadata_of_another_set_are_not_read(tmp_path, companion, raises_code):
    xml = ome([("A", tiff_data("a.ome.tif", "urn:uuid:a"))], "urn:uuid:other")
    if companion.endswith("tif"):
        write(tmp_path / companion, pixels(2), xml)
    else:
        (tmp_path / companion).write_text(xml, encoding="utf-8")
    pointer = f'<BinaryOnly MetadataFile="{companion}" UUID="urn:uuid:m"/>'
    write(tmp_path / "a.ome.tif", pixels(0), f'<OME xmlns="{SCHEMA}" UUID="urn:uuid:a">{pointer}</OME>')
    with raises_code("images.companion_missing"):
        describe_field(tmp_path / "a.ome.tif")


def test_metadata_in_a_companion_must_say_which_file_has_the_pages(tmp_path, raises_code):
    (tmp_path / "c.companion.ome.xml").write_text(ome([("A", "<TiffData/>")], "urn:uuid:m"), encoding="utf-8")
    pointer = '<BinaryOnly MetadataFile="c.companion.ome.xml" UUID="urn:uuid:m"/>'
    write(tmp_path / "a.ome.tif", pixels(0), f'<OME xmlns="{SCHEMA}" UUID="urn:uuid:a">{pointer}</OME>')
    with raises_code("images.ome_xml_invalid"):
        describe_field(tmp_path / "a.ome.tif")


# --- nothing but the folder's own files


@pytest.fixture
def secret(tmp_path):
    """The folder of one request, and next to it a file of another user."""
    (tmp_path / "request").mkdir()
    write(tmp_path / "secret.tif", pixels(99), None)
    return tmp_path / "secret.tif"


def hostile(kind: str, name: str, given: Path) -> None:
    """Write a file that names another file by `name`."""
    if kind == "plane":
        data = tiff_data(given.name, "urn:uuid:0", c=0) + tiff_data(name, "urn:uuid:1", c=1)
        write(given, pixels(0), ome([("f", data)], "urn:uuid:0", c=2))
    elif kind == "only plane":
        write(given, pixels(0), ome([("f", tiff_data(name, "urn:uuid:1"))], None))
    elif kind == "metadata":
        pointer = f'<BinaryOnly MetadataFile="{name}" UUID="urn:uuid:1"/>'
        write(given, pixels(0), f'<OME xmlns="{SCHEMA}" UUID="urn:uuid:0">{pointer}</OME>')
    elif kind == "entity":
        xml = ome([("f", tiff_data(None, "urn:uuid:0"))], "urn:uuid:0")
        xml = xml.replace("<OME", f'<!DOCTYPE OME [<!ENTITY x SYSTEM "file://{name}">]><OME', 1)
        write(given, pixels(0), xml)
    elif kind == "stack":
        micromanager(given, [(0, 0, 0, 0)], {"Positions": 2, "Prefix": name.rpartition("_MMStack")[0]})
    elif kind == "index":
        micromanager(given, [(0, 0, 0, 0)], {}, version=3)
        axes, file = b'{"position": 0}', name.encode()
        row = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(file)) + file
        (given.parent / "NDTiff.index").write_bytes(row + struct.pack("<IIIIIIII", 8, W, H, 1, 0, 0, 0, 0))


NAMES = [
    "{secret}",
    "{absent}",
    "../secret.tif",
    "../absent.tif",
    "..\\secret.tif",
    "//host/share/secret.tif",
    "link.tif",
]


@pytest.mark.parametrize("kind", ["plane", "only plane", "metadata"])
def test_other_files_are_refused_whether_or_not_they_exist(secret, kind):
    given = secret.parent / "request" / "given.ome.tif"
    (given.parent / "link.tif").symlink_to(secret)
    messages = set()
    for name in NAMES:
        hostile(kind, name.format(secret=secret, absent=secret.with_name("absent.tif")), given)
        for attempt in (lambda: describe_field(given), lambda: open_field(given, channel="1")):
            with pytest.raises(ImageError) as refused:
                attempt()
            messages.add((refused.value.code, str(refused.value)))
    assert len(messages) == 1
    assert messages.pop()[0] == "images.companion_refused"


WATCH = """
import os
import os, sys
from pathlib import Path
from urnet.errors import ImageError
from urnet.fields.field_or_crop import is_larger_than_crops
from urnet.fields.io.pool import FieldPool
from urnet.fields.io.read import open_field, describe_field
from urnet.images.montage import list_images, read_crop
from urnet.images.read import read_header, read_image, survey_pages
import urnet.fields.cropping.crop, urnet.serve.uploads.worker, imagecodecs
from urnet.fields.cropping.settings import CropSettings

opened = []
folder = os.path.realpath(sys.argv[1])
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "glob.glob", "urllib.Request", "socket.connect"):
        opened.append((event, arguments[0]))
watching = [Path(name) for name in sys.argv[2:]]
for warm in (False, True):
    if warm:
        sys.addaudithook(hook)
    for path in watching:
        for read in (
            describe_field,
            lambda p: open_field(p).read(0, 0, 8, 8),
            lambda p: open_field(p, channel="1", z="max", scene="1").read(0, 0, 8, 8),
            lambda p: is_larger_than_crops(p, CropSettings(size=8), FieldPool()),
            read_header, read_image, survey_pages,
            lambda p: read_crop(p.parent, p.name),
            lambda p: list_images(p.parent, p.name, None),
            lambda p: urnet.fields.cropping.crop.crop_fields(p, p.parent / "out", CropSettings(size=8)),
        ):
            try:
                read(path)
            except (ImageError, urnet.errors.CellsError):
                pass
assert any(str(what).endswith("given_MMStack.ome.tif") for _, what in opened), "nothing was watched"
for event, what in opened:
    if isinstance(what, int):
        continue
    place = os.path.realpath(os.fsdecode(what))
    system = (sys.prefix, sys.base_prefix, "/proc/", "/dev/")
    if place != folder and not place.startswith((folder + os.sep, *system)) and not place.endswith((".py", ".pyc")):
        print(event, place)
"""


@pytest.mark.slow
def test_no_reader_opens_another_file_whatever_a_file_names(secret):
    """Test every reader with every kind of file that names others, and record the files that the process opens."""
    folder = secret.parent / "request"
    (folder / "link.tif").symlink_to(secret)
    files = []
    for kind in ("plane", "only plane", "metadata", "entity", "stack", "index"):
        for number, name in enumerate([str(secret), "../secret.tif", "link.tif", f"{secret.parent}/x_MMStack_1.tif"]):
            own = folder / f"{kind} {number}"
            own.mkdir()
            files.append(own / "given_MMStack.ome.tif")
            hostile(kind, name, files[-1])
            (own / "link.tif").symlink_to(secret)
    write(secret.parent / "x_MMStack_1.tif", pixels(98), None)
    positions(folder, 2)
    whole, rng = (folder / "pos_0.ome.tif").read_bytes(), np.random.default_rng(0)
    for number in range(60):  # and whatever else such a file may hold
        data = bytearray(whole)
        for place in rng.integers(0, [600, 1200, len(data)]):
            data[place] = rng.choice([0, 46, 47, 92, 255, rng.integers(256)])
        files.append(folder / f"mutant {number}.tif")
        files[-1].write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", WATCH, str(folder), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == ""


# --- a plane is read once


def test_a_plane_or_page_that_is_named_twice_is_an_error(tmp_path, raises_code):
    stack = pixels(0, 3, H, W)
    own = "urn:uuid:0"
    twice = {
        "two pages for one plane": tiff_data("f.tif", own, ifd=0, z=0) + tiff_data("f.tif", own, ifd=1, z=0),
        "one page for two planes": tiff_data("f.tif", own, ifd=0, z=0) + tiff_data("f.tif", own, ifd=0, z=1),
    }
    for data in twice.values():
        write(tmp_path / "f.tif", stack, ome([("f", data)], own, z=3))
        with raises_code("fields.page_twice"):
            describe_field(tmp_path / "f.tif")
    data = "".join(tiff_data("f.tif", own, ifd=k, z=k) * 2 for k in range(3))  # says the same twice
    write(tmp_path / "f.tif", stack, ome([("f", data)], own, z=3))
    np.testing.assert_array_equal(read(tmp_path / "f.tif", z="2"), stack[2])
    both = [("a", tiff_data("f.tif", own, ifd=0, count=3)), ("b", tiff_data("f.tif", own, ifd=0, count=3))]
    write(tmp_path / "f.tif", stack, ome(both, own, z=3))
    with raises_code("fields.page_twice"):
        describe_field(tmp_path / "f.tif")


@pytest.fixture(scope="module")
def drawn():
    return [draw_field(3, 0, index, shape=(380, 420), cells=12, crop=48).brightfield for index in range(2)]


def test_a_folder_with_a_set_is_one_field_for_each_scene_asked(tmp_path, drawn, raises_code):
    folder = tmp_path / "set"
    folder.mkdir()
    values = [(65535 * one / one.max()).astype(np.uint16) for one in drawn]
    positions(folder, 2, drawn[0].shape, lambda seed: values[seed])
    alone = tmp_path / "alone"
    alone.mkdir()
    for k, one in enumerate(values):
        tifffile.imwrite(alone / f"{k}.tif", one)
    for scene in (0, 1):
        how = CropSettings(size=48, scene=str(scene), light="none")
        done = crop_fields(folder, tmp_path / f"out{scene}", how)
        assert [one.row.field for one in done.fields] == ["pos_0.ome.tif"]
        assert any("pos_1.ome.tif" in note and "one image" in note for note in done.notes)
        expected = crop_fields(alone / f"{scene}.tif", tmp_path / f"alone{scene}", CropSettings(size=48, light="none"))
        pd.testing.assert_frame_equal(done.table[["x", "y"]], expected.table[["x", "y"]])
    (folder / "fields.csv").write_text(
        "field,brightfield,scene,donor\nA,pos_0.ome.tif,0,d1\nB,pos_1.ome.tif,Pos1,d1\nC,pos_0.ome.tif,1,d1\n"
    )
    done = crop_fields(folder, tmp_path / "table", CropSettings(size=48, light="none"))
    assert [one.row.field for one in done.fields] == ["A", "B"]
    (folder / "fields.csv").write_text("field,brightfield,scene,donor\nA,pos_0.ome.tif,0,d1\nB,pos_1.ome.tif,Pos0,d2\n")
    with raises_code("fields.plane_twice"):
        crop_fields(folder, tmp_path / "contradicts", CropSettings(size=48, light="none"))


def once(path: Path, choices: list[dict[str, str | None]]) -> list[str]:
    """List the names of the rows that remain of several rows of one file."""
    rows = [FieldRow(str(number), path, **choice) for number, choice in enumerate(choices)]
    return [row.field for row in drop_duplicate_planes({row: describe_field(path) for row in rows})[0]]


def test_one_plane_in_several_spellings_counts_once(tmp_path):
    write(tmp_path / "one.tif", pixels(0), None)
    assert once(tmp_path / "one.tif", [{}, {"z": ""}, {"z": "0"}, {"z": " 00"}, {"z": "MAX"}, {"channel": "00"}]) == [
        "0"
    ]
    assert once(tmp_path / "one.tif", [{}, {"z": "1"}, {"z": "01"}]) == ["0", "1"]
    tifffile.imwrite(
        tmp_path / "many.tif",
        pixels(0, 3, 2, H, W),
        ome=True,
        photometric="minisblack",
        metadata={"axes": "ZCYX", "Channel": {"Name": ["bf", "BF"]}},
    )
    z = [{"channel": "bf", "z": z} for z in ("0", "00", "1", "01 ", "max", "Max", "wrong", "10", "1")]
    assert once(tmp_path / "many.tif", z) == ["0", "2", "4", "6", "7"]
    channels = [{"channel": channel, "z": "0"} for channel in ("bf", "BF", "0", "01", " bf")]
    assert once(tmp_path / "many.tif", channels) == ["0", "1"]


# --- Micro-Manager


def micromanager(
    path: Path,
    planes: list[tuple[int, int, int, int]],
    summary: dict,
    *,
    xml: str | None = None,
    names: dict[int, str] | None = None,
    version: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """A stack as Micro-Manager writes it: an index of (channel, slice, frame, position), and metadata in each page."""
    values = pixels(seed, len(planes), H, W)
    text = json.dumps({"Width": W, "Height": H, **summary}).encode()
    data = bytearray(bytes(40) + text)
    offsets = []
    for number, (plane, place) in enumerate(zip(values, planes, strict=True)):
        about = {"PixelSizeUm": 0.5} | ({"PositionName": names[place[3]]} if names else {})
        if version is not None:
            axes = dict(zip(("channel", "z", "time", "position"), place, strict=True))
            about["Axes"] = axes | {"channel": SUMMARY["ChNames"][place[0]]}
        texts = {51123: json.dumps(about).encode() + b"\0"}
        if number == 0 and xml is not None:
            texts[270] = xml.encode() + b"\0"
        start = len(data) + len(data) % 2
        data += bytes(start - len(data))
        offsets.append(start)
        tags = {256: W, 257: H, 258: 16, 259: 1, 262: 1, 277: 1, 278: H, 279: plane.nbytes}
        behind = start + 2 + 12 * (len(tags) + 1 + len(texts)) + 4
        tags[273] = behind
        body = struct.pack("<H", len(tags) + len(texts))
        extra = plane.astype("<u2").tobytes()
        for code in sorted([*tags, *texts]):
            if code in tags:
                body += struct.pack("<HHII", code, 4, 1, tags[code])
            else:
                body += struct.pack("<HHII", code, 2, len(texts[code]), behind + len(extra))
                extra += texts[code]
        end = behind + len(extra) + len(extra) % 2
        last = number == len(planes) - 1
        data += body + struct.pack("<I", 0 if last else end) + extra.ljust(end - behind, b"\0")
    index = struct.pack("<II", 3453623, len(planes))
    for place, offset in zip(planes, offsets, strict=True):
        index += struct.pack("<IIIII", *place, offset)
    data[:40] = struct.pack("<4sI8I", b"II*\0", offsets[0], 54773648, len(data), 0, 0, 99384722, 0, 2355492, len(text))
    if version is not None:
        data[8:40] = struct.pack("<8I", 483729, version, 2, 2355492, len(text), 0, 0, 0)
    path.write_bytes(bytes(data) + index)
    return values


SUMMARY = {"ChNames": ["BF", "DAPI"], "PixelSize_um": 0.5}


def test_positions_of_a_micromanager_stack_are_scenes_with_their_names(tmp_path):
    planes = [(c, z, 0, p) for p in range(3) for z in range(2) for c in range(2)]
    names = {0: "A1-Site_0", 1: "A1-Site_1", 2: "B1"}
    values = micromanager(tmp_path / "s_MMStack.ome.tif", planes, SUMMARY, names=names)
    info = describe_field(tmp_path / "s_MMStack.ome.tif")
    assert (info.scenes, info.channels, info.planes) == (tuple(names.values()), ("BF", "DAPI"), 2)
    assert info.pixel_um == 0.5
    for (c, z, _, p), plane in zip(planes, values, strict=True):
        found = read(tmp_path / "s_MMStack.ome.tif", channel=SUMMARY["ChNames"][c], z=str(z), scene=names[p])
        np.testing.assert_array_equal(found, plane)


def test_a_micromanager_set_with_a_file_for_each_position(tmp_path):
    """The first file has the OME-XML; the others name it. One that was sent alone shows its own position."""
    files = [f"s_MMStack_Pos{p}.ome.tif" for p in range(2)]
    images = [
        (f"Pos{p}", tiff_data(files[p], f"urn:uuid:{p}", ifd=0, c=0) + tiff_data(files[p], f"urn:uuid:{p}", ifd=1, c=1))
        for p in range(2)
    ]
    pointer = f'<BinaryOnly MetadataFile="{files[0]}" UUID="urn:uuid:0"/>'
    xmls = [ome(images, "urn:uuid:0", c=2), f'<OME xmlns="{SCHEMA}" UUID="urn:uuid:1">{pointer}</OME>']
    values = [
        micromanager(tmp_path / files[p], [(0, 0, 0, p), (1, 0, 0, p)], SUMMARY, xml=xmls[p], seed=p) for p in range(2)
    ]
    for file in files:
        info = describe_field(tmp_path / file)
        assert (info.scenes, info.pixel_um) == (("Pos0", "Pos1"), 0.5)
        for p in range(2):
            np.testing.assert_array_equal(read(tmp_path / file, scene=f"Pos{p}", channel="1"), values[p][1])
    (tmp_path / files[0]).unlink()
    assert describe_field(tmp_path / files[1]).scenes == ("Pos1",)
    np.testing.assert_array_equal(read(tmp_path / files[1], channel="DAPI"), values[1][1])


def test_a_stopped_micromanager_acquisition_shows_its_planes(tmp_path, raises_code):
    xml = ome([("P", tiff_data("s.tif", "urn:uuid:0", count=6))], "urn:uuid:0", t=6)
    values = micromanager(tmp_path / "s.tif", [(0, 0, t, 0) for t in range(4)], SUMMARY, xml=xml)
    assert describe_field(tmp_path / "s.tif").scenes == tuple(f"Pos0 t{t}" for t in range(4))
    np.testing.assert_array_equal(read(tmp_path / "s.tif", scene="3"), values[3])
    micromanager(tmp_path / "s.tif", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0)], SUMMARY)
    with raises_code("fields.planes_missing"):
        describe_field(tmp_path / "s.tif")
    micromanager(tmp_path / "s.tif", [(0, 0, 0, 0), (0, 0, 0, 0)], SUMMARY)
    with raises_code("fields.page_twice"):
        describe_field(tmp_path / "s.tif")


def test_the_planes_of_an_ndtiff_follow_the_axes_of_its_pages(tmp_path, raises_code):
    planes = [(c, z, 0, p) for p in range(2) for z in range(3) for c in range(2)]
    values = micromanager(tmp_path / "NDTiffStack.tif", planes, {}, version=3)
    info = describe_field(tmp_path / "NDTiffStack.tif")
    assert (info.scenes, info.channels, info.planes, info.pixel_um) == (("Pos0", "Pos1"), ("BF", "DAPI"), 3, 0.5)
    for (c, z, _, p), plane in zip(planes, values, strict=True):
        found = read(tmp_path / "NDTiffStack.tif", channel=SUMMARY["ChNames"][c], z=str(z), scene=f"Pos{p}")
        np.testing.assert_array_equal(found, plane)
    with raises_code("images.pages_of_one_image"):
        read_crop(tmp_path, "NDTiffStack.tif")
    micromanager(tmp_path / "NDTiffStack.tif", [(0, 0, 0, 0), (0, 0, 0, 0)], {}, version=3)
    with raises_code("fields.page_twice"):
        describe_field(tmp_path / "NDTiffStack.tif")


# --- the cases


def test_cases_are_read_as_their_readme_says(cases):
    one = cases / "ome-renamed" / "renamed_by_an_upload.ome.tif"
    info = describe_field(one)
    assert (info.height, info.width, info.pixel_um) == (1024, 1024, pytest.approx(0.416667))
    np.testing.assert_array_equal(read(one), tifffile.TiffFile(one).pages[0].asarray())
    snap = cases / "micromanager-snap" / "snap_MMStack_Pos0.ome.tif"
    info = describe_field(snap)
    assert (info.height, info.width, info.pixel_um) == (1024, 1024, pytest.approx(0.416667))
    assert info.scenes == ("Pos0",)
    np.testing.assert_array_equal(read(snap), tifffile.TiffFile(snap).pages[0].asarray())
    for name, scenes, planes in (
        *(("yx1", 1, 1), ("11yx", 1, 1), ("zyx", 1, 15), ("z1yx", 1, 15), ("1zyx", 1, 15), ("cyx", 1, 3)),
        ("tcyx", 5, 3),
    ):
        path = cases / "numpy-shaped-tiff" / f"{name}.tif"
        info = describe_field(path)
        assert (len(info.scenes), info.planes, len(info.channels)) == (scenes, planes, 1), name
        expected = tifffile.imread(path).reshape(scenes, planes, 64, 80)
        for scene in range(scenes):
            for z in range(planes):
                np.testing.assert_array_equal(read(path, scene=str(scene), z=str(z)), expected[scene, z])


def test_files_of_a_set_are_closed_with_it_and_one_is_open_at_a_time(tmp_path):
    planes = positions(tmp_path, 4)
    with open_field(tmp_path / "pos_0.ome.tif", scene="2") as field:
        source = field._source
        for number, scene in enumerate(source.scenes):
            np.testing.assert_array_equal(source.plane(scene, 0, 0)(0, 0, H, W), planes[number])
        assert sum(not tif.filehandle.closed for tif in source.files._others.values()) == 1
    assert all(tif.filehandle.closed for tif in (source.files.tif, *source.files._others.values()))
