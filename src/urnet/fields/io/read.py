"""Fields of view: what a file holds, and any region of one channel of it, at its own depth and in its own counts.

TIFF and OME-TIFF, PNG, JPEG and BMP are told by their first bytes; CZI, ND2 and LIF by their names. Regions are read
from the tiles or strips that hold them, so that a field of 20,000 x 20,000 px does not have to fit into memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.microscopy import SUFFIXES as MICROSCOPY_SUFFIXES
from urnet.fields.io.microscopy import open_microscopy
from urnet.fields.io.pixel_size import is_plausible
from urnet.fields.io.source import ReadRegion, Scene, SingleImage, Source
from urnet.fields.io.tiff.source import TiffSource
from urnet.images.orientation import map_to_stored, orient, orient_shape
from urnet.images.read import MIN_EDGE, SUFFIXES, TIFF_STARTS, read_first_bytes, read_single_image_size

FIELD_SUFFIXES = SUFFIXES | MICROSCOPY_SUFFIXES
"""Names that are looked for in folders of fields (lower case)."""

PROJECTIONS = ("max", "mean", "min", "sharpest")
"""What `z` can be besides the number of a plane."""

_WINDOW = 512  # edge of the windows in which planes are compared for sharpness, px


@dataclass(frozen=True)
class FieldInfo:
    """What a field is.

    Args:
        height: rows as shown, px.
        width: columns as shown, px.
        channels: the names of its channels, or "0", "1", … where they have none.
        planes: number of z planes.
        scenes: names of all scenes of the file; time points count as scenes.
        dtype: `uint8`, `uint16` or `float32`; of a file whose channels differ, the widest.
        colour: whether a pixel has three values; of a file whose channels differ, of any.
        pixel_um: edge of a pixel on the specimen, µm; none where the file does not say, pixels are not square, or what
            it says is not believed.
        scene: number of the scene that this is about.
        files: all files that hold the image, in order of their names.
        implausible_um: what the file says where that is not believed (`urnet.fields.io.pixel_size`).
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
    """One channel of one scene, open for reading; close it, or use it in a `with` statement."""

    def __init__(
        self, source: Source, number: int, scene: Scene, planes: Sequence[ReadRegion], project: Callable | None = None
    ):
        self.path = source.path
        self.info = _info(source, number, scene)
        self._source = source
        self._scene = scene
        self._planes = planes
        self._project = project

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
            ImageError: damaged pixels, or values that are no numbers.
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
        pixels = self._planes[0](*region) if self._project is None else self._project(self._planes, region)
        return np.ascontiguousarray(orient(pixels, scene.orientation))

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def __enter__(self) -> "Field":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe_field(path: Path, scene: str | None = None) -> FieldInfo:
    """What a file holds, without decoding it.

    Args:
        path: a TIFF, OME-TIFF, PNG, JPEG, BMP, CZI, ND2 or LIF file.
        scene: name or number of the scene to describe; the first usable one when not given.

    Raises:
        ImageError: not such a file, damaged, truncated, or mislabelled, or no such scene.
    """
    source = _open(Path(path))
    try:
        usable = [number for number, one in enumerate(source.scenes) if not _problem(one)]
        number = usable[0] if scene is None and usable else _scene(source, "0" if scene is None else scene)
        return _info(source, number, source.scenes[number])
    finally:
        source.close()


def open_field(path: Path, *, channel: str | None = None, z: str | None = None, scene: str | None = None) -> Field:
    """Open one channel of a file for reading region by region.

    Args:
        path: a TIFF, OME-TIFF, PNG, JPEG, BMP, CZI, ND2 or LIF file.
        channel: name of a channel, in any case, or its number from 0; must be given if there are several.
        z: number of a plane from 0, or `max`, `mean`, `min` over the planes, or `sharpest`: the plane whose fine
            structure is strongest over the whole field (of cells without stain, one beside the focus). Must be given
            if there are several planes; a projection of one plane is that plane.
        scene: name of a scene, or its number from 0; must be given if there are several.

    Raises:
        ImageError: as `describe_field`, or a choice that is missing or names nothing in the file.
    """
    source = _open(Path(path))
    try:
        number = _scene(source, scene)
        chosen = source.scenes[number]
        place = choose_by_name(source.path, "channel", channel, chosen.channels)
        chosen = chosen.of_channel(place)
        planes, project = _planes(source, chosen, place, z)
        return Field(source, number, chosen, planes, project)
    except BaseException:
        source.close()
        raise


def partner_z(path: Path, z: str | None, scene: str | None = None) -> str | None:
    """The `z` with which another image of the same field is opened: a single plane goes with any plane of a stack.

    Args:
        path: the other image, such as the nuclei.
        z: as the field itself was opened with.
        scene: as for `open_field`.

    Raises:
        ImageError: as `describe_field`.
    """
    return z if describe_field(path, scene).planes > 1 else None


def _open(path: Path) -> Source:
    if path.suffix.lower() in MICROSCOPY_SUFFIXES:
        source: Source = open_microscopy(path)
    elif read_first_bytes(path).startswith(TIFF_STARTS):
        source = TiffSource(path)
    else:
        source = SingleImage(path, *read_single_image_size(path))
    try:
        if not source.scenes:
            raise ImageError(f"{path}: holds no image; export the field anew")
    except BaseException:
        source.close()
        raise
    return source


