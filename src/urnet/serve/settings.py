"""What the server allows: sizes, numbers, times. Every limit is a setting."""

import os
from collections.abc import Iterable
from difflib import get_close_matches

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from urnet.errors import RunError
from urnet.images.read import MAX_PIXELS


class Settings(BaseModel):
    """Limits of the server; `urnet serve --set key=value` changes one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_bytes: int = Field(64 * 2**20, ge=1024, le=2**34)
    """Largest request, in bytes, all its files together."""
    max_files: int = Field(200, ge=1, le=1000)
    """Files of one request."""
    max_pixels: int = Field(25_000_000, ge=64, le=MAX_PIXELS)
    """Pixels of one image, by its header; also of a montage. Fields of view may have 100 million."""
    max_images: int = Field(2000, ge=1, le=100_000)
    """Images of one file: pages of a TIFF, tiles of a montage."""
    max_requests: int = Field(64, ge=1, le=10_000)
    """Requests that are worked on at once; further ones are answered 429."""
    request_seconds: float = Field(300, gt=0, le=86_400)
    """Time for the answer to one request."""
    body_seconds: float = Field(60, gt=0, le=3600)
    """Time for a client to send its files."""
    stop_seconds: int = Field(60, ge=1, le=3600)
    """Time for what runs to be finished when the server is told to stop."""
    decoders: int = Field(default_factory=lambda: min(2, os.cpu_count() or 1), ge=1, le=64)
    """Processes that decode what was sent."""
    decode_seconds: float = Field(10, gt=0, le=3600)
    """Time for one piece of a file to be decoded."""
    field_seconds: float = Field(120, gt=0, le=86_400)
    """Time for the cells of the fields of one request to be found and cut out."""
    decode_memory: int = Field(2**30, ge=2**26, le=2**40)
    """Bytes that decoding may take in each process, where the system can bound it (Linux)."""
    sample_files: int = Field(20_000, ge=1, le=1_000_000)
    """Files of one sample on the page, which sends them in several requests."""
    sample_bytes: int = Field(2**31, ge=1024, le=2**40)
    """Bytes of them together."""
    sample_images: int = Field(200_000, ge=1, le=10_000_000)
    """Images in them together."""
    upload_bytes: int = Field(2**33, ge=1024, le=2**44)
    """Bytes of all that was sent and is still kept, by all together, and of cells cut out of it."""
    attempts: int = Field(10, ge=1, le=1000)
    """Wrong tokens from one address within `lockout_seconds` until it has to wait."""
    lockout_seconds: float = Field(60, gt=0, le=86_400)
    """How long an address waits after that."""


def read_settings(overrides: Iterable[str] = ()) -> Settings:
    """The settings with some of them changed.

    Args:
        overrides: `key=value`.

    Raises:
        RunError: an unknown key, or a value outside its range.
    """
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RunError(f"--set {override}: give key=value, for instance max_files=20")
        try:
            given[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RunError(f"--set {override}: {value!r} is no number") from None
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise RunError("; ".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: dict) -> str:
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(key, Settings.model_fields, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"--set {key}: no setting of the server; {hint}there are {', '.join(Settings.model_fields)}"
    rule = problem["msg"]
    return f"--set {key}: is {problem['input']!r}; {rule[:1].lower() + rule[1:]}"
