"""Base class of the readers of CZI, ND2 and LIF files, and the checks that they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.source import ReadRegion, Scene, check_pixels
from urnet.images.read import translate_decoder_errors

MAX_WHOLE_PLANE_BYTES = 256 * 2**20
"""Largest plane that is decoded once and cached, in bytes. Larger planes are decoded region by region."""


class MicroscopySource(ABC):
    """An open CZI, ND2 or LIF file. A subclass opens the file, lists its scenes and reads regions of its planes.

    Args:
        path: the file.

    Attributes:
        cached_bytes: bytes of the planes that were decoded as a whole.

    Raises:
        ImageError: unsupported dimensions or pixels.
    """

    def __init__(self, path: Path):
        self.path = path
        self.cached_bytes = 0
        self._file = self._open(path)
        try:
            self.scenes = self._list_scenes()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _open(self, path: Path) -> Any:
        """Open the file with the library of its format; the result has a method `close`."""

    @abstractmethod
    def _list_scenes(self) -> tuple[Scene, ...]:
        """List the scenes of the open file."""

    @abstractmethod
    def read_part(self, scene: Scene, channel: int, z: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Read (top, left, height, width) of a plane: (h, w), or (h, w, 3) as red, green and blue."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """Return a function that reads regions of one plane."""
        scene = scene.of_channel(channel)
        dtype, samples = np.dtype(scene.dtype), 3 if scene.colour else 1
        small = scene.height * scene.width * dtype.itemsize * samples <= MAX_WHOLE_PLANE_BYTES
        whole: list[np.ndarray] = []

        def read(top: int, left: int, height: int, width: int) -> np.ndarray:
            pixels = self.read_part(scene, channel, z, (top, left, height, width))
            expected = (height, width, 3) if scene.colour else (height, width)
            if pixels.shape != expected:
                raise ImageError(
                    f"{self.path}: damaged: a plane has shape {pixels.shape}, but its metadata say {expected}; copy "
                    "the file again",
                    code="fields.damaged",
                )
            return check_pixels(self.path, pixels.astype(dtype, copy=False))

        def read_region(top: int, left: int, height: int, width: int) -> np.ndarray:
            with translate_decoder_errors(self.path):
                if not small:
                    return read(top, left, height, width)
                if not whole:
                    whole.append(read(0, 0, scene.height, scene.width))
                    self.cached_bytes += whole[0].nbytes
                return whole[0][top : top + height, left : left + width].copy()

        return read_region


def explain_extra_dimensions(sizes: Mapping[str, int]) -> str:
    """Explain why an image with further dimensions is refused; empty where none has more than one value.

    Args:
        sizes: size of each dimension that is neither scene, time, channel, z nor pixel, by its name in plain words.
    """
    more = [f"{count} values of {name}" for name, count in sizes.items() if count > 1]
    if not more:
        return ""
    return (
        f"the image has {' and '.join(more)}. urnet reads scenes, times, channels and z planes only. Export the wanted "
        "part, or a projection, as an OME-TIFF"
    )


def missing_plane_error(path: Path, scene: Scene, channel: int, z: int) -> ImageError:
    """Build the error for a plane that the file names and does not hold."""
    return ImageError(
        f"{path}: scene {scene.name} has no plane of channel {scene.channels[channel]}, z {z}: the microscope did not "
        "take it, or the file is incomplete. Choose another channel or z, or copy the file again",
        code="fields.planes_missing",
    )


def supported_type(path: Path, dtype: Any, stated: str = "") -> str:
    """Return the type as which pixels of a type are read.

    Args:
        path: the file, for the error.
        dtype: a NumPy type.
        stated: name of the type in the file.

    Raises:
        ImageError: a type that is not supported.
    """
    dtype = np.dtype(dtype)
    if dtype in (np.uint8, np.uint16):
        return dtype.name
    if dtype == np.int16 or (dtype.kind == "f" and dtype.itemsize <= 8):
        return "float32"
    raise ImageError(
        f"{path}: pixels are {stated or dtype}; use 8- or 16-bit integers or floating point",
        code="fields.depth_unsupported",
    )


def widest_type(types: Iterable[tuple[str, bool]]) -> tuple[str, bool]:
    """Return the type that holds the values of all channels, and whether any channel is in colour."""
    types = list(types)
    return max((dtype for dtype, _ in types), key=lambda dtype: np.dtype(dtype).itemsize), any(c for _, c in types)
