"""Parts keep groups together, come near their shares, hold every class, and repeat with the seed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urnet.cells.split import assign_folds, assign_parts, find_groups
from urnet.cells.table import Cells
from urnet.errors import CellsError

quick = settings(max_examples=60, deadline=None)


def make(labels: list[str], **columns: list[str]) -> Cells:
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(len(labels))], "label": labels, **columns})
    if "source" not in table:
        table["source"] = table["path"]
    return Cells(Path(), table, tuple(sorted(set(labels))))


def of_classes(*counts: int) -> Cells:
    return make([f"class{index}" for index, count in enumerate(counts) for _ in range(count)])


def shares(cells: Cells, part: str) -> np.ndarray:
    """Compute the share of each class in a part."""
    inside = np.bincount(cells.part(part).labels, minlength=len(cells.classes))
    return inside / np.bincount(cells.labels)


def torn(part: np.ndarray, group: np.ndarray) -> list[object]:
    return [g for g in np.unique(group) if len(set(part[group == g])) > 1]


def test_default_shares():
    cells = assign_parts(of_classes(500, 100, 50))
    np.testing.assert_allclose(shares(cells, "test"), 0.2, atol=0.01)
    np.testing.assert_allclose(shares(cells, "validation"), 0.08, atol=0.01)
    np.testing.assert_allclose(shares(cells, "train"), 0.72, atol=0.01)


@pytest.mark.slow
@quick
@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=5),
    test=st.floats(0.1, 0.5),
    validation=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_ungrouped_cells_match_the_shares_within_one_cell(counts, test, validation, seed):
    cells = assign_parts(of_classes(*counts), test=test, validation=validation, seed=seed)
    total = np.array(counts)
    tested = shares(cells, "test") * total
    assert (tested >= 1).all()
    assert (np.abs(tested - np.maximum(1, test * total)) <= 1 + 1e-9).all()
    rest = total - tested
    held = shares(cells, "validation") * total
    assert (held >= 1).all()
    assert (np.abs(held - np.maximum(1, validation * rest)) <= 1 + 1e-9).all()
    assert (shares(cells, "train") > 0).all()


def cells_in_groups(draw: st.DrawFn, column: str) -> Cells:
    """Draw up to twelve groups of very different sizes, with two or three classes."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=6, max_size=12))
    seed = draw(st.integers(0, 1000))
    group = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).integers(0, draw(st.integers(2, 3)), len(group))
    return make([f"class{k}" for k in labels], **{column: [f"g{k}" for k in group]})


@pytest.mark.slow
@quick
@given(st.data(), st.sampled_from(["donor", "source"]), st.integers(0, 100))
def test_keeps_groups_together_with_every_class_in_every_part(data, column, seed):
    cells = cells_in_groups(data.draw, column)
    try:
        divided = assign_parts(cells, seed=seed)
    except CellsError:
        return
    assert torn(divided.table["split"].to_numpy(), cells.table[column].to_numpy()) == []
    for part in ("train", "validation", "test"):
        assert set(divided.part(part).table["label"]) == set(cells.classes)


def test_donors_come_near_the_shares():
    rng = np.random.default_rng(0)
    donor = rng.integers(0, 20, 2000)
    labels = rng.choice(["a", "b", "c"], 2000, p=[0.6, 0.32, 0.08]).tolist()
    for seed in range(5):
        cells = assign_parts(make(labels, donor=[f"d{k}" for k in donor]), seed=seed)
        np.testing.assert_allclose(shares(cells, "test"), 0.2, atol=0.08)


def test_same_seed_same_split_and_another_seed_another():
    cells = of_classes(50, 30)
    first, again, other = (assign_parts(cells, seed=seed).table["split"] for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)


def test_copies_stay_together_across_sources_and_donors():
    labels = ["a", "b"] * 30
    copies = [f"k{number // 3}" for number in range(60)]
    for columns in ({}, {"donor": [f"d{number // 4}" for number in range(60)]}):
        for seed in range(5):
            part = assign_parts(make(labels, **columns), copies=copies, seed=seed).table["split"].to_numpy()
            assert torn(part, np.array(copies)) == []
            for group in columns.values():
                assert torn(part, np.array(group)) == []


def test_groups_are_connected_components():
    cells = make(["a"] * 6, source=["s0", "s0", "s1", "s1", "s2", "s3"])
    groups, unit = find_groups(cells, copies=["k0", "k1", "k1", "k2", "k3", "k3"])
    assert groups.tolist() == [0, 0, 0, 0, 1, 1]
    assert unit == "source image"


