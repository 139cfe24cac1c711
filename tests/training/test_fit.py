"""Training: its files, its results, its repeatability, and its errors."""

import errno
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import urnet
from urnet.bundle.model import Model
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.evaluation.evaluate import evaluate
from urnet.nets import build_joint
from urnet.nets.joint import JointModel
from urnet.recipe import load_recipe
from urnet.training import checkpoints
from urnet.training.fit import train

SHORT = ("train.epochs=2", "augment.per_class=8")


class Listener:
    """A reporter that records its messages."""

    def __init__(self):
        self.messages, self.done, self.stages = [], [], []

    def update(self, task, share):
        self.done.append(task)

    def notify(self, message):
        self.messages.append(message)

    def epoch_bar(self, stage, epochs):
        from urnet.progress_bar import EpochBar

        self.stages.append((stage, epochs))
        return EpochBar(stage, epochs)


def weights(run) -> dict[str, torch.Tensor]:
    return run.load_model().joint.state_dict()


def equal(one, other) -> bool:
    one, other = weights(one), weights(other)
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_folder_holds_recipe_cells_checkpoints_history_and_bundle(trained, shapes, tiny):
    assert {path.name for path in trained.folder.iterdir()} >= {
        *("recipe.yaml", "cells.csv", "checkpoints", "history.csv", "model", "tensorboard"),
    }
    assert not list(trained.folder.rglob("*.part"))
    assert trained.recipe() == load_recipe(tiny)
    bundle = {"config.json", "model.safetensors", "calibration.json", "calibration.safetensors", "seal.json"}
    assert {path.name for path in trained.model.iterdir()} == bundle
    history = trained.history()
    assert history["stage"].tolist() == ["train"] * 4
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history.drop(columns=["stage", "identity_error"]).notna().all(axis=None)
    table = pd.read_csv(trained.cells_path)
    assert table["split"].value_counts().to_dict() == {"train": 42, "validation": 6, "test": 12}
    assert all((trained.folder / path).is_file() for path in table["path"])
    assert len(list((trained.folder / "tensorboard" / "train").glob("events*"))) == 1


@pytest.mark.slow
def test_training_learns_an_easy_task(trained):
    metrics = evaluate(trained).metrics
    assert metrics["macro_recall"]["value"] > 0.8


def test_the_chosen_epoch_is_the_first_with_the_best_validation_macro_recall(trained):
    scores = trained.history()["validation_macro_recall"]
    assert trained.load_model().config.epoch == int(scores.argmax()) + 1


