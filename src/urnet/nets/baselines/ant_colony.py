"""Feature selection by an ant colony, then a linear support vector machine in place of the last layer.

This is what Shahzad et al. (2022, see `urnet.nets.baselines.feature_fusion`) do after their networks; details of
their colony are not public, so this is "in the style of". The machine is linear, and so is the last layer of a network:
folded into it, with the standardisation of the features, the model stays one network, saved and served like any other.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from urnet.calibration.temperature import fit_temperature
from urnet.cells.batches import CellDataset, make_ordered_loader
from urnet.errors import RecipeError, TrainingError
from urnet.nets.features import record_inputs
from urnet.nets.joint import JointModel

_STEPS = 15
_BATCH = 64
_LIMITS = (0.05, 0.95)


class Settings(Protocol):
    """The recipe's section `selection`."""

    ants: int
    iterations: int
    evaporation: float
    penalty: float
    C: float


@dataclass(frozen=True)
class SelectionResult:
    """What was selected.

    Attributes:
        features: number of features to choose from, F.
        kept: indices of the features kept, ascending.
        names: their names, such as `resnet50.17`, in the same order.
        counts: by network, how many of its features are kept, and of how many.
        history: the best objective so far after each iteration: macro recall on the held-out part less the penalty.
        objective_of_all: the objective of all features together, for comparison.
        recall_before: macro recall on the held-out part of the network's own last layer.
        recall_after: the same of the machine that took its place.
        C: inverse strength of the machine's regularisation.
        temperature: what its margins are divided by to be calibrated logits.
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
        """Everything, as JSON can hold it."""
        return asdict(self)


@torch.no_grad()
def select_features(
    model: JointModel,
    train: CellDataset,
    held: CellDataset,
    settings: Settings,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> SelectionResult:
    """Select features of a trained model, and refit its last layer on them.

    Args:
        model: its classifier's last layer is replaced in place; columns of features not kept become zero. It is moved
            to the GPU where there is one.
        train: the training part, un-augmented; the machine is fitted on it.
        held: another part; it judges the ants' subsets, and the temperature is fitted on it.
        settings: of the colony and the machine.
        seed: the same seed gives the same selection.
        progress: called with the share of the colony's iterations that is done.

    Returns:
        The selection.

    Raises:
        RecipeError: the classifier does not end in a linear layer that sees each image once.
        TrainingError: the features are constant, or no numbers.
    """
    head = _head(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    x, labels = _features(model, head, train)  # (N, F), (N,)
    x_held, labels_held = _features(model, head, held)
    before = _macro_recall(head(x_held).argmax(dim=1, keepdim=True), labels_held, head.out_features)
    mean, std = x.mean(dim=0), x.std(dim=0)
    usable = std > 1e-6  # (F,)
    if not (usable.any() and bool(torch.isfinite(std).all())):
        raise TrainingError(
            "selection: the network gives every cell the same features, or none that are numbers; "
            "its training failed: see history.csv, and try a smaller train.lr"
        )
    std = torch.where(usable, std, 1.0)
    x, x_held = (x - mean) / std, (x_held - mean) / std
    colony = _Colony(x, labels, x_held, labels_held, head.out_features, settings)
    kept, history = colony.search(usable.cpu().numpy(), np.random.default_rng(seed), progress)
    weight, bias = _machine(x[:, kept].cpu().numpy(), labels.cpu().numpy(), head.out_features, settings.C, seed)
    weight, bias = torch.from_numpy(weight).to(x), torch.from_numpy(bias).to(x)  # (K, F'), (K,)
    margins = x_held[:, kept] @ weight.T + bias  # (N, K)
    temperature = fit_temperature(margins.cpu().numpy(), labels_held.cpu().numpy())
    _fold(head, kept, weight / temperature, bias / temperature, mean, std)
    owners = _owners(model.classifier, head.in_features)
    return SelectionResult(
        features=head.in_features,
        kept=kept.tolist(),
        names=[f"{owners[i]}.{i - owners.index(owners[i])}" for i in kept.tolist()],
        counts={name: {"kept": sum(owners[i] == name for i in kept), "of": n} for name, n in Counter(owners).items()},
        history=history,
        objective_of_all=float(colony.objectives(usable.cpu().numpy()[None])[0]),
        recall_before=float(before),
        recall_after=float(_macro_recall(margins.argmax(dim=1, keepdim=True), labels_held, head.out_features)),
        C=settings.C,
        temperature=temperature,
    )


def _head(model: JointModel) -> nn.Linear:
    head = model.classifier.get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise RecipeError(
            f"selection: the classifier's last layer is a {type(head).__name__}, and a linear one with a bias is "
            "needed; choose another classifier, or leave selection out"
        )
    return head


def _features(model: JointModel, head: nn.Linear, cells: CellDataset) -> tuple[Tensor, Tensor]:
    """Give what the last layer sees of each cell, (N, F) float32, and the labels (N,), on the model's device."""
    training = model.training
    model.eval()
    labels = []
    try:
        with record_inputs(head) as caught:
            for images, batch_labels, _ in make_ordered_loader(cells, _BATCH):
                model(images.to(head.weight.device))
                labels.append(batch_labels)
    finally:
        model.train(training)
    if [x.shape for x in caught] != [(len(batch), head.in_features) for batch in labels]:
        raise RecipeError(
            "selection: the classifier's last layer does not see one vector an image; choose an enhancer of a single "
            "view and a classifier that pools its features, or leave selection out"
        )
    return torch.cat(caught), torch.cat(labels).to(head.weight.device)


