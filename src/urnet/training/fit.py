"""Train UR-Net, or any other recipe, as `urnet train` does: read this module from top to bottom.

1. Data (paper, section 3.1): audit, split, decode, scale.
2. Networks (section 3.2): an enhancer and a classifier, joined.
3. Pre-training (section 3.3): the enhancer learns to reproduce its input.
4. Joint training (section 3.3, Eq. 3): enhancer and classifier learn from the label.
5. Calibration (not in the paper): temperature, prediction sets and rejection.
6. Bundle: the trained model as a folder.

Around it: `lightning_modules` (the steps of both stages), `losses`, `data` (decoded cells), `trainer` (devices and
precision), `checkpoints`, `resume`, `checks` (warnings and errors), `calibrate`.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn

from urnet.bundle.config import ModelConfig, check_config
from urnet.bundle.model import Model
from urnet.cells.audit import Audit, audit_cells, describe_donors, format_counts
from urnet.cells.batches import CellDataset, make_ordered_loader, make_training_loader
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.read import read_recipe_cells
from urnet.cells.split import split_cells
from urnet.cells.table import Cells
from urnet.cpus import limit_torch
from urnet.errors import RecipeError
from urnet.fields.cropping.settings import CropSettings
from urnet.files.atomic import atomic_file
from urnet.files.outputs import refuse_existing
from urnet.nets.checkpointing import activation_checkpointing
from urnet.nets.joint import JointModel, build_from_recipe
from urnet.progress import NoProgress, Reporter
from urnet.recipe import Recipe, Train, load_recipe
from urnet.run_folder import Run, check_not_within, order_classes
from urnet.training.calibrate import calibrate_model
from urnet.training.checkpoints import CheckpointCallback, read_checkpoint, truncate_history
from urnet.training.checks import check_networks, translate_errors, warn_if_at_chance, warn_if_identity_not_learned
from urnet.training.data import TrainingData, prepare_data
from urnet.training.lightning_modules import JointModule, PretrainModule, TrainingModule, set_memory_format
from urnet.training.logging import muted_lightning
from urnet.training.losses import build_enhancement_loss, compute_class_weights
from urnet.training.resume import is_interrupted, lock_run, read_cells_of
from urnet.training.trainer import build_trainer, check_devices, get_rank


def train(
    cells: Cells | Path | str,
    recipe: Recipe | str | Path = "quick",
    out: Path | str = "run",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    resume: bool = False,
    devices: int = 1,
    allow_leaks: bool = False,
    audit: Audit | None = None,
    reporter: Reporter | None = None,
) -> list[Run]:
    """Train one run, or one run for each fold.

    Args:
        cells: a cells table, or its path.
        recipe: a recipe, the name of a shipped recipe, or a YAML file.
        out: the run folder. With folds and no `split.fold`: the folder of the runs `fold0`, `fold1`, ….
        overrides: changes `key=value` to a recipe that is given by its name or file.
        seed: seed of the training; the recipe's by default.
        resume: continue an interrupted run, and accept a finished one. An interrupted run of the same recipe and cells
            is continued without it too.
        devices: number of GPUs, or of processes on the CPU.
        allow_leaks: train even if a given split has one cell or donor in two parts.
        audit: audit of these cells, if it exists already.
        reporter: receives progress and messages.

    Returns:
        The finished runs.

    Raises:
        UrnetError: the cells, the recipe or the folder do not allow training, or training diverged.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    reporter, out = reporter or NoProgress(), Path(out)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides := list(overrides):
        raise RecipeError(
            f"overrides {', '.join(overrides)} need a recipe's name or file. Change a recipe object by "
            "recipe.with_changes(…)",
            code="recipe.overrides",
        )
    if seed is not None:
        recipe = recipe.with_changes(seed=seed)
    if not isinstance(cells, Cells):
        check_not_within(out, Path(cells))
        cells = read_recipe_cells(Path(cells), recipe)
    check_devices(devices)

    @cache
    def get_audit() -> Audit:
        if audit is not None:
            return audit
        made = audit_cells(cells, progress=lambda share: reporter.update("audit", share))
        reporter.notify(describe_donors(cells))
        if made.findings:
            kinds = [finding.kind for finding in made.findings]
            reporter.notify(f"audit: {format_counts(kinds)}; `urnet audit` (with the same --set) lists the files")
        return made

    options = {"resume": resume, "devices": devices, "allow_leaks": allow_leaks, "reporter": reporter}
    if recipe.split.folds is None or recipe.split.fold is not None:
        with lock_run(out) as lock:
            options["resume"] |= is_interrupted({out: recipe}, lock)
            return [_train_run(Run(out), cells, get_audit, recipe, **options)]
    folds = {out / f"fold{fold}": recipe.with_changes(split={"fold": fold}) for fold in range(recipe.split.folds)}
    runs = []
    with lock_run(out) as lock:
        options["resume"] |= is_interrupted(folds, lock)
        if not options["resume"] and get_rank() == 0:
            refuse_existing(out)
        for number, (folder, fold_recipe) in enumerate(folds.items()):
            reporter.notify(f"fold {number} of {len(folds)}")
            runs.append(_train_run(Run(folder), cells, get_audit, fold_recipe, **options))
    return runs


