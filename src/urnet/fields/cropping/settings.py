"""How fields are cut into crops: the settings that stand beside the crops, and in the model that is trained on them."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from urnet.errors import CellsError, ImageError, RunError, list_first
from urnet.fields.io.pixel_size import explain_implausible
from urnet.fields.preprocessing.illumination import Illumination
from urnet.fields.table import FieldRow
from urnet.files.json_files import Text, describe_error, read_canonical_json
from urnet.version import __version__

SETTINGS_NAME = "crop.json"
FORMAT = 1
SIZE_LIMITS_PX = (16, 2048)
"""Least and greatest edge of a crop, px."""

MAX_GRID_BLOCKS = 4096
"""Greatest edge of a stored illumination, blocks."""

MAX_CROP_RATIO = 1.5
"""An image this many times larger than the crops that are cut out of fields is a field and no crop."""

SPAN_LIMITS_PX = (8, 4096)
"""Least and greatest edge of what a crop shows, px of its field."""

_COMPANION = re.compile(r"(\.\.[/\\])*((?!\.\.[/\\])[^/\\:]+[/\\])*[^/\\:]*\*[^/\\:]*")
"""A pattern of files beside fields: folders upwards, folders downwards, a file name with the field's name in it."""


class PixelSizeError(CellsError):
    """Fields do not know their pixel size, and micrometres are asked for.

    Args:
        problem: which fields, and who asks.
    """

    def __init__(self, problem: str):
        super().__init__(f"{problem}; give it in a field table (column pixel_size_um)")
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How fields are cut. What is stored with the crops, and with a model that is trained on them, is the same object.

    Args:
        size: edge of the square crops, px.
        width_um: edge of the crops on the specimen, µm; none keeps the fields' own pixels.
        pixel_um: µm per px of the crops, once it is settled; none where no field knows its pixel size.
        channel: name or number of the brightfield's channel; likewise `z` and `scene`.
        nuclei: pattern of the files with the nuclear fluorescence, `*` standing for the brightfield's stem.
        nuclei_channel: the channel with the nuclear fluorescence, where it is one of the same file.
        diameter_um: least and greatest diameter of a cell, µm; none takes the limits from the field itself.
        roundness: least 4πA/P² of a cell's outline, 0 to 1.
        border: whether cells that the field's border cuts are kept.
        light: `estimated` from the fields, `given` by images of an empty spot, or `none`: left as it is.
        illumination: what came of that.
    """

    size: int = 200
    width_um: float | None = None
    pixel_um: float | None = None
    channel: str | None = None
    z: str | None = None
    scene: str | None = None
    nuclei: str | None = None
    nuclei_channel: str | None = None
    diameter_um: tuple[float, float] | None = None
    roundness: float = 0.0
    border: bool = True
    light: Literal["estimated", "given", "none"] = "estimated"
    illumination: Illumination | None = None

    def __post_init__(self) -> None:
        if not SIZE_LIMITS_PX[0] <= self.size <= SIZE_LIMITS_PX[1]:
            raise CellsError(f"size is {self.size}; crops can be {SIZE_LIMITS_PX[0]} to {SIZE_LIMITS_PX[1]} px")
        if self.width_um is not None and not 0 < self.width_um < float("inf"):
            raise CellsError(f"the crops' width is {self.width_um:g} µm; it must be above 0")
        if not 0 <= self.roundness <= 1:
            raise CellsError(f"roundness is {self.roundness:g}; it must be 0 to 1 (1 is a circle)")
        if self.diameter_um is not None and not 0 < self.diameter_um[0] < self.diameter_um[1]:
            least, most = self.diameter_um
            raise CellsError(f"diameters of {least:g} to {most:g} µm; give the least and then the greatest, above 0")
        if self.nuclei is not None and not _COMPANION.fullmatch(self.nuclei):
            raise CellsError(
                f"nuclei is {self.nuclei!r}; it must be a path relative to the field, with * for the field's name in "
                "the file's name: '*_dapi.tif' or '../dapi/*.tif'"
            )

    def to_json(self) -> str:
        """The content of `crop.json`."""
        light = None if self.illumination is None else self.illumination.to_json()
        data = {"format": FORMAT, "urnet": __version__, **asdict(replace(self, illumination=None))}
        return json.dumps(data | {"illumination": light}, indent=1, ensure_ascii=False) + "\n"

    def is_too_large(self, height: int, width: int) -> bool:
        """Whether an image of this height and width, px, is a field of view rather than one of these crops."""
        return max(height, width) > MAX_CROP_RATIO * self.size

    def check_crop(self, height: int, width: int) -> None:
        """Refuse an image that is too large to be one cell, before it is reduced to a crop's size.

        Raises:
            ImageError: it is.
        """
        if self.is_too_large(height, width):
            raise ImageError(
                f"{width} x {height} px; the model was trained on crops of {self.size} px out of fields, and an image "
                f"of more than {MAX_CROP_RATIO * self.size:g} px is a field of many cells, not one cell; cut it by "
                "`urnet differential` or `urnet crop`, or cut single cells out of it",
                code="fields.counted_as_one_cell",
            )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.to_json(), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "CropSettings":
        """Read what `save` wrote.

        Raises:
            RunError: damaged, with impossible values, or written by a newer program.
        """
        try:
            content = read_canonical_json(path)
            data = json.loads(content)
            if isinstance(data, dict) and type(data.get("format")) is int and data["format"] > FORMAT:
                raise RunError(
                    f"{path}: written by a newer urnet ({str(data.get('urnet'))[:40]}); update urnet",
                    code="model.newer",
                )
            told = _File.model_validate_json(content)
            light = None if told.illumination is None else Illumination.from_json(told.illumination.model_dump())
            settings = told.model_dump(exclude={"format", "urnet", "illumination"})
            return cls(**settings, illumination=light)
        except (OSError, ValueError, CellsError) as error:
            raise RunError(
                f"{path}: not the settings of `urnet crop` ({describe_error(error)}); restore the file",
                code="model.cropping_invalid",
            ) from None


Length = Annotated[float, Field(gt=0, le=1e6)]
Grid = Annotated[
    list[Annotated[list[FiniteFloat], Field(min_length=1, max_length=MAX_GRID_BLOCKS)]],
    Field(min_length=1, max_length=MAX_GRID_BLOCKS),
]


class _Light(BaseModel):
    """The illumination in `crop.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: Literal["none", "estimated", "given"]
    flat: Grid
    dark: Grid | None


class _File(BaseModel):
    """The content of `crop.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    urnet: Text
    size: Annotated[int, Field(ge=SIZE_LIMITS_PX[0], le=SIZE_LIMITS_PX[1])]
    width_um: Length | None
    pixel_um: Length | None
    channel: Text | None
    z: Text | None
    scene: Text | None
    nuclei: Text | None
    nuclei_channel: Text | None
    diameter_um: tuple[Length, Length] | None
    roundness: Annotated[float, Field(ge=0, le=1)]
    border: bool
    light: Literal["estimated", "given", "none"]
    illumination: _Light | None


