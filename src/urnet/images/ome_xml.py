"""Parse the OME-XML of a file that nobody vouches for."""

from xml.etree import ElementTree

from urnet.errors import ImageError

MAX_LENGTH = 64 * 2**20
"""Longest OME-XML that is parsed, in characters."""

_START_LENGTH = 2000


def is_ome_xml(description: str) -> bool:
    """Whether a description is OME-XML, perhaps one that has lost its end."""
    return "<OME" in description[:_START_LENGTH]


def parse_ome_xml(where: str, text: str) -> ElementTree.Element:
    """The root of an OME-XML document.

    Args:
        where: the file that it comes from, for the errors.
        text: the document.

    Raises:
        ImageError: `images.ome_xml_invalid` where it is too long, no XML, or declares entities: OME-XML needs none, and
            they can name other files and grow without bound.
    """
    problem = None
    if len(text) > MAX_LENGTH:
        problem = f"has {len(text):,} characters, more than the {MAX_LENGTH:,} that are read"
    elif "<!DOCTYPE" in text or "<!ENTITY" in text:
        problem = "declares a document type or entities"
    else:
        try:
            return ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            problem = f"is no XML ({error})"
    raise ImageError(
        f"{where}: mislabelled OME-TIFF: its OME-XML {problem}; export the file anew", code="images.ome_xml_invalid"
    )


def find_children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Children of a name, whatever version of the OME schema their namespace is."""
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def read_whole_number(where: str, element: ElementTree.Element, name: str, otherwise: int | None) -> int:
    """An attribute that counts something.

    Args:
        where: the file, for the errors.
        element: that has the attribute.
        name: of the attribute.
        otherwise: its value where it is absent; none where it must be there.

    Raises:
        ImageError: `images.ome_xml_invalid` where it is absent, no number or below zero.
    """
    text = element.get(name)
    if text is None and otherwise is not None:
        return otherwise
    if text is not None and text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 16:
        return int(text)
    raise ImageError(
        f"{where}: mislabelled OME-TIFF: its OME-XML has {name}={text!r}, which must be a whole number; export the "
        "file anew",
        code="images.ome_xml_invalid",
    )
