"""`train.checkpointing` in a training: what it needs of the networks, and when it is on."""

from contextlib import ExitStack

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from urnet.errors import RecipeError
from urnet.nets.checkpointing import activation_checkpointing, fixed_running_statistics, supports_checkpointing
from urnet.nets.joint import JointModel
from urnet.recipe import Recipe
from urnet.training.lightning_modules import JointModule, PretrainModule


class Recomputation(Callback):
    """Has the networks of a training compute their maps anew for the gradients, from its first step to its last."""

    def __init__(self) -> None:
        self.training, self.backward = ExitStack(), ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: PretrainModule | JointModule) -> None:
        """In every process."""
        self.training.enter_context(activation_checkpointing(_network(pl_module)))

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: PretrainModule | JointModule, loss: torch.Tensor
    ) -> None:
        """Batch norm follows a batch once, although it sees it twice."""
        self.backward.enter_context(fixed_running_statistics(_network(pl_module)))

    def on_after_backward(self, trainer: L.Trainer, pl_module: PretrainModule | JointModule) -> None:
        """The next batch is new."""
        self.backward.close()

    def on_fit_end(self, trainer: L.Trainer, pl_module: PretrainModule | JointModule) -> None:
        """Calibration and evaluation see the networks as they are."""
        self.training.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: PretrainModule | JointModule, exception: BaseException
    ) -> None:
        """Nothing stays switched."""
        self.backward.close()
        self.training.close()


def check_recomputation(model: JointModel, recipe: Recipe) -> None:
    """Find out before a training whether its networks can compute their maps anew.

    Raises:
        RecipeError: the enhancer, which needs most of the memory, cannot; or neither of both.
    """
    enhancer, classifier = supports_checkpointing(model.enhancer), supports_checkpointing(model.classifier)
    if not enhancer and any(True for _ in model.enhancer.parameters()):
        found = f"enhancer {recipe.enhancer.name} cannot do that"
    elif not enhancer and not classifier:
        found = (
            f"enhancer {recipe.enhancer.name} and classifier {recipe.classifier.name} keep nothing that it could save"
        )
    else:
        return
    raise RecipeError(
        f"train.checkpointing=true: {found}; set it to false, and lower train.batch_size where memory is short"
    )


def _network(module: PretrainModule | JointModule) -> torch.nn.Module:
    """What is trained, without the networks of its loss."""
    return module.model if isinstance(module, JointModule) else module.enhancer
