"""Names of classes and donors: normal form, comparison, missing values.

Names are compared in Unicode form NFC, without surrounding blanks. Donors that differ only in case, width or as numbers
are one donor, because cells of one person in two parts are a leak. Classes that differ only so are an error, because
only the user knows whether they are one class.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

MISSING = frozenset(("na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nan", "-nan", "none", "null", "nil", "-", "--", "?"))
"""Texts for a missing name, in lower case."""

_NUMBER = re.compile(r"\+?0*([0-9]+?)(?:\.([0-9]*?)0*)?")


def normalize_name(text: str) -> str:
    """Normalize a name: Unicode form NFC, no surrounding blanks, single blanks within it."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def name_key(name: str) -> str:
    """Return the comparison key of a name: without case, width and invisible letters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return normalize_name("".join(letter for letter in folded if unicodedata.category(letter) != "Cf"))


def donor_key(donor: str) -> str:
    """Return the comparison key of a donor: `name_key`, and one form for equal numbers (`2`, `2.0`, `02`)."""
    key = name_key(donor)
    number = _NUMBER.fullmatch(key)
    if number is None:
        return key
    return f"{number[1]}.{number[2]}" if number[2] else number[1]


def is_missing(name: str) -> bool:
    """Return whether a name is missing: `NA`, `None`, `null`, `nan`, `-`, `?`, or without visible letters."""
    return name_key(name) in {*MISSING, ""}


def find_lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Find groups of different names with the same comparison key, in order."""
    alike = defaultdict(list)
    for name in sorted(set(names)):
        alike[name_key(name)].append(name)
    return [group for group in alike.values() if len(group) > 1]


def unify_donor_names(donors: Sequence[str]) -> tuple[list[str], list[list[str]], Counter[str]]:
    """Replace the spellings of each donor by the most frequent one, and missing names by "".

    Returns:
        The donors; the groups of merged spellings, the chosen one first; and the number of cells for each text that
        means a missing name.
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
    """Quote a name. Letters beyond ASCII are added as code points, to distinguish names that look alike."""
    return repr(name) if name.isascii() else f"{name!r} ({ascii(name)[1:-1]})"
