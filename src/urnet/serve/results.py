"""Results of the services for uploaded files: predictions, cells of fields, counts, and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from urnet.counting.sample import Sample
from urnet.errors import CellsError, ImageError
from urnet.predict import PADDING
from urnet.serve.uploads.receive import Upload

SET_INCOMPLETE_CODE = "images.companion_missing"
"""Code of the error that other files of a multi-file image are missing."""


@dataclass(frozen=True)
class ImageResult:
    """Prediction or error for one image.

    Attributes:
        path: address with the client's name of the file: `stack.tif#p001`.
        row: `predicted` and `Model.prediction_columns`, as `urnet predict` writes them; empty for an unusable image.
        error: reason for which the image is unusable.
        code: stable code of the error.
        copy_key: key that copies of the image share, if requested.
    """

    path: str
    row: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    code: str = ""
    copy_key: str = ""

    @property
    def reason(self) -> str:
        """The error, with the name of the image."""
        return self.error if self.path in self.error else f"{self.path}: {self.error}"

    @property
    def is_padding(self) -> bool:
        """Whether the image only fills up a montage."""
        return self.error == PADDING


class NoUsableImageError(CellsError):
    """No image of a request can be used.

    Args:
        results: results of all images, each with an error.
    """

    code = "images.none_usable"

    def __init__(self, results: "Sequence[ImageResult]"):
        first = results[0].reason if results else "the files hold no images"
        super().__init__(
            f"none of the {len(results)} image(s) can be used; the first: {first}",
            code=_code_of_incomplete_set(results),
        )
        self.results = results


class UnreadableError(ImageError):
    """Some fields of a sample cannot be read, and the client did not ask for a partial count.

    Args:
        results: results of the fields that cannot be read.
        files: number of all files.
    """

    code = "fields.unreadable"

    def __init__(self, results: "Sequence[ImageResult]", files: int):
        super().__init__(
            f"{len(results)} of the {files} files cannot be read, and a count of the others is not a count of the "
            f"sample; repair or leave out these files, or ask for a partial count; the first: {results[0].reason}",
            code=_code_of_incomplete_set(results),
        )
        self.results = results


@dataclass(frozen=True)
class SampleCount:
    """The differential of uploaded files.

    Attributes:
        sample: the counts.
        notes: notes for the user.
        failed: images that could not be used.
        fields: whether the cells were cropped from fields of view.
    """

    sample: Sample
    notes: list[str]
    failed: list[ImageResult]
    fields: bool


@dataclass(frozen=True)
class FieldPreview:
    """A field of view whose cells were cropped.

    Attributes:
        name: the client's name of the file.
        image: small image of the field with even illumination, PNG.
        height, width: size of the field, in pixels.
    """

    name: str
    image: Path
    height: int
    width: int


@dataclass(frozen=True)
class CellPosition:
    """Position of a cell in a field.

    Attributes:
        field: number of the field.
        x, y: centre of the cell, in pixels of the field.
    """

    field: int
    x: float
    y: float


@dataclass(frozen=True)
class UploadedCells:
    """The cells of uploaded files.

    Attributes:
        sources: files of crops, or the folder of cells that were cropped from fields.
        notes: notes on the fields.
        fields: the fields; empty where the files are crops.
        positions: position of each cell, in the order of the cells folder.
        unreadable: fields that cannot be read.
    """

    sources: list[Upload]
    notes: list[str] = field(default_factory=list)
    fields: list[FieldPreview] = field(default_factory=list)
    positions: list[CellPosition] = field(default_factory=list)
    unreadable: list[ImageResult] = field(default_factory=list)


def _code_of_incomplete_set(results: Sequence[ImageResult]) -> str | None:
    """Return the code of an incomplete multi-file image where it is the only problem."""
    return SET_INCOMPLETE_CODE if {result.code for result in results} == {SET_INCOMPLETE_CODE} else None
