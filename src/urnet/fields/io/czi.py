"""Read fields from CZI files (ZEISS) with the library of ZEISS, which joins the tiles of a mosaic."""

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from pylibCZIrw.czi import CziReader

from urnet.errors import ImageError
from urnet.fields.io.microscopy_source import (
    MicroscopySource,
    explain_extra_dimensions,
    missing_plane_error,
    supported_type,
    widest_type,
)
from urnet.fields.io.pixel_size import parse_length, square_pixel_um
from urnet.fields.io.source import Scene

_TYPES = {
    "Gray8": ("uint8", False),
    "Gray16": ("uint16", False),
    "Gray32": ("uint32", False),
    "Gray32Float": ("float32", False),
    "Bgr24": ("uint8", True),
    "Bgr48": ("uint16", True),
    "Bgr96Float": ("float32", True),
}
_DECODED_WRONGLY = {("Bgr48", "Zstd1")}
"""Pixel types and compressions that libCZI (pylibCZIrw 6.1) decodes wrongly where high and low bytes are apart."""

_EXTRA_DIMENSIONS = {"R": "rotation", "I": "illumination", "H": "phase", "V": "view", "B": "block"}


class CziSource(MicroscopySource):
    """An open CZI file. The list of planes comes from the subblocks of the file, not from its metadata."""

    def _open(self, path: Path) -> CziReader:
        return CziReader(str(path))

    def read_part(self, scene: Scene, channel: int, z: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Read (top, left, height, width) of a plane."""
        number, (x, y), time, channels, depths, planes = scene.address
        kind = next(name for name, about in _TYPES.items() if about == (scene.dtype, scene.colour))
        plane = {"T": time, "C": channels[channel], "Z": depths[z]}
        if tuple(plane.values()) not in planes:
            raise missing_plane_error(self.path, scene, channel, z)
        top, left, height, width = part
        pixels = self._file.read(roi=(x + left, y + top, width, height), plane=plane, scene=number, pixel_type=kind)
        return pixels[..., ::-1] if scene.colour else pixels[..., 0]  # stored as blue, green, red

    def _list_scenes(self) -> tuple[Scene, ...]:
        parts: dict[int | None, list[tuple[dict[str, int], Any]]] = defaultdict(list)
        types: dict[int, set[str]] = defaultdict(set)
        decoded_wrongly: set[tuple[str, str]] = set()

        def collect(index: int, part: Any) -> bool:
            at = part.coordinate.to_dict()
            parts[at.get("S")].append((at, part.logicalRect))
            types[at.get("C", 0)].add(part.pixelType.name)
            decoded_wrongly.update({(part.pixelType.name, part.get_compression_mode().name)} & _DECODED_WRONGLY)
            return True

        self._file.enumerate_subblocks_subset(collect, only_layer0=True)
        for kind, compression in decoded_wrongly:
            raise ImageError(
                f"{self.path}: {kind} pixels compressed by {compression}, which ZEISS's library may decode to other "
                "values. Save the field without compression, or export it as an OME-TIFF",
                code="fields.compression_unsupported",
            )
        everything = [at for some in parts.values() for at, _ in some]
        further = {words: len({at.get(axis, 0) for at in everything}) for axis, words in _EXTRA_DIMENSIONS.items()}
        if problem := explain_extra_dimensions(further):
            raise ImageError(f"{self.path}: {problem}", code="fields.dimension_unsupported")
        about = self._metadata()
        kinds = {channel: self._kind(names) for channel, names in types.items()}
        numbers = sorted(parts, key=lambda number: -1 if number is None else number)
        return tuple(
            scene for number in numbers for scene in self._scenes_of(number, parts[number], kinds, about, len(numbers))
        )

    def _scenes_of(
        self,
        number: int | None,
        parts: list[tuple[dict[str, int], Any]],
        kinds: dict[int, tuple[str, bool]],
        about: ElementTree.Element,
        count: int,
    ) -> list[Scene]:
        planes = {(at.get("T", 0), at.get("C", 0), at.get("Z", 0)) for at, _ in parts}
        times, channels, depths = (sorted(values) for values in map(set, zip(*planes, strict=True)))
        left, top = min(rect.x for _, rect in parts), min(rect.y for _, rect in parts)
        right, bottom = max(rect.x + rect.w for _, rect in parts), max(rect.y + rect.h for _, rect in parts)
        here = tuple(kinds[channel] for channel in channels)
        dtype, colour = widest_type(here)
        own = _scene_name(about, number)
        return [
            Scene(
                name=(f"{own} t{time}" if count > 1 else f"t{time}") if len(times) > 1 else own,
                height=bottom - top,
                width=right - left,
                channels=tuple(
                    _channel_name(about, channel) or str(position) for position, channel in enumerate(channels)
                ),
                planes=len(depths),
                dtype=dtype,
                colour=colour,
                pixel_um=square_pixel_um([_scale(about, axis) for axis in "XY"]),
                address=(number, (left, top), time, channels, depths, planes),
                channel_types=here,
            )
            for time in times
        ]

    def _kind(self, types: set[str]) -> tuple[str, bool]:
        names = sorted(types)
        if len(names) > 1:
            raise ImageError(
                f"{self.path}: one channel has pixels of types {' and '.join(names)}; export the field as an OME-TIFF",
                code="fields.depth_unsupported",
            )
        dtype, colour = _TYPES.get(names[0], ("object", False))
        return supported_type(self.path, dtype, names[0]), colour

    def _metadata(self) -> ElementTree.Element:
        """Parse the metadata; return an empty element where they are missing or damaged."""
        with suppress(RuntimeError, ElementTree.ParseError):
            return ElementTree.fromstring(self._file.raw_metadata)
        return ElementTree.Element("ImageDocument")


def _scale(about: ElementTree.Element, axis: str) -> float:
    """Return the edge of a pixel along an axis, µm; NaN where the metadata do not state it."""
    return 1e6 * parse_length(about.findtext(f"./Metadata/Scaling/Items/Distance[@Id='{axis}']/Value"))


def _channel_name(about: ElementTree.Element, number: int) -> str:
    channels = about.findall("./Metadata/Information/Image/Dimensions/Channels/Channel")
    own = [one for one in channels if one.get("Id") == f"Channel:{number}"] or channels[number : number + 1]
    return (own[0].get("Name") or own[0].get("Id") or "").strip() if own else ""


def _scene_name(about: ElementTree.Element, number: int | None) -> str:
    scenes = about.findall("./Metadata/Information/Image/Dimensions/S/Scenes/Scene")
    for scene in scenes:
        if scene.get("Index") == str(number or 0):
            shape = scene.find("Shape")
            parts = [scene.get("Name"), None if shape is None else shape.get("Name")]
            return "-".join(filter(None, parts)) or str(number or 0)
    return str(number or 0)
