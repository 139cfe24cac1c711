"""Distillation: a student is a run like any other, learns what its teacher says, and keeps to its teacher's cells."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from urnet.benchmark.compare import compare
from urnet.bundle.model import Model
from urnet.cli import run as run_command
from urnet.errors import CellsError, RecipeError, RunError
from urnet.evaluation.evaluate import evaluate
from urnet.export.formats import export_run
from urnet.nets import build_joint
from urnet.recipe import Augment, Distill, Train, load_recipe
from urnet.training.calibrate import calibrate
from urnet.training.distill import distill
from urnet.training.distillation_loss import DistillModule, shaped_as
from urnet.training.fit import train

STUDENT = """
name: pupil
augment: {per_class: 32}
enhancer: {name: urnet, width: 2, residual: true}
classifier: {name: test_byobnet, pretrained: false}
train: {epochs: 2, optimizer: adamw, lr: 0.003, schedule: onecycle, batch_size: 12}
"""


@pytest.fixture(scope="module")
def pupil(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "pupil.yaml"
    path.write_text(STUDENT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def student(trained, pupil, tmp_path_factory):
    return distill(trained.folder, pupil, tmp_path_factory.mktemp("student") / "run")


def module(distill: Distill, **options) -> DistillModule:
    torch.manual_seed(0)
    teacher, model = (build_joint("urnet", "test_byobnet", 3, 1, enhancer_options={"width": w}) for w in (3, 2))
    made = DistillModule(teacher, distill, model, nn.MSELoss(), Train(), Augment(), 0, 3, **options)
    made.log = lambda *_, **__: None
    return made.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.rand(6, 1, 32, 32)
    return images, torch.arange(6) % 3, images.new_empty(6, 0)


def test_a_student_is_a_run_like_any_other_and_says_by_whom(student, trained, tmp_path):
    recipe = student.recipe()
    assert recipe.distill.teacher == Model.load(trained.folder, calibrated=False).digest()
    assert recipe.name == "pupil"
    assert recipe.input.size == 24
    assert student.load_model().calibration is not None
    assert evaluate(student).metrics["macro_recall"]["value"] is not None
    assert compare([trained.folder, student.folder], tmp_path / "compared").report.is_file()
    assert export_run(student.folder, "onnx", tmp_path / "model.onnx").path.is_file()
    assert (
        student.load_model().predict(np.arange(576, dtype=np.uint8).reshape(24, 24))["predicted"][0] in "bar disc ring"
    )


def test_the_student_has_its_teachers_parts_and_scale(student, trained):
    ours, theirs = (pd.read_csv(run.cells_path) for run in (student, trained))
    assert ours["split"].tolist() == theirs["split"].tolist()
    assert ours["label"].tolist() == theirs["label"].tolist()
    assert student.load_model().config.scaling == trained.load_model().config.scaling
    assert student.load_model().classes == trained.load_model().classes


def test_calibrating_the_teacher_anew_leaves_its_fingerprint(trained):
    before = Model.load(trained.folder, calibrated=False).digest()
    calibrate(trained, false_rejection=0.1)
    try:
        assert Model.load(trained.folder, calibrated=False).digest() == before
    finally:
        calibrate(trained)


def test_the_loss_is_label_logits_and_image():
    images, labels, none = batch()
    for share, temperature, image in ((0.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.3, 4.0, 2.0)):
        made = module(Distill(logits=share, temperature=temperature, image=image))
        with torch.no_grad():
            logits, enhanced = made.model.enhance_and_classify(images)
            wanted, painted = made.taught[0].enhance_and_classify(images)
            p, q = ((x / temperature).softmax(dim=1) for x in (wanted, logits))
            divergence = (p * (p / q).log()).sum(dim=1).mean()
            expected = (1 - share) * F.cross_entropy(logits, labels) + share * temperature**2 * divergence
            expected = expected + image * F.mse_loss(enhanced, painted)
            torch.testing.assert_close(made.training_step((images, labels, none), 0), expected)


def test_a_copy_of_its_teacher_has_nothing_to_learn_from_it():
    made = module(Distill(logits=1.0, image=1.0))
    made.taught = (made.model,)
    images, labels, none = batch()
    assert made.training_step((images, labels, none), 0).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_stays_as_it_is_and_in_no_checkpoint():
    made = module(Distill()).train()
    before = {name: x.clone() for name, x in made.taught[0].state_dict().items()}
    made.training_step(batch(), 0).backward()
    assert all(torch.equal(x, before[name]) for name, x in made.taught[0].state_dict().items())  # batch norm too
    assert all(parameter.grad is None for parameter in made.taught[0].parameters())
    assert any(parameter.grad is not None for parameter in made.model.parameters())
    assert all(name.startswith(("model.", "class_weights", "confusion")) for name in made.state_dict())
    assert not made.taught[0].training


def test_teacher_and_student_see_the_same_turn_at_their_own_sizes():
    class Trainer:
        training, global_step, global_rank = True, 7, 0

    made = module(Distill())
    made._trainer = Trainer()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    large = (0.5 + 0.3 * x + 0.1 * y)[None, None].repeat(8, 3, 1, 1)  # (8, 3, 64, 64)
    small = F.avg_pool2d(large, 2).mean(dim=1, keepdim=True)  # (8, 1, 32, 32)
    turned, _, theirs = made.on_after_batch_transfer((small, torch.zeros(8).long(), large), 0)
    assert theirs.shape == large.shape
    assert (turned - small).abs().max() > 0.1
    inside = (slice(None), slice(None), slice(8, 24), slice(8, 24))
    assert (shaped_as(theirs, turned) - turned)[inside].abs().max() < 0.01


def test_a_student_of_another_size_and_colour_learns(trained, pupil, tmp_path):
    run = distill(trained.folder, pupil, tmp_path / "run", overrides=["input.size=32", "input.channels=3"])
    config = run.load_model().config
    assert (config.size, config.channels) == (32, 3)
    assert run.history()["stage"].tolist() == ["train"] * 2


def test_what_the_teacher_knows_helps(trained, pupil, tmp_path):
    """Of its logits alone, no label: the student repeats its teacher's decisions on unseen cells."""
    overrides = ["train.epochs=8", "distill.logits=1", "distill.image=0", "augment.rotation=false"]
    run = distill(trained.folder, pupil, tmp_path / "run", overrides=overrides)
    cells = run.cells().part("test")
    said = [
        model.predict([cells.read(k) for k in range(len(cells))])["predicted"]
        for model in (run.load_model(), trained.load_model())
    ]
    assert (said[0] == said[1]).mean() > 0.7


