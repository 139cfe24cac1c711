"""Open a field of view: what its file holds, and any region of one channel in the file's own counts.

The first bytes of a file identify TIFF, PNG, JPEG and BMP; the suffix identifies CZI, ND2 and LIF. Regions are read
from the tiles or strips that hold them, so a field of 20,000 x 20,000 px need not fit into memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.microscopy import SUFFIXES as MICROSCOPY_SUFFIXES
from urnet.fields.io.microscopy import open_microscopy
from urnet.fields.io.pixel_size import is_plausible
from urnet.fields.io.projection import read_plane_or_projection
from urnet.fields.io.single_image import SingleImageSource
from urnet.fields.io.source import Scene, Source
from urnet.fields.io.tiff.source import TiffSource
from urnet.images.orientation import map_to_stored, orient, orient_shape
from urnet.images.read import MIN_EDGE, SUFFIXES, TIFF_STARTS, read_first_bytes

FIELD_SUFFIXES = SUFFIXES | MICROSCOPY_SUFFIXES
"""Suffixes of the files that a folder of fields is searched for, in lower case."""


@dataclass(frozen=True)
class FieldInfo:
    """Properties of the file of a field.

    Args:
        height: rows as shown, px.
        width: columns as shown, px.
        channels: names of the channels, or "0", "1", … where they have none.
        planes: number of z planes.
        scenes: names of all scenes of the file; time points count as scenes.
        dtype: `uint8`, `uint16` or `float32`; the widest where channels differ.
        colour: whether a pixel of any channel has three values.
        pixel_um: edge of a pixel on the specimen, µm; none where the file does not state it, pixels are not square, or
            the stated value is implausible.
        scene: number of the described scene.
        files: all files that hold the image, sorted by name.
        implausible_um: the stated edge of a pixel, µm, where `urnet.fields.io.pixel_size` does not accept it.
    """

    height: int
    width: int
    channels: tuple[str, ...]
    planes: int
    scenes: tuple[str, ...]
    dtype: str
    colour: bool
    pixel_um: float | None
    scene: int
    files: tuple[Path, ...]
    implausible_um: float | None = None


class Field:
    """One channel of one scene, open for reading. Close it, or use it in a `with` statement.

    Args:
        source: the open file; closing the field closes it.
        channel: as for `open_field`; likewise `z` and `scene`.

    Attributes:
        path: the file.
        info: what the file holds.

    Raises:
        ImageError: a choice that is missing or names nothing in the file.
    """

    def __init__(self, source: Source, channel: str | None = None, z: str | None = None, scene: str | None = None):
        number = _choose_scene(source, scene)
        chosen = source.scenes[number]
        index = choose_by_name(source.path, "channel", channel, chosen.channels)
        self._source = source
        self._scene = chosen.of_channel(index)
        self._read = read_plane_or_projection(source, self._scene, index, z)
        self.path = source.path
        self.info = _info(source, number, self._scene)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Decode a region of the field as it is shown.

        Args:
            top: its first row.
            left: its first column.
            height: its rows, at least 1.
            width: its columns, at least 1.

        Returns:
            (height, width) or (height, width, 3) in the file's own counts.

        Raises:
            ImageError: damaged pixels, or values that are not finite.
            ValueError: the region does not lie within the field.
        """
        inside = 0 <= top < top + height <= self.info.height and 0 <= left < left + width <= self.info.width
        if not inside:
            raise ValueError(
                f"rows {top} to {top + height}, columns {left} to {left + width} do not lie within "
                f"{self.info.height} rows and {self.info.width} columns"
            )
        scene = self._scene
        region = map_to_stored((top, left, height, width), (scene.height, scene.width), scene.orientation)
        return np.ascontiguousarray(orient(self._read(*region), scene.orientation))

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> "Field":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def describe_field(path: Path, scene: str | None = None) -> FieldInfo:
    """Describe what a file holds, without decoding it.

    Args:
        path: a TIFF, OME-TIFF, PNG, JPEG, BMP, CZI, ND2 or LIF file.
        scene: name or number of the scene to describe; the first usable one when not given.

    Raises:
        ImageError: not such a file, damaged, truncated, or mislabelled, or no such scene.
    """
    source = open_source(Path(path))
    try:
        return describe_source(source, scene)
    finally:
        source.close()


