"""What all that is kept has in common: names of people, times, labels that are no classes."""

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from urnet.errors import StoreError

NOT_A_CELL, SKIPPED = "not a cell", ""
"""Labels that are no classes."""


MAX_NAME_LENGTH = 100
"""Longest name of a person, in characters."""

_JOINERS = "\u200c\u200d"
"""Invisible letters that Persian, Hindi and other scripts need within words."""


def make_printable(content: str, most: int) -> str:
    """Make a text safe to show: bounded, without control characters and changes of writing direction.

    Args:
        content: anything that a client or a file gave.
        most: longest result, in characters; an ellipsis shows that something was cut off.
    """
    spaced = "".join(" " if letter.isspace() else letter for letter in content[: 4 * most])
    clean = "".join(letter for letter in spaced if letter in _JOINERS or unicodedata.category(letter)[0] != "C")
    return clean if len(clean) <= most and len(content) <= 4 * most else f"{clean[: most - 1]}…"


def make_single_line(content: str, most: int) -> str:
    """Make a name safe to keep and to show: as `make_printable`, composed, with single spaces between words."""
    return make_printable(" ".join(unicodedata.normalize("NFC", make_printable(content, 4 * most)).split()), most)


def clean_name(who: str) -> str:
    """A person's name as it is kept.

    Raises:
        StoreError: nothing is left of it.
    """
    name = make_single_line(who, MAX_NAME_LENGTH)
    if not person_key(name):
        raise StoreError("a label names who gave it; give a name", code="store.no_name")
    return name


@lru_cache(1000)
def person_key(who: str) -> str:
    """What names of one person have in common, in whatever case and width they are written."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", who).casefold())
    return "".join(letter for letter in folded if letter not in _JOINERS).strip()


@dataclass(frozen=True)
class ReplacedLabel:
    """A label or correction that another one replaced or that was taken back; its row stays in the database.

    Attributes:
        label: the label.
        who: the person who gave it.
        at: when, in UTC.
    """

    label: str
    who: str
    at: str


def utc_now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
