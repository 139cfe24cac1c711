"""Names of classes and donors: one spelling for each, and which spellings mean the same.

One meaning everywhere (docs/cells.md): names are compared in Unicode form NFC, without blanks around them. Donors that
differ only in case, in width or as numbers are one donor, because cells of one person in two parts are a leak. Classes
that differ only so are an error, because nobody but the user knows whether they are one class.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

MISSING = frozenset(("na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nan", "-nan", "none", "null", "nil", "-", "--", "?"))
"""What programs and people write where a name is not known, in lower case."""

_NUMBER = re.compile(r"\+?0*([0-9]+?)(?:\.([0-9]*?)0*)?")


def normalize_name(text: str) -> str:
    """A name in Unicode form NFC, without blanks around it; several blanks within it become one."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def name_key(name: str) -> str:
    """The same text for names that look alike: without case, width and letters that are not visible."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return normalize_name("".join(letter for letter in folded if unicodedata.category(letter) != "Cf"))


def donor_key(donor: str) -> str:
    """The same text for spellings of one donor: as `name_key`, and as numbers (`2`, `2.0`, `02`)."""
    key = name_key(donor)
    number = _NUMBER.fullmatch(key)
    if number is None:
        return key
    return f"{number[1]}.{number[2]}" if number[2] else number[1]


def is_missing(name: str) -> bool:
    """Whether a name says that nothing is known, as `NA`, `None`, `null`, `nan`, `-`, `?`, or has no visible letter."""
    return name_key(name) in {*MISSING, ""}


def find_lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that look alike, in order."""
    alike = defaultdict(list)
    for name in sorted(set(names)):
        alike[name_key(name)].append(name)
    return [group for group in alike.values() if len(group) > 1]


def unify_donor_names(donors: Sequence[str]) -> tuple[list[str], list[list[str]], Counter[str]]:
    """Give each donor one spelling, the most frequent one, and "" where it is not known.

    Returns:
        The donors; the groups of spellings that were merged, each with the one that stands for all first; and how many
        cells named a donor that is not known, by what they named.
    """
    counts, spellings = Counter(donors), defaultdict(list)
    unknown = Counter({name: count for name, count in counts.items() if name and is_missing(name)})
    for name, _ in counts.most_common():
        if name and name not in unknown:
            spellings[donor_key(name)].append(name)
    chosen = {name: group[0] for group in spellings.values() for name in group}
    merged = [group for group in spellings.values() if len(group) > 1]
    return [chosen.get(name, "") for name in donors], merged, unknown


def quote_name(name: str) -> str:
    """A name in quotes; letters beyond ASCII also as numbers, where names that look alike have to be told apart."""
    return repr(name) if name.isascii() else f"{name!r} ({ascii(name)[1:-1]})"