def open_field(path: Path, *, channel: str | None = None, z: str | None = None, scene: str | None = None) -> Field:
    """Open one channel of a file for reading region by region.

    Args:
        path: a TIFF, OME-TIFF, PNG, JPEG, BMP, CZI, ND2 or LIF file.
        channel: name of a channel, in any case, or its number from 0; must be given if there are several.
        z: number of a plane from 0, or `max`, `mean`, `min` over the planes, or `sharpest`: the plane whose fine
            structure is strongest over the whole field (of cells without stain, one beside the focus). Must be given
            if there are several planes. A projection of one plane is that plane.
        scene: name of a scene, or its number from 0; must be given if there are several.

    Raises:
        ImageError: as `describe_field`, or a choice that is missing or names nothing in the file.
    """
    source = open_source(Path(path))
    try:
        return Field(source, channel, z, scene)
    except BaseException:
        source.close()
        raise


def open_source(path: Path) -> Source:
    """Open a file with the reader of its format.

    Raises:
        ImageError: as `describe_field`.
    """
    source: Source
    if path.suffix.lower() in MICROSCOPY_SUFFIXES:
        source = open_microscopy(path)
    elif read_first_bytes(path).startswith(TIFF_STARTS):
        source = TiffSource(path)
    else:
        source = SingleImageSource(path)
    if not source.scenes:
        source.close()
        raise ImageError(f"{path}: holds no image; export the field again", code="fields.no_image")
    return source


def describe_source(source: Source, scene: str | None = None) -> FieldInfo:
    """Describe what an open file holds; arguments and errors as for `describe_field`."""
    usable = [number for number, one in enumerate(source.scenes) if not _problem(one)]
    number = usable[0] if scene is None and usable else _choose_scene(source, "0" if scene is None else scene)
    return _info(source, number, source.scenes[number])


def choose_by_name(path: Path, what: str, choice: str | None, names: Sequence[str]) -> int:
    """Return the number of the scene or channel that a name or number chooses.

    Args:
        path: the file, for the error.
        what: `scene` or `channel`.
        choice: name in any case, or number from 0; may be none where there is one.
        names: all names.

    Raises:
        ImageError: several and no choice (`fields.choice_needed`), none of that name or number
            (`fields.choice_unknown`), or several of that name (`fields.choice_ambiguous`).
    """
    listed = ", ".join(f"{index}: {name}" if name != str(index) else name for index, name in enumerate(names))
    where = f"--{what}, or with the column {what} of a field table"
    if choice is None or not str(choice).strip():
        if len(names) > 1:
            raise ImageError(
                f"{path}: {len(names)} {what}s ({listed}). Choose one with {where}", code="fields.choice_needed"
            )
        return 0
    choice = str(choice).strip()
    exact = [index for index, name in enumerate(names) if name == choice]
    alike = exact or [index for index, name in enumerate(names) if name.casefold() == choice.casefold()]
    if len(alike) == 1:
        return alike[0]
    if len(alike) > 1:
        raise ImageError(
            f"{path}: {len(alike)} {what}s have the name {choice!r} ({listed}). Give the number of one",
            code="fields.choice_ambiguous",
        )
    if choice.isascii() and choice.isdigit() and int(choice) < len(names):
        return int(choice)
    raise ImageError(
        f"{path}: no {what} {choice!r}; there {'are' if len(names) > 1 else 'is'} {listed}. Choose with {where}",
        code="fields.choice_unknown",
    )


def _problem(scene: Scene) -> str:
    """Explain why a scene cannot be used; empty for one that can."""
    if not scene.problem and min(scene.height, scene.width) < MIN_EDGE:
        return f"{scene.width} x {scene.height} px; a field needs at least {MIN_EDGE} px each way"
    return scene.problem


def _choose_scene(source: Source, choice: str | None) -> int:
    """Return the number of the chosen scene.

    Raises:
        ImageError: as `choose_by_name`, or a scene that cannot be used (`fields.scene_unusable`).
    """
    number = choose_by_name(source.path, "scene", choice, [one.name for one in source.scenes])
    chosen = source.scenes[number]
    if problem := _problem(chosen):
        named = f" scene {chosen.name}:" if len(source.scenes) > 1 else ""
        raise ImageError(f"{source.path}:{named} {problem}", code="fields.scene_unusable")
    return number


def _info(source: Source, number: int, scene: Scene) -> FieldInfo:
    height, width = orient_shape((scene.height, scene.width), scene.orientation)
    accepted = scene.pixel_um is not None and is_plausible(scene.pixel_um)
    return FieldInfo(
        height=height,
        width=width,
        channels=scene.channels,
        planes=scene.planes,
        scenes=tuple(one.name for one in source.scenes),
        dtype=scene.dtype,
        colour=scene.colour,
        pixel_um=scene.pixel_um if accepted else None,
        scene=number,
        files=scene.files or (source.path,),
        implausible_um=None if accepted else scene.pixel_um,
    )
