"""Read fields from ND2 files (Nikon)."""

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path

import nd2
import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.microscopy_source import (
    MicroscopySource,
    explain_extra_dimensions,
    missing_plane_error,
    supported_type,
)
from urnet.fields.io.pixel_size import parse_length, square_pixel_um
from urnet.fields.io.source import Scene

_LOOPS = {"XYPosLoop": "P", "TimeLoop": "T", "NETimeLoop": "T", "ZStackLoop": "Z"}


class Nd2Source(MicroscopySource):
    """An open ND2 file."""

    def _open(self, path: Path) -> nd2.ND2File:
        return nd2.ND2File(path)

    def read_part(self, scene: Scene, channel: int, z: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Read (top, left, height, width) of a plane."""
        places, fixed = scene.address
        index = places.get((*fixed, z))
        if index is None:
            raise missing_plane_error(self.path, scene, channel, z)
        top, left, height, width = part
        file = self._file
        together = file.components_per_channel
        frame = np.asarray(file.read_frame(index)).reshape(-1, scene.height, scene.width, together)
        pixels = frame[:, top : top + height, left : left + width]
        if scene.colour:
            return pixels[channel, ..., ::-1]  # NIS-Elements stores blue, green, red
        return pixels[channel // together, ..., channel % together]

    def _list_scenes(self) -> tuple[Scene, ...]:
        file = self._file
        loops = file.experiment
        axes = Counter(_LOOPS.get(loop.type, loop.type) for loop in loops)
        sizes = {loop.type: loop.count for loop in loops if loop.type not in _LOOPS or axes[_LOOPS[loop.type]] > 1}
        if problem := explain_extra_dimensions(sizes):
            raise ImageError(f"{self.path}: {problem}", code="fields.dimension_unsupported")
        taken = file.attributes.sequenceCount
        places = {
            (at.get("P", 0), at.get("T", 0), at.get("Z", 0)): index
            for index, at in enumerate(file.loop_indices)
            if index < taken
        }
        sizes = file.sizes
        channels, components = sizes.get("C", 1), sizes.get("S", 1)
        dtype = supported_type(self.path, file.dtype)
        names, positions, sides = [""] * channels, self._positions(), [math.nan] * 2
        with suppress(Exception):  # the pixels are readable without metadata that the library does not know
            sides = [parse_length(side) for side in file.voxel_size()[:2]]
            listed = [str(one.channel.name).strip() for one in file.metadata.channels]
            names = listed if len(listed) == channels else names
        times = sizes.get("T", 1)
        return tuple(
            Scene(
                name=(f"{position} t{time}" if len(positions) > 1 else f"t{time}") if times > 1 else position,
                height=sizes["Y"],
                width=sizes["X"],
                channels=tuple(name or str(number) for number, name in enumerate(names)),
                planes=sizes.get("Z", 1),
                dtype=dtype,
                colour=components == 3,
                pixel_um=square_pixel_um(sides),
                address=(places, (number, time)),
            )
            for number, position in enumerate(positions)
            for time in range(times)
        )

    def _positions(self) -> list[str]:
        for loop in self._file.experiment:
            if loop.type == "XYPosLoop":
                points = list(loop.parameters.points)[: loop.count]
                named = [point.name or f"XYPos:{number}" for number, point in enumerate(points)]
                return named + [f"XYPos:{number}" for number in range(len(named), loop.count)]
        return ["XYPos:0"]
