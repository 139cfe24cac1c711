"""Audit of cells: find copies, leaks between parts and unusable images before training.

Findings name all their files. The audit deletes nothing: it excludes copies, padding and unusable images from the
table in memory, and reports the rest.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from urnet.cells.cache.crops import cache_crops
from urnet.cells.copies import MIN_PADDING_COPIES, THUMBNAIL_PX, CropHashes, group_equal_keys, hash_crop, make_thumbnail
from urnet.cells.near_copies import find_near_copies
from urnet.cells.table import PARTS, Cells
from urnet.errors import CellsError, ImageError, LeakError
from urnet.images.rows import LazyRows

MIN_SATURATED_SHARE = 0.25
"""Share of pixels at a crop's own lowest or highest count from which the crop is saturated.

Not at the limits of its data type, because a 12-bit camera saturates at 4,095 in a 16-bit file.
"""

MAX_CELLS_IN_MEMORY = 2**16
"""Largest number of cells whose thumbnails are in memory (4 kB each). Those of larger tables are on disk."""

FINDING_KINDS = (
    *("label conflict", "copy across parts", "donor across parts", "unreadable", "constant", "saturated"),
    *("mixed depth", "padding", "copy", "turned copy", "near-copy"),
)
"""Kinds of findings, worst first."""

BLOCKING_KINDS = ("label conflict", "copy across parts", "donor across parts")
"""Kinds of findings that prevent training."""


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        kind: one of `FINDING_KINDS`.
        paths: its files.
        detail: description.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str


@dataclass
class Audit:
    """Result of an audit.

    Attributes:
        findings: all defects, worst kinds first.
        copy_keys: (N,) text, equal for copies of one cell.
        exclusions: (N,) reason for which a cell is excluded; "" for a usable cell.
        notes: description of classes, sizes, depths, donors and parts.
    """

    findings: list[Finding]
    copy_keys: list[str]
    exclusions: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> np.ndarray:
        """(N,) bool: usable cells, each counted once."""
        return np.array([reason == "" for reason in self.exclusions], bool)

    @property
    def clean(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def to_frame(self) -> pd.DataFrame:
        """Return one row per file of each finding: `kind`, `finding` (its number), `path`, `detail`."""
        rows = [
            {"kind": finding.kind, "finding": number, "path": path, "detail": finding.detail}
            for number, finding in enumerate(self.findings, 1)
            for path in finding.paths
        ]
        return pd.DataFrame(rows, columns=["kind", "finding", "path", "detail"])

    def raise_leaks(self, allow_leaks: bool = False) -> None:
        """Raise an error for label conflicts, and unless leaks are allowed for cells and donors in two parts.

        Raises:
            CellsError: one cell has two labels (`cells.label_conflict`).
            LeakError: one cell or donor is in two parts (`cells.leak`).
        """
        conflicts = [finding for finding in self.findings if finding.kind == "label conflict"]
        if conflicts:
            raise CellsError(
                f"{len(conflicts)} cell(s) have two labels. Keep one label for each:\n{_format_findings(conflicts)}",
                code="cells.label_conflict",
            )
        leaks = [finding for finding in self.findings if finding.kind in BLOCKING_KINDS]
        if leaks and not allow_leaks:
            raise LeakError(
                f"{len(leaks)} leak(s) between parts of the given split; they make the test results too "
                f"optimistic. Correct the column 'split', or pass --allow-leaks:\n{_format_findings(leaks)}"
            )


def audit_cells(cells: Cells, *, near_copies: bool = True, progress: Callable[[float], None] | None = None) -> Audit:
    """Audit cells: read every crop once, compare it with all others, and store it in the cache.

    Args:
        cells: labelled cells, with or without a split.
        near_copies: whether to find near-copies as well.
        progress: called with the finished share, 0 to 1.
    """
    progress = progress or (lambda share: None)
    summaries = []
    with _thumbnail_storage(len(cells)) as thumbnails:
        with cache_crops(cells) as read:
            for index in range(len(cells)):
                summaries.append(_summarise_crop(read, index, thumbnails))
                progress(0.8 * (index + 1) / len(cells))
        audit = _build_audit(
            cells, summaries, thumbnails if near_copies else None, lambda share: progress(0.8 + 0.2 * share)
        )
    progress(1.0)
    return audit


def _build_audit(
    cells: Cells, summaries: "list[_CropSummary]", thumbnails: np.ndarray | None, progress: Callable[[float], None]
) -> Audit:
    # Written augmented images are copies on purpose, so each has a key of its own.
    augmented = cells.table.get("augmented", pd.Series("", index=cells.table.index)) != ""
    copy_keys = [
        summary.hashes.invariant
        if summary.hashes is not None and not is_augmented
        else f"{summary.fault or 'augmented'} {index}"
        for index, (summary, is_augmented) in enumerate(zip(summaries, augmented, strict=True))
    ]
    audit = Audit([], copy_keys, [""] * len(cells))
    _find_copies(cells, summaries, audit)
    _find_unusable(cells, summaries, audit)
    _find_donor_leaks(cells, audit)
    if thumbnails is not None:
        compared = np.flatnonzero(audit.distinct & ~augmented.to_numpy())
        _find_near_copies(cells, thumbnails, compared, audit, progress)
    _add_notes(cells, summaries, audit)
    audit.findings.sort(key=lambda finding: FINDING_KINDS.index(finding.kind))
    return audit


@contextmanager
def _thumbnail_storage(count: int) -> Iterator[np.ndarray]:
    """Provide an array for thumbnails, (N, 32, 32); for large tables in a temporary file instead of memory."""
    shape = (count, THUMBNAIL_PX, THUMBNAIL_PX)
    if count <= MAX_CELLS_IN_MEMORY:
        yield np.zeros(shape, np.float32)
        return
    with tempfile.TemporaryFile() as file:
        try:
            for _ in range(count):  # written before it is mapped: a full disk kills a process that writes through a map
                file.write(bytes(4 * THUMBNAIL_PX**2))
            file.flush()
        except OSError as error:
            raise CellsError(
                f"{tempfile.gettempdir()}: no space for the thumbnails of {count} cells ({error.strerror}), "
                f"{4 * THUMBNAIL_PX**2 * count / 1e9:.1f} GB. Free disk space, or set TMPDIR to another folder",
                code="cells.no_space",
            ) from None
        yield np.memmap(file, np.float32, "r+", shape=shape)


@dataclass(frozen=True, slots=True)
class _CropSummary:
    """Properties of one crop: its fault ("" for none) with details, size and colour, depth, and hashes."""

    fault: str = ""
    detail: str = ""
    size: str = ""
    depth: str = ""
    hashes: CropHashes | None = None


def _summarise_crop(read: Callable[[int], np.ndarray], index: int, thumbnails: np.ndarray) -> _CropSummary:
    """Summarise one crop, and store its thumbnail."""
    try:
        crop = read(index)
    except ImageError as error:
        return _CropSummary("unreadable", str(error))
    fault, detail = "", ""
    low, high = crop.min(), crop.max()
    if low == high:
        fault, detail = "constant", f"every pixel is {low}"
    else:
        share, count = max((np.count_nonzero(crop == count) / crop.size, count) for count in (low, high))
        if share >= MIN_SATURATED_SHARE:
            fault, detail = "saturated", f"{share:.0%} of the pixels are {count}"
    thumbnails[index] = make_thumbnail(crop)
    size = f"{crop.shape[1]} x {crop.shape[0]} px {'colour' if crop.ndim == 3 else 'grey'}"
    return _CropSummary(fault, detail, sys.intern(size), sys.intern(str(crop.dtype)), hash_crop(crop))


def _find_copies(cells: Cells, summaries: list[_CropSummary], audit: Audit) -> None:
    paths, labels = cells.table["path"].to_numpy(), cells.table["label"].to_numpy()
    parts = cells.table["split"].to_numpy() if cells.has_split else np.full(len(cells), "train")
    for members in group_equal_keys(audit.copy_keys):
        files = tuple(paths[members])
        exact = len({summaries[i].hashes.exact for i in members}) == 1
        if exact and len(members) >= MIN_PADDING_COPIES:
            audit.findings.append(Finding("padding", files, f"one image {len(members)} times: padding, excluded"))
            for index in members:
                audit.exclusions[index] = "padding"
            continue
        if summaries[members[0]].fault == "constant":
            continue
        kind = "copy" if exact else "turned copy"
        audit.findings.append(Finding(kind, files, f"{len(members)} files show one cell; it is counted once"))
        # A copy in a part of the given split is preferred to an excluded one.
        first, *others = sorted(members, key=lambda index: parts[index] == "")
        for index in others:
            audit.exclusions[index] = f"copy of {paths[first]}"
        if len(set(labels[members])) > 1:
            audit.findings.append(Finding("label conflict", files, " / ".join(sorted(set(labels[members])))))
        if len(used_parts := set(parts[members]) - {""}) > 1:
            audit.findings.append(Finding("copy across parts", files, " / ".join(sorted(used_parts))))


def _find_unusable(cells: Cells, summaries: list[_CropSummary], audit: Audit) -> None:
    for index, (path, summary) in enumerate(zip(cells.table["path"], summaries, strict=True)):
        if summary.fault and audit.exclusions[index] != "padding":
            audit.findings.append(Finding(summary.fault, (path,), summary.detail))
            if summary.fault != "saturated":
                audit.exclusions[index] = summary.fault


def _find_donor_leaks(cells: Cells, audit: Audit) -> None:
    if not cells.has_split or "donor" not in cells.table:
        return
    table = cells.table[(cells.table["split"] != "") & (cells.table["donor"] != "")]
    for donor, rows in table.groupby("donor", sort=True):
        parts = sorted(set(rows["split"]))
        if len(parts) > 1:
            counts = rows["split"].value_counts()
            numbers = " / ".join(f"{part} ({counts[part]})" for part in parts)
            audit.findings.append(Finding("donor across parts", tuple(rows["path"]), f"donor {donor} in {numbers}"))


def _find_near_copies(
    cells: Cells, thumbnails: np.ndarray, compared: np.ndarray, audit: Audit, progress: Callable[[float], None]
) -> None:
    table = cells.table.iloc[compared]
    paths = table["path"].to_numpy()
    parts = table["split"].to_numpy() if cells.has_split else np.full(len(compared), "")
    for i, j, correlation in find_near_copies(LazyRows(thumbnails, compared), progress):
        across = f" ({parts[i]} / {parts[j]})" if parts[i] != parts[j] else ""
        detail = f"correlation {correlation:.4f}{across}: a warning only; compare both"
        audit.findings.append(Finding("near-copy", (paths[i], paths[j]), detail))


def _add_notes(cells: Cells, summaries: list[_CropSummary], audit: Audit) -> None:
    counts = cells.table["label"][audit.distinct].value_counts()
    audit.notes.append("distinct cells: " + ", ".join(f"{name} {int(counts.get(name, 0))}" for name in cells.classes))
    kinds = Counter(f"{summary.size}, {summary.depth}" for summary in summaries if summary.depth)
    audit.notes.append("images: " + "; ".join(f"{count} of {kind}" for kind, count in kinds.most_common()))
    audit.notes.append(describe_donors(cells))
    if cells.has_split:
        parts = cells.table["split"][audit.distinct].value_counts()
        counts = ", ".join(f"{part} {parts[part]}" for part in PARTS if part in parts)
        audit.notes.append(f"given split: {counts or 'no usable cells'}")
    depths = Counter(summary.depth for summary in summaries if summary.depth)
    if len(depths) > 1:
        most_common = depths.most_common(1)[0][0]
        rare = tuple(
            path
            for path, summary in zip(cells.table["path"], summaries, strict=True)
            if summary.depth not in ("", most_common)
        )
        audit.findings.append(Finding("mixed depth", rare, f"several depths: {', '.join(sorted(depths))}"))


def format_counts(kinds: Iterable[str]) -> str:
    """Format the number of each kind, in order of first appearance: `4 padding, 1 copy`."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())


def describe_donors(cells: Cells) -> str:
    """Describe how many donors are known."""
    donors = cells.table["donor"] if "donor" in cells.table else pd.Series("", index=cells.table.index)
    unknown = int((donors == "").sum())
    if unknown == len(cells):
        return "donors: not known. Cells are grouped by source image"
    return f"donors: {donors[donors != ''].nunique()}" + (f", not known for {unknown} cells" if unknown else "")


def _format_findings(findings: list[Finding], most: int = 20) -> str:
    lines = [f"  {f.kind} ({f.detail}): {', '.join(f.paths[:4])}{' …' if len(f.paths) > 4 else ''}" for f in findings]
    more = [f"  … and {len(lines) - most} more; see `urnet audit`"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)