@pytest.mark.slow
def test_same_seed_same_numbers_other_seed_others(shapes, tiny, tmp_path):
    one, same, other = (
        train(shapes, tiny, tmp_path / name, overrides=SHORT, seed=seed)[0]
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one.history_path.read_bytes() == same.history_path.read_bytes()
    assert equal(one, same)
    for name in ("calibration.json", "calibration.safetensors"):
        assert (one.model / name).read_bytes() == (same.model / name).read_bytes()
    assert one.history_path.read_bytes() != other.history_path.read_bytes()
    assert one.cells_path.read_bytes() == other.cells_path.read_bytes()  # the split has a seed of its own


@pytest.mark.slow
def test_split_seed_changes_the_parts_alone(shapes, tiny, tmp_path):
    runs = [
        train(shapes, tiny, tmp_path / f"{s}", overrides=["train.epochs=1", "augment.per_class=4", f"split.seed={s}"])[
            0
        ]
        for s in (0, 1)
    ]
    tables = [pd.read_csv(run.cells_path) for run in runs]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    assert tables[0]["split"].tolist() != tables[1]["split"].tolist()


def test_progress_is_reported(draw, tiny, tmp_path, capsys):
    cells = draw(tmp_path / "cells", 8)
    first = cells / "bar" / "000.png"
    Image.open(first).rotate(90).save(cells / "bar" / "turned.png")
    Image.open(first.with_name("001.png")).convert("RGB").save(first.with_name("001.png"))
    reporter = Listener()
    overrides = [*SHORT, "pretrain.epochs=1", "protocol=paper"]
    train(cells, tiny, tmp_path / "run", overrides=overrides, reporter=reporter)
    assert any(message.startswith("audit: 1 turned copy") for message in reporter.messages)
    assert any("converted between grey and colour" in message for message in reporter.messages)
    assert any("optimistic" in message for message in reporter.messages)
    assert reporter.stages == [("pretrain", 1), ("train", 2)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["pretrain epoch 1/1", "train epoch 1/2", "train epoch 2/2"]
    assert "macro recall" in lines[-1]
    assert "left 0.0 min" in lines[-1]


@pytest.mark.slow
def test_pretraining_starts_the_joint_training_from_its_lowest_loss(shapes, tiny, tmp_path):
    overrides = [
        *("enhancer.residual=false", "pretrain.epochs=3", "pretrain.optimizer=adamw", "pretrain.lr=0.01"),
        *("train.epochs=1", "train.enhancer_lr=0", "train.weight_decay=0", "augment.per_class=16"),
    ]
    run = train(shapes, tiny, tmp_path / "run", overrides=overrides)[0]
    history = run.history()
    assert history["stage"].tolist() == ["pretrain"] * 3 + ["train"]
    losses = history["validation_loss"][:3]
    assert losses.iloc[-1] < losses.iloc[0]
    best = checkpoints.read_checkpoint(run.checkpoints / "pretrain" / "best.ckpt")
    assert best["epoch"] == int(losses.argmin())
    parameters = dict(run.load_model().joint.enhancer.named_parameters())
    assert all(torch.equal(best["state_dict"][f"enhancer.{name}"], p) for name, p in parameters.items())


@pytest.mark.slow
def test_an_enhancer_rate_of_zero_leaves_the_enhancer_alone_and_none_trains_it(shapes, tiny, tmp_path):
    for rate, moved in (("0", False), ("null", True)):
        overrides = [*SHORT, f"train.enhancer_lr={rate}"]
        run = train(shapes, tiny, tmp_path / f"run-{rate}", overrides=overrides)[0]
        head = run.load_model().joint.enhancer.body.head
        assert any(bool(p.abs().sum() > 0) for p in head.parameters()) is moved  # zero-initialised (residual)


def paired_table(draw, folder):
    """Cells whose target is their negative."""
    cells = draw(folder, 8)
    rows = []
    for path in sorted(cells.rglob("*.png")):
        target = folder / "negative" / f"{path.parent.name}{path.name}"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(target)
        rows.append((path.relative_to(folder).as_posix(), path.parent.name, target.relative_to(folder).as_posix()))
    pd.DataFrame(rows, columns=["path", "label", "target"]).to_csv(folder / "cells.csv", index=False)
    return folder


@pytest.mark.slow
def test_pretraining_reproduces_the_paired_images(draw, tiny, tmp_path):
    cells = paired_table(draw, tmp_path / "cells")
    overrides = [
        *("pretrain.target=target", "pretrain.epochs=12", "pretrain.optimizer=adamw", "pretrain.lr=0.02"),
        *("pretrain.batch_size=6", "train.epochs=1", "train.enhancer_lr=0", "train.weight_decay=0"),
        "augment.per_class=12",
    ]
    run = train(cells, tiny, tmp_path / "run", overrides=overrides)[0]
    model = run.load_model()
    held = run.cells().part("test")
    inputs = np.stack([model.prepare(held.read(i)) for i in range(len(held))])
    _, enhanced = next(model.forward(inputs))
    error = ((enhanced - (1 - inputs)) ** 2).mean()
    assert error < 0.2 * ((inputs - (1 - inputs)) ** 2).mean()


def test_pretraining_towards_paired_images_needs_them(shapes, tiny, tmp_path, raises_code):
    with raises_code("cells.target_missing"):
        train(shapes, tiny, tmp_path / "run", overrides=["pretrain.target=target", "pretrain.epochs=1"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("classifier.name=test_resnot", "recipe.classifier_unknown"),
        ("enhancer.name=unit", "recipe.enhancer_unknown"),
        ("enhancer.depth=3", "recipe.enhancer_option"),
        ("classifier.weights=nowhere.pth", "weights.missing"),
        ("split.test=0.99", "cells.too_few"),
    ],
)
def test_a_mistake_in_the_recipe_leaves_no_run_folder(shapes, tiny, tmp_path, raises_code, override, code):
    with raises_code(code):
        train(shapes, tiny, tmp_path / "run", overrides=[override])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_constant_and_one_cycle_rates(shapes, tiny, tmp_path):
    rates = {}
    for schedule in ("constant", "onecycle"):
        overrides = [f"train.schedule={schedule}", "train.epochs=3", "augment.per_class=8"]
        rates[schedule] = train(shapes, tiny, tmp_path / schedule, overrides=overrides)[0].history()["lr"].tolist()
    assert rates["constant"] == pytest.approx([0.003] * 3)
    assert rates["onecycle"][0] > rates["onecycle"][1] > rates["onecycle"][2]


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_one_cycle_over_a_handful_of_steps(shapes, tiny, tmp_path, epochs):
    """Five steps in all, for which torch's own schedule divides by zero."""
    overrides = [f"train.epochs={epochs}", "augment.per_class=4", "train.batch_size=64"]
    history = train(shapes, tiny, tmp_path / "run", overrides=overrides)[0].history()
    assert len(history) == epochs
    assert (history["lr"] > 0).all()


@pytest.mark.parametrize("balance", ["sampling", "weights", "none"])
def test_every_way_to_balance_trains(draw, tiny, tmp_path, balance):
    cells = draw(tmp_path / "cells", 24, classes=("bar", "disc"))
    for path in sorted((cells / "bar").iterdir())[8:]:
        path.unlink()
    overrides = ["train.epochs=1", f"train.balance={balance}", "augment.per_class=null"]
    run = train(cells, tiny, tmp_path / "run", overrides=overrides)[0]
    assert len(run.history()) == 1


@pytest.mark.slow
def test_class_weights_change_the_loss(shapes, tiny, tmp_path):
    table = read_cells(shapes)
    kept = (table.table["label"] != "bar") | (np.arange(len(table)) < 6)
    few = table.where(kept)
    losses = [
        train(few, tiny, tmp_path / balance, overrides=["train.epochs=1", f"train.balance={balance}"])[0]
        .history()["train_loss"]
        .item()
        for balance in ("weights", "none")
    ]
    assert losses[0] != losses[1]


def test_a_loss_that_is_not_finite_stops_the_training(shapes, tiny, tmp_path, raises_code):
    overrides = ["train.optimizer=sgd", "train.lr=10", "train.schedule=constant", "enhancer.residual=false"]
    overrides += ["train.epochs=30", "train.momentum=0.99"]
    with raises_code("training.loss_not_finite") as e:
        train(shapes, tiny, tmp_path / "run", overrides=overrides)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint(shapes, tiny, tmp_path, monkeypatch, hidden, raises_code):
    """With `hidden`, the error of the full disk is the cause of another error, as in torch.save."""
    save, calls = torch.save, []

    def full(checkpoint, file):
        calls.append(file.name)
        if len(calls) < 3:
            return save(checkpoint, file)
        file.write(b"half a checkpoint")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            if hidden:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598") from error
            raise

    whole = train(shapes, tiny, tmp_path / "whole", overrides=SHORT)[0]
    monkeypatch.setattr(checkpoints.torch, "save", full)
    with raises_code("training.disk_full"):
        train(shapes, tiny, tmp_path / "run", overrides=SHORT)
    monkeypatch.undo()
    left = tmp_path / "run" / "checkpoints"
    assert not list(left.glob("*.part"))
    assert checkpoints.read_checkpoint(left / "last.ckpt")["epoch"] == 0
    run = train(shapes, tiny, tmp_path / "run", overrides=SHORT, resume=True)[0]
    assert run.history_path.read_bytes() == whole.history_path.read_bytes()
    assert equal(run, whole)


def test_out_of_memory_is_an_error(shapes, tiny, tmp_path, monkeypatch, raises_code):
    look_at_one = JointModel.enhance_and_classify

    def explain(self, x):
        if len(x) == 1:
            return look_at_one(self, x)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("urnet.nets.joint.JointModel.enhance_and_classify", explain)
    with raises_code("training.memory"):
        train(shapes, tiny, tmp_path / "run", overrides=SHORT)


@pytest.mark.slow
def test_only_full_batches_are_compiled(shapes, tiny, tmp_path, monkeypatch):
    sizes = []

    def compiled(function, **options):
        assert options == {"dynamic": False}
        return lambda images: sizes.append(len(images)) or function(images)

    monkeypatch.setattr(torch, "compile", compiled)
    overrides = [*SHORT, "augment.per_class=10", "pretrain.epochs=1", "pretrain.batch_size=8"]  # 30 cells an epoch
    plain = train(shapes, tiny, tmp_path / "plain", overrides=overrides)[0]
    assert not sizes
    run = train(shapes, tiny, tmp_path / "run", overrides=[*overrides, "train.compile=true"])[0]
    assert sizes == [8] * 3 + [12, 12] * 2
    assert equal(run, plain)


def test_networks_that_cannot_be_compiled_are_an_error(shapes, tiny, tmp_path, monkeypatch, raises_code):
    def compiled(function, **options):
        def fail(images):
            raise torch._dynamo.exc.InternalTorchDynamoError("no C++\ncompiler")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    with raises_code("training.compile"):
        train(shapes, tiny, tmp_path / "run", overrides=[*SHORT, "train.compile=true"])


@pytest.mark.slow
def test_networks_without_checkpointing_are_refused_before_the_run_starts(shapes, tiny, tmp_path, raises_code):
    overrides = ["enhancer={name: none}", "classifier.name=vgg11", "train.checkpointing=true"]
    with raises_code("recipe.checkpointing"):
        train(shapes, tiny, tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_checkpointing_changes_neither_weights_nor_calibration(shapes, tiny, tmp_path):
    overrides = [*SHORT, "enhancer.name=unetpp", "classifier={name: resnet10t, pretrained: false}"]
    for name in ("false", "true"):
        train(shapes, tiny, tmp_path / name, overrides=[*overrides, f"train.checkpointing={name}"])
    kept = sorted(file.name for file in (tmp_path / "true" / "model").iterdir())
    assert len(kept) == 5
    for file in kept:
        with_it, without = ((tmp_path / name / "model" / file).read_bytes() for name in ("true", "false"))
        assert with_it == without, file


@pytest.mark.slow
def test_protocol_paper_chooses_by_accuracy_on_the_balanced_test_part(shapes, tiny, tmp_path):
    run = train(shapes, tiny, tmp_path / "run", overrides=["protocol=paper", "train.epochs=3"])[0]
    assert set(pd.read_csv(run.cells_path)["split"]) == {"train", "test"}
    config = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    assert config["protocol"] == "paper"
    assert config["epoch"] == int(run.history()["validation_accuracy"].argmax()) + 1
    assert run.load_model().calibration is None  # there are no cells left that nothing was chosen by
    metrics = evaluate(run).metrics
    kept = run.history()["validation_accuracy"].max()
    assert metrics["accuracy"]["value"] == pytest.approx(kept, abs=1e-6)
    # augment.per_class counts 32 training images, and the test part gets a quarter of that: 8 of each class.
    assert [figures["support"] for figures in metrics["per_class"].values()] == [8, 8, 8]


@pytest.mark.slow
def test_folds_train_a_run_each_and_pool(shapes, tiny, tmp_path, raises_code):
    reporter = Listener()
    overrides = ["split.folds=3", "train.epochs=1", "augment.per_class=8"]
    runs = train(shapes, tiny, tmp_path / "cv", overrides=overrides, reporter=reporter)
    assert [run.folder.name for run in runs] == ["fold0", "fold1", "fold2"]
    assert [message for message in reporter.messages if "fold" in message][:1] == ["fold 0 of 3"]
    tested = pd.concat([pd.read_csv(run.cells_path).query("split == 'test'") for run in runs])
    assert sorted(tested["path"]) == sorted(pd.read_csv(runs[0].cells_path)["path"])
    metrics = evaluate(tmp_path / "cv").metrics
    assert metrics["n"] == 60
    assert len(metrics["epoch"]) == 3
    with raises_code("run.exists"):
        train(shapes, tiny, tmp_path / "cv", overrides=overrides)
    (tmp_path / "cv" / "fold2" / "model" / "config.json").unlink()
    with raises_code("evaluation.folds_unfinished") as caught:
        evaluate(tmp_path / "cv")
    assert all(part in str(caught.value) for part in ("2 of 3", "urnet train"))
    assert sum(message.startswith("audit: ") for message in reporter.messages) <= 1
    reporter.messages.clear()
    train(shapes, tiny, tmp_path / "cv", overrides=overrides, resume=True, reporter=reporter)
    assert [message for message in reporter.messages if "finished already" in message] == [
        f"{run.folder} is finished already" for run in runs[:2]
    ]
    one = train(shapes, tiny, tmp_path / "one", overrides=[*overrides, "split.fold=1"])[0]
    assert one.folder == tmp_path / "one"
    assert one.history_path.read_bytes() == runs[1].history_path.read_bytes()


@pytest.mark.slow
def test_outputs_have_the_names_of_the_classes_in_any_order(shapes, tiny, tmp_path):
    table = read_cells(shapes)
    turned = Cells(table.root, table.table, table.classes[::-1])
    plain = train(table, tiny, tmp_path / "plain", overrides=SHORT)[0]
    other = train(turned, tiny, tmp_path / "turned", overrides=SHORT)[0]
    assert plain.load_model().classes == other.load_model().classes == ("bar", "disc", "ring")
    assert equal(plain, other)


@pytest.mark.slow
def test_recipe_classes_merge_and_order(shapes, tiny, tmp_path):
    overrides = [*SHORT, "classes.solid=[disc, bar]", "classes.hollow=ring"]
    run = train(shapes, tiny, tmp_path / "run", overrides=overrides)[0]
    assert run.load_model().classes == ("solid", "hollow")
    assert run.cells().classes == ("solid", "hollow")


def test_a_depth_that_only_one_part_has_is_found_before_training(draw, tiny, tmp_path, raises_code):
    cells = draw(tmp_path / "cells", 10)
    deep = draw(tmp_path / "deep", 10, dtype=np.uint16, seed=1)
    rows = [(p.relative_to(tmp_path).as_posix(), p.parent.name, "train") for p in sorted(cells.rglob("*.png"))]
    rows += [(p.relative_to(tmp_path).as_posix(), p.parent.name, "test") for p in sorted(deep.rglob("*.png"))]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "cells.csv", index=False)
    with raises_code("cells.depths"):
        train(tmp_path / "cells.csv", tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sixteen_bits_are_scaled_by_percentiles_of_the_training_part(draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 8, dtype=np.uint16, suffix=".tif")
    run = train(cells, tiny, tmp_path / "run", overrides=SHORT)[0]
    scaling = run.load_model().config.scaling
    assert scaling.dtype == "uint16"
    assert 9_000 < scaling.low < 12_500 < 18_500 < scaling.high < 22_000


def test_overrides_do_not_go_with_a_recipe_object(shapes, tiny, tmp_path, raises_code):
    with raises_code("recipe.overrides"):
        train(shapes, load_recipe(tiny), tmp_path / "run", overrides=["train.epochs=1"])


@pytest.mark.slow
def test_the_package_has_a_line_for_each_step(shapes, tiny, tmp_path):
    recipe = load_recipe(tiny, SHORT)
    run = urnet.train(shapes, recipe, tmp_path / "run")
    assert urnet.evaluate(run).report.is_file()
    model = urnet.load(tmp_path / "run")
    assert isinstance(model, Model)
    assert len(model.predict(sorted((shapes / "bar").iterdir())[:2])) == 2


def test_an_image_that_cannot_be_read_is_named_before_training(draw, tiny, tmp_path, raises_code):
    cells = draw(tmp_path / "cells", 8)
    broken = cells / "disc" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with raises_code("cells.unreadable") as caught:
        train(cells, tiny, tmp_path / "run")
    assert all(part in str(caught.value) for part in ("disc", "000.png"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_together_and_in_silence(shapes, tiny, tmp_path, capfd):
    """The test is slow, because two processes start."""
    overrides = ["train.epochs=2", "augment.per_class=16"]
    run = train(shapes, tiny, tmp_path / "run", overrides=overrides, devices=2, reporter=Listener())[0]
    assert run.history()["epoch"].tolist() == [1, 2]
    assert run.load_model().config.epoch in (1, 2)
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["train epoch 1/2", "train epoch 2/2"]
    assert err == ""


@pytest.mark.slow
def test_the_papers_full_size_network_takes_a_step_of_each_training():
    """net4 as in the paper (w = 64, ResNet101, 200 px) with random weights and two cells a batch."""
    import lightning as L

    from urnet.cells.batches import CellDataset, make_training_loader
    from urnet.images.scale import Scaling
    from urnet.training.lightning_modules import JointModule, PretrainModule

    recipe = load_recipe("net4", ["pretrain.batch_size=2", "train.batch_size=2"])
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 200, 200)).astype(np.uint8)
    data = CellDataset(images, np.array([0, 1]), Scaling(0, 255, "uint8"))
    model = build_joint("urnet", "resnet101", 3, 3, enhancer_options=recipe.enhancer.options)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    stages = (
        PretrainModule(model.enhancer, nn.MSELoss(), recipe.pretrain, recipe.augment, 0),
        JointModule(model, nn.MSELoss(), recipe.train, recipe.augment, 0, 3),
    )
    for module in stages:
        loader = make_training_loader(data, 2, balanced=False, per_class=None, seed=0)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        assert torch.isfinite(trainer.callback_metrics["train_loss"])
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert any(name.startswith("enhancer.") for name in moved)
    assert any(name.startswith("classifier.") for name in moved)
