"""Commands about cells: crop, audit, split and simulate them."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from urnet.cli.app import CellsArgument, RecipeOption, SetOption, app, out, print_error, print_next

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
        str | None,
        typer.Option(help="Files with the nuclear fluorescence; * is the name of the brightfield: '*_dapi.tif'."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of labelled positions: field,x,y,label.")] = None,
    folder_names: Annotated[
        Literal["label", "donor"] | None, typer.Option("--folders-are", help="What the folder of a field names.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="Name or number of the brightfield channel.")] = None,
    nuclei_channel: Annotated[
        str | None, typer.Option(help="Name or number of the nuclear channel, in the same file or in --nuclei.")
    ] = None,
    z: Annotated[
        str | None, typer.Option("--z", help="Plane of a z-stack: a number from 0, max, mean, min or sharpest.")
    ] = None,
    scene: Annotated[str | None, typer.Option(help="Name or number of the scene.")] = None,
    light: Annotated[
        Literal["estimated", "none"],
        typer.Option(help="Correct the illumination, as estimated from the fields, or leave it."),
    ] = "estimated",
    flat: Annotated[
        Path | None, typer.Option(help="Flat-field image of an empty spot, in place of an estimate.")
    ] = None,
    dark: Annotated[Path | None, typer.Option(help="Dark image, taken without light; needs --flat.")] = None,
    diameter: Annotated[
        tuple[float, float] | None, typer.Option(metavar="MIN MAX", help="Diameter of a cell, µm.")
    ] = None,
    roundness: Annotated[float, typer.Option(help="Minimum roundness of a cell, 0 to 1.")] = 0.0,
    border: Annotated[bool, typer.Option(help="Keep cells that the border of the field cuts.")] = True,
) -> int:
    """Cut fields of view into crops of cells.

    It detects the cells of each field, and writes a crop and a mask of each cell.
    """
    from urnet.fields.cropping.crop import CropSettings, crop_fields
    from urnet.progress import ProgressBars

    settings = CropSettings(
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
        result = crop_fields(
            fields,
            folder,
            settings,
            labels=labels,
            folder_names=folder_names,
            flat=flat,
            dark=dark,
            progress=bars.update,
        )
    out.print(f"{len(result.table)} cells in {len(result.fields)} field(s): {folder}")
    for note in result.notes:
        out.print(f"note: {note}")
    out.print(f"report: {folder / 'report.html'}")
    if not len(result.table):
        return print_error("no cell was detected; the note above names possible reasons", 1)
    if (result.table["label"] != "").any():
        print_next("audit", folder)
    else:
        print_next("label", folder, "--classes", "neutrophil,lymphocyte,monocyte")
    return 0


@app.command()
def audit(
    cells: CellsArgument,
    table: Annotated[
        Path | None, typer.Option("--out", help="New CSV with one row for each file of each finding.")
    ] = None,
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
) -> int:
    """Search for copies, leaks and unusable files.

    The exit code is 0 without findings, and 1 with findings.
    """
    from urnet.cells.audit import audit_cells, format_counts
    from urnet.cells.read import read_recipe_cells
    from urnet.files.csv_tables import write_frame
    from urnet.files.outputs import lock_output, refuse_existing
    from urnet.progress import ProgressBars
    from urnet.recipe import load_recipe

    if table is not None:
        refuse_existing(table, file=True)
    settings = load_recipe(recipe, overrides or ())
    with ProgressBars(out) as bars:
        result = audit_cells(read_recipe_cells(cells, settings), progress=lambda share: bars.update("audit", share))
    for note in result.notes:
        out.print(note)
    _print_findings(result, f"see {table}" if table is not None else "--out FILE.csv lists them all")
    if table is not None:
        with lock_output(table):
            refuse_existing(table, file=True)
            write_frame(table, result.to_frame())
    kinds = [finding.kind for finding in result.findings]
    out.print(f"{len(kinds)} finding(s): {format_counts(kinds)}" if kinds else "clean")
    if not kinds:
        print_next("train", cells, "--out", "run")
    return 1 if kinds else 0


@app.command()
def split(
    cells: CellsArgument,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the table with its split.")],
    recipe: RecipeOption = "quick",
    overrides: SetOption = None,
    augment_to: Annotated[
        int | None,
        typer.Option(help="Also write augmented training images, until each class has this number.", min=1),
    ] = None,
) -> int:
    """Write a cells table with its split.

    The images stay in their folder.
    """
    from urnet.cells.audit import audit_cells
    from urnet.cells.read import read_recipe_cells
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
        table = read_recipe_cells(cells, settings)
        findings = audit_cells(table, near_copies=False, progress=lambda share: bars.update("audit", share))
    divided = split_cells(table, settings, findings)
    with atomic_folder(folder) as staging:
        if augment_to is not None:
            from urnet.cells.augment import write_augmented

            divided = write_augmented(divided, staging, augment_to, seed=settings.split.seed)
        divided.write(staging / TABLE_NAME)
        copy_crop_settings(table, staging)
    _print_split(divided)
    out.print(f"written: {folder / TABLE_NAME}")
    print_next("train", folder, "--out", "run")
    return 0


@app.command()
def destain(
    stained: Annotated[Path, typer.Argument(help="Stained 8-bit RGB cells: a table, or one folder for each class.")],
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    size: Annotated[int, typer.Option(help="Edge of the crops, px.")] = 128,
    target: Annotated[
        Literal["stained", "clean"], typer.Option(help="Paired image that the table names as the target.")
    ] = "stained",
    seed: Annotated[int, typer.Option(help="Seed of the simulated optics.", min=0)] = 0,
) -> int:
    """Simulate stain-free images of stained cells."""
    from urnet.cells.simulate import write_destained
    from urnet.progress import ProgressBars

    with ProgressBars(out) as bars:
        write_destained(
            stained, folder, size=size, target=target, seed=seed, progress=lambda share: bars.update("destain", share)
        )
    out.print(f"simulated destaining: {folder}")
    print_next("audit", folder)
    return 0


@app.command()
def phantom(
    folder: Annotated[Path, typer.Option("--out", help="New cells folder.")],
    cells: Annotated[int, typer.Option(help="Number of cells.", min=1)] = 1200,
    fields: Annotated[int, typer.Option(help="Number of fields of view.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Edge of the crops, px.")] = 48,
    donors: Annotated[int, typer.Option(help="Number of donors.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same files.", min=0)] = 0,
) -> int:
    """Draw phantom cells and fields of view.

    The cells have three classes, and known positions in the fields.
    """
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
    if fields:
        print_next("crop", folder / "fields", "--out", "CELLS")
    else:
        print_next("audit", folder)
    return 0


MAX_SHOWN = 10
"""Maximum number of printed findings of one kind, and of printed files of one finding."""


def _print_findings(audit: "Audit", where: str) -> None:
    """Print the first findings of each kind.

    Args:
        audit: all findings.
        where: where the user finds the others.
    """
    for kind, group in groupby(audit.findings, lambda finding: finding.kind):
        findings = list(group)
        for finding in findings[:MAX_SHOWN]:
            out.print(f"{kind}: {finding.detail}")
            for path in finding.paths[:MAX_SHOWN]:
                out.print(f"  {path}")
            if len(finding.paths) > MAX_SHOWN:
                out.print(f"  … and {len(finding.paths) - MAX_SHOWN} more files; {where}")
        if len(findings) > MAX_SHOWN:
            out.print(f"{kind}: … and {len(findings) - MAX_SHOWN} more of {len(findings)}; {where}")


def _print_split(cells: "Cells") -> None:
    """Print the number of cells of each class in each part or fold."""
    from rich.table import Table

    column = "split" if cells.has_split else "fold"
    parts = [name for name in sorted(set(cells.table[column])) if name]
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for part in parts:
        table.add_column(f"fold {part}" if column == "fold" else part, justify="right")
    for name in cells.classes:
        assigned = cells.table[column][cells.table["label"] == name]
        table.add_row(name, *(str(int((assigned == part).sum())) for part in parts))
    out.print(table)