def choose_pixel_size(
    asked: CropSettings,
    rows: Sequence[FieldRow],
    pixels: Sequence[float | None],
    for_prediction: bool,
    doubted: Mapping[str, float] | None = None,
) -> tuple[CropSettings, list[str]]:
    """The one pixel size of all crops, and what there is to say about it.

    Args:
        asked: the settings.
        rows: the fields.
        pixels: µm a pixel of each; none where it is not known.
        for_prediction: whether the settings are those of a training's crops.
        doubted: what the files of some of them state and is not believed, µm, by the names of the fields.

    Raises:
        PixelSizeError: a field does not know its own where micrometres are asked for.
        CellsError: crops would show too little or too much of a field.
    """
    unknown = [row.field for row, pixel in zip(rows, pixels, strict=True) if pixel is None]
    stated = {name: pixel for name, pixel in (doubted or {}).items() if name in unknown}
    not_believed = "".join(
        f"; the file of {list_first(names)} states {explain_implausible(pixel)}, which is not believed"
        for pixel in sorted(set(stated.values()))
        if (names := [name for name in stated if stated[name] == pixel])
    )
    micrometres = (
        asked.width_um is not None or asked.diameter_um is not None or (for_prediction and asked.pixel_um is not None)
    )
    if unknown and micrometres:
        why = (
            f"the model was trained on crops of {asked.pixel_um:.4g} µm a pixel"
            if for_prediction and asked.pixel_um is not None
            else "micrometres are asked for"
        )
        raise PixelSizeError(f"{list_first(unknown)}: the pixel size is not known, but {why}{not_believed}")
    if for_prediction:
        _check_span(asked, rows, pixels)
        return asked, []
    if asked.width_um is not None:
        settled = replace(asked, pixel_um=asked.width_um / asked.size)
        _check_span(settled, rows, pixels)
        return settled, []
    known = Counter(round(pixel, 6) for pixel in pixels if pixel is not None)
    if not known:
        return asked, [f"The pixel size is not known; size limits come from the fields themselves{not_believed}."]
    # The most common one, and of several the coarsest: detail that was never taken cannot be made.
    chosen = max(known, key=lambda pixel: (known[pixel], pixel))
    notes = []
    if len(known) > 1:
        notes.append(f"Fields have {len(known)} pixel sizes; all crops are resampled to {chosen:.4g} µm.")
    if unknown:
        notes.append(
            f"{list_first(unknown)}: pixel size unknown, taken to be {chosen:.4g} µm like the others'{not_believed}."
        )
    settled = replace(asked, pixel_um=chosen)
    _check_span(settled, rows, pixels)
    return settled, notes


def _check_span(settled: CropSettings, rows: Sequence[FieldRow], pixels: Sequence[float | None]) -> None:
    for row, pixel in zip(rows, pixels, strict=True):
        if pixel is None or settled.pixel_um is None:
            continue
        span = settled.size * settled.pixel_um / pixel
        if not SPAN_LIMITS_PX[0] <= span <= SPAN_LIMITS_PX[1]:
            raise CellsError(
                f"{row.field}: crops of {settled.size * settled.pixel_um:.4g} µm would show {span:.4g} of its pixels, "
                f"{pixel:.4g} µm each; a crop shows {SPAN_LIMITS_PX[0]} to {SPAN_LIMITS_PX[1]}: correct the width or "
                "the pixel size"
            )