class _Colony:
    """Ants that each keep or leave every feature, and the objective that judges what they keep.

    The objective is the macro recall on the held-out part of a linear machine fitted on the training part, less
    `penalty` times the share of features kept. Inside the colony the machine's squared hinge is replaced by the square
    (least-squares SVM; Suykens & Vandewalle, Neural Process. Lett. 9, 293, 1999), so that all ants are solved at once
    by a few steps of conjugate gradients.
    """

    def __init__(
        self, x: Tensor, labels: Tensor, x_held: Tensor, labels_held: Tensor, classes: int, settings: Settings
    ) -> None:
        self.x, self.x_held = (torch.cat([part, torch.ones_like(part[:, :1])], dim=1) for part in (x, x_held))
        self.labels, self.labels_held, self.classes, self.settings = labels, labels_held, classes, settings
        positive = nn.functional.one_hot(labels, classes).to(x)  # (N, K)
        count = positive.sum(dim=0).clamp(1, len(x) - 1)
        self.sign = 2 * positive - 1
        self.balance = torch.where(positive > 0, len(x) / (2 * count), len(x) / (2 * (len(x) - count)))  # (N, K)

    def search(
        self, usable: np.ndarray, rng: np.random.Generator, progress: Callable[[float], None] | None
    ) -> tuple[np.ndarray, list[float]]:
        """Give the indices of the best subset found, and the best objective after each iteration.

        Pheromone stays in [0, 1] and moves towards the subsets of the iteration's best ant and of the best so far
        (hyper-cube framework; Blum & Dorigo, IEEE Trans. SMC B 34, 1161, 2004), within limits that keep every choice
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
        """Give the chance of a feature without pheromone, (F,): by the rank of its F-score; 0 where it is constant."""
        from sklearn.feature_selection import f_classif

        scores = np.zeros(len(usable))
        scores[usable] = np.nan_to_num(f_classif(self.x[:, :-1].cpu().numpy()[:, usable], self.labels.cpu().numpy())[0])
        ranks = scores.argsort(kind="stable").argsort(kind="stable") / max(len(usable) - 1, 1)
        low, high = _LIMITS
        return np.where(usable, low + (high - low) * ranks, 0.0)

    def objectives(self, ants: np.ndarray) -> np.ndarray:
        """Judge subsets (A, F) of features, (A,)."""
        kept = torch.from_numpy(ants).to(self.x)  # (A, F)
        weights = self._solve(torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1))  # (F + 1, A, K)
        margins = (self.x_held @ weights.flatten(1)).unflatten(1, weights.shape[1:])  # (N, A, K)
        recall = _macro_recall(margins.argmax(dim=2), self.labels_held, self.classes)
        return (recall - self.settings.penalty * kept.mean(dim=1)).cpu().double().numpy()

    def _solve(self, kept: Tensor) -> Tensor:
        """Minimise |w|² / 2 + C Σ balance · (sign − x·w)² over the features kept; (A, F + 1) → (F + 1, A, K)."""
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
    """Mean recall over the classes that are there: predictions (N, A) and labels (N,) → (A,)."""
    is_class = nn.functional.one_hot(labels, classes).float()  # (N, K)
    counts = is_class.sum(dim=0)
    hits = is_class.T @ (predicted == labels.unsqueeze(1)).float()  # (K, A)
    return (hits[counts > 0] / counts[counts > 0].unsqueeze(1)).mean(dim=0)


def _machine(x: np.ndarray, labels: np.ndarray, classes: int, c: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear SVM for each class against the rest, with balanced class weights; weights (K, F'), biases (K,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1.0)  # −1: what no cell belongs to
    for k in range(classes):
        if not 0 < (labels == k).sum() < len(labels):
            continue
        machine = LinearSVC(C=c, class_weight="balanced", dual="auto", random_state=seed)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            machine.fit(x, labels == k)
        weight[k], bias[k] = machine.coef_[0], machine.intercept_[0]
    return weight, bias


def _fold(head: nn.Linear, kept: np.ndarray, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> None:
    """Make the layer give `weight · (x − mean) / std + bias` of the features kept."""
    scaled = torch.zeros_like(head.weight, dtype=weight.dtype)
    scaled[:, kept] = weight / std[kept]
    head.weight.copy_(scaled)
    head.bias.copy_(bias - scaled @ mean)


def _owners(classifier: nn.Module, features: int) -> list[str]:
    """Give the name of the network that each feature comes from."""
    if hasattr(classifier, "feature_names"):
        return classifier.feature_names()
    return [classifier.pretrained_cfg["architecture"]] * features
