"""Settings of `urnet crop`, stored in `crop.json` beside the crops and in the models that are trained on them."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from urnet.errors import CellsError, ImageError, RunError
from urnet.fields.preprocessing.illumination import Illumination
from urnet.files.json_files import Text, describe_error, read_canonical_json
from urnet.version import __version__

SETTINGS_NAME = "crop.json"
FORMAT = 1
SIZE_LIMITS_PX = (16, 2048)
"""Smallest and largest edge of a crop, px."""

MAX_GRID_BLOCKS = 4096
"""Largest edge of a stored illumination, blocks."""

MAX_CROP_RATIO = 1.5
"""Ratio of the longer edge of an image to the edge of the crops above which the image is a field."""

_COMPANION = re.compile(r"(\.\.[/\\])*((?!\.\.[/\\])[^/\\:]+[/\\])*[^/\\:]*\*[^/\\:]*")
"""Pattern of files beside fields: folders upwards, folders downwards, and a file name with `*`."""


def _invalid(problem: str) -> CellsError:
    return CellsError(problem, code="fields.setting_invalid")


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Settings for cropping fields. Crops and the models that are trained on them store the same settings.

    Args:
        size: edge of the square crops, px.
        width_um: edge of the crops on the specimen, µm; none keeps the pixels of the fields.
        pixel_um: µm per px of the crops, once chosen; none where the pixel size of all fields is unknown.
        channel: name or number of the brightfield channel; likewise `z` and `scene`.
        nuclei: pattern of the files with the nuclear fluorescence; `*` stands for the stem of the brightfield.
        nuclei_channel: channel with the nuclear fluorescence.
        diameter_um: smallest and largest diameter of a cell, µm; none derives the limits from each field.
        roundness: smallest 4πA/P² of the outline of a cell, 0 to 1.
        border: whether to keep cells at the border of the field.
        light: `estimated` from the fields, `given` by a flat-field image, or `none`: not corrected.
        illumination: the illumination that is corrected.
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
            raise _invalid(f"size is {self.size}; it must be {SIZE_LIMITS_PX[0]} to {SIZE_LIMITS_PX[1]} px")
        if self.width_um is not None and not 0 < self.width_um < float("inf"):
            raise _invalid(f"the width of the crops is {self.width_um:g} µm; it must be above 0")
        if not 0 <= self.roundness <= 1:
            raise _invalid(f"roundness is {self.roundness:g}; it must be 0 to 1 (1 is a circle)")
        if self.diameter_um is not None and not 0 < self.diameter_um[0] < self.diameter_um[1]:
            least, most = self.diameter_um
            raise _invalid(
                f"diameters are {least:g} to {most:g} µm; give the smallest and then the largest, both above 0"
            )
        if self.nuclei is not None and not _COMPANION.fullmatch(self.nuclei):
            raise _invalid(
                f"nuclei is {self.nuclei!r}; it must be a path relative to the field, with * for the name of the "
                "field: '*_dapi.tif' or '../dapi/*.tif'"
            )

    def to_json(self) -> str:
        """Return the content of `crop.json`."""
        light = None if self.illumination is None else self.illumination.to_json()
        data = {"format": FORMAT, "urnet": __version__, **asdict(replace(self, illumination=None))}
        return json.dumps(data | {"illumination": light}, indent=1, ensure_ascii=False) + "\n"

    def is_too_large(self, height: int, width: int) -> bool:
        """Return whether an image of this height and width, px, is a field rather than one of these crops."""
        return max(height, width) > MAX_CROP_RATIO * self.size

    def check_crop(self, height: int, width: int) -> None:
        """Refuse an image that is too large to be one cell.

        Raises:
            ImageError: it is a field (`fields.counted_as_one_cell`).
        """
        if self.is_too_large(height, width):
            raise ImageError(
                f"{width} x {height} px; the model was trained on crops of {self.size} px, and an image of more than "
                f"{MAX_CROP_RATIO * self.size:g} px is a field of many cells, not one cell. Give it to "
                "`urnet differential` or `urnet crop`, or crop single cells",
                code="fields.counted_as_one_cell",
            )

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(self.to_json(), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "CropSettings":
        """Read a file that `save` wrote.

        Raises:
            RunError: damaged, with invalid values, or written by a newer program.
        """
        try:
            content = read_canonical_json(path)
            data = json.loads(content)
            if isinstance(data, dict) and type(data.get("format")) is int and data["format"] > FORMAT:
                raise RunError(
                    f"{path}: written by a newer urnet ({str(data.get('urnet'))[:40]}); update urnet",
                    code="model.newer",
                )
            stored = _File.model_validate_json(content)
            light = None if stored.illumination is None else Illumination.from_json(stored.illumination.model_dump())
            settings = stored.model_dump(exclude={"format", "urnet", "illumination"})
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
