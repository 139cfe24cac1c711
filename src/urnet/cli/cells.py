"""Commands about cells: look them over, divide them, simulate them."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from urnet.cli.app import CellsArgument, RecipeOption, SetOption, app, out, print_error, read

if TYPE_CHECKING:
    from urnet.cells.audit import Audit
    from urnet.cells.table import Cells


@app.command()
def crop(
    fields: Annotated[Path, typer.Argument(help="A field, a folder of fields, or a field table (CSV).")],
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    size: Annotated[int, typer.Option(help="Edge of the square crops, px.")] = 200,
    width: Annotated[float | None, typer.Option("--um", help="Edge of the crops on the specimen, µm.")] = None,
    nuclei: Annotated[
        str | None, typer.Option(help="Files with the nuclear fluorescence; * is the brightfield's name: '*_dapi.tif'.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of labelled positions: field,x,y,label.")] = None,
    folder_names: Annotated[
        str | None, typer.Option("--folders-are", help="What the folder of a field names: label or donor.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="Name or number of the brightfield's channel.")] = None,
    nuclei_channel: Annotated[
        str | None, typer.Option(help="Channel with the nuclear fluorescence in the same file (or of --nuclei).")
    ] = None,
    z: Annotated[str | None, typer.Option("--z", help="Plane of a z-stack, from 0, or a projection.")] = None,
    scene: Annotated[str | None, typer.Option(help="Name or number of the scene.")] = None,
    light: Annotated[str, typer.Option(help="estimated from the fields and evened out, or none.")] = "estimated",
    flat: Annotated[Path | None, typer.Option(help="Image of an empty spot, in place of an estimate.")] = None,
    dark: Annotated[Path | None, typer.Option(help="Image without light, with --flat.")] = None,
    diameter: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LEAST MOST", help="Diameters of a cell, µm.")
    ] = None,
    roundness: Annotated[float, typer.Option(help="Least roundness of a cell, 0 to 1.")] = 0.0,
    border: Annotated[bool, typer.Option(help="Keep cells that the field's border cuts.")] = True,
) -> int:
    """Cut fields of view into crops of single cells; labels may follow, or be proposed from the fluorescence."""
    from urnet.fields.cropping.crop import CropSettings, crop_fields
    from urnet.progress import ProgressBars

    if light not in ("estimated", "none"):
        raise typer.BadParameter(f"{light!r}: choose estimated or none", param_hint="--light")
    if folder_names not in (None, "label", "donor"):
        raise typer.BadParameter(f"{folder_names!r}: choose label or donor", param_hint="--folders-are")
    how = CropSettings(
        size=size,
        width_um=width,
        channel=channel,
        z=z,
        scene=scene,
        nuclei=nuclei,
        nuclei_channel=nuclei_channel,
        diameter_um=diameter,
        roundness=roundness,
        border=border,
        light=light,
    )
    with ProgressBars(out) as bars:
        done = crop_fields(
            fields, folder, how, labels=labels, folder_names=folder_names, flat=flat, dark=dark, progress=bars.update
        )
    out.print(f"{len(done.table)} cells in {len(done.fields)} field(s): {folder}")
    for note in done.notes:
        out.print(f"note: {note}")
    out.print(f"report: {folder / 'report.html'}")
    if not len(done.table):
        return print_error("no cell was found; the note above says what to look at", 1)
    return 0


@app.command()
def audit(
    cells: CellsArgument,
    table: Annotated[
        Path | None, typer.Option("--out", help="New CSV with a row for each file of each finding.")
    ] = None,
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
) -> int:
    """Look for copies, leaks and unusable files; exit code 0 when clean, 1 with findings."""
    from urnet.cells.audit import audit_cells, format_counts
    from urnet.files.csv_tables import write_frame
    from urnet.files.outputs import lock_output, refuse_existing
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    if table is not None:
        refuse_existing(table, file=True)
    settings = load_recipe(recipe, overrides or ())
    with ProgressBars(out) as bars:
        found = audit_cells(read(cells, settings), progress=lambda share: bars.update("audit", share))
    for note in found.notes:
        out.print(note)
    _print_findings(found, f"see {table}" if table is not None else "--out FILE.csv lists them all")
    if table is not None:
        with lock_output(table):
            refuse_existing(table, file=True)
            write_frame(table, found.to_frame())
    kinds = [finding.kind for finding in found.findings]
    out.print(f"{len(kinds)} finding(s): {format_counts(kinds)}" if kinds else "clean")
    return 1 if kinds else 0


@app.command()
def split(
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the table with its split.")],
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
    augment_to: Annotated[
        int | None, typer.Option(help="Also write augmented training images, up to this number a class.", min=1)
    ] = None,
) -> int:
    """Write a cells table with its split (the images stay where they are)."""
    from urnet.cells.audit import audit_cells
    from urnet.cells.split import split_cells
    from urnet.cells.table import TABLE_NAME
    from urnet.files.atomic import atomic_folder
    from urnet.files.outputs import refuse_existing
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe
    from urnet.run_folder import check_not_within, copy_crop_settings

    refuse_existing(folder)
    check_not_within(folder, cells)
    settings = load_recipe(recipe, overrides or ())
    with ProgressBars(out) as bars:
        table = read(cells, settings)
        found = audit_cells(table, near_copies=False, progress=lambda share: bars.update("audit", share))
    divided = split_cells(table, settings, found)
    with atomic_folder(folder) as staging:
        if augment_to is not None:
            from urnet.cells.augment import write_augmented

            divided = write_augmented(divided, staging, augment_to, seed=settings.split.seed)
        divided.write(staging / TABLE_NAME)
        copy_crop_settings(table, staging)
    _print_split(divided)
    out.print(f"written: {folder / TABLE_NAME}")
    return 0


@app.command()
def destain(
    stained: Annotated[Path, typer.Argument(help="Stained 8-bit RGB cells: a table or a folder per class.")],
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    size: Annotated[int, typer.Option(help="Edge of the crops in pixels.")] = 128,
    target: Annotated[str, typer.Option(help="Paired image that the table names: stained or clean.")] = "stained",
    seed: Annotated[int, typer.Option(help="Seed of the optics.", min=0)] = 0,
) -> int:
    """Simulate the stain-free look of stained cells ("simulated destaining")."""
    from urnet.cells.simulate import write_destained
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        write_destained(
            stained, folder, size=size, target=target, seed=seed, progress=lambda share: bars.update("destain", share)
        )
    out.print(f"simulated destaining: {folder}")
    return 0


@app.command()
def phantom(
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    cells: Annotated[int, typer.Option(help="Number of cells.", min=1)] = 1200,
    fields: Annotated[int, typer.Option(help="Number of whole fields of view.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Edge of the crops in pixels.")] = 48,
    donors: Annotated[int, typer.Option(help="Number of donors.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.", min=0)] = 0,
) -> int:
    """Draw phantom cells of three types, and fields of view with known positions."""
    from urnet.cells.simulate import write_phantom
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        write_phantom(
            folder,
            cells,
            size=size,
            donors=donors,
            fields=fields,
            seed=seed,
            progress=lambda share: bars.update("draw", share),
        )
    out.print(f"phantom cells: {folder}")
    return 0


MAX_SHOWN = 10
"""Findings of a kind that are printed, and files of a finding."""


def _print_findings(found: "Audit", elsewhere: str) -> None:
    """The findings kind by kind, the first ones of each; `elsewhere` says where all are."""
    for kind, findings in groupby(found.findings, lambda finding: finding.kind):
        same = list(findings)
        for finding in same[:MAX_SHOWN]:
            out.print(f"{kind}: {finding.detail}")
            for path in finding.paths[:MAX_SHOWN]:
                out.print(f"  {path}")
            if len(finding.paths) > MAX_SHOWN:
                out.print(f"  … and {len(finding.paths) - MAX_SHOWN} more files; {elsewhere}")
        if len(same) > MAX_SHOWN:
            out.print(f"{kind}: … and {len(same) - MAX_SHOWN} more, {len(same)} in all; {elsewhere}")


def _print_split(cells: "Cells") -> None:
    """How many cells of each class each part or fold has."""
    from rich.table import Table

    column = "split" if cells.has_split else "fold"
    parts = [name for name in sorted(set(cells.table[column])) if name]
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for part in parts:
        table.add_column(f"fold {part}" if column == "fold" else part, justify="right")
    for name in cells.classes:
        mine = cells.table[column][cells.table["label"] == name]
        table.add_row(name, *(str(int((mine == part).sum())) for part in parts))
    out.print(table)
