"""Feature selection, and the support vector machine as the last layer of the network."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from urnet.cells.batches import CellDataset
from urnet.images.scale import Scaling
from urnet.nets import JointModel, build_joint, create_enhancer
from urnet.nets.baselines import ant_colony
from urnet.nets.baselines.ant_colony import select_features

CLASSES, TELLING, IDLE = 3, 6, 34
SETTINGS = SimpleNamespace(ants=10, iterations=15, evaporation=0.2, penalty=0.05, C=0.1)


class Pixels(torch.nn.Module):
    """A classifier whose features are the image's pixels."""

    def __init__(self, features: int = TELLING + IDLE, classes: int = CLASSES, bias: bool = True) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(features, classes, bias=bias)
        self.dropout = torch.nn.Dropout(0.5)
        self.pretrained_cfg = {"architecture": "pixels"}

    def get_classifier(self) -> torch.nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(x[:, 0].flatten(1)))


def model(**arguments) -> JointModel:
    torch.manual_seed(0)
    return JointModel(create_enhancer("none", 1), Pixels(**arguments), (0.4,) * 3, (0.3,) * 3)


def cells(seed: int, count: int = 150, classes: int = CLASSES) -> CellDataset:
    """Draw images of 5 × 8 px: the first pixels depend on the class, the others are noise, the last one is constant."""
    rng = np.random.default_rng(seed)
    labels = np.r_[
        np.arange(classes), rng.choice(classes, count - classes, p=[0.6, *[0.4 / (classes - 1)] * (classes - 1)])
    ]
    images = rng.normal(0.5, 0.12, (count, TELLING + IDLE))
    for k in range(classes):
        images[labels == k, k] += 0.12
        images[labels == k, classes + k] -= 0.12
    images[:, -1] = 0.5
    return CellDataset(images.reshape(count, 1, 5, 8).astype(np.float32), labels, Scaling(0.0, 1.0, "float32"))


def logits(net: JointModel, data: CellDataset) -> torch.Tensor:
    with torch.no_grad():
        return net.cpu().eval()(data.__getitems__(list(range(len(data))))[0])


@pytest.fixture(scope="module")
def selected() -> tuple[JointModel, ant_colony.SelectionResult]:
    net = model()
    return net, select_features(net, cells(0), cells(1), SETTINGS, seed=0)


def test_informative_features_are_selected_more_often_than_noise(selected):
    _, result = selected
    telling = sum(i < TELLING for i in result.kept)
    assert telling >= TELLING - 1
    assert len(result.kept) - telling < 0.6 * IDLE


def test_constant_features_are_never_selected(selected):
    assert TELLING + IDLE - 1 not in selected[1].kept


def test_model_classifies_unseen_cells_with_the_machine(selected):
    data = cells(2, 600)
    recall = [(logits(selected[0], data).argmax(dim=1).numpy()[data.labels == k] == k).mean() for k in range(CLASSES)]
    assert np.mean(recall) > 0.6


def test_features_left_out_do_not_change_the_logits(selected):
    net, result = selected
    weight = net.classifier.fc.weight
    left_out = np.setdiff1d(np.arange(TELLING + IDLE), result.kept)
    assert not weight[:, left_out].any()
    assert weight[:, result.kept].any(dim=0).all()


def test_folded_layer_gives_the_machines_margins_over_the_temperature(selected):
    net, result = selected
    train, data = cells(0), cells(2)
    x = (train.images.reshape(len(train), -1) - 0.4) / 0.3
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    new = (data.images.reshape(len(data), -1) - 0.4) / 0.3
    for k in range(CLASSES):
        machine = LinearSVC(C=SETTINGS.C, class_weight="balanced", dual="auto", random_state=0)
        machine.fit(((x - mean) / std)[:, result.kept], train.labels == k)
        margins = machine.decision_function(((new - mean) / std)[:, result.kept])
        np.testing.assert_allclose(logits(net, data)[:, k], margins / result.temperature, rtol=0.01, atol=0.01)


def test_temperature_is_the_best_on_the_held_out_part(selected):
    net, _ = selected
    held = cells(1)
    found, labels = logits(net, held), torch.from_numpy(held.labels)
    loss = torch.nn.functional.cross_entropy
    assert loss(found, labels) <= min(loss(found * 1.05, labels), loss(found / 1.05, labels)) + 1e-6


