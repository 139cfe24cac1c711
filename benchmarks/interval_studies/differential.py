"""Intervals of the corrected shares of a new donor's sample.

Each line draws calibration donors and one new donor, whose cells are misread at rates with a spread between donors: a
normal deviation of the logits, for each class and call ("class") or for each call in all classes at once ("call"). The
calibration has a number of labelled cells of each donor, the sample a number of cells of the new donor. The interval is
that of the product (`adjusted_interval`), for the classes' true shares.

Columns: `donors` of the calibration; `cells` of each of them (the geometric mean where they are unequal); `sample`, its
cells; `spread` of the logits and its `kind`; `right`, the per cent of cells that are called rightly; `shares` of the
classes in per cent; `coverage` of the rarest class and the `lowest` of any class, in per cent; `without`, the coverage
of the rarest class if differences between donors are left out; `length` of the interval of the rarest class in points;
`ratio`, its mean over all classes relative to an oracle that knows the variance between donors.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from urnet.counting.interval import CountTest, adjusted_interval, invert_test
from urnet.cpus import usable_cpus

REJECTED = 0.02
ORACLE_REPLICATES = 200
POPULATION = 4000


@dataclass(frozen=True)
class Line:
    """What a line simulates; see the module's docstring."""

    donors: int
    cells: int
    sample: int
    spread: float
    kind: str
    right: float
    shares: tuple[float, ...]
    unequal: bool = False


COMMON = (0.6, 0.35, 0.05)
LINES = [
    *(
        Line(donors, 100, sample, spread, "class", 0.85, COMMON)
        for donors, sample in ((8, 500), (12, 2000), (20, 20_000))
        for spread in (0.0, 0.3, 0.6)
    ),
    Line(8, 100, 20_000, 0.6, "call", 0.9, COMMON),
    Line(12, 50, 2000, 0.3, "call", 0.7, COMMON),
    Line(12, 200, 2000, 0.6, "call", 0.95, (0.7, 0.29, 0.01)),
    Line(20, 100, 1000, 0.3, "class", 0.95, (0.6, 0.39, 0.01)),
    Line(12, 150, 1000, 0.6, "class", 0.8, (0.4, 0.3, 0.2, 0.08, 0.02)),
    Line(12, 100, 2000, 0.6, "call", 0.85, COMMON, unequal=True),
    Line(5, 100, 1000, 0.6, "class", 0.85, COMMON),
    Line(3, 100, 1000, 0.3, "call", 0.85, COMMON),
    Line(3, 100, 1000, 0.6, "call", 0.85, COMMON),
    Line(12, 1000, 2000, 0.0, "class", 0.85, COMMON),
]


def run(replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate all lines, a process for each processor core.

    Args:
        replicates: number of simulated samples per line.
        rng: source of all random numbers.
    """
    jobs = [(line, replicates, seed) for line, seed in zip(LINES, rng.spawn(len(LINES)), strict=True)]
    with ProcessPoolExecutor(usable_cpus()) as pool:
        return pd.DataFrame(list(pool.map(simulate, jobs)))


def simulate(job: tuple[Line, int, np.random.Generator]) -> dict[str, object]:
    """Simulate a line.

    Args:
        job: the line, the number of replicates, and the source of random numbers.
    """
    line, replicates, rng = job
    shares = np.array(line.shares)
    K = len(shares)
    deviations = draw_rates(line, POPULATION, rng)[:, :, :K]
    deviations = deviations - deviations.mean(axis=0)
    ends, without, oracle = [], [], []
    for replicate in range(replicates):
        by_donor, counts = draw(line, rng)
        total = by_donor.sum(axis=0)
        ends.append(adjusted_interval(counts, total, by_donor))
        if replicate < ORACLE_REPLICATES:
            without.append(adjusted_interval(counts, total))
            test = CountTest(counts, total, by_donor)
            test.donors = KnownVariation(deviations, by_donor)
            oracle.append(invert_test(test, test.start))
    covered = [((low <= shares) & (shares <= high)) for low, high in np.moveaxis(ends, 2, 1)]
    bare = [((low <= shares) & (shares <= high)) for low, high in np.moveaxis(without, 2, 1)]
    coverage, length = 100 * np.mean(covered, axis=0), 100 * np.diff(ends, axis=2)[:, :, 0].mean(axis=0)
    rarest = int(shares.argmin())
    row = asdict(line) | {"right": 100 * line.right, "shares": "/".join(f"{100 * share:.0f}" for share in shares)}
    row["kind"] = row["kind"] + (", unequal" if row.pop("unequal") else "")
    return row | {
        "coverage": coverage[rarest],
        "lowest": coverage.min(),
        "without": 100 * np.mean(bare, axis=0)[rarest],
        "length": length[rarest],
        "ratio": float(np.mean(length / (100 * np.diff(oracle, axis=2)[:, :, 0].mean(axis=0)))),
    }


def draw(line: Line, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the calibration cells (D, K, K + 1) by donor, class and call, and the accepted cells (K,) of a sample."""
    shares = np.array(line.shares)
    K = len(shares)
    rates = draw_rates(line, line.donors + 1, rng)
    # A laboratory labels more of rare classes than they have in blood.
    labelled = np.sqrt(shares) / np.sqrt(shares).sum()
    cells = np.full(line.donors, line.cells)
    if line.unequal:
        cells = np.maximum(line.cells * np.exp(rng.normal(0, 1, line.donors)), 5).astype(int)
    while True:
        known = np.stack([rng.multinomial(number, labelled) for number in cells])
        by_donor = np.stack([[rng.multinomial(known[d, k], rates[d, k]) for k in range(K)] for d in range(line.donors)])
        if by_donor[:, :, :K].sum(axis=(0, 2)).all():
            break
    drawn = rng.multinomial(line.sample, shares)
    counts = np.sum([rng.multinomial(drawn[k], rates[-1, k]) for k in range(K)], axis=0)
    return by_donor, counts[:K]


def draw_rates(line: Line, donors: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the rates (D, K, K + 1) at which the cells of donors are called each class or rejected."""
    K = len(line.shares)
    mean = np.full((K, K), (1 - line.right) / (K - 1))
    np.fill_diagonal(mean, line.right)
    shape = (donors, K, K) if line.kind == "class" else (donors, 1, K)
    odds = mean * np.exp(rng.normal(0, line.spread, shape))
    called = (1 - REJECTED) * odds / odds.sum(axis=2, keepdims=True)
    return np.concatenate([called, np.full((donors, K, 1), REJECTED)], axis=2)


class KnownVariation:
    """Variation between donors as an oracle knows it, in place of `DonorVariation`.

    Args:
        deviations: (P, K, K) deviations of the rates of many donors from their mean.
        by_donor: (D, K, K + 1) calibration cells.
    """

    def __init__(self, deviations: np.ndarray, by_donor: np.ndarray):
        cells = by_donor.sum(axis=2)
        K = deviations.shape[1]
        self.covariance = np.einsum("plj,pmk->ljmk", deviations, deviations) / len(deviations)
        self.covariance = self.covariance.reshape(K * K, K * K)
        self.parts = cells / cells.sum(axis=0)

    def widen(
        self, mix: np.ndarray, contrast: np.ndarray, scatter: np.ndarray, variance: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the true variance between donors; see `DonorVariation.widen`."""
        moved = (mix[:, :, None] * contrast[:, None, :]).reshape(len(mix), -1)
        between = np.einsum("tg,gh,th->t", moved, self.covariance, moved)
        return variance + (1 + np.sum((mix @ self.parts.T) ** 2, axis=1)) * between, np.zeros(len(mix))
