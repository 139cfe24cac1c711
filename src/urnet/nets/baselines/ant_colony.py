"""Feature selection by an ant colony, and a linear support vector machine in place of the last layer.

Shahzad et al. (2022, see `urnet.nets.baselines.feature_fusion`) do this after training their networks. The details of
their colony are not public, so this is "in the style of". The support vector machine and the standardisation of the
features are linear. They become the last layer of the network, so that the model is saved and served as any other.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from urnet.calibration.temperature import fit_temperature
from urnet.cells.batches import CellDataset, make_ordered_loader
from urnet.errors import RecipeError, TrainingError
from urnet.nets.features import record_inputs
from urnet.nets.joint import JointModel
from urnet.recipe import Selection

_STEPS = 15
"""Steps of conjugate gradients."""
_BATCH = 64
"""Cells in one forward pass."""
_LIMITS = (0.05, 0.95)
"""Lowest and highest pheromone and heuristic."""


@dataclass(frozen=True)
class SelectionResult:
    """Result of the feature selection, as `selection.json` stores it.

    Attributes:
        features: number of all features, F.
        kept: indices of the selected features, ascending.
        names: names of the selected features, such as `resnet50.17`.
        counts: for each network, the number of selected features and of all features.
        history: best objective after each iteration: macro recall on the validation part less the penalty.
        objective_of_all: objective of all features together, for comparison.
        recall_before: macro recall of the trained last layer on the validation part.
        recall_after: macro recall of the support vector machine on the validation part.
        C: inverse regularisation of the support vector machine.
        temperature: divisor that turns its margins into calibrated logits.
    """

    features: int
    kept: list[int]
    names: list[str]
    counts: dict[str, dict[str, int]]
    history: list[float]
    objective_of_all: float
    recall_before: float
    recall_after: float
    C: float
    temperature: float

    def to_json(self) -> dict[str, Any]:
        """Return the attributes for a JSON file."""
        return asdict(self)


@torch.no_grad()
def select_features(
    model: JointModel,
    train: CellDataset,
    validation: CellDataset,
    settings: Selection,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> SelectionResult:
    """Select features of a trained model, and fit its last layer to them.

    Args:
        model: the joint model. The last layer of its classifier is replaced in place; columns of features that are not
            selected become zero. The model is moved to the GPU if there is one.
        train: the training part without augmentation, to which the support vector machine is fitted.
        validation: the part that evaluates the subsets, and to which the temperature is fitted.
        settings: section of the recipe.
        seed: the same seed gives the same selection.
        progress: receives the share of the iterations that is done.

    Returns:
        The result of the selection.

    Raises:
        RecipeError: the last layer of the classifier is not linear, or does not receive one vector for each image.
        TrainingError: the features are constant or not finite.
    """
    head = _head(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    x, labels = _features(model, head, train)  # (N, F), (N,)
    x_validation, labels_validation = _features(model, head, validation)
    before = _macro_recall(head(x_validation).argmax(dim=1, keepdim=True), labels_validation, head.out_features)
    mean, std = x.mean(dim=0), x.std(dim=0)
    usable = std > 1e-6  # (F,)
    if not (usable.any() and bool(torch.isfinite(std).all())):
        raise TrainingError(
            "selection: the features of all cells are equal or not finite. The training failed: see history.csv, and "
            "try a lower train.lr",
            code="training.features",
        )
    std = torch.where(usable, std, 1.0)
    x, x_validation = (x - mean) / std, (x_validation - mean) / std
    colony = _Colony(x, labels, x_validation, labels_validation, head.out_features, settings)
    kept, history = colony.search(usable.cpu().numpy(), np.random.default_rng(seed), progress)
    weight, bias = _fit_svm(x[:, kept].cpu().numpy(), labels.cpu().numpy(), head.out_features, settings.C, seed)
    weight, bias = torch.from_numpy(weight).to(x), torch.from_numpy(bias).to(x)  # (K, F'), (K,)
    margins = x_validation[:, kept] @ weight.T + bias  # (N, K)
    temperature = fit_temperature(margins.cpu().numpy(), labels_validation.cpu().numpy())
    _set_last_layer(head, kept, weight / temperature, bias / temperature, mean, std)
    owners = _name_networks(model.classifier, head.in_features)
    return SelectionResult(
        features=head.in_features,
        kept=kept.tolist(),
        names=[f"{owners[i]}.{i - owners.index(owners[i])}" for i in kept.tolist()],
        counts={name: {"kept": sum(owners[i] == name for i in kept), "of": n} for name, n in Counter(owners).items()},
        history=history,
        objective_of_all=float(colony.objectives(usable.cpu().numpy()[None])[0]),
        recall_before=float(before),
        recall_after=float(_macro_recall(margins.argmax(dim=1, keepdim=True), labels_validation, head.out_features)),
        C=settings.C,
        temperature=temperature,
    )


def _head(model: JointModel) -> nn.Linear:
    head = model.classifier.get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise RecipeError(
            f"selection: the last layer of the classifier is a {type(head).__name__}; it must be linear with a bias. "
            "Choose another classifier, or leave selection out",
            code="recipe.selection",
        )
    return head


def _features(model: JointModel, head: nn.Linear, cells: CellDataset) -> tuple[Tensor, Tensor]:
    """Return the input of the last layer for each cell, (N, F) float32, and the labels (N,), on the model's device."""
    training = model.training
    model.eval()
    labels = []
    try:
        with record_inputs(head) as features:
            for images, batch_labels, _ in make_ordered_loader(cells, _BATCH):
                model(images.to(head.weight.device))
                labels.append(batch_labels)
    finally:
        model.train(training)
    if [x.shape for x in features] != [(len(batch), head.in_features) for batch in labels]:
        raise RecipeError(
            "selection: the last layer of the classifier does not receive one vector for each image. Choose an "
            "enhancer with a single view and a classifier that pools its features, or leave selection out",
            code="recipe.selection",
        )
    return torch.cat(features), torch.cat(labels).to(head.weight.device)