def test_result_lists_the_selected_features(selected):
    result = selected[1].to_json()
    assert json.loads(json.dumps(result)) == result
    assert result["names"] == [f"pixels.{i}" for i in result["kept"]]
    assert result["counts"] == {"pixels": {"kept": len(result["kept"]), "of": TELLING + IDLE}}
    assert len(result["history"]) == SETTINGS.iterations
    assert sorted(result["history"]) == result["history"]
    assert result["history"][-1] >= result["objective_of_all"]
    assert result["recall_after"] > result["recall_before"]


def test_same_seed_same_selection_other_seed_another(selected):
    again, other = (select_features(model(), cells(0), cells(1), SETTINGS, seed=seed) for seed in (0, 1))
    assert again == selected[1]
    assert other.kept != again.kept


def test_mode_and_hooks_do_not_change():
    net = model().train()
    select_features(net, cells(0), cells(1), SETTINGS, seed=0)
    assert net.training
    assert not net.classifier.fc._forward_pre_hooks


def test_progress_goes_to_the_end():
    shares = []
    select_features(model(), cells(0), cells(1), SETTINGS, 0, progress=shares.append)
    assert shares == pytest.approx(np.arange(1, 16) / 15)


def test_two_classes_and_a_class_that_no_training_cell_has():
    net = model()
    result = select_features(net, cells(0, classes=2), cells(1, classes=2), SETTINGS, seed=0)
    assert result.recall_after > 0.8
    assert 2 not in logits(net, cells(2, classes=2)).argmax(dim=1)


def test_ants_judge_as_the_exact_least_squares_machine_does():
    train, held = cells(0), cells(1)
    x, x_held = (torch.from_numpy(part.images.reshape(len(part), -1)) * 5 for part in (train, held))
    labels, labels_held = (torch.from_numpy(part.labels) for part in (train, held))
    colony = ant_colony._Colony(x, labels, x_held, labels_held, CLASSES, SETTINGS)
    ants = np.random.default_rng(0).random((4, x.shape[1])) < 0.4
    found = colony._solve(torch.from_numpy(np.c_[ants, np.ones(4, bool)]).float())  # (F + 1, A, K)
    for a, kept in enumerate(ants):
        part = np.c_[x[:, kept], np.ones(len(x))]
        for k in range(CLASSES):
            positive = train.labels == k
            balance = len(x) / 2 / np.where(positive, positive.sum(), (~positive).sum())
            system = part.T @ (balance[:, None] * part) + np.eye(part.shape[1]) / (2 * SETTINGS.C)
            exact = np.linalg.solve(system, part.T @ (balance * np.where(positive, 1, -1)))
            approximate = found[np.r_[kept, True], a, k].numpy()
            assert np.corrcoef(part @ exact, part @ approximate)[0, 1] > 0.99
    assert not found[:-1][torch.from_numpy(~ants.T)].any()


def test_fused_features_are_counted_by_backbone():
    options = {"backbones": ["test_byobnet", "test_efficientnet"], "width": 2}
    net = build_joint("clahe", "shahzad2022", CLASSES, 1, classifier_options=options)
    result = select_features(net, cells(0, 40), cells(1, 40), SETTINGS, seed=0)
    assert sum(count["kept"] for count in result.counts.values()) == len(result.kept)
    assert {name: count["of"] for name, count in result.counts.items()} == {
        **{"additive": 16, "test_byobnet": 256, "test_efficientnet": 256}
    }
    assert result.names[0].startswith("additive.")


@pytest.mark.parametrize("classifier", [Pixels(bias=False), torch.nn.Identity()])
def test_other_last_layers_are_refused(classifier, raises_code):
    classifier.get_classifier = lambda: classifier.fc if isinstance(classifier, Pixels) else classifier
    net = JointModel(create_enhancer("none", 1), classifier, (0.0,) * 3, (1.0,) * 3)
    with raises_code("recipe.selection"):
        select_features(net, cells(0), cells(1), SETTINGS, seed=0)


def test_enhancer_of_several_views_is_refused(raises_code):
    net = build_joint("dynamic", "test_byobnet", CLASSES, 1, enhancer_options={"variant": "streams"})
    with raises_code("recipe.selection"):
        select_features(net, cells(0, 20), cells(1, 20), SETTINGS, seed=0)


def test_constant_features_raise_an_error(raises_code):
    data = cells(0)
    data.images[:] = 0.5
    with raises_code("training.features"):
        select_features(model(), data, data, SETTINGS, seed=0)
