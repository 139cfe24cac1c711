"""Read fields from LIF files (Leica).

The address of each pixel is computed from the byte steps that the file states for each dimension and channel. So
channels may differ in type, and colours may be stored in any order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from liffile import LifFile

from urnet.errors import ImageError
from urnet.fields.io.microscopy_source import MicroscopySource, explain_extra_dimensions, supported_type, widest_type
from urnet.fields.io.pixel_size import square_pixel_um
from urnet.fields.io.source import Scene

_X, _Y, _Z, _T, _EMISSION, _EXCITATION, _MOSAIC = 1, 2, 3, 4, 5, 9, 10
_KNOWN = (_X, _Y, _Z, _T, _EMISSION, _EXCITATION, _MOSAIC)
_EXTRA_DIMENSIONS = {6: "rotation", 7: "x-t slice", 8: "t slice", 11: "loop"}
_IMAGES = ("./Data/Image", "./Data/SingleMoleculeDetection[@IsImage='true']")
_RED_GREEN_BLUE = ("1", "2", "3")


@dataclass(frozen=True)
class _Dimension:
    """One dimension of an image: number of values, step in bytes, and position of the first and last value."""

    count: int
    step: int
    origin: float
    length: float
    unit: str

    def value(self, index: int) -> float:
        """Return the position of a value, in the unit of the dimension."""
        return self.origin + self.length * index / max(self.count - 1, 1)

    @property
    def spacing_um(self) -> float:
        """Distance between neighbouring values, µm; NaN where it is unknown."""
        if self.count < 2 or self.unit != "m":
            return math.nan
        return 1e6 * abs(self.length) / (self.count - 1)


@dataclass(frozen=True)
class _Layer:
    """One channel: byte offsets of its samples within a pixel, their type, and its name."""

    starts: tuple[int, ...]
    dtype: np.dtype
    name: str


class LifSource(MicroscopySource):
    """An open LIF file. An image that cannot be read does not affect the other images."""

    def _open(self, path: Path) -> LifFile:
        return LifFile(path)

    def _list_scenes(self) -> tuple[Scene, ...]:
        images = list(_images(self._file.xml_element))
        return tuple(scene for name, image in images for scene in self._scenes_of(name, image, len(images)))

    def read_part(self, scene: Scene, channel: int, z: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Read (top, left, height, width) of a plane."""
        begin, layers, (across, down, deep) = scene.address
        offset, layer = layers[channel]
        top, left, height, width = part
        first = begin + offset + z * deep + top * down + left * across
        size = (height - 1) * down + (width - 1) * across + max(layer.starts) + layer.dtype.itemsize
        handle = self._file.filehandle
        handle.seek(first)
        data = handle.read(size)
        if len(data) != size:
            raise ImageError(
                f"{self.path}: truncated: {size:,} bytes at {first:,} are not there; copy the file again",
                code="fields.truncated",
            )
        samples = [
            np.ndarray((height, width), layer.dtype, buffer=data, offset=start, strides=(down, across))
            for start in layer.starts
        ]
        return np.stack(samples, axis=-1) if len(samples) == 3 else samples[0]

    def _scenes_of(self, name: str, image: Element, count: int) -> list[Scene]:
        try:
            return self._readable_scenes(name, image, count)
        except ImageError as error:
            problem = str(error).removeprefix(f"{self.path}: ")
            return [Scene(name, 0, 0, ("0",), 1, "uint8", False, None, problem=problem)]

    def _readable_scenes(self, name: str, image: Element, count: int) -> list[Scene]:
        dimensions = _dimensions(self.path, image)
        if _X not in dimensions or _Y not in dimensions:
            raise ImageError(
                f"{self.path}: not an image of rows and columns, but a line scan, a depth scan or photon counts. "
                "Export an image of it as an OME-TIFF",
                code="fields.no_image",
            )
        further = {
            _EXTRA_DIMENSIONS.get(number, f"dimension {number}"): one.count
            for number, one in dimensions.items()
            if number not in _KNOWN
        }
        if problem := explain_extra_dimensions(further):
            raise ImageError(f"{self.path}: {problem}", code="fields.dimension_unsupported")
        one = _Dimension(1, 0, 0.0, 0.0, "")
        across, down = dimensions[_X], dimensions[_Y]
        deep, time, tile = (dimensions.get(number, one) for number in (_Z, _T, _MOSAIC))
        waves = [dimensions[number] for number in (_EXCITATION, _EMISSION) if number in dimensions]
        channels = _layers(self.path, image, across.step)
        begin = self._begin(image, [across, down, deep, time, tile, *waves], channels)
        layers = _with_wavelengths(channels, waves)
        types = tuple((supported_type(self.path, layer.dtype), len(layer.starts) == 3) for _, layer in layers)
        dtype, colour = widest_type(types)
        scenes = []
        for t, m in product(range(time.count), range(tile.count)):
            parts = [f"t{t}"] * (time.count > 1) + [f"tile {m}"] * (tile.count > 1)
            scenes.append(
                Scene(
                    name=" ".join([name, *parts] if count > 1 or not parts else parts),
                    height=down.count,
                    width=across.count,
                    channels=tuple(layer.name or str(number) for number, (_, layer) in enumerate(layers)),
                    planes=deep.count,
                    dtype=dtype,
                    colour=colour,
                    pixel_um=square_pixel_um([across.spacing_um, down.spacing_um]),
                    address=(
                        begin + t * time.step + m * tile.step,
                        layers,
                        (across.step, down.step, deep.step),
                    ),
                    channel_types=types,
                )
            )
        return scenes

    def _begin(self, image: Element, dimensions: Sequence[_Dimension], layers: Sequence[_Layer]) -> int:
        """Return the address of the first byte of an image, and check that its memory block holds all pixels.

        Raises:
            ImageError: the pixels are missing or incomplete.
        """
        memory = image.find("./Memory")
        block = self._file.memory_blocks.get("" if memory is None else memory.get("MemoryBlockID", ""))
        if block is None or block.offset < 0:
            raise ImageError(
                f"{self.path}: its pixels are not in this file; copy the file again, or export it again",
                code="fields.damaged",
            )
        last = sum((one.count - 1) * one.step for one in dimensions)
        need = last + max(max(layer.starts) + layer.dtype.itemsize for layer in layers)
        if need > block.size:
            raise ImageError(
                f"{self.path}: damaged: an image needs {need:,} bytes and {block.size:,} are there; copy the file "
                "again",
                code="fields.damaged",
            )
        return block.offset


