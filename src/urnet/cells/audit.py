"""Look for what makes an evaluation too good, or training pointless, before either starts.

Every file concerned is named. Nothing is deleted: copies and padding are left out of the table in memory, and the
user decides about the rest.
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
"""From this share of pixels at a crop's own brightest or darkest count on, it is called saturated.

Its own, because the usual camera of 12 bits saturates at 4,095 in a file of 16.
"""

MAX_CELLS_IN_MEMORY = 2**16
"""Cells up to which the small versions of all are held in memory; 4 kB each."""

FINDING_KINDS = (
    *("label conflict", "copy across parts", "donor across parts", "unreadable", "constant", "saturated"),
    *("mixed depth", "padding", "copy", "turned copy", "near-copy"),
)
"""Kinds of finding, worst first."""

BLOCKING_KINDS = ("label conflict", "copy across parts", "donor across parts")
"""Kinds of finding that a training run does not start with."""


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        kind: one of `FINDING_KINDS`.
        paths: the files concerned.
        detail: what is wrong, in words.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str


@dataclass
class Audit:
    """What an audit saw.

    Attributes:
        findings: all defects, worst kinds first.
        copy_keys: (N,) text: equal for cells that are copies of one another.
        exclusions: (N,) text: why a cell is not counted, "" where it is.
        notes: class counts, sizes and depths, in words.
    """

    findings: list[Finding]
    copy_keys: list[str]
    exclusions: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> np.ndarray:
        """(N,) bool: readable cells that are no padding and no later copy of another cell."""
        return np.array([reason == "" for reason in self.exclusions], bool)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_frame(self) -> pd.DataFrame:
        """A row for each file of each finding: `kind`, `finding` (its number), `path`, `detail`."""
        rows = [
            {"kind": f.kind, "finding": number, "path": path, "detail": f.detail}
            for number, f in enumerate(self.findings, 1)
            for path in f.paths
        ]
        return pd.DataFrame(rows, columns=["kind", "finding", "path", "detail"])

    def raise_leaks(self, allow_leaks: bool = False) -> None:
        """Stop for a cell under two labels, and unless allowed for a cell or donor in two parts.

        Raises:
            CellsError: one picture carries two labels.
            LeakError: one picture or donor stands in two parts.
        """
        conflicts = [f for f in self.findings if f.kind == "label conflict"]
        if conflicts:
            raise CellsError(
                f"{len(conflicts)} cell(s) stand under two labels; keep one label each:\n{_format_findings(conflicts)}"
            )
        leaks = [f for f in self.findings if f.kind in BLOCKING_KINDS]
        if leaks and not allow_leaks:
            raise LeakError(
                f"{len(leaks)} leak(s) between parts of the given split would make the figures too good; "
                f"mend the split column, or pass --allow-leaks:\n{_format_findings(leaks)}"
            )


def audit_cells(cells: Cells, *, near_copies: bool = True, progress: Callable[[float], None] | None = None) -> Audit:
    """Read every cell once and compare it with all others; the crops are kept for those who read them next.

    Args:
        cells: labelled cells, with or without a split.
        near_copies: whether to look for near-copies as well.
        progress: called with the share done, 0 to 1.
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
    # Augmented images that were written out are copies on purpose.
    augmented = cells.table.get("augmented", pd.Series("", index=cells.table.index)) != ""
    keys = [
        f"{summary.fault or 'augmented'} {index}" if summary.hashes is None or own else summary.hashes.invariant
        for index, (summary, own) in enumerate(zip(summaries, augmented, strict=True))
    ]
    audit = Audit([], keys, [""] * len(cells))
    _find_copies(cells, summaries, audit)
    _find_unusable(cells, summaries, audit)
    _find_donor_leaks(cells, audit)
    if thumbnails is not None:
        kept = np.flatnonzero(audit.distinct & ~augmented.to_numpy())
        _find_near_copies(cells, thumbnails, kept, audit, progress)
    _add_notes(cells, summaries, audit)
    audit.findings.sort(key=lambda finding: FINDING_KINDS.index(finding.kind))
    return audit


@contextmanager
def _thumbnail_storage(count: int) -> Iterator[np.ndarray]:
    """Room for thumbnails, (N, 32, 32): of large tables in a file without a name, so that memory doesn't hold them."""
    shape = (count, THUMBNAIL_PX, THUMBNAIL_PX)
    if count <= MAX_CELLS_IN_MEMORY:
        yield np.zeros(shape, np.float32)
        return
    with tempfile.TemporaryFile() as file:
        try:
            for _ in range(count):  # all of it is written at once: a full disk would kill whoever writes through a map
                file.write(bytes(4 * THUMBNAIL_PX**2))
            file.flush()
        except OSError as error:
            raise CellsError(
                f"{tempfile.gettempdir()}: no room for small versions of {count} cells ({error.strerror}), "
                f"{4 * THUMBNAIL_PX**2 * count / 1e9:.1f} GB; free space there, or name another folder in TMPDIR"
            ) from None
        yield np.memmap(file, np.float32, "r+", shape=shape)


