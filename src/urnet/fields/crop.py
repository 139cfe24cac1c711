"""Cut fields of view into crops of single cells: `urnet crop`, and the same again in front of a trained model.

Read top to bottom: find the fields, agree on one pixel size, even out the light, put the nuclei in their place, find
the cells, cut them out, say what is known of each, and write a folder that training and prediction take as it is.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from urnet import __version__
from urnet.cells.pixels import resized
from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, ImageError, RunError
from urnet.fields.detect import Found, detect
from urnet.fields.illumination import Illumination, estimate_flat, given_flat
from urnet.fields.matching import Agreement, match
from urnet.fields.nuclei import nuclear_features
from urnet.fields.propose import propose
from urnet.fields.read import Field, FieldInfo, describe_field, open_field
from urnet.fields.registration import Shift, register
from urnet.fields.table import FieldRow, find_fields
from urnet.fields.view import View
from urnet.files import whole_folder
from urnet.images.quality import focus_score
from urnet.tables import read_table

SETTINGS_NAME = "crop.json"
FORMAT = 1
SIZES = (16, 2048)
"""Least and greatest edge of a crop, px."""

BATCH = 5
"""Fields from which new light is estimated in front of a trained model; with fewer, the training's is used."""

MOST_SHIFT = 0.05
"""How far nuclei may lie from the brightfield, as a share of the field's shorter edge."""