def _images(element: Element, above: str = "") -> Iterator[tuple[str, Element]]:
    """List the images of a file with their paths, without the name of the file itself."""
    for one in element.findall("./Children/Element") or element.findall("./Element"):
        name = one.get("Name", "")
        path = f"{above}/{name}" if above else name
        if any(one.find(kind) is not None for kind in _IMAGES):
            yield path.split("/", 1)[-1], one
        yield from _images(one, path)


def _dimensions(path: Path, image: Element) -> dict[int, _Dimension]:
    dimensions: dict[int, _Dimension] = {}
    for one in image.findall("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        number = int(one.attrib["DimID"])
        if number in dimensions:
            raise ImageError(
                f"{path}: an image lists dimension {number} twice; export the file again", code="fields.damaged"
            )
        dimensions[number] = _Dimension(
            int(one.attrib["NumberOfElements"]),
            int(one.attrib["BytesInc"]),
            float(one.get("Origin", 0)),
            float(one.get("Length", 0)),
            one.get("Unit", ""),
        )
        if dimensions[number].count < 1 or (dimensions[number].count > 1 and dimensions[number].step < 1):
            raise ImageError(
                f"{path}: damaged: dimension {number} of an image has no size; copy the file again",
                code="fields.damaged",
            )
    return dimensions


def _layers(path: Path, image: Element, pixel: int) -> list[_Layer]:
    """List the channels. Three channels within one pixel that are tagged red, green and blue form one in colour."""
    about = image.findall("./Data/Image/ImageDescription/Channels/ChannelDescription")
    if not about:
        raise ImageError(f"{path}: an image has no channels; export the file again", code="fields.damaged")
    details = {one.get("LUT", ""): one for one in reversed(list(image.iter("WideFieldChannelInfo")))}
    single = []
    for one in about:
        bits, real = int(one.attrib["Resolution"]), one.attrib["DataType"] == "1"
        size = next((n for n in (1, 2, 4, 8) if bits <= 8 * n), 16)
        name = one.get("LUTName", "").strip()
        if (detail := details.get(name)) is not None:
            name = "--".join(detail.get(key, "") for key in ("LUT", "ContrastingMethodName", "FluoCubeName"))
        dtype = np.dtype(f"<{'f' if real else 'u'}{size}")
        supported_type(path, dtype)
        single.append((one.get("ChannelTag", "0"), _Layer((int(one.attrib["BytesInc"]),), dtype, name)))
    layers = []
    while single:
        three = dict(single[:3])
        within = [layer.starts[0] for layer in three.values()]
        if tuple(sorted(three)) == _RED_GREEN_BLUE and max(within) - min(within) < pixel:
            starts = tuple(three[tag].starts[0] for tag in _RED_GREEN_BLUE)
            layers.append(_Layer(starts, single[0][1].dtype, ""))
            single = single[3:]
        else:
            layers.append(single.pop(0)[1])
    return layers


def _with_wavelengths(layers: Sequence[_Layer], waves: Sequence[_Dimension]) -> list[tuple[int, _Layer]]:
    """List each channel at each wavelength, with its byte offset. Each wavelength is a channel of its own."""
    result = []
    for number, layer in enumerate(layers):
        for indices in product(*(range(wave.count) for wave in waves)):
            labels = [
                f"{wave.value(index) * 1e9:.4g} nm" if wave.unit == "m" else f"wavelength {index}"
                for wave, index in zip(waves, indices, strict=True)
                if wave.count > 1
            ]
            name = " ".join([layer.name or str(number), *labels]) if labels else layer.name
            offset = sum(wave.step * index for wave, index in zip(waves, indices, strict=True))
            result.append((offset, _Layer(layer.starts, layer.dtype, name)))
    return result
