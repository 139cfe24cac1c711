"""Settings of the server: limits on sizes, numbers and times."""

from collections.abc import Iterable
from difflib import get_close_matches

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from urnet.cpus import usable_cpus
from urnet.errors import RunError
from urnet.images.read import MAX_PIXELS


class Settings(BaseModel):
    """Limits of the server; `urnet serve --set key=value` changes one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_bytes: int = Field(64 * 2**20, ge=1024, le=2**34)
    """Largest request with files, in bytes, all its files together."""
    form_bytes: int = Field(8192, ge=1024, le=2**24)
    """Largest request without files (login, forms, events of a page), in bytes."""
    header_bytes: int = Field(32 * 2**10, ge=1024, le=2**20)
    """Largest request line with its headers, in bytes."""
    event_bytes: int = Field(2**20, ge=1024, le=2**27)
    """Largest message of a page over its websocket, in bytes."""
    max_files: int = Field(200, ge=1, le=1000)
    """Files of one request."""
    max_pixels: int = Field(25_000_000, ge=64, le=MAX_PIXELS)
    """Pixels of one crop, montage or page of a TIFF, by its header."""
    field_pixels: int = Field(MAX_PIXELS, ge=64, le=10**10)
    """Pixels of one field of view, or of one page of its file, by its header."""
    file_pixels: int = Field(400_000_000, ge=64, le=10**11)
    """Pixels of one file, all its pages together, by their headers."""
    max_images: int = Field(2000, ge=1, le=100_000)
    """Images of one file: pages of a TIFF, tiles of a montage."""
    max_connections: int = Field(512, ge=2, le=100_000)
    """Open connections; a further one closes the connection that has waited longest without a request."""
    max_requests: int = Field(64, ge=1, le=10_000)
    """Requests with files that are processed at once; further ones are answered 429."""
    header_seconds: float = Field(10, gt=0, le=3600)
    """Time in seconds for a client to send the headers of a request; also the body of a request without files."""
    idle_seconds: float = Field(5, gt=0, le=3600)
    """Time in seconds for which a connection without a request stays open after an answer."""
    body_seconds: float = Field(60, gt=0, le=3600)
    """Time in seconds for a client to send a request with files."""
    write_seconds: float = Field(60, gt=0, le=3600)
    """Time in seconds in which a client has to read the next 64 KiB of an answer."""
    request_seconds: float = Field(300, gt=0, le=86_400)
    """Time in seconds for the answer to one request."""
    stop_seconds: int = Field(60, ge=1, le=3600)
    """Time in seconds to finish running requests when the server stops."""
    decoders: int = Field(default_factory=lambda: min(2, usable_cpus()), ge=1, le=64)
    """Processes that decode uploaded files."""
    decode_seconds: float = Field(10, gt=0, le=3600)
    """Time in seconds to decode one piece of a file (16 images)."""
    file_seconds: float = Field(30, gt=0, le=86_400)
    """Time in seconds to decode one file with crops, all its pieces together."""
    field_seconds: float = Field(120, gt=0, le=86_400)
    """Time in seconds to find and cut out the cells of all fields of one request."""
    decode_memory: int = Field(2**30, ge=2**26, le=2**40)
    """Memory of each decoding process, in bytes, where the system can limit it (Linux)."""
    sample_files: int = Field(20_000, ge=1, le=1_000_000)
    """Files of one sample on the page, which sends them in several requests."""
    sample_seconds: float = Field(3600, gt=0, le=10**6)
    """Time in seconds to decode the files of one sample on the page, or of one request."""
    sample_bytes: int = Field(2**31, ge=1024, le=2**40)
    """Bytes of one sample on the page."""
    sample_images: int = Field(200_000, ge=1, le=10_000_000)
    """Images of one sample on the page."""
    upload_bytes: int = Field(2**33, ge=1024, le=2**44)
    """Bytes of all stored uploads of all clients together, with the cells cut out of them."""
    attempts: int = Field(10, ge=1, le=1000)
    """Wrong tokens from one address within `lockout_seconds` until further wrong ones are answered 429."""
    lockout_seconds: float = Field(60, gt=0, le=86_400)
    """Time in seconds for which further wrong tokens are answered 429."""


def read_settings(overrides: Iterable[str] = ()) -> Settings:
    """Read the settings, with some of them changed.

    Args:
        overrides: `key=value`.

    Raises:
        RunError: an unknown key, or a value outside its range.
    """
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RunError(
                f"--set {override}: give key=value, for instance max_files=20", code="serve.setting_malformed"
            )
        try:
            given[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RunError(f"--set {override}: {value!r} is not a number", code="serve.setting_malformed") from None
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        message = "; ".join(_explain(problem) for problem in error.errors())
        raise RunError(message, code="serve.setting_invalid") from None


def _explain(problem: dict) -> str:
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(key, Settings.model_fields, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"--set {key}: not a setting of the server; {hint}the settings are {', '.join(Settings.model_fields)}"
    rule = problem["msg"]
    return f"--set {key}: is {problem['input']!r}; {rule[:1].lower() + rule[1:]}"
