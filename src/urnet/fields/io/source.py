"""The interface that the reader of every file format implements: scenes, and regions of one plane of a scene."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from urnet.images.orientation import AS_STORED
from urnet.images.read import check_finite

ReadRegion = Callable[[int, int, int, int], np.ndarray]
"""Reads the region (top, left, height, width) of one plane: (h, w) or (h, w, 3). The region lies within the plane."""


@dataclass(frozen=True)
class Scene:
    """One position or time point of a file.

    Args:
        name: name in the file, else the number of the scene.
        height: rows as stored, px.
        width: columns as stored, px.
        channels: names of the channels, or their numbers as text.
        planes: number of z planes.
        dtype: `uint8`, `uint16` or `float32`; the widest where channels differ.
        colour: whether a pixel of any channel has three values.
        pixel_um: edge of a pixel on the specimen, µm, as the file states it; none where it does not.
        files: all files that hold the image; empty where there is only one.
        address: what the reader needs to find the pixels of the scene.
        channel_types: `dtype` and `colour` of each channel, where they differ.
        orientation: how the stored pixels are turned for display, 1 to 8 as in EXIF.
        problem: why the scene cannot be used, where other scenes of the file can.
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
    channel_types: tuple[tuple[str, bool], ...] = ()
    orientation: int = AS_STORED
    problem: str = ""

    def of_channel(self, channel: int) -> "Scene":
        """Return the scene with the type and colour of one of its channels."""
        if not self.channel_types:
            return self
        dtype, colour = self.channel_types[channel]
        return replace(self, dtype=dtype, colour=colour)


class Source(Protocol):
    """An open file."""

    path: Path
    scenes: tuple[Scene, ...]

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded pixels that stay in memory for the next region."""

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """Return a function that reads regions of one plane."""

    def close(self) -> None:
        """Close the file and forget the decoded pixels."""


def check_pixels(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the pixels in one contiguous block, after checking that they are finite.

    Raises:
        ImageError: NaN or infinite values.
    """
    check_finite(path, pixels)
    return np.ascontiguousarray(pixels)
