"""Cells in folders: one folder per class, with or without folders for the parts of a split.

cells/granulocyte/001.png             one folder per class
cells/train/granulocyte/001.png       one folder per part (`train`, `validation`, `test`), then one per class
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, list_first
from urnet.files.search import find_files, find_folders, refuse_broken_links
from urnet.images.read import SUFFIXES
from urnet.names import normalize_name

logger = logging.getLogger(__name__)

PART_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder names of the parts of a given split, in lower case."""

_PART_NAMES = {*PART_FOLDERS, "dev", "holdout"}
_PART_PATTERN = "|".join(sorted(_PART_NAMES))
_PART_NAME_PATTERN = re.compile(
    rf"(?:{_PART_PATTERN})(?:[ _.-].*|[ _.-]?set|\d+)?|.*[ _.-](?:{_PART_PATTERN})|fold[ _.-]?\d+"
)
"""Folder names that may mean a part, in lower case: `train_images`, `cells_test`, `dev`, `trainset`, `fold1`."""

_TABLE_ADVICE = "write a cells table (CSV) with the columns path,label,split (or fold)"


def scan_class_folders(
    root: Path, image: str | None, target: str | None, classes: Mapping[str, Sequence[str]] | None
) -> pd.DataFrame:
    """List the images of a folder with one sub-folder per class.

    Args:
        root: the folder.
        image: file in each class folder that holds the cells; None for all images.
        target: file in each class folder that holds the paired images.
        classes: classes of the recipe, as in `read_cells`.

    Returns:
        One row per image: `path`, `label`, and `split` and `target` if there are any.

    Raises:
        CellsError: no class folders, a class folder without images, or ambiguous folders.
    """
    folders = find_folders(root, SUFFIXES)
    if not folders:
        loose = len(find_files(root, SUFFIXES))
        raise CellsError(
            f"{root}: the folder holds no {TABLE_NAME} and no class folders ({loose} images directly in it). Sort the "
            "images into one folder per class, or write a CSV file with the columns path,label",
            code="cells.no_class_folders",
        )
    for key, name in (("image", image), ("target", target)):
        if name and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise CellsError(
                f"{key} is {name!r}; it must be a file in each class folder. Give its name without '..'",
                code="cells.file_outside_class_folder",
            )
    parts = _list_split_folders(root, folders, classes) or [("", folder) for folder in folders]
    _refuse_duplicate_folders([folder for _, folder in parts])
    rows = []
    for part, folder in parts:
        files = [folder / image] if image else find_files(folder, SUFFIXES)
        refuse_broken_links(files)
        if not image:
            _refuse_nested_parts(root, folder, files, is_only=len(folders) == 1)
        files = [file for file in files if file.is_file()]
        if target:
            files = [file for file in files if locate_paired_file(file.relative_to(folder), target) is not None]
        if not files:
            raise CellsError(
                f"{folder}: the class folder holds no {image or 'image'}. Add images or remove the folder",
                code="cells.class_folder_empty",
            )
        for file in files:
            row = {"path": file.relative_to(root).as_posix(), "label": normalize_name(folder.name)}
            if part:
                row["split"] = part
            if any("\ud800" <= letter <= "\udfff" for letter in row["path"]):
                raise CellsError(
                    f"{root}: the file name {row['path']!a} is not Unicode text. Rename the file",
                    code="cells.file_name_not_unicode",
                )
            if target and (paired := locate_paired_file(file.relative_to(folder), target)) is not None:
                row["target"] = (folder / paired).relative_to(root).as_posix()
            rows.append(row)
    return pd.DataFrame(rows)


def locate_paired_file(file: Path, target: str) -> Path | None:
    """Locate the paired image of a cell in a class folder. Return None for a paired image itself.

    Args:
        file: file of the cell.
        target: file name of paired images, relative to the folder of the cell; may begin with a folder.
    """
    names = Path(target).parts
    return None if file.parts[-len(names) :] == names else file.parent / target


def _refuse_duplicate_folders(folders: list[Path]) -> None:
    """Refuse links through which one image would be in two class folders or in two parts."""
    real_paths = {folder: Path(os.path.realpath(folder)) for folder in folders}
    first: dict[Path, Path] = {}
    for folder, real in real_paths.items():
        if real in first:
            raise CellsError(
                f"{folder}: a link makes it the same folder as {first[real]}. Each class of each part needs its own "
                "folder. Remove one of the two",
                code="cells.folder_twice",
            )
        first[real] = folder
    for folder, real in real_paths.items():
        outer = next((first[parent] for parent in real.parents if parent in first), None)
        if outer is not None:
            raise CellsError(
                f"{folder}: a link to a folder in the class folder {outer}, so its images would be in both. Remove one "
                "of the two",
                code="cells.folder_twice",
            )


