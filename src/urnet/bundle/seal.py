"""The seal of a bundle: one digest over the content of all its files, stored in `seal.json`.

It detects changed files and files of different models. It does not protect against a person who changes a file and
writes a new seal: compare the digest with one that you noted (`--expect`).

The digest covers content, not bytes: JSON is hashed with sorted keys and without white space, tensors by name, type,
shape and values. Line endings, indentation and the order of tensors do not change it.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from urnet.errors import RunError
from urnet.files.atomic import atomic_file
from urnet.files.json_files import describe_error, read_canonical_json, to_canonical_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SEAL_NAME = "seal.json"
DIGEST_LENGTH = 32
"""Hexadecimal digits of a digest."""
MIN_DIGEST_LENGTH = 8
"""Minimum number of digits of an expected digest."""

logger = logging.getLogger(__name__)
_warned: set[Path] = set()


@dataclass(frozen=True)
class Seal:
    """Hashes of a bundle's files.

    Attributes:
        files: SHA-256 of the content of each file, by file name.
        stored: whether `seal.json` holds them; otherwise they were computed from files without a seal.
    """

    files: Mapping[str, str]
    stored: bool = True

    @property
    def digest(self) -> str:
        """The digest of the whole bundle, 32 hexadecimal digits."""
        lines = "".join(f"{name} {self.files[name]}\n" for name in sorted(self.files))
        return hashlib.sha256(f"urnet model 1\n{lines}".encode()).hexdigest()[:DIGEST_LENGTH]

    def write(self, folder: Path) -> None:
        """Write `seal.json`."""
        data = {"format": 1, "digest": self.digest, "files": dict(sorted(self.files.items()))}
        with atomic_file(folder / SEAL_NAME) as file:
            file.write((json.dumps(data, indent=2) + "\n").encode())

    def check(self, folder: Path, hashes: Mapping[str, str], ignored: tuple[str, ...] = ()) -> None:
        """Compare the seal with the files that are there.

        Args:
            folder: the bundle, for the message.
            hashes: hashes of the files that are there.
            ignored: names of files that were not read.

        Raises:
            RunError: a file was changed, is missing, or was added (code `model.seal_broken`).
        """
        sealed = {name: value for name, value in self.files.items() if name not in ignored}
        problems = [f"{name} is missing" for name in sealed if name not in hashes]
        problems += [f"{name} was added" for name in hashes if name not in sealed]
        problems += [f"{name} was changed" for name in sealed if name in hashes and hashes[name] != sealed[name]]
        if problems:
            raise RunError(
                f"{folder}: the seal of this model is broken: {', '.join(sorted(problems))}. All files of a model "
                "belong together; restore the folder from a copy, or train again (`urnet calibrate` renews the "
                "calibration files and the seal)",
                code="model.seal_broken",
            )


class _SealFile(BaseModel):
    """The content of `seal.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    digest: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{DIGEST_LENGTH}}}$")]
    files: dict[Annotated[str, Field(pattern=r"^[a-z.]{1,64}$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


def read_seal(folder: Path) -> Seal | None:
    """Read `seal.json`; warn and return None where a bundle has none.

    Raises:
        RunError: the file is damaged, or newer than this program.
    """
    path = folder / SEAL_NAME
    if not path.is_file():
        if folder.resolve() not in _warned:
            _warned.add(folder.resolve())
            logger.warning(
                "%s: this model is not sealed (no %s), so changes of its files cannot be detected; `urnet calibrate` "
                "seals the model of a run",
                folder,
                SEAL_NAME,
            )
        return None
    try:
        content = _SealFile.model_validate_json(read_canonical_json(path))
    except (ValidationError, ValueError) as error:
        raise RunError(
            f"{path}: not a seal that this urnet can read ({describe_error(error)}); restore the file, or update urnet",
            code="model.seal_broken",
        ) from None
    seal = Seal(content.files)
    if seal.digest != content.digest:
        raise RunError(
            f"{path}: its digest {content.digest} is not that of its files ({seal.digest}); restore the file",
            code="model.seal_broken",
        )
    return seal


def hash_json(content: bytes) -> str:
    """Hash JSON in canonical form."""
    return hashlib.sha256(content).hexdigest()


def hash_tensors(tensors: "Mapping[str, np.ndarray | Tensor]") -> str:
    """Hash named tensors: names, types, shapes and values."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        content.update(to_canonical_json([name, dtype, list(tensor.shape)]))
        content.update(_tensor_bytes(tensor))
    return content.hexdigest()


def _tensor_bytes(tensor: "np.ndarray | Tensor") -> memoryview:
    import numpy as np

    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # a buffer


def check_expected(expect: str | None) -> str | None:
    """Check an expected digest, and return it in lower case.

    Raises:
        RunError: it cannot be the beginning of a digest (code `model.expectation_invalid`).
    """
    if expect is None:
        return None
    digits = expect.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST_LENGTH},{DIGEST_LENGTH}}}", digits):
        raise RunError(
            f"the expected digest {expect[:80]!r} is not a digest; give the first {MIN_DIGEST_LENGTH} to "
            f"{DIGEST_LENGTH} hexadecimal digits of the digest that `urnet about MODEL` shows",
            code="model.expectation_invalid",
        )
    return digits
