"""What every kind of field file offers: scenes, and regions of one plane of them. One file each: TIFF, single images
and the formats that bioio reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from urnet.errors import ImageError
from urnet.images.read import MAX_PIXELS, check_finite, read_image

Region = Callable[[int, int, int, int], np.ndarray]
"""Reads (top, left, height, width) of one plane, all within it: (h, w) or (h, w, 3)."""

DEPTHS = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Scene:
    """One position or time point of a file.

    Args:
        name: as the file calls it, else its number.
        height: rows, px.
        width: columns, px.
        channels: their names, or their numbers as text.
        planes: number of z planes.
        dtype: one of `DEPTHS`.
        colour: whether a pixel has three values.
        pixel_um: edge of a pixel on the specimen, µm; none where the file does not say.
        files: the files of a set that hold it together with the other scenes; empty where there is only one.
        address: what the source needs to find it again.
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


class Source(Protocol):
    """An open file."""

    path: Path
    scenes: tuple[Scene, ...]

    def plane(self, scene: Scene, channel: int, z: int) -> Region:
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

    def plane(self, scene: Scene, channel: int, z: int) -> Region:
        """How regions are read; there is one plane."""

        def region(top: int, left: int, height: int, width: int) -> np.ndarray:
            if self._pixels is None:
                self._pixels = read_image(self.path)
            return self._pixels[top : top + height, left : left + width].copy()

        return region

    def close(self) -> None:
        """Let the pixels go."""
        self._pixels = None


def checked(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Finite, contiguous pixels.

    Raises:
        ImageError: NaN or infinite values.
    """
    check_finite(path, pixels)
    return np.ascontiguousarray(pixels)