def _train_run(
    run: Run,
    cells: Cells,
    get_audit: Callable[[], Audit],
    recipe: Recipe,
    *,
    resume: bool,
    devices: int,
    allow_leaks: bool,
    reporter: Reporter,
) -> Run:
    """Train one run. Errors of cells and recipe are raised before the run folder is created."""
    limit_torch()
    honest = recipe.protocol == "honest"  # protocol paper has no validation part: the test part chooses the epoch

    # 1. Data (section 3.1). Cells are audited and split, or read from the run folder of an interrupted run.
    is_new = not (resume and run.recipe_path.is_file())
    if get_rank() > 0:
        cells = run.wait().cells()
    elif is_new:
        run.refuse_existing()
        if not honest:
            reporter.notify("protocol paper: the epoch is chosen on the test part, so its figures are optimistic")
        cells = split_cells(cells, recipe, get_audit(), allow_leaks=allow_leaks)
        cells = replace(cells, classes=order_classes(recipe, cells))
    else:
        cells = read_cells_of(run, cells, recipe, lambda share: reporter.update("compare cells", share))
    if run.finished:
        reporter.notify(f"{run.folder} is finished already")
        return run
    cells = use_cached_crops(cells)
    data = prepare_data(cells, recipe, reporter.update, run=run if run.recipe_path.is_file() else None)
    if data.converted:
        reporter.notify(f"{data.converted} image(s) converted between grey and colour")
    config = _build_config(data, recipe, cells.classes)
    check_config(config)

    # 2. Networks (section 3.2, Fig. 2a).
    L.seed_everything(seed_of_weights(recipe), verbose=False)
    model = build_from_recipe(recipe, data.classes, data.channels, load_weights=True)
    check_networks(model, data, recipe)
    if is_new and get_rank() == 0:
        Run.create(run.folder, recipe, cells, data.scaling, lambda share: reporter.update("hash cells", share))

    with translate_errors(run):
        # 3. Pre-training (section 3.3): the enhancer alone; the epoch with the lowest loss.
        if recipe.pretrain.epochs and any(True for _ in model.enhancer.parameters()):
            pretraining = _build_pretraining(model, data, recipe)
            validation, monitor = (data.validation, "validation_loss") if honest else (None, "train_loss")
            checkpoint = CheckpointCallback(
                run.checkpoints / "pretrain", run.history_path, "pretrain", monitor, larger=False
            )
            epoch = _fit_stage(run, pretraining, data.train, validation, checkpoint, recipe, devices, reporter)
            if get_rank() == 0:
                warn_if_identity_not_learned(run, epoch, recipe)
        elif recipe.pretrain.epochs:
            reporter.notify(f"enhancer {recipe.enhancer.name} has no parameters; there is no pre-training")

        # 4. Joint training (section 3.3, Eq. 3): the epoch with the best macro recall (paper: accuracy).
        joint_training = _build_joint_training(model, data, recipe)
        monitor = "validation_macro_recall" if honest else "validation_accuracy"
        checkpoint = CheckpointCallback(run.checkpoints, run.history_path, "train", monitor, larger=True)
        epoch = _fit_stage(run, joint_training, data.train, data.validation, checkpoint, recipe, devices, reporter)
        if get_rank() > 0:
            return run
        warn_if_at_chance(run, epoch, data.validation.labels, recipe)
        if recipe.selection is not None:
            _select_features(run, model, data, recipe, reporter)

        # 5. Calibration.
        trained = Model(replace(config, epoch=epoch), model)
        if run.cropping_path.is_file():
            trained.cropping = CropSettings.load(run.cropping_path)
        if honest:
            trained.calibration = calibrate_model(trained, cells, progress=reporter.update)

        # 6. Bundle.
        trained.save(run.model)
    return run


