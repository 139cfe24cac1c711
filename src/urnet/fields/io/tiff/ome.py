"""Find the page of each plane of an OME-TIFF, by its OME-XML.

An image may be spread over several files, which name each other by file name and UUID. `urnet.images.companions`
decides which names may be followed. These rules hold:

- The UUID of a file's own OME-XML means that file, whatever its name is now.
- Other files of the set that were renamed are found by their UUIDs in the same folder.
- A file with the right name and another UUID is not read.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from urnet.errors import ImageError
from urnet.images.companions import resolve_companion
from urnet.images.ome_xml import MAX_LENGTH, find_children, is_ome_xml, parse_ome_xml, read_whole_number
from urnet.images.read import TIFF_STARTS
from urnet.images.tiff_pages import MAX_PAGES, Page, list_pages, read_description

_MAX_SEARCHED = 1000
"""Largest number of files in a folder whose UUIDs are read to find a renamed file."""

_MAX_REPEATED = 10_000
"""Largest number of repeated entries."""

_UUID_WITHIN = 4000
"""Bytes of OME-XML in which its UUID is searched."""

_UUID = re.compile(r'<(?:\w+:)?OME\b[^>]*?\bUUID\s*=\s*["\']([^"\']+)["\']')


class PageAddress(NamedTuple):
    """The address of a page: its file, and its number in the file."""

    file: Path
    page: int


@dataclass(frozen=True)
class OmeImage:
    """One `Image` of the OME-XML.

    Attributes:
        element: the element `Image`.
        pixels: its element `Pixels`.
        width: columns, px.
        height: rows, px.
        type: OME type of its pixels.
        times: number of time points.
        channels: number of channels, each in pages of its own.
        depth: number of z planes.
        planes: page of each time point, channel and z plane.
    """

    element: ElementTree.Element
    pixels: ElementTree.Element
    width: int
    height: int
    type: str
    times: int
    channels: int
    depth: int
    planes: dict[tuple[int, int, int], PageAddress]


@dataclass(frozen=True)
class OmeSet:
    """The images of an OME-TIFF.

    Attributes:
        images: the images, each a scene.
        pages: pages of all files with planes, sorted by file name.
    """

    images: tuple[OmeImage, ...]
    pages: dict[Path, tuple[Page, ...]]


def read_ome(path: Path) -> OmeSet | None:
    """List the images and planes in the OME-XML of a TIFF; return None where it has no OME-XML.

    Args:
        path: the given file, which may be any file of a set.

    Raises:
        ImageError: OME-XML that is invalid (`images.ome_xml_invalid`) or names planes that are not there
            (`fields.planes_missing`) or a plane twice (`fields.page_twice`), or files as `resolve_companion`.
    """
    first = list_pages(path)[0]
    text = read_description(path, first, MAX_LENGTH + 1)
    if not is_ome_xml(text):
        return None
    own = parse_ome_xml(str(path), text)
    root, holder = own, path
    if binary_only := find_children(own, "BinaryOnly"):
        files = _Files(path, own.get("UUID"), path)
        holder = files.find(binary_only[0].get("UUID"), binary_only[0].get("MetadataFile"))
        root = parse_ome_xml(str(holder), _metadata_in(path, holder))
        if find_children(root, "BinaryOnly"):
            raise _invalid(path, f"leaves its metadata to {holder.name}, which leaves them to another file")
    named = [
        image for image in find_children(root, "Image") if any(find_children(p, "TiffData") for p in _pixels(image))
    ]
    if not named:
        raise _invalid(path, "names no pages")
    files = _Files(path, own.get("UUID"), holder, named)
    taken: dict[PageAddress, tuple[int, int, int, int]] = {}
    images = tuple(_image(path, image, number, files, taken) for number, image in enumerate(named))
    return OmeSet(images, {file: files.pages(file) for file in sorted({plane.file for plane in taken})})


def _metadata_in(path: Path, holder: Path) -> str:
    """Read the OME-XML of a companion: another TIFF, or an XML file."""
    with holder.open("rb") as file:
        start = file.read(4)
        if start in TIFF_STARTS:
            return read_description(holder, list_pages(holder)[0], MAX_LENGTH + 1)
        data = start + file.read(MAX_LENGTH)
    if not is_ome_xml(data[:4000].decode("utf-8", "replace")):
        raise _invalid(path, f"leaves its metadata to {holder.name}, which holds none")
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", data.decode("utf-8", "replace"))


def _pixels(image: ElementTree.Element) -> list[ElementTree.Element]:
    return find_children(image, "Pixels")


def _invalid(path: Path, what: str, code: str = "images.ome_xml_invalid") -> ImageError:
    return ImageError(
        f"{path}: mislabelled OME-TIFF: its OME-XML {what}; export the file again, or save it as a plain TIFF",
        code=code,
    )


def _image(
    path: Path,
    image: ElementTree.Element,
    number: int,
    files: "_Files",
    taken: dict[PageAddress, tuple[int, int, int, int]],
) -> OmeImage:
    where, pixels = str(path), _pixels(image)[0]
    samples = {read_whole_number(where, one, "SamplesPerPixel", 1) for one in find_children(pixels, "Channel")} or {1}
    if len(samples) > 1 or 0 in samples:
        raise _invalid(path, "names channels with different numbers of samples in one image")
    sizes = {axis: read_whole_number(where, pixels, f"Size{axis}", 1) for axis in "ZCT"}
    sizes["C"] //= next(iter(samples))
    total = sizes["Z"] * sizes["C"] * sizes["T"]
    order = pixels.get("DimensionOrder", "XYCZT")
    if sorted(order) != sorted("XYCZT") or order[:2] != "XY" or total == 0:
        raise _invalid(path, f"has DimensionOrder={order!r} and {total} planes")
    planes: dict[tuple[int, int, int], PageAddress] = {}
    repeated = 0
    for key, place in _named(path, pixels, order[2:], sizes, files):
        if planes.get(key) == place:
            repeated += 1
            if repeated > _MAX_REPEATED:
                raise _invalid(path, "repeats the same planes too often")
            continue
        if key in planes or place in taken:
            raise _invalid(
                path,
                f"gives page {place.page} of {place.file.name} to more than one plane"
                if place in taken
                else f"gives more than one page to time point {key[0]}, channel {key[1]}, z plane {key[2]}",
                "fields.page_twice",
            )
        planes[key], taken[place] = place, (number, *key)
    if len(planes) != total:
        raise ImageError(
            f"{path}: its metadata name {total} planes, but {len(planes)} are there. The file is truncated or "
            "mislabelled: copy the file again, or export it again",
            code="fields.planes_missing",
        )
    return OmeImage(
        element=image,
        pixels=pixels,
        width=read_whole_number(where, pixels, "SizeX", None),
        height=read_whole_number(where, pixels, "SizeY", None),
        type=pixels.get("Type", ""),
        times=sizes["T"],
        channels=sizes["C"],
        depth=sizes["Z"],
        planes=planes,
    )


def _named(
    path: Path, pixels: ElementTree.Element, order: str, sizes: dict[str, int], files: "_Files"
) -> Iterator[tuple[tuple[int, int, int], PageAddress]]:
    """List planes and their pages from the `TiffData` elements, in any order."""
    where = str(path)
    total = sizes["Z"] * sizes["C"] * sizes["T"]
    for data in find_children(pixels, "TiffData"):
        uuids = find_children(data, "UUID")
        file = files.find(uuids[0].text, uuids[0].get("FileName")) if uuids else files.holder
        page = read_whole_number(where, data, "IFD", 0)
        first = {axis: read_whole_number(where, data, f"First{axis}", 0) for axis in order}
        if any(first[axis] >= sizes[axis] for axis in order):
            continue  # ImageJ leaves such entries after cropping; the plane counts as missing
        start = first[order[0]] + sizes[order[0]] * (first[order[1]] + sizes[order[1]] * first[order[2]])
        count = read_whole_number(where, data, "PlaneCount", read_whole_number(where, data, "NumPlanes", 0))
        count = count or (1 if "IFD" in data.attrib else total)
        there = len(files.pages(file)) - page
        for step in range(min(count, total - start, there)):
            index, at = start + step, {}
            for axis in order:
                index, at[axis] = divmod(index, sizes[axis])
            yield (at["T"], at["C"], at["Z"]), PageAddress(file, page + step)


class _Files:
    """The files of a set, by their names and UUIDs in the OME-XML.

    Args:
        given: the given file.
        uuid: UUID of its own OME-XML.
        holder: the file with the metadata; it has no pages where it is not a TIFF.
        images: the `Image` elements.
    """

    def __init__(self, given: Path, uuid: str | None, holder: Path, images: list[ElementTree.Element] | None = None):
        self.given, self.uuid, self.holder = given, _plain(uuid), holder
        self._found: dict[tuple[str, str], Path] = {}
        self._pages: dict[Path, tuple[Page, ...]] = {}
        self._names: dict[str, set[str]] = defaultdict(set)
        self._by_uuid: dict[str, list[Path]] | None = None
        for image in images or []:
            for pixels in _pixels(image):
                for data in find_children(pixels, "TiffData"):
                    for one in find_children(data, "UUID"):
                        self._names[_plain(one.text)].add((one.get("FileName") or "").strip())

    def find(self, uuid: str | None, name: str | None) -> Path:
        """Return the file with a UUID and a name.

        Raises:
            ImageError: as `resolve_companion`.
        """
        key = (_plain(uuid), (name or "").strip())
        if key not in self._found:
            self._found[key] = self._find(*key)
        return self._found[key]

    def pages(self, file: Path) -> tuple[Page, ...]:
        """List the pages of one file of the set.

        Raises:
            ImageError: as `list_pages`, or the set has more pages than a file may have, or the metadata are in a file
                of their own and do not say which file has the pages (`images.ome_xml_invalid`).
        """
        if file not in self._pages:
            if file == self.holder != self.given and not _is_tiff(file):
                raise _invalid(self.given, f"in {file.name} names pages without saying in which file they are")
            self._pages[file] = list_pages(file)
            if sum(map(len, self._pages.values())) > MAX_PAGES:
                raise _invalid(self.given, f"names files with more than {MAX_PAGES:,} pages")
        return self._pages[file]

    def _find(self, uuid: str, name: str) -> Path:
        # Some writers give all files of a set the same UUID, which then identifies none of them.
        is_unique = bool(uuid) and len(self._names.get(uuid, ())) <= 1
        if is_unique and uuid == self.uuid:
            return self.given
        if name and name.casefold() == self.given.name.casefold() and not (is_unique and self._is_another(uuid)):
            return self.given
        if not name and not uuid:
            return self.holder
        try:
            if name:
                file = resolve_companion(self.given, name)
                if is_unique:
                    _check_uuid(self.given, file, uuid)
                return file
        except ImageError as error:
            if error.code != "images.companion_missing":
                raise
            if is_unique and (renamed := self._renamed(uuid)):
                return renamed
            if not self.uuid and len(self._names) == 1 and is_unique and self.holder == self.given:
                return self.given  # the only file of the set, under a new name
            raise
        if renamed := self._renamed(uuid):
            return renamed
        raise ImageError(
            f"{self.given}: another file of the same OME-TIFF ({uuid[:80]!r}) is missing; put all files of the set "
            "into one folder, or save the image as a single file",
            code="images.companion_missing",
        )

    def _is_another(self, uuid: str) -> bool:
        """Return whether the given file has the right name but another UUID.

        Metadata in the given file itself mean that file by its name, unless they also name its own UUID.
        """
        return bool(self.uuid) and self.uuid != uuid and (self.holder != self.given or self.uuid in self._names)

    def _renamed(self, uuid: str) -> Path | None:
        """Find the only file of the folder with a UUID."""
        if self._by_uuid is None:
            self._by_uuid = defaultdict(list)
            entries = list(islice(self.given.parent.iterdir(), _MAX_SEARCHED + 1))
            for entry in entries if len(entries) <= _MAX_SEARCHED else []:
                if entry.suffix.lower() in (".tif", ".tiff") and entry != self.given:
                    self._by_uuid[_uuid_of(self.given, entry.name)].append(entry)
        files = self._by_uuid.get(uuid, []) if uuid else []
        return files[0] if len(files) == 1 else None


def _uuid_of(given: Path, name: str) -> str:
    """Read the UUID of a TIFF in the folder of a file; "" where it has none or cannot be read."""
    try:
        file = resolve_companion(given, name)
        return _own_uuid(file) if _is_tiff(file) else ""
    except (ImageError, OSError):
        return ""


def _own_uuid(file: Path) -> str:
    """Read the UUID in the OME-XML of a TIFF or an XML file; "" where there is none."""
    if _is_tiff(file):
        text = read_description(file, list_pages(file)[0], _UUID_WITHIN)
    else:
        with file.open("rb") as opened:
            text = opened.read(_UUID_WITHIN).decode("utf-8", "replace")
    match = _UUID.search(text)
    return _plain(match[1]) if match else ""


def _check_uuid(given: Path, file: Path, uuid: str) -> None:
    """Refuse a file that has the name of a file of the set, but another UUID.

    An XML file with the metadata may have no UUID. The UUIDs of the files that it names are checked.

    Raises:
        ImageError: `images.companion_missing` where the UUID is another one; as `list_pages`.
    """
    own = _own_uuid(file)
    if own != uuid and (own or _is_tiff(file)):
        raise ImageError(
            f"{given}: {file.name} does not belong to the set: its UUID is {own[:80] or 'absent'}, and must be "
            f"{uuid[:80]}. Put the files of one set into a folder of their own",
            code="images.companion_missing",
        )


def _is_tiff(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) in TIFF_STARTS


def _plain(uuid: str | None) -> str:
    return (uuid or "").strip().lower()
