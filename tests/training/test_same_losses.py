"""`urnet.train` gives the losses of a plain PyTorch loop, compared in double precision."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from urnet.cells.augment import draw_epoch_order
from urnet.nets import build_joint
from urnet.recipe import load_recipe
from urnet.training import fit, trainer
from urnet.training.checkpoints import read_checkpoint
from urnet.training.data import prepare_data
from urnet.training.fit import train

STILL = (
    *("augment.flips=false", "augment.rotation=false", "train.balance=none"),
    *("train.optimizer=sgd", "train.lr=0.01", "train.schedule=constant"),
)


class Losses(Callback):
    """Recorder of the loss of every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.steps.append(float(outputs["loss"]))


class Recorder:
    def __init__(self):
        self.losses = Losses()

    def update(self, task, share):
        pass

    def notify(self, message):
        pass

    def epoch_bar(self, stage, epochs):
        return self.losses


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(trainer, "choose_precision", lambda precision: "64-true")
    monkeypatch.setattr(fit, "calibrate_model", lambda *_, **__: None)  # it expects single precision


def plain(run, processes: int = 1) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Run the same training as a plain loop; return the losses of the steps and the last weights.

    The gradients of as many part-batches as there are processes are averaged; batch norm sees each part by itself, and
    its statistics follow the first.
    """
    recipe = run.recipe()
    data = prepare_data(run.cells(), recipe)
    torch.manual_seed(recipe.seed)
    model = build_joint("urnet", "test_byobnet", 3, 1, enhancer_options=recipe.enhancer.options).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.train.lr, momentum=0.9)
    losses = []
    for epoch in range(recipe.train.epochs):
        order = draw_epoch_order(data.train.labels, balanced=False, per_class=None, seed=recipe.seed, epoch=epoch)
        shares = [order[: len(order) // processes * processes][rank::processes] for rank in range(processes)]
        for start in range(0, len(shares[0]), recipe.train.batch_size):
            optimizer.zero_grad()
            parts = []
            for rank, share in enumerate(shares):
                images, labels, _ = data.train.__getitems__(share[start : start + recipe.train.batch_size].tolist())
                before = copy.deepcopy(dict(model.named_buffers()))
                loss = F.cross_entropy(model(images.double()), labels)
                (loss / processes).backward()
                parts.append(float(loss.detach()))
                if rank:
                    for name, buffer in model.named_buffers():
                        buffer.data.copy_(before[name])
            optimizer.step()
            losses.append(float(np.mean(parts)))
    return losses, model.state_dict()


def same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    return own.keys() == expected.keys() and all(torch.allclose(own[k], expected[k], atol=1e-8) for k in own)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_of_fifty_steps_equal_those_of_a_plain_loop(shapes, tiny, tmp_path, double, checkpointing):
    reporter = Recorder()
    overrides = [*STILL, "train.epochs=13", f"train.checkpointing={str(checkpointing).lower()}"]
    run = train(shapes, tiny, tmp_path / "run", overrides=overrides, reporter=reporter)[0]
    losses, weights = plain(run)
    assert len(losses) == len(reporter.losses.steps) == 52
    assert np.allclose(losses, reporter.losses.steps, atol=1e-8)
    assert losses[-1] < losses[0]
    assert same(read_checkpoint(run.checkpoints / "last.ckpt")["state_dict"], weights)


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_half_batches(shapes, tiny, tmp_path, double):
    run = train(shapes, tiny, tmp_path / "run", overrides=[*STILL, "train.epochs=2"], devices=2)[0]
    losses, weights = plain(run, processes=2)
    assert same(read_checkpoint(run.checkpoints / "last.ckpt")["state_dict"], weights)
    shown = pd.read_csv(run.history_path)["train_loss"]
    assert np.allclose(shown, np.average(np.reshape(losses, (2, -1)), axis=1, weights=[12, 9]), atol=1e-6)
    assert load_recipe(tiny).train.batch_size == 12  # 21 cells for each process: a batch of 12, and one of 9