def seed_of_weights(recipe: Recipe) -> int:
    """Compute the seed of the initial weights, which differ between folds and between splits.

    Folds that start from the same weights would share their luck, and the spread between folds would not show it.
    """
    return (recipe.seed + 1_009 * (recipe.split.fold or 0) + 1_000_003 * recipe.split.seed) % 2**32


def _build_pretraining(model: JointModel, data: TrainingData, recipe: Recipe) -> PretrainModule:
    return PretrainModule(model.enhancer, _build_loss(data, recipe), recipe.pretrain, recipe.augment, recipe.seed)


def _build_joint_training(model: JointModel, data: TrainingData, recipe: Recipe) -> JointModule:
    weights = None
    if recipe.train.balance == "weights":
        weights = compute_class_weights(torch.from_numpy(np.bincount(data.train.labels, minlength=data.classes)))
    loss = _build_loss(data, recipe) if recipe.train.auxiliary else nn.Identity()
    return JointModule(model, loss, recipe.train, recipe.augment, recipe.seed, data.classes, weights)


def _build_loss(data: TrainingData, recipe: Recipe) -> nn.Module:
    settings = recipe.pretrain
    return build_enhancement_loss(
        settings.loss,
        channels=data.channels,
        size=data.size,
        perceptual=settings.perceptual,
        adversarial=settings.adversarial,
    )


def _fit_stage(
    run: Run,
    module: TrainingModule,
    train_cells: CellDataset,
    validation_cells: CellDataset | None,
    checkpoint: CheckpointCallback,
    recipe: Recipe,
    devices: int,
    reporter: Reporter,
) -> int:
    """Train one stage to its end, from its start or after its last complete epoch.

    Returns:
        The best epoch, from 1. The trained network has its weights.
    """
    settings = module.settings
    last = checkpoint.last_path if checkpoint.last_path.is_file() else None
    done = read_checkpoint(last)["epoch"] + 1 if last else 0
    if done < settings.epochs:
        if get_rank() == 0:
            truncate_history(run.history_path, module.stage, done)
        module.compiling, module.checkpointing = recipe.train.compile, recipe.train.checkpointing
        callbacks = [checkpoint, reporter.epoch_bar(module.stage, settings.epochs)]
        balanced = not isinstance(settings, Train) or settings.balance == "sampling"
        set_memory_format(module, torch.channels_last)
        recompute = activation_checkpointing(module.network) if module.checkpointing else nullcontext()
        with muted_lightning(), recompute:
            trainer = build_trainer(
                run, module.stage, settings.epochs, callbacks, devices=devices, precision=recipe.train.precision
            )
            trainer.fit(
                module,
                make_training_loader(
                    train_cells,
                    settings.batch_size,
                    balanced=balanced,
                    per_class=recipe.augment.per_class,
                    seed=recipe.seed,
                ),
                make_ordered_loader(validation_cells, settings.batch_size) if validation_cells is not None else None,
                ckpt_path=last,
                weights_only=True,
            )
        set_memory_format(module, torch.contiguous_format)
    best, prefix = read_checkpoint(checkpoint.best_path), f"{module.network_name}."
    weights = {name.removeprefix(prefix): x for name, x in best["state_dict"].items() if name.startswith(prefix)}
    module.network.load_state_dict(weights)
    return best["epoch"] + 1


def _select_features(run: Run, model: JointModel, data: TrainingData, recipe: Recipe, reporter: Reporter) -> None:
    """Replace the last layer of the classifier by a linear SVM over selected features (recipe shahzad2022)."""
    from urnet.nets.baselines.ant_colony import select_features  # scikit-learn takes a second to import

    result = select_features(
        model,
        data.train,
        data.validation,
        recipe.selection,
        recipe.seed,
        progress=lambda share: reporter.update("select features", share),
    )
    with atomic_file(run.selection_path) as file:
        file.write((json.dumps(result.to_json(), indent=2) + "\n").encode())


def _build_config(data: TrainingData, recipe: Recipe, classes: tuple[str, ...]) -> ModelConfig:
    """Build the configuration of the model; its epoch is not known yet."""
    return ModelConfig(
        name=recipe.name,
        classes=classes,
        size=data.size,
        channels=data.channels,
        scaling=data.scaling,
        enhancer={"name": recipe.enhancer.name, **recipe.enhancer.options},
        classifier={"name": recipe.classifier.name, "input": recipe.classifier.input, **recipe.classifier.options},
        tile=recipe.tile,
        image=recipe.image,
        protocol=recipe.protocol,
        seed=recipe.seed,
    )
