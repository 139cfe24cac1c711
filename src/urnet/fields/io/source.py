"""What every kind of field file offers: scenes, and regions of one plane of them. One file each: TIFF, single images
and the formats of microscopes' own programs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from urnet.errors import ImageError
from urnet.images.orientation import AS_STORED
from urnet.images.read import MAX_PIXELS, check_finite, read_image

ReadRegion = Callable[[int, int, int, int], np.ndarray]
"""Reads (top, left, height, width) of one plane, all within it: (h, w) or (h, w, 3)."""

DEPTHS = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Scene:
    """One position or time point of a file.

    Args:
        name: as the file calls it, else its number.
        height: rows as stored, px.
        width: columns as stored, px.
        channels: their names, or their numbers as text.
        planes: number of z planes.
        dtype: one of `DEPTHS`; of channels that differ, the widest.
        colour: whether a pixel of any channel has three values.
        pixel_um: edge of a pixel on the specimen, µm, as the file states it; none where it does not.
        files: the files of a set that hold it together with the other scenes; empty where there is only one.
        address: what the source needs to find it again.
        kinds: `dtype` and `colour` of each channel, where they differ.
        orientation: how the stored pixels are turned to be shown, 1 to 8 as in EXIF.
        problem: why it cannot be used, where other scenes of the file can.
    """

    name: str
    height: int
    width: int
    channels: tuple[str, ...]
    planes: int
    dtype: str
    colour: bool
    pixel_um: float | None
    files: tuple[Path, ...] = ()
    address: tuple = field(default=(), compare=False)
    kinds: tuple[tuple[str, bool], ...] = ()
    orientation: int = AS_STORED
    problem: str = ""

    def of_channel(self, channel: int) -> "Scene":
        """The scene with the depth and colour of one of its channels."""
        if not self.kinds:
            return self
        dtype, colour = self.kinds[channel]
        return replace(self, dtype=dtype, colour=colour)


class Source(Protocol):
    """An open file."""

    path: Path
    scenes: tuple[Scene, ...]

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """How regions of one plane are read."""

    def close(self) -> None:
        """Give the file back."""


class SingleImage:
    """PNG, JPEG or BMP: one plane, decoded whole when it is first read.

    Resolutions in such files are those of printers and screens and say nothing of the specimen.
    """

    def __init__(self, path: Path, height: int, width: int, dtype: str, colour: bool):
        self.path = path
        if height * width > MAX_PIXELS:
            raise ImageError(
                f"{path}: {width} x {height} px; PNG, JPEG and BMP are decoded whole and may have "
                f"{MAX_PIXELS:,} px; save the field as a tiled TIFF"
            )
        self.scenes = (Scene("0", height, width, ("0",), 1, dtype, colour, None),)
        self._pixels: np.ndarray | None = None

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """How regions are read; there is one plane."""

        def region(top: int, left: int, height: int, width: int) -> np.ndarray:
            if self._pixels is None:
                self._pixels = read_image(self.path)
            return self._pixels[top : top + height, left : left + width].copy()

        return region

    def close(self) -> None:
        """Let the pixels go."""
        self._pixels = None


def check_pixels(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Finite, contiguous pixels.

    Raises:
        ImageError: NaN or infinite values.
    """
    check_finite(path, pixels)
    return np.ascontiguousarray(pixels)
