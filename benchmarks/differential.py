"""Measure the error of corrected percentages and the coverage of their intervals, on cells of known classes.

    python benchmarks/differential.py PREDICTIONS.csv… --out differential.csv [--replicates 2000] [--known 200 80 80]

PREDICTIONS are held-out predictions of `urnet evaluate` or `urnet benchmark`, with the columns `label, p_<class>…` and,
optionally, `rejected` (a reason, or empty). Without a column `label`, as in the table of `urnet predict`, the folder of
the cell is its label. Several files, such as the folds of a cross-validation, are read as one.

Each replicate draws calibration cells (--known: the number of each class, in the order of the columns p_). From the
other cells it draws a sample whose classes follow a composition: 1 to 20 % of --rare, and the other classes in the
proportions of --rest. The true value is the composition, not the drawn classes, so an interval has to include the
counting error. Both sets are drawn without replacement and share no cell. The difference of two disjoint draws varies
as for an infinite number of cells, so the number of available cells does not matter.

The table has four rows per setting and class: classify and count, the adjusted count, EM corrected by the calibration
cells, and `em_plain` without the correction. The values are in per cent and points.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.cpus import usable_cpus

COMPOSITIONS = (1, 2, 5, 10, 20)
SIZES = (200, 1000)


def read(paths: list[Path]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Read classes, probabilities (N, K), true classes (N,) and rejection (N,) of held-out cells."""
    table = pd.concat([pd.read_csv(path, keep_default_na=False) for path in paths], ignore_index=True)
    classes = [column[2:] for column in table.columns if column.startswith("p_")]
    if "label" not in table:
        table["label"] = [Path(path).parent.name for path in table["path"]]
    unknown = sorted(set(table["label"]) - set(classes))
    if unknown:
        raise SystemExit(f"label {unknown[0]!r} is none of the classes {', '.join(classes)}")
    if "path" in table and table["path"].duplicated().any():
        raise SystemExit("some cells are listed twice, so calibration and sample would share cells; remove the copies")
    rejected = table["rejected"] != "" if "rejected" in table else pd.Series(False, index=table.index)
    truth = table["label"].map({name: k for k, name in enumerate(classes)}).to_numpy()
    return classes, table[[f"p_{name}" for name in classes]].to_numpy(float), truth, rejected.to_numpy(bool)


def measure_setting(job: tuple) -> list[dict]:
    """Draw and estimate the replicates of one composition and size."""
    from urnet.calibration.confusion import ReferenceCells
    from urnet.counting.estimate import adjusted_count, classify_and_count, em
    from urnet.counting.interval import EmTest, adjusted_interval, invert_test

    probabilities, truth, rejected, composition, size, known, replicates, seed = job
    rng = np.random.default_rng(seed)
    classes = len(composition)
    pools = [np.flatnonzero(truth == k) for k in range(classes)]
    estimates = {method: np.empty((replicates, classes)) for method in ("raw", "adjusted", "em", "em_plain")}
    ends = {method: np.empty((replicates, classes, 2)) for method in ("adjusted", "em")}
    for replicate in range(replicates):
        drawn = rng.multinomial(size, composition)
        orders = [rng.permutation(pool) for pool in pools]
        for k, order in enumerate(orders):
            if drawn[k] + known[k] > len(order):
                raise SystemExit(f"class {k}: {drawn[k]} + {known[k]} cells wanted, {len(order)} there: lower --known")
        sample = np.concatenate([order[: drawn[k]] for k, order in enumerate(orders)])
        calibration = np.concatenate([order[drawn[k] : drawn[k] + known[k]] for k, order in enumerate(orders)])
        reference = ReferenceCells(probabilities[calibration], truth[calibration], rejected[calibration])
        table = reference.confusion
        accepted = probabilities[sample[~rejected[sample]]]
        counts = np.bincount(accepted.argmax(axis=1), minlength=classes)
        estimates["raw"][replicate] = classify_and_count(counts)
        estimates["adjusted"][replicate] = adjusted_count(counts, table)
        acceptance = table[:, :-1].sum(axis=1) / table.sum(axis=1)
        estimates["em_plain"][replicate] = em(accepted, acceptance=acceptance)
        ends["adjusted"][replicate] = adjusted_interval(counts, table)
        test = EmTest(accepted, reference)
        estimates["em"][replicate], ends["em"][replicate] = test.start, invert_test(test, test.start)
    rows = []
    for method, estimate in estimates.items():
        error = 100 * (estimate - composition)
        for k in range(classes):
            row = {"size": size, "class": k, "truth": 100 * composition[k], "method": method}
            row |= {"bias": error[:, k].mean(), "mae": np.abs(error[:, k]).mean()}
            if method in ends:
                low, high = ends[method][:, k].T
                row["coverage"] = 100 * ((low <= composition[k]) & (composition[k] <= high)).mean()
                row["above"] = 100 * (low > composition[k]).mean()
                row["length"] = 100 * (high - low).mean()
            rows.append(row)
    return rows


def main() -> None:
    """Run all settings in parallel, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--known", type=int, nargs="+", required=True, help="calibration cells of each class")
    parser.add_argument("--rare", default="monocyte")
    parser.add_argument("--rest", type=float, nargs="+", help="proportions of the other classes; equal if not given")
    parser.add_argument("--processes", type=int, default=usable_cpus())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    classes, probabilities, truth, rejected = read(arguments.predictions)
    rare = classes.index(arguments.rare)
    rest = np.array(arguments.rest or [1] * (len(classes) - 1), dtype=float)
    jobs = []
    for percent in COMPOSITIONS:
        composition = np.insert(rest / rest.sum() * (1 - percent / 100), rare, percent / 100)
        for size in SIZES:
            seed = (arguments.seed, percent, size)
            jobs.append(
                (probabilities, truth, rejected, composition, size, arguments.known, arguments.replicates, seed)
            )
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(arguments.processes) as pool:
        rows = [
            {"rare": 100 * job[3][rare], **row, "class": classes[row["class"]]}
            for job, rows_of_setting in zip(jobs, pool.map(measure_setting, jobs), strict=True)
            for row in rows_of_setting
        ]
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out, index=False, float_format="%.3f", lineterminator="\n")
    summarise(table)


def summarise(table: pd.DataFrame) -> None:
    """Compute the means over the classes, and the lowest and highest coverage."""
    by = ["size", "rare", "method"]
    table = table.assign(bias=table["bias"].abs())
    print(table.groupby(by)[["bias", "mae", "length"]].mean().unstack().round(2).to_string())
    print(table.groupby(["size", "method"])["coverage"].agg(["min", "mean", "max"]).dropna().round(1).to_string())
    wide = table.pivot_table(index=["size", "rare", "class"], columns="method", values=["bias", "mae", "coverage"])
    for method in ("adjusted", "em"):
        half = wide["bias"][method] > wide["bias"]["raw"] / 2
        worse = (wide["mae"][method] > wide["mae"]["raw"]) & (wide.index.get_level_values("size") == max(SIZES))
        outside = ~wide["coverage"][method].between(93, 97)
        for words, which in (("bias above half", half), ("MAE worse", worse), ("coverage not 93 to 97", outside)):
            print(f"{method}: {words} in {which.sum()} of {len(which)}: {list(which[which].index)}")


if __name__ == "__main__":
    main()
