"""Modules of pre-training and joint training: losses, augmentation, learning rates, and the check for NaN."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from urnet.nets import build_joint, create_enhancer
from urnet.recipe import Augment, Pretrain, Train
from urnet.training.lightning_modules import (
    FINITE_CHECK_INTERVAL,
    JointModule,
    PretrainModule,
    one_cycle,
)
from urnet.training.losses import compute_class_weights


class Trainer:
    """The part of Lightning's trainer that the modules use."""

    global_rank = 0

    def __init__(self, training=True, steps=50, step=0):
        self.training, self.estimated_stepping_batches, self.global_step = training, steps, step


def joint(settings=None, **options) -> JointModule:
    model = build_joint("urnet", "test_byobnet", 3, 1, enhancer_options={"width": 2})
    module = JointModule(model, nn.MSELoss(), settings or Train(), Augment(), 0, 3, **options)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(torch.as_tensor(value).detach())})
    return module


def pretrain(target: str) -> PretrainModule:
    torch.manual_seed(0)
    module = PretrainModule(create_enhancer("urnet", 1, width=2), nn.MSELoss(), Pretrain(target=target), Augment(), 0)
    module.log = lambda *_, **__: None
    return module


def test_pretraining_compares_with_the_input_or_with_the_paired_image():
    module = pretrain("target")
    images, labels, targets = torch.rand(4, 1, 16, 16), torch.zeros(4).long(), torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        module.eval()
        painted = module.enhancer(images)
        assert module.training_step((images, labels, targets), 0) == F.mse_loss(painted, targets)
        assert module.training_step((images, labels, images.new_empty(4, 0)), 0) == F.mse_loss(painted, images)


@pytest.mark.parametrize("target", ["identity", "target"])
def test_the_error_of_the_identity_is_a_share_of_the_variance_within_images(target):
    module = pretrain("identity")
    images = torch.rand(6, 1, 16, 16) * 0.1 + torch.linspace(0, 0.9, 6).view(-1, 1, 1, 1)
    images[3] = images[3].mean()  # empty
    targets = images.new_empty(6, 0) if target == "identity" else torch.rand(6, 1, 16, 16)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(torch.as_tensor(value).detach())})
    module.eval()
    with torch.no_grad():
        for part in (slice(0, 2), slice(2, 6)):
            module.validation_step((images[part], torch.zeros(6).long(), targets[part]), 0)
        painted = module.enhancer(images)
    module.on_train_epoch_end()
    if target == "target":
        assert "identity_error" not in module.logged
        return
    variance = torch.stack([image.var(unbiased=False) for image in images]).mean()
    expected = F.mse_loss(painted, images) / variance
    assert module.logged["identity_error"] == pytest.approx(float(expected), rel=1e-4)
    assert module.identity_sums == {}


@pytest.mark.parametrize(("scale", "warnings"), [(1.0, 0), (100.0, 1)])
def test_an_enhanced_image_that_leaves_0_to_1_is_warned_of_once(scale, warnings, caplog):
    module = joint()
    module.model.enhancer.body = Scaled(scale)
    module._trainer = SimpleNamespace(global_rank=0, current_epoch=4)
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING, logger="urnet"):
        for _ in range(2):
            module.validation_step((images, torch.tensor([0, 1, 2, 0]), torch.empty(4, 0)), 0)
            module.on_validation_epoch_end()
    assert caplog.text.count("epoch 5: the enhanced image leaves [0, 1]: ") == warnings
    assert caplog.text.count("enhancer.bounded=true") == warnings


