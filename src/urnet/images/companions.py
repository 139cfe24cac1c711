"""Find the other files that a file names, without reading anything that the user did not give.

Some formats spread one image or model over several files, which name each other: OME-TIFF, Micro-Manager stacks, ONNX
with external data. Such a name comes from whoever wrote the file, and it is not to be trusted: it may point anywhere
on the machine. A companion is therefore looked for by its bare name in the folder of the file that was given.
"""

import os
import re
from pathlib import Path

from urnet.errors import ImageError

_MAX_NAME_BYTES = 255
"""Longest file name of common file systems, in bytes."""

_FORBIDDEN_LETTERS = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def is_bare_name(name: str) -> bool:
    """Whether a text is the plain name of a file on every system: no folder, drive, stream, pattern or device."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return (
        0 < length <= _MAX_NAME_BYTES
        and name == name.strip()
        and not name.endswith(".")
        and _FORBIDDEN_LETTERS.search(name) is None
        and _DEVICE_NAME.fullmatch(name) is None
    )


def resolve_companion(given: Path, name: str) -> Path:
    """Locate a file that another file names.

    Args:
        given: the file that the user gave, in which the name was found.
        name: the name as that file has it.

    Returns:
        Path of an existing regular file in the folder of `given`.

    Raises:
        ImageError: `images.companion_refused` where the name is not a bare file name, or leads out of the folder
            through a link, whether or not anything is there; `images.companion_missing` where the folder has no such
            file.
    """
    companion = given.parent / name if is_bare_name(name) else None
    if companion is None or _is_link_to_other_folder(companion):
        raise ImageError(
            f"{given}: names another file by a path or a link; a file can only belong to files in its own folder, "
            "named without a path. Put the files of the set into one folder, or save the image as a single file",
            code="images.companion_refused",
        )
    try:
        found = companion.is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise ImageError(
            f"{given}: {name}, another file of the same set, is missing; put all files of the set into one folder, or "
            "save the image as a single file",
            code="images.companion_missing",
        )
    return companion


def _is_link_to_other_folder(path: Path) -> bool:
    """Whether a link at this path leads to another folder; nothing is said of what is there."""
    try:
        return Path(os.path.realpath(path)).parent != Path(os.path.realpath(path.parent))
    except (OSError, ValueError):
        return True
