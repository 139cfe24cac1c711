"""JSON files of models and cells: size limit, canonical form, errors in one line."""

import json
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

MAX_BYTES = 2**24
"""Maximum size of a JSON file."""


def check_text(text: str) -> str:
    """Refuse text with control characters or without an encoding in UTF-8.

    Raises:
        ValueError: the text has such characters.
    """
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text):
        raise ValueError("control characters and line breaks are not allowed")
    return text


Text = Annotated[str, Field(max_length=255), AfterValidator(check_text)]
"""Type of a name in a JSON file."""


def read_canonical_json(path: Path) -> bytes:
    """Read a JSON file and return it in canonical form: sorted keys, no white space, ASCII.

    Raises:
        ValueError: the file is not JSON, is nested too deeply, or is too large.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 2**20} MiB of JSON")
    try:
        return to_canonical_json(json.loads(content.decode("utf-8")))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_canonical_json(data: Any) -> bytes:
    """Encode data as canonical JSON."""
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def describe_error(error: Exception) -> str:
    """Describe the first problem of a validation in one line, with its key."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:200] or type(error).__name__
    problem = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key[:80]!r}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key[:80]!r} is missing"
    value = repr(problem["input"])
    rule = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {rule}"[:200] if key else rule[:200]
    return f"{key} is {value if len(value) <= 60 else value[:59] + '…'}: {rule[:1].lower()}{rule[1:]}"[:240]
