"""Companion files: find the other files of an image set, without reading files that the user did not give.

Some formats divide one image or model among several files that name each other: OME-TIFF, Micro-Manager stacks, ONNX
with external data. Such a name cannot be trusted, since it may point anywhere on the machine. A companion is therefore
searched by its bare name, in the folder of the given file only.
"""

import os
import re
from pathlib import Path

from urnet.errors import ImageError

_MAX_NAME_BYTES = 255
"""Maximum length of a file name on common file systems, in bytes."""

_FORBIDDEN_LETTERS = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def is_bare_name(name: str) -> bool:
    """Return whether a text is a plain file name on every system, without folder, drive, stream, pattern or device."""
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
        given: the file that the user gave.
        name: name of the other file, as in the given file.

    Returns:
        Path of an existing regular file in the folder of `given`.

    Raises:
        ImageError: the name is no bare file name or a link to another folder, whether or not its target exists
            (`images.companion_refused`), or the folder has no such file (`images.companion_missing`).
    """
    companion = given.parent / name if is_bare_name(name) else None
    if companion is None or _is_link_to_other_folder(companion):
        raise ImageError(
            f"{given}: names another file by a path or a link; the files of a set must be in one folder and be named "
            "without a path. Put them into one folder, or save the image as a single file",
            code="images.companion_refused",
        )
    try:
        exists = companion.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise ImageError(
            f"{given}: the file {name} of the same set is missing. Put all files of the set into one folder, or save "
            "the image as a single file",
            code="images.companion_missing",
        )
    return companion


def _is_link_to_other_folder(path: Path) -> bool:
    """Return whether a path is a link to another folder, whether or not its target exists."""
    try:
        return Path(os.path.realpath(path)).parent != Path(os.path.realpath(path.parent))
    except (OSError, ValueError):
        return True