def test_groups_unknown_donors_by_source():
    cells = make(["a"] * 5, donor=["d1", "d1", "", "", "d2"], source=["s1", "s2", "s3", "s3", "d1"])
    groups, unit = find_groups(cells)
    assert groups.tolist() == [0, 0, 1, 1, 2]
    assert unit == "donor"
    assert find_groups(cells, by_donor=False)[0].tolist() == [0, 1, 2, 2, 3]
    assert find_groups(make(["a"] * 2, donor=["", ""]))[1] == "source image"


@pytest.mark.parametrize(
    ("counts", "available"),
    [((30, 1), "1 cell(s) from 1 source image(s)"), ((30, 2), "2 cell(s) from 2 source image(s)")],
)
def test_error_states_available_and_needed_cells(counts, available, raises_code):
    with raises_code("cells.too_few") as caught:
        assign_parts(of_classes(*counts))
    for text in ("'class1'", available, "at least 3 source images"):
        assert text in str(caught.value)
    assert "column" not in str(caught.value)


def test_refuses_too_few_donors(raises_code):
    cells = make(["a", "b"] * 20, donor=["d1"] * 20 + ["d2"] * 20)
    with raises_code("cells.too_few") as caught:
        assign_parts(cells)
    for text in ("'a'", "20 cell(s) from 2 donor(s)", "at least 3 donors"):
        assert text in str(caught.value)
    assert set(assign_parts(cells, by_donor=False).table["split"]) == {"train", "validation", "test"}


def test_refuses_an_impossible_class_of_a_large_table_at_once(raises_code):
    labels = ["a"] * 20_000 + ["b"]
    with raises_code("cells.too_few"):
        assign_parts(make(labels))


@pytest.mark.slow
@quick
@given(st.lists(st.integers(5, 40), min_size=2, max_size=4), st.integers(2, 5), st.integers(0, 1000))
def test_folds_partition_the_cells_evenly(counts, folds, seed):
    cells = of_classes(*counts)
    number = assign_folds(cells, folds, seed)
    assert set(number) == set(range(folds))
    for label, count in enumerate(counts):
        sizes = np.bincount(number[cells.labels == label], minlength=folds)
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
    tested = np.zeros(len(cells), int)
    for fold in range(folds):
        part = assign_parts(cells, folds=folds, fold=fold, seed=seed).table["split"].to_numpy()
        np.testing.assert_array_equal(part == "test", number == fold)
        tested += part == "test"
    assert (tested == 1).all()


def test_folds_keep_donors_together():
    donor = np.arange(120) % 15
    cells = make(["a", "b", "c"] * 40, donor=[f"d{k}" for k in donor])
    assert torn(assign_folds(cells, 5, 0), donor) == []


def test_uses_a_given_fold_column(raises_code):
    cells = make(["a", "b"] * 10, fold=[str(k // 4) for k in range(20)])
    assert assign_folds(cells, 5, 0).tolist() == [k // 4 for k in range(20)]
    divided = assign_parts(cells, folds=5, fold=3)
    assert list(divided.part("test").table["path"]) == ["12.png", "13.png", "14.png", "15.png"]
    with raises_code("cells.folds_differ"):
        assign_folds(cells, 3, 0)


def test_refuses_more_folds_than_cells_of_a_class(raises_code):
    with raises_code("cells.too_few") as caught:
        assign_folds(of_classes(40, 4), 5, 0)
    for text in ("'class1' has 4 cell", "at least 5 source images"):
        assert text in str(caught.value)


def test_keeps_a_given_split_and_adds_only_validation():
    given_split = ["train"] * 20 + ["test"] * 8 + [""] * 2
    cells = assign_parts(make(["a", "b"] * 15, split=given_split))
    assert list(cells.table["split"])[20:] == given_split[20:]
    assert set(cells.table["split"][:20]) == {"train", "validation"}
    assert (cells.table["split"][:20] == "validation").sum() == 2
    whole = ["train"] * 16 + ["validation"] * 6 + ["test"] * 8
    assert list(assign_parts(make(["a", "b"] * 15, split=whole), seed=5).table["split"]) == whole
    assert list(assign_parts(make(["a", "b"] * 15, split=given_split), validation=0).table["split"]) == given_split


def test_refuses_a_given_split_without_a_class(raises_code):
    cells = make(["a", "a", "b", "b"], split=["train", "validation", "test", "test"])
    with raises_code("cells.too_few") as caught:
        assign_parts(cells)
    for text in ("'b' has 2 cell", "train, validation", "column 'split'"):
        assert text in str(caught.value)
    with raises_code("cells.too_few"):
        assign_parts(make(["a", "b"], split=["test", "test"]))