def test_same_seed_same_numbers_and_resumed_alike(student, trained, pupil, tmp_path, monkeypatch):
    from urnet.training.checkpoints import CheckpointCallback

    end = CheckpointCallback.on_train_epoch_end

    def killed(self, trainer, module):
        end(self, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointCallback, "on_train_epoch_end", killed)
    with pytest.raises(KeyboardInterrupt, match="resume"):
        distill(trained.folder, pupil, tmp_path / "run")
    monkeypatch.undo()
    run = distill(trained.folder, pupil, tmp_path / "run", resume=True)
    assert run.history_path.read_bytes() == student.history_path.read_bytes()
    state = student.load_model().joint.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in run.load_model().joint.state_dict().items())
    with pytest.raises(RunError, match="exists already"):
        distill(trained.folder, pupil, tmp_path / "run")


def test_resuming_with_another_teacher_is_refused(student, shapes, tiny, pupil, tmp_path):
    other = train(shapes, tiny, tmp_path / "other", overrides=["train.epochs=1", "augment.per_class=8"])[0]
    with pytest.raises(RunError, match=r"distill\.teacher"):
        distill(other.folder, pupil, student.folder, resume=True)


def test_the_default_folder_is_beside_the_teachers(trained, pupil):
    run = distill(trained.folder, pupil, overrides=["train.epochs=1", "augment.per_class=8"])
    assert run.folder == trained.folder.with_name(f"{trained.folder.name}-pupil")


@pytest.mark.parametrize("override", ["split.test=0.5", "protocol=paper", "classes={a: [bar]}", "input.limits=[0, 9]"])
def test_what_is_the_teachers_cannot_be_changed(trained, pupil, tmp_path, override):
    with pytest.raises(RecipeError, match=rf"--set {override.partition('=')[0].partition('.')[0]}.*its teacher's"):
        distill(trained.folder, pupil, tmp_path / "run", overrides=[override])
    assert not (tmp_path / "run").exists()


def test_training_it_without_a_teacher_is_refused_with_the_command(shapes, tmp_path):
    with pytest.raises(RecipeError, match="urnet distill RUN --student urnet-small"):
        train(shapes, "urnet-small", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_that_are_no_teachers(trained, tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        distill(tmp_path)
    with pytest.raises(RunError, match="not a run folder"):
        distill(trained.model)  # a bundle has no cells


def test_an_unfinished_run_and_lost_cells_are_named(trained, tmp_path):
    teacher = tmp_path / "far" / "away"  # the paths of its cells are relative
    shutil.copytree(trained.folder, teacher, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    with pytest.raises(CellsError, match="do not exist"):
        distill(teacher)
    (teacher / "model" / "config.json").unlink()
    with pytest.raises(RunError, match=r"away: no trained model here.*--resume"):
        distill(teacher)


def test_the_command(trained, pupil, tmp_path, capfd):
    few = ["--set", "train.epochs=1", "augment.per_class=8", "--seed", "3"]
    assert run_command(["distill", str(trained.folder), "--student", pupil, "--out", str(tmp_path / "run"), *few]) == 0
    assert f"trained: {tmp_path / 'run'}" in capfd.readouterr().out
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 3
    assert run_command(["distill", str(trained.folder), "--student", "urnet-smal"]) == 2
    assert "urnet-smal: no such recipe" in capfd.readouterr().err


def test_two_images_to_paint_are_refused():
    with pytest.raises(RecipeError, match=r"set train\.auxiliary=0"):
        load_recipe("urnet-small", ["train.auxiliary=1"])
