"""Names of people: cleaned for storage and display, and compared whatever their case and width."""

import unicodedata
from functools import lru_cache

from urnet.errors import StoreError

MAX_NAME_LENGTH = 100
"""Longest name of a person, in characters."""

_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian, Hindi and other scripts need within words."""


def make_printable(text: str, max_length: int) -> str:
    """Make a text safe to show: bounded, without control characters and changes of writing direction.

    Args:
        text: input of a client or a file.
        max_length: length of the longest result, in characters; an ellipsis marks a text that was cut.
    """
    spaced = "".join(" " if letter.isspace() else letter for letter in text[: 4 * max_length])
    clean = "".join(letter for letter in spaced if letter in _JOINERS or unicodedata.category(letter)[0] != "C")
    is_whole = len(clean) <= max_length and len(text) <= 4 * max_length
    return clean if is_whole else f"{clean[: max_length - 1]}…"


def make_single_line(text: str, max_length: int) -> str:
    """Make a name safe to store and to show: printable, in composed Unicode, with single spaces between words."""
    composed = unicodedata.normalize("NFC", make_printable(text, 4 * max_length))
    return make_printable(" ".join(composed.split()), max_length)


def clean_name(name: str) -> str:
    """Clean the name of a person for storage.

    Raises:
        StoreError: the name has no visible characters.
    """
    cleaned = make_single_line(name, MAX_NAME_LENGTH)
    if not person_key(cleaned):
        raise StoreError("each label is stored with the name of the labeller; enter a name", code="store.no_name")
    return cleaned


@lru_cache(1000)
def person_key(name: str) -> str:
    """Return the form that all spellings of one person's name share, whatever their case and width."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(letter for letter in folded if letter not in _JOINERS).strip()