class _Colony:
    """Ant colony: each ant selects a subset of the features, and an objective evaluates the subset.

    The objective is the macro recall on the validation part, less `penalty` times the share of selected features. The
    recall is that of a linear classifier fitted to the training part. The classifier is a least-squares SVM (Suykens &
    Vandewalle, Neural Process. Lett. 9, 293, 1999), which a few steps of conjugate gradients fit for all ants at once.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        x_validation: Tensor,
        labels_validation: Tensor,
        classes: int,
        settings: Selection,
    ) -> None:
        self.x, self.x_validation = (
            torch.cat([part, torch.ones_like(part[:, :1])], dim=1) for part in (x, x_validation)
        )
        self.labels, self.labels_validation, self.classes, self.settings = labels, labels_validation, classes, settings
        positive = nn.functional.one_hot(labels, classes).to(x)  # (N, K)
        count = positive.sum(dim=0).clamp(1, len(x) - 1)
        self.sign = 2 * positive - 1
        self.balance = torch.where(positive > 0, len(x) / (2 * count), len(x) / (2 * (len(x) - count)))  # (N, K)

    def search(
        self, usable: np.ndarray, rng: np.random.Generator, progress: Callable[[float], None] | None
    ) -> tuple[np.ndarray, list[float]]:
        """Return the indices of the best subset, and the best objective after each iteration.

        Pheromone lies in [0, 1] and moves towards the best subset of the iteration and the best subset so far
        (hyper-cube framework; Blum & Dorigo, IEEE Trans. SMC B 34, 1161, 2004), within limits that keep every subset
        possible (max-min ants; Stützle & Hoos, FGCS 16, 889, 2000).
        """
        heuristic = self._heuristic(usable)
        pheromone = np.full(len(usable), 0.5)
        best, best_objective, history = usable, -np.inf, []
        for iteration in range(self.settings.iterations):
            keep, leave = pheromone * heuristic, (1 - pheromone) * (1 - heuristic)
            ants = rng.random((self.settings.ants, len(usable))) < keep / (keep + leave)  # (A, F)
            ants[~ants.any(axis=1), heuristic.argmax()] = True
            objectives = self.objectives(ants)
            leader = int(objectives.argmax())
            if objectives[leader] > best_objective:
                best, best_objective = ants[leader], float(objectives[leader])
            trail = (ants[leader].astype(float) + best) / 2
            rate = self.settings.evaporation
            pheromone = ((1 - rate) * pheromone + rate * trail).clip(*_LIMITS)
            history.append(best_objective)
            if progress is not None:
                progress((iteration + 1) / self.settings.iterations)
        return np.flatnonzero(best), history

    def _heuristic(self, usable: np.ndarray) -> np.ndarray:
        """Return the probability of each feature without pheromone, (F,): by the rank of its F-score; 0 if constant."""
        from sklearn.feature_selection import f_classif

        scores = np.zeros(len(usable))
        scores[usable] = np.nan_to_num(f_classif(self.x[:, :-1].cpu().numpy()[:, usable], self.labels.cpu().numpy())[0])
        ranks = scores.argsort(kind="stable").argsort(kind="stable") / max(len(usable) - 1, 1)
        low, high = _LIMITS
        return np.where(usable, low + (high - low) * ranks, 0.0)

    def objectives(self, ants: np.ndarray) -> np.ndarray:
        """Compute the objective of subsets (A, F) of features: (A,)."""
        kept = torch.from_numpy(ants).to(self.x)  # (A, F)
        weights = self._solve(torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1))  # (F + 1, A, K)
        margins = (self.x_validation @ weights.flatten(1)).unflatten(1, weights.shape[1:])  # (N, A, K)
        recall = _macro_recall(margins.argmax(dim=2), self.labels_validation, self.classes)
        return (recall - self.settings.penalty * kept.mean(dim=1)).cpu().double().numpy()

    def _solve(self, kept: Tensor) -> Tensor:
        """Minimise |w|² / 2 + C Σ balance · (sign − x·w)² over the selected features; (A, F + 1) → (F + 1, A, K)."""
        kept = kept.T.unsqueeze(2)  # (F + 1, A, 1)
        shape = (len(self.x.T), kept.shape[1], self.classes)
        ridge = 1 / (2 * self.settings.C)

        def times(w: Tensor) -> Tensor:
            errors = (self.x @ w.flatten(1)).unflatten(1, shape[1:]) * self.balance.unsqueeze(1)  # (N, A, K)
            return kept * (self.x.T @ errors.flatten(1)).view(shape) + ridge * w

        rest = kept * (self.x.T @ (self.balance * self.sign)).unsqueeze(1)  # (F + 1, A, K)
        w, step = torch.zeros_like(rest), rest
        size = rest.square().sum(dim=0)  # (A, K)
        for _ in range(_STEPS):
            change = times(step)
            length = size / (step * change).sum(dim=0).clamp_min(1e-12)
            w, rest = w + length * step, rest - length * change
            size, old = rest.square().sum(dim=0), size
            step = rest + size / old.clamp_min(1e-12) * step
        return w


def _macro_recall(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Compute the mean recall over the present classes: predictions (N, A) and labels (N,) → (A,)."""
    is_class = nn.functional.one_hot(labels, classes).float()  # (N, K)
    counts = is_class.sum(dim=0)
    hits = is_class.T @ (predicted == labels.unsqueeze(1)).float()  # (K, A)
    return (hits[counts > 0] / counts[counts > 0].unsqueeze(1)).mean(dim=0)


def _fit_svm(x: np.ndarray, labels: np.ndarray, classes: int, c: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear SVM for each class against the rest, with balanced class weights; weights (K, F'), biases (K,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1.0)  # −1: the margin of a class without cells
    for k in range(classes):
        if not 0 < (labels == k).sum() < len(labels):
            continue
        svm = LinearSVC(C=c, class_weight="balanced", dual="auto", random_state=seed)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            svm.fit(x, labels == k)
        weight[k], bias[k] = svm.coef_[0], svm.intercept_[0]
    return weight, bias


def _set_last_layer(head: nn.Linear, kept: np.ndarray, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> None:
    """Set the layer to `weight · (x − mean) / std + bias` of the selected features."""
    scaled = torch.zeros_like(head.weight, dtype=weight.dtype)
    scaled[:, kept] = weight / std[kept]
    head.weight.copy_(scaled)
    head.bias.copy_(bias - scaled @ mean)


def _name_networks(classifier: nn.Module, features: int) -> list[str]:
    """Return the name of the network of each feature."""
    if hasattr(classifier, "feature_names"):
        return classifier.feature_names()
    return [classifier.pretrained_cfg["architecture"]] * features