class Scaled(nn.Module):
    """An enhancer that multiplies pixels, so that its output leaves [0, 1]."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
@pytest.mark.parametrize("make", [joint, lambda: pretrain("identity")])
def test_a_loss_that_is_not_finite_raises_an_error(make, step, value, raises_code):
    module = make()
    images = torch.full((2, 1, 32, 32), value)
    with raises_code("training.loss_not_finite"):
        getattr(module, step)((images, torch.zeros(2).long(), images.new_empty(2, 0)), 0)


def test_training_batches_alone_are_augmented_and_pairs_alike():
    module = joint()
    images, labels = torch.rand(8, 1, 16, 16), torch.zeros(8).long()
    for training in (True, False):
        module._trainer = Trainer(training)
        turned, _, targets = module.on_after_batch_transfer((images, labels, images.clone()), 0)
        assert torch.equal(turned, targets)
        assert torch.equal(turned, images) is not training
        turned, _, none = module.on_after_batch_transfer((images, labels, images.new_empty(8, 0)), 0)
        assert none.shape == (8, 0)
        assert turned.shape == images.shape


def test_randomness_depends_on_seed_and_step_alone():
    module = joint()
    images = torch.rand(8, 1, 16, 16)

    def turned(seed: int, step: int) -> torch.Tensor:
        module.seed, module._trainer = seed, Trainer(step=step)
        torch.rand(7)
        return module.on_after_batch_transfer((images, torch.zeros(8).long(), images.new_empty(8, 0)), 0)[0]

    assert torch.equal(turned(0, 3), turned(0, 3))
    assert not torch.equal(turned(0, 3), turned(0, 4))
    assert not torch.equal(turned(0, 3), turned(1, 3))


def test_the_enhancer_may_have_a_rate_of_its_own():
    for given, rates in ((None, [0.01, 0.01]), (0.0, [0.01]), (0.1, [0.1, 0.01])):
        module = joint(Train(lr=0.01, enhancer_lr=given))
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert [group["lr"] for group in groups] == rates
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        learnt = module.model if given != 0 else module.model.classifier
        assert sum(sizes) == sum(p.numel() for p in learnt.parameters())
    module = JointModule(build_joint("none", "test_byobnet", 3, 1), nn.MSELoss(), Train(lr=0.01), Augment(), 0, 3)
    assert len(module.configure_optimizers()["optimizer"].param_groups) == 1


def test_optimisers_are_as_the_recipe_says():
    sgd = joint(Train(momentum=0.8, weight_decay=0.1)).configure_optimizers()["optimizer"]
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.1
    adamw = joint(Train(optimizer="adamw", momentum=0.8)).configure_optimizers()["optimizer"]
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)


@pytest.mark.parametrize("steps", [20, 333, 6000])
def test_the_one_cycle_schedule_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    for step in range(steps):
        assert one_cycle(step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_the_one_cycle_schedule_is_for_a_handful_of_steps_too(steps):
    shares = [one_cycle(step, steps) for step in range(steps + 1)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1
    assert steps < 3 or shares[steps - 1] < 1e-4


def test_rates_follow_the_schedule_by_group():
    module = joint(Train(schedule="onecycle", lr=0.01, enhancer_lr=0.1))
    module._trainer = Trainer(steps=11)
    made = module.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert [group["lr"] for group in made["optimizer"].param_groups] == pytest.approx([0.004, 0.0004])


def test_class_weights_are_inverse_to_the_counts_and_one_on_average_over_the_cells():
    counts = torch.tensor([10, 30, 60])
    weights = compute_class_weights(counts)
    assert torch.allclose(weights * counts, torch.full((3,), 100 / 3))
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)


def test_class_weights_enter_the_training_loss():
    weights = torch.tensor([1.0, 5.0, 1.0])
    plain, weighted = joint(), joint(class_weights=weights)
    weighted.model.load_state_dict(plain.model.state_dict())
    batch = (torch.rand(6, 1, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2]), torch.empty(6, 0))
    logits = plain.model(batch[0])
    assert weighted.training_step(batch, 0).item() == pytest.approx(
        F.cross_entropy(logits, batch[1], weight=weights).item(), rel=1e-4
    )


def test_validation_counts_recall_over_the_classes_that_are_there():
    module = joint()
    logits = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]])
    module.model.enhance_and_classify = lambda images: (logits, images)
    for _ in range(2):
        module.validation_step((torch.zeros(4, 1, 16, 16), torch.tensor([0, 0, 1, 1]), torch.empty(4, 0)), 0)
        module.on_validation_epoch_end()
        assert module.logged["validation_accuracy"] == 0.75
        assert module.logged["validation_macro_recall"] == 0.75  # (1 + 1/2) / 2; the third class has no cells


@pytest.mark.slow
def test_the_auxiliary_loss_counts_by_its_weight():
    batch = (torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 0]), torch.rand(4, 1, 32, 32))
    plain, with_term = joint(Train()), joint(Train(auxiliary=3.0))
    with_term.load_state_dict(plain.state_dict())
    for module in (plain, with_term):
        module.eval()
    with torch.no_grad():
        painted = plain.model.enhancer(batch[0])
        expected = plain.training_step(batch, 0) + 3.0 * F.mse_loss(painted, batch[2])
        torch.testing.assert_close(with_term.training_step(batch, 0), expected)


@pytest.mark.parametrize(
    ("settings", "epoch", "frozen"),
    [
        (Train(), 0, False),
        (Train(frozen=2), 1, True),
        (Train(frozen=2), 2, False),
        (Train(enhancer_lr=0.0), 50, True),
    ],
)
def test_a_frozen_enhancer_does_not_move_nor_do_its_running_means(settings, epoch, frozen, monkeypatch):
    module = joint(settings.model_copy(update={"lr": 0.1}))
    monkeypatch.setattr(JointModule, "current_epoch", epoch)
    module.trainer = Trainer()
    module.train()
    module.on_train_epoch_start()
    before = {name: tensor.clone() for name, tensor in module.model.enhancer.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    images = torch.rand(4, 1, 32, 32)
    module.training_step((images, torch.tensor([0, 1, 2, 0]), images.new_empty(4, 0)), 0).backward()
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    after = module.model.enhancer.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert (moved == []) if frozen else any("running_mean" in name for name in moved)


def test_a_gpu_checks_the_loss_at_intervals(monkeypatch, raises_code):
    module = joint()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for index, value in enumerate((0.5, math.nan, 0.3), start=1):
        module.check_loss(torch.tensor(value), index)
    with raises_code("training.loss_not_finite"):
        module.check_loss(torch.tensor(0.2), FINITE_CHECK_INTERVAL)
    with raises_code("training.loss_not_finite"):
        module.on_train_epoch_end()