def _problem(scene: Scene) -> str:
    """Why a scene cannot be used; empty for one that can."""
    if not scene.problem and min(scene.height, scene.width) < MIN_EDGE:
        return f"{scene.width} x {scene.height} px; a field needs at least {MIN_EDGE} px each way"
    return scene.problem


def _scene(source: Source, asked: str | None) -> int:
    """Number of the scene that is asked for.

    Raises:
        ImageError: none of that name or number, several and none asked for, or one that cannot be used.
    """
    number = choose_by_name(source.path, "scene", asked, [one.name for one in source.scenes])
    chosen = source.scenes[number]
    if problem := _problem(chosen):
        named = f" scene {chosen.name}:" if len(source.scenes) > 1 else ""
        raise ImageError(f"{source.path}:{named} {problem}", code="fields.scene_unusable")
    return number


def _info(source: Source, number: int, scene: Scene) -> FieldInfo:
    height, width = orient_shape((scene.height, scene.width), scene.orientation)
    believed = scene.pixel_um is not None and is_plausible(scene.pixel_um)
    return FieldInfo(
        height=height,
        width=width,
        channels=scene.channels,
        planes=scene.planes,
        scenes=tuple(one.name for one in source.scenes),
        dtype=scene.dtype,
        colour=scene.colour,
        pixel_um=scene.pixel_um if believed else None,
        scene=number,
        files=scene.files or (source.path,),
        implausible_um=None if believed else scene.pixel_um,
    )


def choose_by_name(path: Path, what: str, asked: str | None, names: Sequence[str]) -> int:
    """Number of the one that is asked for by name or number.

    Raises:
        ImageError: there is none of that name or number, or more than one.
    """
    listed = ", ".join(f"{index}: {name}" if name != str(index) else name for index, name in enumerate(names))
    where = f"--{what}, or the column {what} of a field table"
    if asked is None or not str(asked).strip():
        if len(names) > 1:
            raise ImageError(f"{path}: {len(names)} {what}s ({listed}); name one by {where}")
        return 0
    asked = str(asked).strip()
    exact = [index for index, name in enumerate(names) if name == asked]
    alike = exact or [index for index, name in enumerate(names) if name.casefold() == asked.casefold()]
    if len(alike) == 1:
        return alike[0]
    if len(alike) > 1:
        raise ImageError(f"{path}: {len(alike)} {what}s are called {asked!r} ({listed}); give the number of one")
    if asked.isascii() and asked.isdigit() and int(asked) < len(names):
        return int(asked)
    raise ImageError(f"{path}: no {what} {asked!r}; there {'are' if len(names) > 1 else 'is'} {listed}; see {where}")


def _planes(source: Source, scene: Scene, channel: int, z: str | None) -> tuple[list[ReadRegion], Callable | None]:
    """The planes to read, and how several become one."""
    asked = None if z is None or not str(z).strip() else str(z).strip().lower()
    number = int(asked) if asked is not None and asked.isascii() and asked.isdigit() else None
    numbers = f"a number from 0 to {scene.planes - 1}" if scene.planes > 1 else "0, the only one"
    rule = f"{numbers}, or {', '.join(PROJECTIONS)}"
    if asked is not None and number is None and asked not in PROJECTIONS:
        raise ImageError(f"{source.path}: z is {z!r}; it can be {rule}")
    if number is not None and number >= scene.planes:
        raise ImageError(f"{source.path}: no z plane {number}; give {rule}", code="fields.no_such_plane")
    if scene.planes == 1:
        return [source.plane(scene, channel, 0)], None
    if asked is None:
        raise ImageError(
            f"{source.path}: {scene.planes} z planes; choose by --z, or the column z of a field table: {rule}"
        )
    if number is not None:
        return [source.plane(scene, channel, number)], None
    planes = [source.plane(scene, channel, index) for index in range(scene.planes)]
    if asked == "sharpest":
        return [max(planes, key=lambda plane: _sharpness(plane, scene))], None
    return planes, {"max": _greatest, "min": _least, "mean": _mean}[asked]


def _greatest(planes: Sequence[ReadRegion], region: tuple[int, int, int, int]) -> np.ndarray:
    result = planes[0](*region)
    for plane in planes[1:]:
        np.maximum(result, plane(*region), out=result)
    return result


def _least(planes: Sequence[ReadRegion], region: tuple[int, int, int, int]) -> np.ndarray:
    result = planes[0](*region)
    for plane in planes[1:]:
        np.minimum(result, plane(*region), out=result)
    return result


def _mean(planes: Sequence[ReadRegion], region: tuple[int, int, int, int]) -> np.ndarray:
    first = planes[0](*region)
    total = first.astype(np.float64)
    for plane in planes[1:]:
        total += plane(*region)
    total /= len(planes)
    return total.astype(first.dtype) if first.dtype.kind == "f" else np.rint(total).astype(first.dtype)


def _sharpness(plane: ReadRegion, scene: Scene) -> float:
    """Variance of the Laplacian over the squared mean, in nine windows spread over the field."""
    from scipy.ndimage import gaussian_laplace

    height, width = min(_WINDOW, scene.height), min(_WINDOW, scene.width)
    spread = brightness = 0.0
    for top in sorted({round(share * (scene.height - height)) for share in (0, 0.5, 1)}):
        for left in sorted({round(share * (scene.width - width)) for share in (0, 0.5, 1)}):
            pixels = plane(top, left, height, width).astype(np.float32)
            grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
            spread += float(gaussian_laplace(grey, 1.0).var())
            brightness += float(grey.mean()) ** 2
    return spread / brightness if brightness else 0.0
