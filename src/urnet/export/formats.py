"""Export a model: read model and cells, write the format, check parity, and move the result to its place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from urnet.errors import RunError, UrnetError
from urnet.export import bioimageio_format, hub_format, onnx_format, openvino_format
from urnet.export.parity import GraphFunction, Parity, check_parity
from urnet.export.torch_format import open_torch, to_torch
from urnet.files.atomic import atomic_folder, new_file
from urnet.files.outputs import refuse_existing
from urnet.optional_packages import require_packages
from urnet.progress import Progress
from urnet.run_folder import Run, find_run

if TYPE_CHECKING:
    from urnet.bundle.model import Model
    from urnet.cells.table import Cells

MAX_CELLS = 64
"""Maximum number of cells on which graph and model are compared."""


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: the file or folder.
        parity: differences of the graph from the model.
        notes: what the user should know.
    """

    path: Path
    parity: Parity
    notes: list[str]


@dataclass(frozen=True)
class Source:
    """Model, run and cells of an export.

    Attributes:
        model: the trained model, on the CPU.
        run: its run folder; none for a bundle by itself.
        counts: (N, C, S, S) raw counts of the cells of the parity check.
        origin: name of these cells.
        opset: version of ONNX's operators; the default if not given.
    """

    model: "Model"
    run: Run | None
    counts: np.ndarray
    origin: str
    opset: int | None


@dataclass(frozen=True)
class Format:
    """Functions and packages of an export format.

    Attributes:
        write: make the content of the file, or fill a folder and return notes.
        read: open the written graph.
        file: whether the format is one file.
        packages: packages that writing and reading need.
        opset: whether the format holds a graph in ONNX.
    """

    write: Callable[[Source], bytes] | Callable[[Source, Path], list[str]]
    read: Callable[[Path], GraphFunction]
    file: bool = False
    packages: tuple[str, ...] = onnx_format.PACKAGES
    opset: bool = True


def _write_openvino(source: Source, folder: Path) -> list[str]:
    openvino_format.to_openvino(onnx_format.to_onnx(source.model, source.opset), folder)
    return []


def _write_bioimageio(source: Source, folder: Path) -> list[str]:
    onnx = onnx_format.to_onnx(source.model, source.opset)
    return bioimageio_format.write(source.model, source.run, onnx, source.counts, folder)


def _write_hub(source: Source, folder: Path) -> list[str]:
    notes = hub_format.write(source.model, source.run, onnx_format.to_onnx(source.model, source.opset), folder)
    check_parity(source.model, hub_format.open_bundle(folder), source.counts)
    return notes


FORMATS = {
    "onnx": Format(lambda source: onnx_format.to_onnx(source.model, source.opset), onnx_format.open_onnx, file=True),
    "openvino": Format(
        _write_openvino,
        lambda folder: openvino_format.open_openvino(folder / openvino_format.NAME),
        packages=(*onnx_format.PACKAGES, *openvino_format.PACKAGES),
    ),
    "torch": Format(lambda source: to_torch(source.model), open_torch, file=True, packages=(), opset=False),
    "bioimageio": Format(
        _write_bioimageio,
        lambda folder: onnx_format.open_onnx(folder / bioimageio_format.WEIGHTS),
        packages=(*onnx_format.PACKAGES, *bioimageio_format.PACKAGES),
    ),
    "hub": Format(_write_hub, lambda folder: onnx_format.open_onnx(folder / hub_format.GRAPH)),
}


