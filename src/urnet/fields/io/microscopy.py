"""Fields in CZI, ND2 and LIF, each through the library that knows the format (extra `microscopy`), imported when used.

The libraries are used without a common layer above them: such a layer gives all channels one depth and colour order,
and passes over the dimensions that it has no name for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.source import ReadRegion, Scene, Source, check_pixels
from urnet.images.read import translate_decoder_errors

MAX_WHOLE_PLANE_BYTES = 256 * 2**20
"""Bytes of a plane up to which it is read once and kept; larger ones are read in regions."""

_SIGNATURES = {
    ".czi": (b"ZISRAWFILE",),
    ".nd2": (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  "),
    ".lif": (b"\x70\0\0\0",),
}
SUFFIXES = frozenset(_SIGNATURES)
"""Names of the formats that are read here (lower case)."""


def open_microscopy(path: Path) -> Source:
    """Open a CZI, ND2 or LIF file; the ending of its name says which.

    Raises:
        ImageError: the extra is not installed, the content is not of the format that the name says, the file is
            damaged, or its pixels are of an unsupported kind.
    """
    suffix = path.suffix.lower()
    kind = suffix[1:].upper()
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        if suffix == ".czi":
            from urnet.fields.io.czi import CziSource as Kind
        elif suffix == ".nd2":
            from urnet.fields.io.nd2 import Nd2Source as Kind
        else:
            from urnet.fields.io.lif import LifSource as Kind
    except ImportError as error:
        raise ImageError(
            f"{path}: reading {kind} needs the package {error.name}, which is not installed; "
            'run `pip install "urnet[microscopy]"`, or export the field as an OME-TIFF',
            code="fields.reader_missing",
        ) from None
    with translate_decoder_errors(path):
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise ImageError(f"{path}: the file is empty (0 bytes)")
        if not start.startswith(_SIGNATURES[suffix]):
            raise ImageError(
                f"{path}: its content is no {kind}, whatever its name says; rename the file to what it is, or copy it "
                "again",
                code="fields.not_as_named",
            )
        return Kind(path)


class MicroscopySource(ABC):
    """An open file; a subclass finds the scenes and reads parts of planes."""

    path: Path
    scenes: tuple[Scene, ...]

    @abstractmethod
    def read_part(self, scene: Scene, channel: int, z: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Read (top, left, height, width) of a plane: (h, w), or (h, w, 3) as red, green and blue."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """How regions of one plane are read."""
        scene = scene.of_channel(channel)
        dtype, samples = np.dtype(scene.dtype), 3 if scene.colour else 1
        small = scene.height * scene.width * dtype.itemsize * samples <= MAX_WHOLE_PLANE_BYTES
        whole: list[np.ndarray] = []

        def read(top: int, left: int, height: int, width: int) -> np.ndarray:
            pixels = self.read_part(scene, channel, z, (top, left, height, width))
            expected = (height, width, 3) if scene.colour else (height, width)
            if pixels.shape != expected:
                raise ImageError(f"{self.path}: damaged: a plane of {pixels.shape} values where {expected} are stated")
            return check_pixels(self.path, pixels.astype(dtype, copy=False))

        def region(top: int, left: int, height: int, width: int) -> np.ndarray:
            with translate_decoder_errors(self.path):
                if not small:
                    return read(top, left, height, width)
                if not whole:
                    whole.append(read(0, 0, scene.height, scene.width))
                return whole[0][top : top + height, left : left + width].copy()

        return region


def explain_extra_dimensions(sizes: Mapping[str, int]) -> str:
    """Why an image with further dimensions is refused; empty where none has more than one value.

    Args:
        sizes: of the dimensions that are neither scenes, time, channels, z nor pixels, by their names in plain words.
    """
    more = [f"{count} values of {name}" for name, count in sizes.items() if count > 1]
    if not more:
        return ""
    return (
        f"{' and '.join(more)} besides scenes, time, channels and z, and one of them would be taken for the whole; "
        "export the one that is wanted, or their projection, as an OME-TIFF"
    )


def missing_plane_error(path: Path, scene: Scene, channel: int, z: int) -> ImageError:
    """The error for a plane that the file names and does not hold."""
    return ImageError(
        f"{path}: scene {scene.name} has no plane of channel {scene.channels[channel]}, z {z}; it was not taken, or "
        "was lost: choose another channel or z, or copy the file again",
        code="fields.planes_missing",
    )


def supported_type(path: Path, dtype: Any, stated: str = "") -> str:
    """The depth at which pixels of a type are handed on.

    Args:
        path: for the error.
        dtype: a type of numpy.
        stated: what the file calls it.

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


def widest_type(kinds: Iterable[tuple[str, bool]]) -> tuple[str, bool]:
    """The depth that holds the values of all channels, and whether any is in colour."""
    kinds = list(kinds)
    return max((dtype for dtype, _ in kinds), key=lambda dtype: np.dtype(dtype).itemsize), any(c for _, c in kinds)
