"""Look for what makes an evaluation too good, or training pointless, before either starts.

Every file concerned is named. Nothing is deleted: copies and padding are left out of the table in memory, and the
user decides about the rest.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from urnet.cells.copies import PADDING_COPIES, Fingerprint, fingerprint, near_pairs, same
from urnet.cells.table import Cells
from urnet.errors import CellsError, ImageError, LeakError

SATURATED_SHARE = 0.25
"""From this share of pixels at the brightest or darkest count of its depth on, a crop is called saturated."""

STOPS = ("label conflict", "copy across parts", "donor across parts")
"""Kinds of finding that a training run does not start with."""


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        kind: `unreadable`, `constant`, `saturated`, `padding`, `copy`, `turned copy`, `near-copy`, `label conflict`,
            `copy across parts`, `donor across parts` or `mixed depth`.
        paths: the files concerned.
        detail: what was seen, in words.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str


@dataclass
class Audit:
    """What an audit saw.

    Attributes:
        findings: all defects, worst kinds first.
        distinct: (N,) bool: readable cells that are no padding and no later copy of another cell.
        keys: (N,) text: equal for cells that are copies of one another.
        left_out: (N,) text: why a cell is not counted, "" where it is.
        notes: class counts, sizes and depths, in words.
    """

    findings: list[Finding] = field(default_factory=list)
    distinct: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    keys: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
                f"{len(conflicts)} cell(s) stand under two labels; keep one label each:\n{_listed(conflicts)}"
            )
        leaks = [f for f in self.findings if f.kind in STOPS]
        if leaks and not allow_leaks:
            raise LeakError(
                f"{len(leaks)} leak(s) between parts of the given split would make the figures too good; "
                f"mend the split column, or pass --allow-leaks:\n{_listed(leaks)}"
            )


def audit_cells(cells: Cells, *, near: bool = True, progress: Callable[[float], None] | None = None) -> Audit:
    """Read every cell once and compare it with all others.

    Args:
        cells: labelled cells, with or without a split.
        near: whether to look for near-copies as well.
        progress: called with the share done, 0 to 1.
    """
    audit = Audit(left_out=[""] * len(cells), distinct=np.ones(len(cells), bool))
    prints: list[Fingerprint | None] = []
    looks = [""] * len(cells)
    augmented = (cells.table["augmented"] != "").to_numpy() if "augmented" in cells.table else None
    for index in range(len(cells)):
        prints.append(_inspect(cells, index, audit, looks))
        if progress is not None:
            progress(0.8 * (index + 1) / len(cells))
    audit.keys = [p.turned if p else f"unreadable {i}" for i, p in enumerate(prints)]
    if augmented is not None:
        audit.keys = [
            f"augmented {i}" if written else k for i, (k, written) in enumerate(zip(audit.keys, augmented, strict=True))
        ]
    _find_copies(cells, prints, audit)
    _find_donor_leaks(cells, audit)
    if near:
        _find_near_copies(cells, prints, audit, augmented)
    _describe(cells, audit, looks)
    order = ("label conflict", "copy across parts", "donor across parts", "unreadable", "constant", "saturated",
             "mixed depth", "padding", "copy", "turned copy", "near-copy")  # fmt: skip
    audit.findings.sort(key=lambda finding: order.index(finding.kind))
    if progress is not None:
        progress(1.0)
    return audit


def _inspect(cells: Cells, index: int, audit: Audit, looks: list[str]) -> Fingerprint | None:
    path = cells.table["path"].iloc[index]
    try:
        crop = cells.read(index)
    except ImageError as error:
        audit.findings.append(Finding("unreadable", (path,), str(error)))
        audit.left_out[index], audit.distinct[index] = "unreadable", False
        return None
    looks[index] = f"{crop.shape[1]} x {crop.shape[0]} px, {crop.dtype}, {'colour' if crop.ndim == 3 else 'grey'}"
    low, high = crop.min(), crop.max()
    if low == high:
        audit.findings.append(Finding("constant", (path,), f"every pixel is {low}"))
        audit.left_out[index], audit.distinct[index] = "constant", False
    elif crop.dtype.kind == "u":
        limit = np.iinfo(crop.dtype).max
        share = max(float((crop == limit).mean()), float((crop == 0).mean()))
        if share >= SATURATED_SHARE:
            audit.findings.append(Finding("saturated", (path,), f"{share:.0%} of the pixels are 0 or {limit}"))
    return fingerprint(crop)


def _find_copies(cells: Cells, prints: list[Fingerprint | None], audit: Audit) -> None:
    paths, labels = cells.table["path"].to_numpy(), cells.table["label"].to_numpy()
    parts = cells.table["split"].to_numpy() if cells.has_split else None
    for members in same(audit.keys):
        members = members[[audit.left_out[i] != "constant" for i in members]]
        if len(members) < 2:
            continue
        named = tuple(paths[members])
        exact = len({prints[i].exact for i in members}) == 1  # type: ignore[union-attr]
        if exact and len(members) >= PADDING_COPIES:
            audit.findings.append(Finding("padding", named, f"one image {len(members)} times: padding, left out"))
            for index in members:
                audit.left_out[index], audit.distinct[index] = "padding", False
            continue
        kind = "copy" if exact else "turned copy"
        audit.findings.append(Finding(kind, named, f"{len(members)} files show one cell; counted once"))
        for index in members[1:]:
            audit.left_out[index], audit.distinct[index] = f"copy of {paths[members[0]]}", False
        if len(set(labels[members])) > 1:
            audit.findings.append(Finding("label conflict", named, " / ".join(sorted(set(labels[members])))))
        if parts is not None and len(where := set(parts[members]) - {""}) > 1:
            audit.findings.append(Finding("copy across parts", named, " / ".join(sorted(where))))


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
    cells: Cells, prints: list[Fingerprint | None], audit: Audit, augmented: np.ndarray | None
) -> None:
    kept = [i for i, print_ in enumerate(prints) if print_ is not None and audit.distinct[i]]
    if augmented is not None:
        kept = [i for i in kept if not augmented[i]]
    paths = cells.table["path"].to_numpy()
    for i, j, alike in near_pairs([prints[k] for k in kept]):  # type: ignore[misc]
        pair = (paths[kept[i]], paths[kept[j]])
        audit.findings.append(Finding("near-copy", pair, f"correlation {alike:.4f}: look at both; a warning only"))


def _describe(cells: Cells, audit: Audit, looks: list[str]) -> None:
    counts = cells.table["label"][audit.distinct].value_counts()
    audit.notes.append("distinct cells: " + ", ".join(f"{name} {int(counts.get(name, 0))}" for name in cells.classes))
    audit.notes.append(
        "images: " + "; ".join(f"{n} of {look}" for look, n in Counter(filter(None, looks)).most_common())
    )
    depths = Counter(look.split(", ")[1] for look in looks if look)
    if len(depths) > 1:
        usual = depths.most_common(1)[0][0]
        rare = tuple(p for p, look in zip(cells.table["path"], looks, strict=True) if look and usual not in look)
        audit.findings.append(Finding("mixed depth", rare, f"several depths: {', '.join(sorted(depths))}"))


def _listed(findings: list[Finding], most: int = 20) -> str:
    lines = [f"  {f.kind} ({f.detail}): {', '.join(f.paths[:4])}{' …' if len(f.paths) > 4 else ''}" for f in findings]
    more = [f"  … and {len(lines) - most} more; see `urnet audit`"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)
