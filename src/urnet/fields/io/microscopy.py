"""Open CZI, ND2 and LIF files, each with the library that knows the format (extra `microscopy`).

The libraries are imported when a file of their format is opened. They are used without a common layer above them: such
a layer gives all channels one type and colour order, and ignores dimensions that it has no name for.
"""

from pathlib import Path

from urnet.errors import ImageError
from urnet.fields.io.source import Source
from urnet.images.read import translate_decoder_errors

_SIGNATURES = {
    ".czi": (b"ZISRAWFILE",),
    ".nd2": (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  "),
    ".lif": (b"\x70\0\0\0",),
}
SUFFIXES = frozenset(_SIGNATURES)
"""Suffixes of the formats that this module opens, in lower case."""


def open_microscopy(path: Path) -> Source:
    """Open a CZI, ND2 or LIF file, by the suffix of its name.

    Raises:
        ImageError: the extra is not installed, the content does not match the suffix, the file is damaged, or its
            pixels are of an unsupported type.
    """
    suffix = path.suffix.lower()
    kind = suffix[1:].upper()
    if not path.is_file():
        raise ImageError(f"{path}: no such file", code="fields.missing")
    try:
        if suffix == ".czi":
            from urnet.fields.io.czi import CziSource as Reader
        elif suffix == ".nd2":
            from urnet.fields.io.nd2 import Nd2Source as Reader
        else:
            from urnet.fields.io.lif import LifSource as Reader
    except ImportError as error:
        raise ImageError(
            f"{path}: reading {kind} needs the package {error.name}, which is not installed. "
            'Run `pip install "urnet[microscopy]"`, or export the field as an OME-TIFF',
            code="fields.reader_missing",
        ) from None
    with translate_decoder_errors(path):
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise ImageError(f"{path}: the file is empty (0 bytes); copy it again", code="fields.truncated")
        if not start.startswith(_SIGNATURES[suffix]):
            raise ImageError(
                f"{path}: the content is not {kind}, although the suffix says so. Correct the suffix, or copy the file "
                "again",
                code="fields.not_as_named",
            )
        return Reader(path)
