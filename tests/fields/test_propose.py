"""Proposals from the nucleus: the textbook rule, and a classifier trained on a few labelled cells."""

import numpy as np
import pandas as pd
import pytest

from urnet.fields.labels.nuclear_features import FEATURES, nuclear_features
from urnet.fields.labels.propose import CLASSES, LOBE_FREQUENCIES, TEXTBOOK, feature_table, fit_proposer, propose
from urnet.images.mask import segment_cell
from urnet.images.simulation.phantom import CROP_UM, draw_crop

SIZE = 48


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    """Features of phantom cells of four donors, ten a class and donor, with their true class and donor."""
    rows, truth = [], []
    for donor in range(4):
        for label in CLASSES:
            for index in range(10):
                crop = draw_crop(label, 21, donor, index, SIZE)
                rows.append(nuclear_features(crop.nuclei, segment_cell(crop.image)[0], CROP_UM / SIZE))
                truth.append({"label": label, "donor": donor})
    return pd.concat([feature_table(rows), pd.DataFrame(truth)], axis=1)


def described(**known: float) -> pd.DataFrame:
    """Build one cell of which only these features are known."""
    return feature_table([{"area": 200.0, "lobes": 1.0, **known}])


def right(proposals: pd.DataFrame, cells: pd.DataFrame) -> float:
    return float((proposals["proposed"].to_numpy() == cells["label"].to_numpy()).mean())


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"lobes": 3, "thickness": 0.55, "ratio": 0.25}, "granulocyte"),
        ({"lobes": 1, "thickness": 0.97, "ratio": 0.8}, "lymphocyte"),
        ({"lobes": 1, "thickness": 0.76, "ratio": 0.45}, "monocyte"),
        ({"lobes": 1, "thickness": 0.9, "ratio": 0.4, "cell_diameter_um": 18}, "monocyte"),
        ({"lobes": 2, "thickness": 0.65}, "granulocyte"),
        ({"lobes": 1, "thickness": 0.97, "diameter_um": 7}, "lymphocyte"),
    ],
)
def test_textbook_cells_are_proposed_with_confidence(known, expected):
    proposal = propose(described(**known)).iloc[0]
    assert proposal["proposed"] == expected
    assert 0.8 < proposal["confidence"] <= 1


def test_a_nucleus_of_no_class_gets_a_low_confidence():
    two_round_nuclei = propose(described(lobes=2, thickness=0.7, ratio=0.95))
    giant = propose(described(lobes=1, thickness=0.45, ratio=0.95, cell_diameter_um=30))
    assert two_round_nuclei["confidence"].item() < 0.5
    assert giant["confidence"].item() < 0.5


def test_evidence_against_the_first_guess_lowers_the_confidence():
    clear = propose(described(lobes=1, thickness=0.97, ratio=0.8))
    mixed = propose(described(lobes=1, thickness=0.87, ratio=0.55))
    assert mixed["confidence"].item() < clear["confidence"].item() - 0.1


@pytest.mark.slow
def test_without_a_nucleus_nothing_is_proposed(cells):
    features = feature_table([None, cells.iloc[0][list(FEATURES)].to_dict(), None])
    features.index = ["a", "b", "c"]
    for proposals in (propose(features), fit_proposer(cells, cells["label"].tolist()).propose(features)):
        assert proposals["proposed"].tolist() == ["", "granulocyte", ""]
        assert proposals.loc[["a", "c"], "confidence"].tolist() == [0, 0]
        assert proposals.index.tolist() == ["a", "b", "c"]


@pytest.mark.slow
def test_no_cells_and_only_empty_ones(cells):
    proposer = fit_proposer(cells, cells["label"].tolist())
    for features in (feature_table([]), feature_table([None, None])):
        for proposals in (propose(features), proposer.propose(features)):
            assert len(proposals) == len(features)
            assert (proposals["proposed"] == "").all()


def test_the_rule_is_right_on_phantom_cells(cells):
    assert right(propose(cells), cells) >= 0.8


def test_the_rule_needs_neither_mask_nor_pixel_size(cells):
    bare = cells.assign(area_um2=np.nan, diameter_um=np.nan, cell_diameter_um=np.nan, ratio=np.nan)
    assert right(propose(bare), cells) >= 0.75


def test_a_proposal_is_no_label(cells):
    before = cells.copy()
    proposals = propose(cells)
    pd.testing.assert_frame_equal(cells, before)
    assert proposals.columns.tolist() == ["proposed", "confidence"]


def test_the_textbook_is_complete():
    assert set(TEXTBOOK) <= set(FEATURES)
    assert set(LOBE_FREQUENCIES) == set(CLASSES)
    for shares in LOBE_FREQUENCIES.values():
        assert sum(shares) == pytest.approx(1)


def test_a_few_labelled_cells_do_better_than_the_rule_on_other_donors(cells):
    known, others = cells[cells["donor"] < 2], cells[cells["donor"] >= 2]
    proposer = fit_proposer(known, known["label"].tolist())
    proposals = proposer.propose(others)
    assert right(proposals, others) >= max(0.9, right(propose(others), others))
    assert proposer.agreement >= 0.85
    assert proposals["confidence"].between(1 / 3, 1).all()
    assert proposals["confidence"].mean() == pytest.approx(right(proposals, others), abs=0.12)


def test_random_labels_give_a_low_confidence(cells):
    shuffled = np.random.default_rng(0).permutation(cells["label"].to_numpy())
    proposer = fit_proposer(cells, shuffled.tolist())
    assert proposer.agreement < 0.55
    assert proposer.propose(cells)["confidence"].mean() < 0.55


def test_any_labels_can_be_learned(cells):
    lobed = np.where(cells["label"] == "granulocyte", "lobed", "not lobed")
    proposer = fit_proposer(cells, lobed.tolist())
    assert proposer.classes == ("lobed", "not lobed")
    assert set(proposer.propose(cells)["proposed"]) == {"lobed", "not lobed"}


def test_unlabelled_cells_are_ignored(cells):
    labels = [label if index % 2 else "" for index, label in enumerate(cells["label"])]
    some = fit_proposer(cells, labels).propose(cells)
    same = fit_proposer(cells[1::2], cells["label"].tolist()[1::2]).propose(cells)
    pd.testing.assert_frame_equal(some, same)


def test_a_classifier_needs_no_mask_or_pixel_size(cells, raises_code):
    bare = cells.assign(area_um2=np.nan, diameter_um=np.nan, cell_diameter_um=np.nan, ratio=np.nan)
    proposer = fit_proposer(bare, cells["label"].tolist())
    assert "area" in proposer.columns
    assert right(proposer.propose(bare), cells) >= 0.9
    with_scale = fit_proposer(cells, cells["label"].tolist())
    with raises_code("fields.features_missing") as caught:
        with_scale.propose(bare)
    assert "ratio" in str(caught.value)


def test_too_few_labels_are_refused(cells, raises_code):
    labels = np.full(len(cells), "", dtype=object)
    labels[:10], labels[10:12] = "granulocyte", "lymphocyte"
    with raises_code("fields.too_few_labelled") as caught:
        fit_proposer(cells, labels.tolist())
    assert "lymphocyte (2)" in str(caught.value)
    with raises_code("fields.too_few_labelled"):
        fit_proposer(cells, ["one"] * len(cells))
    with raises_code("fields.label_count"):
        fit_proposer(cells, ["one"] * (len(cells) - 1))
    with raises_code("fields.features_missing"):
        propose(pd.DataFrame({"area": [1.0]}))