def _refuse_nested_parts(root: Path, folder: Path, files: list[Path], *, is_only: bool) -> None:
    """Refuse sub-folders of a class folder that are named like parts: the given split would be ignored.

    One folder `train`, `validation` or `test` is refused. Folders such as `fold1` and `train_images` are refused only
    if all folders beside each other have such names.

    Args:
        root: folder of the class folders.
        folder: a class folder.
        files: its images.
        is_only: whether it is the only folder in `root`, so that `root` may be one level too high.

    Raises:
        CellsError: there are such folders (`cells.split_folders`).
    """
    inside: dict[Path, dict[str, None]] = {}
    for file in files:
        for parent in file.relative_to(folder).parents[:-1]:
            inside.setdefault(folder / parent.parent, {})[parent.name] = None
    for outer in sorted(inside):
        names = list(inside[outer])
        parts = [name for name in names if name.casefold() in _PART_NAMES]
        if not parts and len(names) > 1 and all(_PART_NAME_PATTERN.fullmatch(name.casefold()) for name in names):
            parts = names
        if parts:
            fix = f"Give {outer} if it holds the split. Else " if is_only else ""
            advice = (
                f"{fix}move the parts above the classes (train/{folder.name}/…), rename the folders if they are no "
                f"parts, or {_TABLE_ADVICE}"
            )
            raise CellsError(
                f"{outer}: the folders {list_first(parts)} are named like parts of a split, but lie in the class "
                f"folder {folder.name!r}, where a split is ignored. {advice[0].upper()}{advice[1:]}",
                code="cells.split_folders",
            )


def _list_split_folders(
    root: Path, folders: list[Path], classes: Mapping[str, Sequence[str]] | None
) -> list[tuple[str, Path]] | None:
    """List the class folders with their parts if the folders are `train`, `validation` and `test`, else return None.

    Raises:
        CellsError: the folders may or may not be parts of a split (`cells.split_folders`).
    """
    part_of = {folder: PART_FOLDERS.get(folder.name.casefold()) for folder in folders}
    parts = [part for part in part_of.values() if part is not None]
    names = ", ".join(folder.name for folder in folders)
    if not parts:
        if all(_PART_NAME_PATTERN.fullmatch(folder.name.casefold()) for folder in folders):
            raise CellsError(
                f"{root}: the folders {names} are named like parts of a split, not like classes. Rename them to train, "
                f"validation and test, with one folder per class in each, or {_TABLE_ADVICE}",
                code="cells.split_folders",
            )
        return None
    problem = _find_split_problem(folders, part_of, parts)
    if problem:
        raise CellsError(f"{root}: holds the folders {names}: {problem}", code="cells.split_folders")
    class_folders: list[tuple[str, Path]] = []
    labels = {}
    for folder, part in zip(folders, parts, strict=True):
        loose = [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
        if loose:
            raise CellsError(
                f"{folder}: the images {list_first(loose)} are in no class folder. Each part ({names}) needs one "
                f"folder per class. Move the images, or {_TABLE_ADVICE}",
                code="cells.split_folders",
            )
        inside = find_folders(folder, SUFFIXES)
        class_folders += [(part, class_folder) for class_folder in inside]
        to_class = {normalize_name(label): name for name, members in (classes or {}).items() for label in members}
        names_inside = (normalize_name(class_folder.name) for class_folder in inside)
        labels[folder.name] = {to_class.get(name, name) for name in names_inside}
    all_labels = set.union(*labels.values())
    gaps = [
        f"{folder} lacks {', '.join(missing)}" for folder in labels if (missing := sorted(all_labels - labels[folder]))
    ]
    if gaps or not all_labels:
        raise CellsError(
            f"{root}: the folders {names} are the parts of a split, but not every part holds every class: "
            f"{'; '.join(gaps) or 'no part holds a class folder'}. Add cells of these classes, or {_TABLE_ADVICE}",
            code="cells.split_folders",
        )
    meaning = ", ".join(f"{folder.name} = {part}" for folder, part in zip(folders, parts, strict=True))
    note = "" if "validation" in parts else ". Validation cells are taken from the training part, as the recipe says"
    logger.warning("%s: the folders are used as the given split (%s)%s", root, meaning, note)
    return class_folders


def _find_split_problem(folders: list[Path], part_of: Mapping[Path, str | None], parts: list[str]) -> str:
    """Describe why some folders named like parts are no usable split, with the fix; "" if they are one."""
    if len(parts) < len(folders):
        unclear = ", ".join(folder.name for folder, part in part_of.items() if part is not None)
        return f"{unclear} may be a part of a split or a class. Rename it if it is a class; else {_TABLE_ADVICE}"
    if len(set(parts)) < len(parts):
        return f"two of them mean the same part. Merge them, or {_TABLE_ADVICE}"
    if len(parts) == 1 or "train" not in parts:
        return (
            "a split needs a folder 'train' and at least one of 'validation' and 'test'. Name the folder above the "
            f"classes ({folders[0]}), or {_TABLE_ADVICE}"
        )
    return ""