@dataclass(frozen=True, slots=True)
class _CropSummary:
    """What is kept of one crop: its fault, "" for none, with the detail; size, depth and colour; fingerprint."""

    fault: str = ""
    detail: str = ""
    size: str = ""
    depth: str = ""
    hashes: CropHashes | None = None


def _summarise_crop(read: Callable[[int], np.ndarray], index: int, thumbnails: np.ndarray) -> _CropSummary:
    """Look at one crop, and put its small version among the others."""
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
        named = tuple(paths[members])
        exact = len({summaries[i].hashes.exact for i in members}) == 1  # type: ignore[union-attr]
        if exact and len(members) >= MIN_PADDING_COPIES:
            audit.findings.append(Finding("padding", named, f"one image {len(members)} times: padding, left out"))
            for index in members:
                audit.exclusions[index] = "padding"
            continue
        if summaries[members[0]].fault == "constant":
            continue
        kind = "copy" if exact else "turned copy"
        audit.findings.append(Finding(kind, named, f"{len(members)} files show one cell; counted once"))
        # A copy that a given split uses is counted before one that it leaves out.
        first, *others = sorted(members, key=lambda index: parts[index] == "")
        for index in others:
            audit.exclusions[index] = f"copy of {paths[first]}"
        if len(set(labels[members])) > 1:
            audit.findings.append(Finding("label conflict", named, " / ".join(sorted(set(labels[members])))))
        if len(where := set(parts[members]) - {""}) > 1:
            audit.findings.append(Finding("copy across parts", named, " / ".join(sorted(where))))


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
            where = " / ".join(f"{part} ({counts[part]})" for part in parts)
            audit.findings.append(Finding("donor across parts", tuple(rows["path"]), f"donor {donor} in {where}"))


def _find_near_copies(
    cells: Cells, thumbnails: np.ndarray, kept: np.ndarray, audit: Audit, progress: Callable[[float], None]
) -> None:
    table = cells.table.iloc[kept]
    paths = table["path"].to_numpy()
    parts = table["split"].to_numpy() if cells.has_split else np.full(len(kept), "")
    for i, j, alike in find_near_copies(LazyRows(thumbnails, kept), progress):
        across = f" ({parts[i]} / {parts[j]})" if parts[i] != parts[j] else ""
        detail = f"correlation {alike:.4f}{across}: look at both; a warning only"
        audit.findings.append(Finding("near-copy", (paths[i], paths[j]), detail))


def _add_notes(cells: Cells, summaries: list[_CropSummary], audit: Audit) -> None:
    counts = cells.table["label"][audit.distinct].value_counts()
    audit.notes.append("distinct cells: " + ", ".join(f"{name} {int(counts.get(name, 0))}" for name in cells.classes))
    kinds = Counter(f"{summary.size}, {summary.depth}" for summary in summaries if summary.depth)
    audit.notes.append("images: " + "; ".join(f"{count} of {kind}" for kind, count in kinds.most_common()))
    audit.notes.append(describe_donors(cells))
    if cells.has_split:
        parts = cells.table["split"][audit.distinct].value_counts()
        given = ", ".join(f"{part} {parts[part]}" for part in PARTS if part in parts)
        audit.notes.append(f"parts as given: {given or 'none'}")
    depths = Counter(summary.depth for summary in summaries if summary.depth)
    if len(depths) > 1:
        usual = depths.most_common(1)[0][0]
        rare = tuple(
            path
            for path, summary in zip(cells.table["path"], summaries, strict=True)
            if summary.depth not in ("", usual)
        )
        audit.findings.append(Finding("mixed depth", rare, f"several depths: {', '.join(sorted(depths))}"))


def format_counts(kinds: Iterable[str]) -> str:
    """`4 padding, 1 copy`, in order of first appearance."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())


def describe_donors(cells: Cells) -> str:
    """Whether donors can be kept apart, in words."""
    donors = cells.table["donor"] if "donor" in cells.table else pd.Series("", index=cells.table.index)
    unknown = int((donors == "").sum())
    if unknown == len(cells):
        return "donors: not known; cells are grouped by source image"
    return f"donors: {donors[donors != ''].nunique()}" + (f", not known for {unknown} cells" if unknown else "")


def _format_findings(findings: list[Finding], most: int = 20) -> str:
    lines = [f"  {f.kind} ({f.detail}): {', '.join(f.paths[:4])}{' …' if len(f.paths) > 4 else ''}" for f in findings]
    more = [f"  … and {len(lines) - most} more; see `urnet audit`"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)
