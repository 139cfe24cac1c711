"""Result of cropping: the cells of each field, and the written files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.fields.cropping.settings import CropSettings
from urnet.fields.detection.detect import Detection
from urnet.fields.detection.matching import Agreement
from urnet.fields.io.read import FieldInfo
from urnet.fields.preprocessing.registration import Shift
from urnet.fields.table import FieldRow


@dataclass(frozen=True)
class CroppedField:
    """The cells of one field.

    Args:
        row: the field in its list.
        info: its size and pixels.
        detections: its cells.
        shift: correction of the position of the nuclei; none without nuclei.
        preview: the field in even illumination, reduced.
        preview_scale: field pixels per pixel of the preview.
        agreement: of the cells with labelled positions; none without a table of labels.
    """

    row: FieldRow
    info: FieldInfo
    detections: list[Detection]
    shift: Shift | None
    preview: np.ndarray
    preview_scale: float
    agreement: Agreement | None


@dataclass(frozen=True)
class CropResult:
    """Result of `crop_fields`: the folder, the cells and the fields.

    Args:
        folder: the cells folder.
        table: its cells.
        fields: the fields, in order.
        settings: as used, with the chosen pixel size and illumination.
        notes: what the user should know.
    """

    folder: Path
    table: pd.DataFrame
    fields: list[CroppedField]
    settings: CropSettings
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<CropResult: {len(self.table)} cells in {len(self.fields)} field(s), folder {self.folder}>"

    def _repr_html_(self) -> str:
        return f"<p>{len(self.table)} cells in {len(self.fields)} field(s)</p>{self.table.head(5).to_html(index=False)}"
