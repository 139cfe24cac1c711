"""Paired differences: values by hand, errors for different cells, correction for their number, coverage."""

import time

import numpy as np
import pandas as pd
import pytest

from urnet.evaluation.paired import paired_differences

CLASSES = ["granulocyte", "lymphocyte", "monocyte"]


def run(right: np.ndarray, truth: np.ndarray, *, folds: int = 5, seed: int = 0, donors: int = 0) -> pd.DataFrame:
    """Build the predictions of a run that is right for the cells in `right`."""
    n = np.arange(len(truth))
    frame = pd.DataFrame(
        {
            "path": [f"cell{i}.png" for i in n],
            "label": np.array(CLASSES)[truth],
            "predicted": np.array(CLASSES)[np.where(right, truth, (truth + 1) % 3)],
            "source": [f"field{i}" for i in n],
            "seed": seed,
            "fold": n % folds,
        }
    )
    return frame.assign(donor=[f"d{i % donors}" for i in n]) if donors else frame


def cells(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.choice(3, n, p=[0.6, 0.3, 0.1]), rng


def figure(table: pd.DataFrame, metric: str, second: str = "b") -> pd.Series:
    return table[(table["metric"] == metric) & (table["second"] == second)].iloc[0]


def test_differences_are_those_of_the_figures():
    truth, rng = cells()
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.8
    found = paired_differences({"a": run(a, truth), "b": run(b, truth)}, [("a", "b")], CLASSES, replicates=200)
    recalls = [b[truth == k].mean() - a[truth == k].mean() for k in range(3)]
    assert figure(found, "accuracy")["difference"] == pytest.approx(b.mean() - a.mean())
    assert figure(found, "macro_recall")["difference"] == pytest.approx(np.mean(recalls))
    for name, recall in zip(CLASSES, recalls, strict=True):
        assert figure(found, f"recall_{name}")["difference"] == pytest.approx(recall)
    assert (found["low"] <= found["difference"]).all()
    assert (found["difference"] <= found["high"]).all()
    assert found[["cells", "groups", "folds", "seeds"]].drop_duplicates().values.tolist() == [[300, 300, 5, 1]]
    assert set(found["resampled"]) == {"sources and folds"}


def test_a_clear_difference_counts_and_equal_runs_could_be_chance():
    truth, rng = cells()
    a = rng.random(300) < 0.6
    runs = {"a": run(a, truth), "b": run(a | (rng.random(300) < 0.8), truth), "same": run(a, truth)}
    found = paired_differences(runs, [("a", "b"), ("a", "same")], CLASSES)
    better, equal = figure(found, "accuracy"), figure(found, "accuracy", "same")
    assert not better["chance"]
    assert better["low_simultaneous"] > 0
    assert better["p_holm"] < 0.01
    assert equal["chance"]
    assert (equal["difference"], equal["low"], equal["high"], equal["p"]) == (0, 0, 0, 1)


def test_order_of_rows_does_not_matter_and_exchanging_the_runs_changes_the_sign():
    truth, rng = cells()
    a, b = run(rng.random(300) < 0.7, truth), run(rng.random(300) < 0.8, truth)
    first = paired_differences({"a": a, "b": b}, [("a", "b")], CLASSES, replicates=500)
    shuffled = paired_differences(
        {"a": a, "b": b.sample(frac=1, random_state=3)}, [("a", "b")], CLASSES, replicates=500
    )
    pd.testing.assert_frame_equal(first, shuffled)
    back = paired_differences({"a": a, "b": b}, [("b", "a")], CLASSES, replicates=500)
    assert back["difference"].to_numpy() == pytest.approx(-first["difference"].to_numpy())
    assert back["low"].to_numpy() == pytest.approx(-first["high"].to_numpy())


def test_intervals_widen_with_the_number_of_comparisons():
    truth, rng = cells()
    runs = {name: run(rng.random(300) < 0.7, truth) for name in "abcde"}
    one = paired_differences(runs, [("a", "b")], CLASSES)
    many = paired_differences(runs, [("a", other) for other in "bcde"], CLASSES)
    alone, together = figure(one, "accuracy"), figure(many, "accuracy")
    assert (alone["low"], alone["high"]) == (together["low"], together["high"])
    assert (alone["low_simultaneous"], alone["high_simultaneous"]) == (alone["low"], alone["high"])
    assert together["low_simultaneous"] < together["low"] < together["high"] < together["high_simultaneous"]


def test_holm_by_hand():
    from urnet.evaluation.paired import _holm_adjust

    assert _holm_adjust(pd.Series([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert _holm_adjust(pd.Series([np.nan, 0.01])) == pytest.approx([np.nan, 0.02], nan_ok=True)


def test_one_run_each_resamples_sources_alone():
    truth, rng = cells()
    runs = {name: run(rng.random(300) < 0.7, truth, folds=1) for name in "ab"}
    assert set(paired_differences(runs, [("a", "b")], CLASSES, replicates=50)["resampled"]) == {"sources"}


def test_donors_are_drawn_where_they_are_many():
    truth, rng = cells()
    runs = {name: run(rng.random(300) < 0.7, truth, donors=10) for name in "ab"}
    found = paired_differences(runs, [("a", "b")], CLASSES, replicates=50)
    assert set(found["resampled"]) == {"donors and folds"}
    assert set(found["groups"]) == {10}


def test_seeds_are_matched_where_shared_and_averaged_where_not():
    truth, rng = cells()
    right = rng.random((4, 300)) < 0.7
    of = [run(right[k], truth, folds=1, seed=k) for k in range(4)]
    shared = paired_differences({"a": pd.concat(of[:2]), "b": of[1].assign(seed=0)}, [("a", "b")], CLASSES)
    assert figure(shared, "accuracy")["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert figure(shared, "accuracy")["seeds"] == 1
    apart = paired_differences({"a": pd.concat(of[:2]), "b": pd.concat(of[2:])}, [("a", "b")], CLASSES)
    assert figure(apart, "accuracy")["difference"] == pytest.approx(right[2:].mean() - right[:2].mean())
    both = paired_differences({"a": pd.concat(of[:2]), "b": pd.concat(of[:2])}, [("a", "b")], CLASSES, replicates=50)
    assert set(both["resampled"]) == {"sources and seeds"}


def test_training_noise_between_folds_widens_the_interval():
    truth, rng = cells(1000)
    fold = np.arange(1000) % 5
    level = np.array([0.55, 0.65, 0.75, 0.85, 0.95])[fold]
    a, b = rng.random(1000) < 0.75, rng.random(1000) < level
    even = rng.permutation(b)
    runs = {"a": run(a, truth), "b": run(b, truth), "even": run(even, truth)}
    found = paired_differences(runs, [("a", "b"), ("a", "even")], CLASSES)
    width = {name: np.subtract(*figure(found, "accuracy", name)[["high", "low"]]) for name in ("b", "even")}
    assert width["b"] > 1.5 * width["even"]


def test_only_folds_that_both_have_are_compared():
    truth, rng = cells()
    a, b = run(rng.random(300) < 0.7, truth), run(rng.random(300) < 0.7, truth)
    part = b[b["fold"] < 3]
    found = paired_differences({"a": a, "b": part}, [("a", "b")], CLASSES, replicates=50)
    assert set(found["folds"]) == {3}
    assert set(found["cells"]) == {180}
    none = paired_differences({"a": a[a["fold"] == 4], "b": part}, [("a", "b")], CLASSES, replicates=50)
    assert none.empty
    assert list(none) == list(found)
    assert paired_differences({"a": a, "b": pd.DataFrame()}, [("a", "b")], CLASSES).empty


def test_augmented_copies_of_a_cell_count_each():
    truth, rng = cells(100)
    a, b = run(rng.random(100) < 0.5, truth), run(rng.random(100) < 0.9, truth)
    twice = [pd.concat([frame, frame], ignore_index=True) for frame in (a, b)]
    found = paired_differences(dict(zip("ab", twice, strict=True)), [("a", "b")], CLASSES)
    assert set(found["cells"]) == {200}
    assert set(found["groups"]) == {100}


def test_class_without_cells_or_with_one_group_has_no_interval():
    truth = np.array([0] * 50 + [1])
    a, b = np.arange(51) % 3 > 0, np.arange(51) % 2 > 0
    a[50], b[50] = False, True
    runs = {"a": run(a, truth, folds=1), "b": run(b, truth, folds=1)}
    found = paired_differences(runs, [("a", "b")], CLASSES)
    alone, absent = figure(found, "recall_lymphocyte"), figure(found, "recall_monocyte")
    assert alone["difference"] == 1
    assert np.isnan(absent["difference"])
    for row, note in ((alone, "no interval: one group"), (absent, "no cells")):
        assert row[["low", "high", "low_simultaneous", "high_simultaneous", "p", "p_holm"]].isna().all()
        assert pd.isna(row["chance"])
        assert row["note"] == note
    assert not figure(found, "accuracy")["note"]
    assert figure(found, "macro_recall")["difference"] == pytest.approx((b[:50].mean() - a[:50].mean() + 1) / 2)


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize("folds", [1, 5])
def test_a_single_source_gives_no_interval_and_no_verdict_whatever_the_difference_is(better, folds):
    truth, rng = cells()
    right = rng.random(300) < 0.7
    runs = {"a": run(right, truth, folds=folds), "b": run(right | better, truth, folds=folds)}
    found = paired_differences(
        {name: frame.assign(source="one field") for name, frame in runs.items()}, [("a", "b")], CLASSES, replicates=50
    )
    assert (found["difference"] > 0).all() == better
    assert found[["low", "high", "low_simultaneous", "high_simultaneous", "p", "p_holm"]].isna().all(axis=None)
    assert found["chance"].isna().all()
    assert set(found["note"]) == {"no interval: one group"}
    assert found.to_csv(index=False).count("no interval: one group") == 5


def test_a_difference_that_is_the_same_in_every_group_has_no_interval():
    truth, right = np.array([0, 1] * 20), np.array([True, False] * 20)
    pair = {"a": run(right, truth, folds=1), "b": run(~right | right, truth, folds=1)}
    pair = {name: frame.assign(source=[f"field{i // 2}" for i in range(40)]) for name, frame in pair.items()}
    accuracy = figure(paired_differences(pair, [("a", "b")], CLASSES, replicates=50), "accuracy")
    assert accuracy["difference"] == 0.5
    assert accuracy["note"] == "no interval: all groups alike"
    assert pd.isna(accuracy["chance"])


def test_other_cells_are_refused(raises_code):
    truth, rng = cells()
    a, b = run(rng.random(300) < 0.7, truth), run(rng.random(300) < 0.7, truth)
    other = b.assign(path=b["path"].replace("cell5.png", "elsewhere.png"))
    with raises_code("evaluation.cells_differ"):
        paired_differences({"a": a, "b": other}, [("a", "b")], CLASSES)
    with raises_code("evaluation.cells_differ"):
        paired_differences({"a": a, "b": b.assign(fold=(b["fold"] + 1) % 5)}, [("a", "b")], CLASSES)
    changed = b["label"].where(b["path"] != "cell0.png", CLASSES[(truth[0] + 1) % 3])
    with raises_code("evaluation.labels_differ"):
        paired_differences({"a": a, "b": b.assign(label=changed)}, [("a", "b")], CLASSES)
    with raises_code("evaluation.label_unknown"):
        paired_differences({"a": a, "b": b}, [("a", "b")], CLASSES[:2])
    with pytest.raises(ValueError, match="'c'"):
        paired_differences({"a": a, "b": b}, [("a", "c")], CLASSES)


def coverage(noise: float, runs: int = 60) -> float:
    """Measure how often the 95 % interval contains zero if runs differ only by chance in the training of each fold."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(runs):
        truth = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
        luck = rng.normal(0, noise, 5)[np.arange(400) % 5] / 2
        pair = {name: run(rng.random(400) < 0.8 + sign * luck, truth) for name, sign in (("a", -1), ("b", 1))}
        row = figure(paired_differences(pair, [("a", "b")], CLASSES, replicates=300), "accuracy")
        held += row["low"] <= 0 <= row["high"]
    return held / runs


@pytest.mark.slow
def test_intervals_cover_with_and_without_noise_of_training():
    assert coverage(0.0) >= 0.95
    assert coverage(0.06) >= 0.88


@pytest.mark.slow
def test_twenty_pairs_of_two_thousand_cells_take_seconds():
    truth, rng = cells(2000)
    runs = {f"r{k}": run(rng.random(2000) < 0.7, truth) for k in range(21)}
    start = time.perf_counter()
    paired_differences(runs, [("r0", f"r{k}") for k in range(1, 21)], CLASSES)
    assert time.perf_counter() - start < 20
