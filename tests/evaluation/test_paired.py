"""Paired differences: values by hand, errors for different cells, what is said without folds, wrong verdicts."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

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


def test_differences_are_the_means_of_the_folds():
    truth, rng = cells()
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.8
    found = paired_differences({"a": run(a, truth), "b": run(b, truth)}, [("a", "b")], CLASSES)
    fold = np.arange(300) % 5
    change = b.astype(float) - a
    recalls = np.array([[change[(fold == f) & (truth == k)].mean() for k in range(3)] for f in range(5)])
    assert figure(found, "accuracy")["difference"] == pytest.approx(change.mean())
    assert figure(found, "macro_recall")["difference"] == pytest.approx(recalls.mean())
    for name, recall in zip(CLASSES, recalls.T, strict=True):
        assert figure(found, f"recall_{name}")["difference"] == pytest.approx(recall.mean())
    each = recalls.mean(axis=1)
    half = stats.t.ppf(0.975, 4 / (1 + 0 / 299)) * each.std(ddof=1) * np.sqrt(1 / 5 + 60 / 240)
    low, high = figure(found, "macro_recall")[["low", "high"]]
    assert (low, high) == pytest.approx((each.mean() - half, each.mean() + half))
    facts = ["cells", "groups", "unit", "repeats", "folds", "seeds", "method"]
    assert found[facts].drop_duplicates().to_numpy().tolist() == [
        [300, 300, "source image", 1, 5, 1, "t over 5 folds, corrected for shared training cells"]
    ]


def test_a_clear_difference_counts_and_a_small_one_could_be_chance():
    truth, rng = cells(1000)
    a = rng.random(1000) < 0.6
    runs = {"a": run(a, truth), "b": run(a | (rng.random(1000) < 0.8), truth), "c": run(rng.permuted(a), truth)}
    found = paired_differences(runs, [("a", "b"), ("a", "c")], CLASSES)
    better, equal = figure(found, "macro_recall"), figure(found, "macro_recall", "c")
    assert not better["chance"]
    assert better["low"] > 0
    assert better["p_holm"] < 0.05
    assert equal["chance"]
    assert equal["detectable"] > abs(equal["difference"])


def test_a_run_against_itself_has_no_interval_and_no_verdict():
    truth, rng = cells()
    same = run(rng.random(300) < 0.7, truth)
    found = paired_differences({"a": same, "b": same}, [("a", "b")], CLASSES)
    assert (found["difference"] == 0).all()
    assert set(found["note"]) == {"no interval: all alike"}
    assert found[["low", "high", "p", "p_holm", "detectable", "chance"]].isna().all(axis=None)


def test_order_of_rows_does_not_matter_and_exchanging_the_runs_changes_the_sign():
    truth, rng = cells()
    a, b = run(rng.random(300) < 0.7, truth), run(rng.random(300) < 0.8, truth)
    first = paired_differences({"a": a, "b": b}, [("a", "b")], CLASSES)
    shuffled = paired_differences({"a": a, "b": b.sample(frac=1, random_state=3)}, [("a", "b")], CLASSES)
    pd.testing.assert_frame_equal(first, shuffled)
    back = paired_differences({"a": a, "b": b}, [("b", "a")], CLASSES)
    assert back["difference"].to_numpy() == pytest.approx(-first["difference"].to_numpy())
    assert back["low"].to_numpy() == pytest.approx(-first["high"].to_numpy())


def test_more_comparisons_leave_the_interval_and_raise_p_and_the_detectable_difference():
    truth, rng = cells()
    runs = {name: run(rng.random(300) < 0.7, truth) for name in "abcde"}
    one = paired_differences(runs, [("a", "b")], CLASSES)
    many = paired_differences(runs, [("a", other) for other in "bcde"], CLASSES)
    for metric in ("macro_recall", "accuracy"):
        alone, together = figure(one, metric), figure(many, metric)
        assert (alone["low"], alone["high"], alone["p"]) == (together["low"], together["high"], together["p"])
        assert together["p_holm"] > alone["p_holm"] or together["p_holm"] == 1
        assert together["detectable"] > alone["detectable"] > 0
    assert figure(one, "macro_recall")["p_holm"] == figure(one, "macro_recall")["p"]


def test_no_secondary_row_counts_without_macro_recall():
    truth, rng = cells(2000)
    right = {name: rng.random(2000) < 0.7 for name in "ab"}
    right["b"] = np.where(truth == 0, rng.random(2000) < 0.85, right["b"])  # the common class becomes better
    right["b"] = np.where(truth == 2, rng.random(2000) < 0.55, right["b"])  # the rare one worse
    runs = {name: run(one, truth) for name, one in right.items()}
    found = paired_differences(runs, [("a", "b")], CLASSES)
    primary = figure(found, "macro_recall")
    assert primary["chance"]
    assert figure(found, "accuracy")["p"] < 0.01
    assert (found["p_holm"] >= primary["p_holm"]).all()
    assert found["chance"].all()


def test_one_training_each_is_about_these_models_and_gives_no_verdict():
    truth, rng = cells()
    runs = {name: run(rng.random(300) < 0.7, truth, folds=1, donors=10) for name in "ab"}
    found = paired_differences(runs, [("a", "b")], CLASSES)
    assert set(found["note"]) == {"no verdict: one training each"}
    assert set(found["method"]) == {"t over 10 donors"}
    assert found[["low", "high"]].notna().all(axis=None)
    assert found[["p", "p_holm", "detectable", "chance"]].isna().all(axis=None)


def test_several_trainings_on_one_split_are_about_this_split_and_give_no_verdict():
    truth, rng = cells()
    of = {
        name: pd.concat([run(rng.random(300) < 0.7, truth, folds=1, seed=k) for k in range(4)]) for name in ("a", "b")
    }
    found = paired_differences(of, [("a", "b")], CLASSES)
    assert set(found["note"]) == {"no verdict: one split"}
    assert set(found["method"]) == {"t over 4 trainings on one split, and over 300 source images"}
    assert set(found["seeds"]) == {4}
    assert found["chance"].isna().all()


def test_donors_left_out_one_by_one_are_named():
    truth, rng = cells()
    donor = np.arange(300) % 12
    of = {name: run(rng.random(300) < 0.7, truth, donors=12).assign(fold=donor) for name in "ab"}
    found = paired_differences(of, [("a", "b")], CLASSES)
    assert set(found["method"]) == {"t over 12 donors left out one by one, corrected for shared training cells"}
    assert set(found["unit"]) == {"donor"}


def repeated(right: list[np.ndarray], truth: np.ndarray, orders: list[np.ndarray]) -> pd.DataFrame:
    """Build the predictions of several repeats, each with its own folds."""
    return pd.concat(
        [
            run(one, truth).assign(fold=order % 5, repeat=repeat)
            for repeat, (one, order) in enumerate(zip(right, orders, strict=True))
        ],
        ignore_index=True,
    )


def test_repeats_are_more_folds():
    truth, rng = cells()
    orders = [rng.permutation(300) for _ in range(3)]
    of = {name: repeated([rng.random(300) < 0.7 for _ in range(3)], truth, orders) for name in "ab"}
    found = paired_differences(of, [("a", "b")], CLASSES)
    assert found[["repeats", "folds", "seeds"]].drop_duplicates().to_numpy().tolist() == [[3, 15, 1]]
    assert set(found["method"]) == {"t over 15 folds (3 × 5), corrected for shared training cells"}
    once = paired_differences({name: frame[frame["repeat"] == 0] for name, frame in of.items()}, [("a", "b")], CLASSES)
    old = {name: frame[frame["repeat"] == 0].drop(columns="repeat") for name, frame in of.items()}
    pd.testing.assert_frame_equal(once, paired_differences(old, [("a", "b")], CLASSES))


def test_repeats_of_the_same_folds_are_more_trainings_not_more_folds():
    truth, rng = cells()
    orders = [np.arange(300)] * 3
    right = {name: [rng.random(300) < 0.7 for _ in range(3)] for name in "ab"}
    found = paired_differences({name: repeated(right[name], truth, orders) for name in "ab"}, [("a", "b")], CLASSES)
    assert found[["repeats", "folds", "seeds"]].drop_duplicates().to_numpy().tolist() == [[1, 5, 3]]
    seeds = {name: pd.concat([run(right[name][k], truth, seed=k) for k in range(3)]) for name in "ab"}
    same = paired_differences(seeds, [("a", "b")], CLASSES)
    pd.testing.assert_frame_equal(found, same)


def test_seeds_are_matched_where_shared_and_averaged_where_not():
    truth, rng = cells()
    right = rng.random((4, 300)) < 0.7
    of = [run(right[k], truth, folds=1, seed=k) for k in range(4)]
    shared = paired_differences({"a": pd.concat(of[:2]), "b": of[1].assign(seed=0)}, [("a", "b")], CLASSES)
    assert figure(shared, "accuracy")["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert figure(shared, "accuracy")["seeds"] == 1
    apart = paired_differences({"a": pd.concat(of[:2]), "b": pd.concat(of[2:])}, [("a", "b")], CLASSES)
    assert figure(apart, "accuracy")["difference"] == pytest.approx(right[2:].mean() - right[:2].mean())


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
    found = paired_differences({"a": a, "b": part}, [("a", "b")], CLASSES)
    assert set(found["folds"]) == {3}
    assert set(found["cells"]) == {180}
    none = paired_differences({"a": a[a["fold"] == 4], "b": part}, [("a", "b")], CLASSES)
    assert none.empty
    assert list(none) == list(found)
    assert paired_differences({"a": a, "b": pd.DataFrame()}, [("a", "b")], CLASSES).empty


def test_augmented_copies_of_a_cell_count_each():
    truth, rng = cells(100)
    a, b = run(rng.random(100) < 0.5, truth), run(rng.random(100) < 0.9, truth)
    twice = [pd.concat([frame, frame], ignore_index=True) for frame in (a, b)]
    found = paired_differences(dict(zip("ab", twice, strict=True)), [("a", "b")], CLASSES)
    once = paired_differences({"a": a, "b": b}, [("a", "b")], CLASSES)
    assert set(found["cells"]) == {200}
    assert set(found["groups"]) == {100}
    pd.testing.assert_frame_equal(found.drop(columns="cells"), once.drop(columns="cells"))


def test_a_class_in_some_folds_only_rests_on_these():
    truth = np.where(np.arange(300) % 5 < 2, np.arange(300) % 3, np.arange(300) % 2)
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.8
    found = paired_differences({"a": run(a, truth), "b": run(b, truth)}, [("a", "b")], CLASSES)
    assert figure(found, "recall_monocyte")["folds"] == 2
    assert figure(found, "macro_recall")["folds"] == 5
    fold, change = np.arange(300) % 5, b.astype(float) - a
    each = [np.mean([change[(fold == f) & (truth == k)].mean() for k in range(3 if f < 2 else 2)]) for f in range(5)]
    assert figure(found, "macro_recall")["difference"] == pytest.approx(np.mean(each))
    truth[np.arange(300) % 5 == 1] = 0
    one = figure(paired_differences({"a": run(a, truth), "b": run(b, truth)}, [("a", "b")], CLASSES), "recall_monocyte")
    assert (one["folds"], one["note"]) == (1, "no interval: one fold")


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
        assert row[["low", "high", "p", "p_holm", "detectable"]].isna().all()
        assert pd.isna(row["chance"])
        assert row["note"] == note
    assert np.isfinite(figure(found, "accuracy")["low"])
    assert figure(found, "macro_recall")["difference"] == pytest.approx((b[:50].mean() - a[:50].mean() + 1) / 2)


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize("folds", [1, 5])
def test_a_single_source_gives_no_interval_and_no_verdict_whatever_the_difference_is(better, folds):
    truth, rng = cells()
    right = rng.random(300) < 0.7
    runs = {"a": run(right, truth, folds=folds), "b": run(right | better, truth, folds=folds)}
    found = paired_differences(
        {name: frame.assign(source="one field") for name, frame in runs.items()}, [("a", "b")], CLASSES
    )
    assert (found["difference"] > 0).all() == better
    assert found[["low", "high", "p", "p_holm", "detectable"]].isna().all(axis=None)
    assert found["chance"].isna().all()
    assert set(found["note"]) == {"no interval: one group"}
    assert found.to_csv(index=False).count("no interval: one group") == 5


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


def wrong_verdicts(n: int, trainings: float, *, folds: int = 5, tables: int = 120) -> float:
    """Measure how often a table of three equal recipes has any wrong verdict, in per cent of the tables."""
    rng, wrong = np.random.default_rng(n), 0
    for _ in range(tables):
        truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
        fold = np.arange(n) % folds
        runs = {
            name: run(rng.random(n) < 0.8 + rng.normal(0, trainings, folds)[fold], truth, folds=folds) for name in "abc"
        }
        found = paired_differences(runs, [("a", "b"), ("a", "c"), ("b", "c")], CLASSES)
        wrong += bool((found["chance"] == False).any())  # noqa: E712 (missing ones are no verdicts)
    return 100 * wrong / tables


@pytest.mark.slow
@pytest.mark.parametrize(("n", "trainings"), [(150, 0.0), (2000, 0.0), (2000, 0.04), (2000, 0.08)])
def test_tables_of_equal_recipes_rarely_have_a_verdict(n, trainings):
    assert wrong_verdicts(n, trainings) <= 9  # 5 % and two standard errors of 120 tables


@pytest.mark.slow
def test_twenty_pairs_of_two_thousand_cells_take_seconds():
    truth, rng = cells(2000)
    runs = {f"r{k}": run(rng.random(2000) < 0.7, truth) for k in range(21)}
    start = time.perf_counter()
    paired_differences(runs, [("r0", f"r{k}") for k in range(1, 21)], CLASSES)
    assert time.perf_counter() - start < 20