WINDOW = 2048
"""Edge of the middle part of a field from which the shift of its nuclei is measured, px."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Cropping:
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
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise CellsError(f"size is {self.size}; crops can be {SIZES[0]} to {SIZES[1]} px")
        if self.width_um is not None and not 0 < self.width_um < float("inf"):
            raise CellsError(f"the crops' width is {self.width_um:g} µm; it must be above 0")
        if not 0 <= self.roundness <= 1:
            raise CellsError(f"roundness is {self.roundness:g}; it must be 0 to 1 (1 is a circle)")
        if self.diameter_um is not None and not 0 < self.diameter_um[0] < self.diameter_um[1]:
            least, most = self.diameter_um
            raise CellsError(f"diameters of {least:g} to {most:g} µm; give the least and then the greatest, above 0")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        light = None if self.illumination is None else self.illumination.to_json()
        text = json.dumps({"format": FORMAT, "urnet": __version__, **asdict(replace(self, illumination=None))}, indent=1)
        data = json.loads(text) | {"illumination": light}
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "Cropping":
        """Read what `save` wrote.

        Raises:
            RunError: damaged, or written by a newer program.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") > FORMAT:
                raise RunError(f"{path}: written by a newer urnet ({data['urnet']}); update urnet")
            del data["urnet"]
            if data["diameter_um"] is not None:
                data["diameter_um"] = tuple(data["diameter_um"])
            if data["illumination"] is not None:
                data["illumination"] = Illumination.from_json(data["illumination"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CellsError) as error:
            raise RunError(f"{path}: not the settings of `urnet crop` ({error}); restore the file") from None


@dataclass(frozen=True)
class CroppedField:
    """What came of one field.

    Args:
        row: where it is.
        info: its size and pixels.
        found: the cells in it.
        shift: by how much the nuclei were moved; none without nuclei.
        preview: the evenly lit field, reduced, with `reduction` field pixels to one of its own.
        reduction: see there.
        agreement: with the positions in a table of labels; none without.
    """

    row: FieldRow
    info: FieldInfo
    found: list[Found]
    shift: Shift | None
    preview: np.ndarray
    reduction: float
    agreement: Agreement | None


@dataclass(frozen=True)
class Cropped:
    """What `crop_fields` wrote.

    Args:
        folder: the cells folder.
        table: its cells.
        fields: field by field.
        cropping: as it was settled.
        notes: what the user should know.
    """

    folder: Path
    table: pd.DataFrame
    fields: list[CroppedField]
    cropping: Cropping
    notes: list[str] = field(default_factory=list)


def crop_fields(
    fields: Path,
    out: Path,
    cropping: Cropping | None = None,
    *,
    labels: Path | None = None,
    folder_names: Literal["label", "donor"] | None = None,
    flat: Path | None = None,
    dark: Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Cropped:
    """Cut fields into cells.

    Args:
        fields: an image, a folder of images, or a field table.
        out: new cells folder: `cells.csv`, `cells/`, `masks/`, `nuclei/`, `crop.json`, `report.html`.
        cropping: how; the default when not given.
        labels: table with `field,x,y,label` (and `donor`); a cell takes the label of the position that it covers.
        folder_names: what the name of the folder that a field lies in says.
        flat: image of an empty spot, for the light.
        dark: image without light.
        again: the settings are those of a training's crops and stand as they are: the same pixel size is asked for,
            and the light of few fields is corrected as it was then.
        progress: called with what is done and the share of it.

    Raises:
        CellsError: no fields, settings that contradict the files, or `out` holds something.
        ImageError: a field cannot be read, or its nuclei do not belong to it.
    """
    say = progress or (lambda what, share: None)
    asked = cropping or Cropping()
    if dark is not None and flat is None:
        raise CellsError(f"--dark {dark} without --flat; a dark image corrects nothing by itself")
    root, rows = find_fields(
        fields,
        nuclei=asked.nuclei,
        nuclei_channel=asked.nuclei_channel,
        channel=asked.channel,
        z=asked.z,
        scene=asked.scene,
    )
    rows = [_named_by_folder(row, root, folder_names) for row in rows]
    infos = [describe_field(row.brightfield) for row in rows]
    pixels = [row.pixel_um or info.pixel_um for row, info in zip(rows, infos, strict=True)]
    how, notes = _settle_pixel_size(asked, rows, pixels, again)
    truth = _read_labels(labels, rows) if labels is not None else None
    if flat is not None:
        how = replace(how, light="given", illumination=given_flat(flat, dark))
    elif how.light == "estimated" and not (again and len(rows) < BATCH and how.illumination is not None):
        say("estimate light", 0.0)
        how = replace(how, illumination=estimate_flat(_opened(rows)))
    with whole_folder(out) as folder:
        table, done = [], []
        for number, (row, pixel) in enumerate(zip(rows, pixels, strict=True)):
            cells, result = _crop_field(folder, row, pixel, how, truth)
            table += cells
            done.append(result)
            say("crop fields", (number + 1) / len(rows))
        frame = pd.DataFrame(table, columns=list(_COLUMNS)) if table else pd.DataFrame(columns=list(_COLUMNS))
        kept = [column for column in _COLUMNS if column in ("path", "label") or (frame[column] != "").any()]
        frame[kept].to_csv(folder / TABLE_NAME, index=False, encoding="utf-8", lineterminator="\n")
        how.save(folder / SETTINGS_NAME)
        notes += _notes(frame, done)
        cropped = Cropped(Path(out), frame, done, how, notes)
        from urnet.fields.report import write_crop_report

        write_crop_report(folder / "report.html", cropped)
    return cropped


_COLUMNS = (
    *("path", "label", "proposed", "confidence", "donor", "field", "x", "y", "source", "target_nuclei", "mask"),
    *("scale", "diameter", "focus", "touching", "edge", "simulated"),
)


def _named_by_folder(row: FieldRow, root: Path, what: str | None) -> FieldRow:
    if what is None:
        return row
    above = Path(row.field).parent.name
    if not above:
        raise CellsError(
            f"{root / row.field}: lies in no folder of its own below {root}, so no folder's name can be its {what}; "
            f"sort the fields into one folder a {what}, or name it in a field table"
        )
    return replace(row, **{what: getattr(row, what) or above})


def _settle_pixel_size(
    asked: Cropping, rows: Sequence[FieldRow], pixels: Sequence[float | None], again: bool
) -> tuple[Cropping, list[str]]:
    """The one pixel size of all crops, and what there is to say about it."""
    unknown = [row.field for row, pixel in zip(rows, pixels, strict=True) if pixel is None]
    named = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
    micrometres = asked.width_um is not None or asked.diameter_um is not None or (again and asked.pixel_um is not None)
    if unknown and micrometres:
        why = (
            f"the model was trained on crops of {asked.pixel_um:.4g} µm a pixel"
            if again and asked.pixel_um is not None
            else "micrometres are asked for"
        )
        raise CellsError(
            f"{named}: the pixel size is not known, but {why}; give it in a field table (column pixel_size_um)"
        )
    if again:
        return asked, []
    if asked.width_um is not None:
        return replace(asked, pixel_um=asked.width_um / asked.size), []
    known = Counter(round(pixel, 6) for pixel in pixels if pixel is not None)
    if not known:
        return asked, ["The pixel size is not known; size limits come from the fields themselves."]
    # The most common one, and of several the coarsest: detail that was never taken cannot be made.
    chosen = max(known, key=lambda pixel: (known[pixel], pixel))
    notes = []
    if len(known) > 1:
        notes.append(f"Fields have {len(known)} pixel sizes; all crops are resampled to {chosen:.4g} µm.")
    if unknown:
        notes.append(f"{named}: pixel size unknown, taken to be {chosen:.4g} µm like the others'.")
    return replace(asked, pixel_um=chosen), notes


def _opened(rows: Iterable[FieldRow]) -> Iterator[Field]:
    for row in rows:
        with open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as opened:
            yield opened


def _read_labels(path: Path, rows: Sequence[FieldRow]) -> pd.DataFrame:
    """Labelled positions: field, x, y (px of the field), label, donor, simulated."""
    table = read_table(
        path,
        ("field", "x", "y", "label", "donor", "simulated"),
        needed=("field", "x", "y", "label"),
        paths=("field",),
        rows="labelled positions",
    )
    for column in ("x", "y"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = table.index[~np.isfinite(numbers)]
        if len(bad):
            raise CellsError(
                f"{path}: line {bad[0]}: {column} is {table[column][bad[0]]!r}; it must be a position in px of the field"
            )
        table[column] = numbers
    names = {row.field for row in rows}
    strange = sorted(set(table["field"]) - names)
    if strange and not set(table["field"]) & names:
        raise CellsError(
            f"{path}: no field is called {strange[0]}; the fields are {', '.join(sorted(names)[:3])}…; "
            "write paths relative to the folder of the fields"
        )
    return table


def _crop_field(
    folder: Path, row: FieldRow, pixel: float | None, how: Cropping, truth: pd.DataFrame | None
) -> tuple[list[dict[str, Any]], CroppedField]:
    """Find, cut and write the cells of one field."""
    with _views(row, how) as (bright, nuclei, shift):
        # With a known pixel size the limits are diameters on the specimen, whatever the objective.
        own = pixel or how.pixel_um
        least, most = (None, None) if how.diameter_um is None else (um / own for um in how.diameter_um)
        found = detect(
            bright.read,
            bright.shape,
            nuclei=None if nuclei is None else nuclei.read,
            least=least,
            most=most,
            roundness=how.roundness,
            border=how.border,
        )
        zoom = 1.0 if own is None or how.pixel_um is None else how.pixel_um / own  # field px to a px of the crop
        mine = truth[truth["field"] == row.field] if truth is not None else None
        known, agreement = _labels_of(found, mine)
        cells, features = [], []
        stem = re.sub(r"[^\w.-]", "_", str(Path(row.field).with_suffix("")).replace("/", "__"))
        for number, cell in enumerate(found):
            name = f"{stem}/{number:05d}"
            crop, mask, edge = _cut(bright, cell, how.size, zoom)
            suffix = _write(folder / "cells" / name, crop)
            _write(folder / "masks" / name, np.where(mask, np.uint8(255), np.uint8(0)))
            record = dict.fromkeys(_COLUMNS, "") | {
                "path": f"cells/{name}{suffix}",
                "label": row.label,
                "donor": row.donor,
                "field": row.field,
                "x": f"{cell.x:.1f}",
                "y": f"{cell.y:.1f}",
                "source": row.field,
                "mask": f"masks/{name}.png",
                "scale": "" if how.pixel_um is None else f"{how.pixel_um:.6g}",
                "diameter": f"{cell.diameter * (own or 1):.2f}",
                "focus": f"{focus_score(crop):.4g}",
                "touching": f"{cell.touching:.3f}",
                "edge": f"{edge:.3f}",
                "simulated": row.simulated,
            }
            record |= known.get(number, {})
            if nuclei is not None:
                glow, _, _ = _cut(nuclei, cell, how.size, zoom)
                record["target_nuclei"] = f"nuclei/{name}{_write(folder / 'nuclei' / name, glow)}"
                features.append(nuclear_features(glow, mask, how.pixel_um))
            cells.append(record)
        if nuclei is not None and cells:
            proposals = propose(pd.DataFrame([measured or {} for measured in features]))
            for record, one in zip(cells, proposals.to_dict("records"), strict=True):
                if one["proposed"]:
                    record |= {"proposed": one["proposed"], "confidence": f"{one['confidence']:.3f}"}
        preview, reduction = _preview(bright)
        return cells, CroppedField(row, bright.field.info, found, shift, preview, reduction, agreement)


@contextmanager
def _views(row: FieldRow, how: Cropping) -> Iterator[tuple[View, View | None, Shift | None]]:
    """The brightfield in even light, and the nuclei moved onto it."""
    with open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as field:
        bright = View(field, how.illumination)
        if row.nuclei is None:
            yield bright, None, None
            return
        with open_field(row.nuclei, channel=row.nuclei_channel, z=row.z, scene=row.scene) as glowing:
            if bright.shape != (glowing.info.height, glowing.info.width):
                raise ImageError(
                    f"{row.brightfield} is {bright.shape[1]} x {bright.shape[0]} px and its nuclei {row.nuclei} are "
                    f"{glowing.info.width} x {glowing.info.height} px; both must show the same field at the same size"
                )
            top, left, height, width = _middle(bright.shape)
            try:
                shift = register(
                    _grey(bright.read(top, left, height, width)),
                    _grey(glowing.read(top, left, height, width)),
                    MOST_SHIFT * min(bright.shape),
                )
            except ImageError as error:
                raise ImageError(f"{row.brightfield} and {row.nuclei}: {error}") from None
            yield bright, View(glowing, shift=shift), shift


def _middle(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = (min(WINDOW, edge) for edge in shape)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)


def _labels_of(found: list[Found], truth: pd.DataFrame | None) -> tuple[dict[int, dict[str, str]], Agreement | None]:
    """What a table of labelled positions says of the cells, by their number, and how well the two agree."""
    if truth is None:
        return {}, None
    places = np.array([(cell.x, cell.y) for cell in found]).reshape(-1, 2)
    reach = 0.5 * float(np.median([cell.diameter for cell in found])) if found else 0.0
    pairs = match(places, truth[["x", "y"]].to_numpy(float), reach)
    known = {}
    for cell, position in pairs:
        entry = truth.iloc[int(position)]
        columns = [column for column in ("label", "donor", "simulated") if entry.get(column, "")]
        known[int(cell)] = {column: str(entry[column]) for column in columns}
    return known, Agreement(len(found), len(truth), len(pairs))


def _cut(view: View, cell: Found, size: int, zoom: float) -> tuple[np.ndarray, np.ndarray, float]:
    """One cell in the middle of a crop, its mask there, and the share of the crop that lies beyond the border."""
    side = max(1, round(size * zoom))
    top, left = round(cell.y - side / 2), round(cell.x - side / 2)
    pixels = view.read(top, left, side, side)
    H, W = view.shape
    inside = (min(top + side, H) - max(top, 0)) * (min(left + side, W) - max(left, 0))
    mask = np.zeros((side, side), bool)
    down, right = cell.top - top, cell.left - left
    h, w = cell.mask.shape
    rows, columns = slice(max(down, 0), min(down + h, side)), slice(max(right, 0), min(right + w, side))
    if rows.start < rows.stop and columns.start < columns.stop:
        mask[rows, columns] = cell.mask[
            rows.start - down : rows.stop - down, columns.start - right : columns.stop - right
        ]
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., k] for k in range(3)]
    planes = [resized(np.ascontiguousarray(plane), size) for plane in planes]
    fine = resized(mask.astype(np.float32), size) >= 0.5
    return planes[0] if pixels.ndim == 2 else np.stack(planes, axis=-1), fine, 1 - inside / side**2


def _write(path: Path, pixels: np.ndarray) -> str:
    """8 bits as PNG, which any viewer shows; what is deeper as TIFF. Returns the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint8:
        from PIL import Image

        Image.fromarray(pixels).save(path.with_name(path.name + ".png"))
        return ".png"
    import tifffile

    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path.with_name(path.name + ".tif"), pixels, photometric=kind, compression="zlib")
    return ".tif"


def _preview(view: View) -> tuple[np.ndarray, float]:
    """The field reduced to about 1,200 px, in grey, read in bands so that memory stays small."""
    H, W = view.shape
    step = max(1, int(np.ceil(max(H, W) / 1200)))
    bands = []
    for top in range(0, H - H % step or H, step * 64):
        height = min(step * 64, H - top)
        band = _grey(view.read(top, 0, height, W)).astype(np.float32)
        h, w = height // step * step, W // step * step
        if h and w:
            bands.append(band[:h, :w].reshape(h // step, step, w // step, step).mean(axis=(1, 3)))
    return np.concatenate(bands), float(step)


def _notes(table: pd.DataFrame, fields: Sequence[CroppedField]) -> list[str]:
    empty = [one.row.field for one in fields if not one.found]
    notes = []
    if not len(table):
        notes.append("No cells were found in any field.")
    elif empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(f"No cells were found in {', '.join(empty[:3])}{more}.")
    labelled = int((table["label"] != "").sum())
    if labelled < len(table):
        proposed = int((table["proposed"] != "").sum())
        hint = f"; {proposed} have a proposal for a person to confirm" if proposed else ""
        notes.append(f"{len(table) - labelled} of {len(table)} cells have no label{hint}.")
    return notes


def counts(table: pd.DataFrame) -> Mapping[str, int]:
    """How many cells each label has; "" stands for none."""
    return dict(Counter(table["label"]))