def export_run(
    run: Path,
    format: str,
    out: Path,
    *,
    cells: Path | None = None,
    opset: int | None = None,
    expect: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export a trained run. The result appears at `out` only after it was read back and passed the parity check.

    Args:
        run: a run folder, or a bundle.
        format: `onnx` and `torch` are one file, `openvino`, `bioimageio` and `hub` a folder.
        out: new file or folder.
        cells: images of the parity check, up to 64 of them: a folder, a table or a file. If not given, the run's test
            part, or its validation part.
        opset: version of ONNX's operators, for the formats that hold ONNX.
        expect: the first digits of the model's digest; another model is refused.
        progress: called with what is done and the share of it.

    Raises:
        RunError: the format (code `export.format_unknown`) or the opset (code `export.opset_invalid`) is unknown. Or a
            package is not installed, or `out` exists, or `run` has no trained model or no cells. Or the networks
            cannot be exported, or the graph has other outputs than the model.
        CellsError: no images at `cells`.
        ImageError: an image cannot be used.
    """
    from urnet.bundle.model import Model

    run, out = Path(run), Path(out)
    chosen = FORMATS.get(format)
    if chosen is None:
        raise RunError(
            f"format {format!r} is unknown; choose one of: {', '.join(FORMATS)}", code="export.format_unknown"
        )
    if opset is not None and not chosen.opset:
        raise RunError(f"format {format} has no opset; leave --opset out", code="export.opset_invalid")
    onnx_format.check_opset(opset)
    require_packages(chosen.packages, f"format {format}")
    refuse_existing(out, file=chosen.file)
    model = _on_cpu(Model.load(run, expect=expect))
    counts, origin = _read(run, model, cells, progress)
    source = Source(model, find_run(run), counts, origin, opset)
    _report_progress(progress, "write", 0.0)
    if chosen.file:
        with new_file(out) as file:
            file.write(chosen.write(source))
            file.flush()
            _report_progress(progress, "check", 0.0)
            parity, notes = check_parity(model, chosen.read(Path(file.name)), counts), []
    else:
        with atomic_folder(out) as staging:
            notes = chosen.write(source, staging)
            _report_progress(progress, "check", 0.0)
            parity = check_parity(model, chosen.read(staging), counts)
    _report_progress(progress, "check", 1.0)
    return Exported(out, parity, [f"checked on {len(counts)} cells of {origin}", *notes])


def _on_cpu(model: "Model") -> "Model":
    """Move a model to the CPU: convolutions on a GPU round to fewer bits than float32."""
    import torch

    model.device = torch.device("cpu")
    model.joint.to(model.device)
    return model


def _read(run: Path, model: "Model", path: Path | None, progress: Progress | None) -> tuple[np.ndarray, str]:
    """Read the raw counts of the cells to compare on, (N, C, S, S), and name these cells."""
    from urnet.cells.read import find_images

    if path is not None:
        cells, origin = find_images([path], model.config.tile, model.config.image), str(path)
    else:
        cells, part = _own_cells(run)
        origin = f"the run's {part} part"
    chosen = _choose_cells(cells)
    step = None if progress is None else lambda done: progress("read cells", done / len(chosen))
    return model.read(chosen, step), origin


def _own_cells(run: Path) -> tuple["Cells", str]:
    """Read the test part of a run, or its validation part; return it with its name."""
    try:
        cells = Run.open(run).cells()
    except UrnetError as error:
        raise RunError(f"{error}; or give cells for the parity check: --cells CELLS", code=error.code) from None
    for part in ("test", "validation"):
        own = cells.part(part)
        if len(own):
            return own, part
    raise RunError(
        f"{run}: no cells in its test and validation parts; give cells for the parity check: --cells CELLS",
        code="export.no_cells",
    )


def _choose_cells(cells: "Cells") -> "Cells":
    """Choose up to 64 cells, evenly over the classes if labels are known."""
    order = cells.table["label"].argsort(kind="stable") if "label" in cells.table else np.arange(len(cells))
    wanted = np.linspace(0, len(cells) - 1, min(MAX_CELLS, len(cells))).round().astype(int)
    is_used = np.zeros(len(cells), bool)
    is_used[np.asarray(order)[wanted]] = True
    return cells.where(is_used)


def _report_progress(progress: Progress | None, what: str, share: float) -> None:
    if progress is not None:
        progress(what, share)
