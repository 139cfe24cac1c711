"""Parse OME-XML of untrusted files."""

from xml.etree import ElementTree

from urnet.errors import ImageError

MAX_LENGTH = 64 * 2**20
"""Maximum length of OME-XML, in characters."""

_START_LENGTH = 2000


def is_ome_xml(description: str) -> bool:
    """Return whether a description is OME-XML, possibly truncated."""
    return "<OME" in description[:_START_LENGTH]


def parse_ome_xml(where: str, text: str) -> ElementTree.Element:
    """Parse an OME-XML document. Return its root.

    Args:
        where: file of the document, for the errors.
        text: the document.

    Raises:
        ImageError: the document is too long, no XML, or declares entities (`images.ome_xml_invalid`). OME-XML needs no
            entities; they could name other files or grow without bound.
    """
    problem = None
    if len(text) > MAX_LENGTH:
        problem = f"has {len(text):,} characters; the limit is {MAX_LENGTH:,}"
    elif "<!DOCTYPE" in text or "<!ENTITY" in text:
        problem = "declares a document type or entities"
    else:
        try:
            return ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            problem = f"is not XML ({error})"
    raise ImageError(
        f"{where}: invalid OME-TIFF: its OME-XML {problem}. Export the file again", code="images.ome_xml_invalid"
    )


def find_children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Find the children with a name, in any version of the OME schema."""
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def read_whole_number(where: str, element: ElementTree.Element, name: str, otherwise: int | None) -> int:
    """Read a count from an attribute.

    Args:
        where: file of the document, for the errors.
        element: element of the attribute.
        name: name of the attribute.
        otherwise: value of a missing attribute; None if it is required.

    Raises:
        ImageError: the attribute is missing, no whole number, or negative (`images.ome_xml_invalid`).
    """
    text = element.get(name)
    if text is None and otherwise is not None:
        return otherwise
    if text is not None and text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 16:
        return int(text)
    raise ImageError(
        f"{where}: invalid OME-TIFF: its OME-XML has {name}={text!r}, which must be a whole number. Export the file "
        "again",
        code="images.ome_xml_invalid",
    )
