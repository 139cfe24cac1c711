"""Fields of view in Python: read them, find their cells, cut the cells out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from urnet.api.html import format_facts
from urnet.api.progress import show_progress
from urnet.errors import ImageError
from urnet.fields.cropping.crop import CropResult, crop_fields
from urnet.fields.cropping.extract import extract_crop
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.detection.detect import Detection
from urnet.fields.detection.detect import detect as detect_cells
from urnet.fields.io.pool import FieldPool
from urnet.fields.preprocessing.corrected_field import CorrectedField

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("red", "green", "blue")
"""Names of the channels of a colour image."""


@dataclass(frozen=True, eq=False)
class FieldImage:
    """One scene of a field of view, in memory. `numpy.asarray` gives its pixels.

    Attributes:
        data: (C, H, W), in the counts and the depth of the file.
        channels: names of the C channels; of a colour image `red`, `green` and `blue`.
        pixel_size_um: edge of a pixel on the specimen, µm; None where the file does not say.
        scenes: names of all scenes of the file. Time points count as scenes.
        scene: name of this scene.
        path: the file.
    """

    data: np.ndarray
    channels: tuple[str, ...]
    pixel_size_um: float | None
    scenes: tuple[str, ...]
    scene: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.data.shape

    @property
    def is_colour(self) -> bool:
        """Whether the channels are red, green and blue."""
        return self.channels == COLOURS

    def channel(self, name: str | int) -> np.ndarray:
        """Return one channel, (H, W).

        Args:
            name: its name or its number.

        Raises:
            ImageError: there is no such channel.
        """
        if isinstance(name, str) and name in self.channels:
            return self.data[self.channels.index(name)]
        if isinstance(name, int) and 0 <= name < len(self.channels):
            return self.data[name]
        listed = ", ".join(f"{index}: {one}" for index, one in enumerate(self.channels))
        raise ImageError(
            f"{self.path}: no channel {name!r}. Choose a name or a number of {listed}", code="fields.no_such_channel"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        _, height, width = self.data.shape
        size = "" if self.pixel_size_um is None else f", {self.pixel_size_um:.4g} µm per pixel"
        return (
            f"<FieldImage {self.path.name}: {width} x {height} px, {self.data.dtype}, "
            f"channels {', '.join(self.channels)}{size}>"
        )

    def _repr_html_(self) -> str:
        _, height, width = self.data.shape
        unknown = "not stated in the file"
        facts = {
            "size": f"{width} x {height} px",
            "channels": ", ".join(self.channels),
            "pixel size": unknown if self.pixel_size_um is None else f"{self.pixel_size_um:.4g} µm",
            "scene": f"{self.scene} (of {len(self.scenes)})",
            "type": self.data.dtype,
        }
        return format_facts(f"Field {self.path.name}", facts)


@dataclass(frozen=True, eq=False)
class Detections(Sequence[Detection]):
    """The cells of one field, in order from top to bottom.

    Attributes:
        cells: position, size and mask of each cell.
        image: the searched brightfield, (H, W) or (H, W, 3).
        pixel_size_um: edge of a pixel on the specimen, µm; None where it is not known.
    """

    cells: list[Detection] = field(repr=False)
    image: np.ndarray = field(repr=False)
    pixel_size_um: float | None = None

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice) -> list[Detection]: ...

    def __getitem__(self, index: int | slice) -> Detection | list[Detection]:
        return self.cells[index]

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.cells)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell.

        Returns:
            Columns `x`, `y` (centre, px), `diameter_px`, `diameter_um` (of the circle of the same area), `area_px`,
            `roundness` (4·pi·area/perimeter²), `touching` (share of the outline beside another particle), `on_edge`.
        """
        um = np.nan if self.pixel_size_um is None else self.pixel_size_um
        rows = [(c.x, c.y, c.diameter, c.diameter * um, c.area, c.roundness, c.touching, c.on_edge) for c in self.cells]
        names = ["x", "y", "diameter_px", "diameter_um", "area_px", "roundness", "touching", "on_edge"]
        return pd.DataFrame(rows, columns=names)

    def to_labels(self) -> np.ndarray:
        """Return the masks as one image, (H, W) int32: 0 is background, k the k-th cell, counted from 1."""
        labels = np.zeros(self.image.shape[:2], np.int32)
        for number, cell in enumerate(self.cells, 1):
            height, width = cell.mask.shape
            labels[cell.top : cell.top + height, cell.left : cell.left + width][cell.mask] = number
        return labels

    def crops(self, size: int = 200) -> np.ndarray:
        """Cut each cell out, in the middle of a square.

        Args:
            size: edge of the crops, px. What lies beyond the border of the field is mirrored.

        Returns:
            (N, size, size) or (N, size, size, 3), in the counts of the field.
        """
        CropSettings(size=size)  # refuses a size that is too small or too large
        view = CorrectedField(_ArrayField(self.image))  # type: ignore[arg-type]  # it reads like an open field
        crops = [extract_crop(view, cell, size, 1.0)[0] for cell in self.cells]
        empty = np.zeros((0, size, size, *self.image.shape[2:]), self.image.dtype)
        return np.stack(crops) if crops else empty

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the field and the outlines of the cells.

        Args:
            ax: Matplotlib axes; new ones when not given.
        """
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(8, 8))[1]
        grey = self.image if self.image.ndim == 2 else self.image.mean(axis=2)
        ax.imshow(grey, cmap="gray", vmin=np.percentile(grey, 0.2), vmax=np.percentile(grey, 99.8))
        if self.cells:
            ax.contour(self.to_labels() > 0, levels=[0.5], colors="tab:cyan", linewidths=0.8)
        ax.set_title(f"{len(self)} cells")
        ax.set_axis_off()
        return ax

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"<Detections: {len(self)} cells in {width} x {height} px>"

    def _repr_html_(self) -> str:
        return f"<p>{len(self)} cells</p>{self.to_frame().head(5).round(2).to_html()}"


def read_field(path: Path | str, scene: int | str = 0, *, z: int | str | None = None) -> FieldImage:
    """Read one scene of a field of view, with all its channels.

    Args:
        path: a TIFF, OME-TIFF, PNG, JPEG, BMP, CZI, ND2 or LIF file.
        scene: number or name of the scene.
        z: number of a plane, or `max`, `mean`, `min` or `sharpest`; needed only for a stack.

    Returns:
        The pixels with the names of their channels and their size on the specimen.

    Raises:
        ImageError: the file is damaged or of another kind, or has no such scene or plane.

    Examples:
        >>> import urnet
        >>> field = urnet.read_field("phantom/fields/field_000.tif")
        >>> field
        <FieldImage field_000.tif: ... px, uint16, channels 0, ...>
        >>> field.data.shape, field.pixel_size_um
        ((1, ..., ...), ...)
    """
    path = Path(path)
    planes: list[np.ndarray] = []
    names: list[str] = []
    with FieldPool() as pool:
        info = pool.describe(path, str(scene))
        for index, name in enumerate(info.channels):
            unique = info.channels.count(name) == 1
            channel = name if unique else str(index)
            plane = None if z is None else str(z)
            with pool.open(path, channel=channel, z=plane, scene=str(scene)) as opened:
                pixels = opened.read(0, 0, opened.info.height, opened.info.width)
            if pixels.ndim == 2:
                planes.append(pixels)
                names.append(name)
            else:
                planes += list(np.moveaxis(pixels, 2, 0))
                names += [colour if len(info.channels) == 1 else f"{name} {colour}" for colour in COLOURS]
    return FieldImage(np.stack(planes), tuple(names), info.pixel_um, info.scenes, info.scenes[info.scene], path)


def detect(
    field: FieldImage | np.ndarray | Path | str,
    *,
    channel: str | int | None = None,
    nuclei: str | int | np.ndarray | None = None,
    diameter_um: tuple[float, float] | None = None,
    roundness: float = 0.0,
    border: bool = True,
    pixel_size_um: float | None = None,
) -> Detections:
    """Find the white blood cells of a field.

    Args:
        field: a field, its pixels ((H, W) or (H, W, 3)), or the path of its file.
        channel: name or number of the brightfield channel; needed only where the field has several.
        nuclei: name or number of the channel with the nuclear fluorescence, or its pixels, (H, W). With it, only
            particles with a nucleus are cells.
        diameter_um: minimum and maximum diameter of a cell, µm. When not given, the field's own typical size sets them.
        roundness: minimum roundness of a cell, 0 to 1.
        border: keep cells that the border of the field cuts.
        pixel_size_um: edge of a pixel, µm, where the field does not know it.

    Returns:
        The cells, with `to_frame()`, `to_labels()`, `crops()` and `plot()`.

    Raises:
        ImageError: no such channel, pixels of another shape, or micrometres without a pixel size.

    Examples:
        >>> import urnet
        >>> cells = urnet.detect("phantom/fields/field_000.tif")
        >>> cells
        <Detections: ... cells in ... px>
        >>> cells.to_frame()[["x", "y", "diameter_px"]].head(1)
        x    y  diameter_px
        ...
        >>> cells.crops(size=48).shape
        (..., 48, 48)
    """
    if isinstance(field, str | Path):
        field = read_field(field)
    image = _brightfield(field, channel)
    if isinstance(nuclei, str | int):
        if not isinstance(field, FieldImage):
            raise ImageError(
                f"nuclei={nuclei!r} names a channel, but the field is an array; give the pixels of the nuclei, (H, W)",
                code="fields.no_such_channel",
            )
        nuclei = field.channel(nuclei)
    if nuclei is not None and nuclei.shape != image.shape[:2]:
        raise ImageError(
            f"the nuclei are {nuclei.shape}, and the field is {image.shape[:2]}; both need the same height and width",
            code="fields.shapes_differ",
        )
    pixel_um = pixel_size_um or (field.pixel_size_um if isinstance(field, FieldImage) else None)
    least, most = None, None
    if diameter_um is not None:
        if pixel_um is None:
            raise ImageError(
                f"diameter_um={diameter_um} needs the pixel size, which the field does not state; "
                "give it: pixel_size_um=0.1",
                code="fields.pixel_size_unknown",
            )
        least, most = (um / pixel_um for um in diameter_um)
    cells = detect_cells(
        _ArrayField(image).read,
        image.shape[:2],
        nuclei=None if nuclei is None else _ArrayField(nuclei).read,
        least=least,
        most=most,
        roundness=roundness,
        border=border,
    )
    return Detections(cells, image, pixel_um)


def crop(
    fields: Path | str,
    out: Path | str,
    *,
    size: int = 200,
    width_um: float | None = None,
    labels: Path | str | None = None,
    folder_names: Literal["label", "donor"] | None = None,
    nuclei: str | None = None,
    channel: str | int | None = None,
    nuclei_channel: str | int | None = None,
    z: str | int | None = None,
    scene: str | int | None = None,
    diameter_um: tuple[float, float] | None = None,
    roundness: float = 0.0,
    border: bool = True,
    light: Literal["estimated", "none"] = "estimated",
    flat: Path | str | None = None,
    dark: Path | str | None = None,
    progress: bool = True,
) -> CropResult:
    """Cut fields of view into crops of single cells, and write a cells folder, as `urnet crop` does.

    Args:
        fields: a field, a folder of fields, or a field table (CSV).
        out: new cells folder.
        size: edge of the crops, px.
        width_um: edge of the crops on the specimen, µm. When not given, the fields' own pixels stay.
        labels: table of labelled positions: `field,x,y,label`.
        folder_names: what the folder of a field names: its label or its donor.
        nuclei: files with the nuclear fluorescence; `*` is the name of the brightfield: `"*_dapi.tif"`.
        channel: name or number of the brightfield channel.
        nuclei_channel: name or number of the nuclear channel.
        z: number of a plane, or `max`, `mean`, `min` or `sharpest`.
        scene: name or number of the scene of every field.
        diameter_um: minimum and maximum diameter of a cell, µm.
        roundness: minimum roundness of a cell, 0 to 1.
        border: keep cells that the border of the field cuts.
        light: even out the illumination, as estimated from the fields, or leave it.
        flat: flat-field image of an empty spot, in place of an estimate.
        dark: dark image, taken without light.
        progress: show progress.

    Returns:
        The table of the cells (`table`), the folder, and notes for the user.

    Raises:
        CellsError: no fields, or settings that contradict the files.
        ImageError: a field cannot be read.
        RunError: `out` exists.

    Examples:
        >>> import urnet
        >>> cropped = urnet.crop("phantom/fields", "crops", size=48, progress=False)
        >>> len(cropped.table) > 0
        True
        >>> sorted(path.name for path in cropped.folder.iterdir())
        ['cells', 'cells.csv', 'crop.json', 'masks', ...]
    """
    settings = CropSettings(
        size=size,
        width_um=width_um,
        channel=_as_text(channel),
        z=_as_text(z),
        scene=_as_text(scene),
        nuclei=nuclei,
        nuclei_channel=_as_text(nuclei_channel),
        diameter_um=diameter_um,
        roundness=roundness,
        border=border,
        light=light,
    )
    with show_progress(progress) as reporter:
        return crop_fields(
            Path(fields),
            Path(out),
            settings,
            labels=None if labels is None else Path(labels),
            folder_names=folder_names,
            flat=None if flat is None else Path(flat),
            dark=None if dark is None else Path(dark),
            progress=reporter.update,
        )


class _ArrayField:
    """Pixels in memory that are read like an open field."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.info = SimpleNamespace(height=pixels.shape[0], width=pixels.shape[1])

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[top : top + height, left : left + width])


def _brightfield(field: FieldImage | np.ndarray, channel: str | int | None) -> np.ndarray:
    """Return the brightfield of a field, (H, W) or (H, W, 3)."""
    if isinstance(field, FieldImage):
        if channel is not None:
            return field.channel(channel)
        if field.is_colour:
            return np.moveaxis(field.data, 0, 2)
        if len(field.channels) > 1:
            listed = ", ".join(f"{index}: {name}" for index, name in enumerate(field.channels))
            raise ImageError(
                f"{field.path}: {len(field.channels)} channels ({listed}); name the brightfield: "
                f"channel={field.channels[0]!r}",
                code="fields.channel_needed",
            )
        return field.data[0]
    if field.ndim == 2 or (field.ndim == 3 and field.shape[2] == 3):
        return field
    raise ImageError(
        f"an array of shape {field.shape}; a field is (H, W), or (H, W, 3) in colour. Choose one plane, as field[0]",
        code="fields.shape",
    )


def _as_text(choice: str | int | None) -> str | None:
    return None if choice is None else str(choice)
