"""Train a run from a table of cells and a recipe: pre-training, joint training, calibration, the bundle.

Read top to bottom, this is what `urnet train` does.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
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
from urnet.errors import RecipeError, RunError, TrainingError, UrnetError, list_first
from urnet.fields.cropping.settings import CropSettings
from urnet.files.atomic import atomic_file
from urnet.files.outputs import OutputLock, lock_output, refuse_existing
from urnet.images.scale import Scaling, fit_scaling, fit_scaling_0_1_0
from urnet.nets.joint import JointModel, build_joint
from urnet.progress import Reporter
from urnet.recipe import Pretrain, Recipe, Train, load_recipe
from urnet.run_folder import Run, check_not_within, order_classes
from urnet.training.allocator import as_usual
from urnet.training.calibrate import calibrate_model
from urnet.training.checkpoints import AtomicCheckpointIO, CheckpointCallback, read_checkpoint, truncate_history
from urnet.training.checks import check_forward_pass, translate_errors, warn_if_at_chance, warn_if_identity_not_learned
from urnet.training.data import TrainingData, prepare_data
from urnet.training.distillation_loss import DistillModule, seen_by_both
from urnet.training.lightning_modules import JointModule, PretrainModule, compute_class_weights, set_memory_format
from urnet.training.logging import muted_lightning
from urnet.training.losses import build_enhancement_loss
from urnet.training.recomputation import Recomputation, check_recomputation


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
    """Train one run, or one for each fold.

    Args:
        cells: a table, or the path of one.
        recipe: a recipe, a shipped recipe's name, or a YAML file.
        out: the run folder; with folds and no `split.fold`, the folder of the runs `fold0`, `fold1`, ….
        overrides: changes to a recipe that is named, `key=value`; a recipe object has `changed`.
        seed: of the training; the recipe's when not given.
        resume: go on with an interrupted run; with the same arguments it ends as if it had never stopped. An unfinished
            run of the same recipe and cells goes on without it, too; a finished one is refused.
        devices: processes on as many GPUs, or on the CPU.
        allow_leaks: train although a given split has one cell or donor in two parts.
        audit: of these cells, where it has been made already.
        reporter: receives progress and messages.

    Returns:
        The finished runs.

    Raises:
        UrnetError: the cells, the recipe or the folder do not allow it, or training diverged.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides := list(overrides):
        raise RecipeError(f"overrides {', '.join(overrides)} with a recipe object; use recipe.with_changes(…) for it")
    if seed is not None:
        recipe = recipe.with_changes(seed=seed)
    if recipe.distill is not None:
        raise RecipeError(
            f"recipe {recipe.name} has a section distill: it learns from a trained run. Use `urnet distill RUN "
            f"--student {recipe.name}` (or the recipe's file), or train it without a teacher by --set distill=null"
        )
    if not isinstance(cells, Cells):
        check_not_within(Path(out), Path(cells))
        cells = read_recipe_cells(Path(cells), recipe)
    out = Path(out)
    _check_devices(devices)

    @cache
    def audited() -> Audit:
        if audit is not None:
            return audit
        found = audit_cells(cells, progress=(lambda share: reporter.update("audit", share)) if reporter else None)
        kinds = [finding.kind for finding in found.findings]
        if reporter is not None:
            reporter.notify(describe_donors(cells))
        if kinds and reporter is not None:
            reporter.notify(f"audit: {format_counts(kinds)}; `urnet audit` (with the same --set) lists the files")
        return found

    if recipe.split.folds is None or recipe.split.fold is not None:
        return [train_one(cells, audited, recipe, out, resume, devices, allow_leaks, reporter)]
    folds = {out / f"fold{fold}": recipe.with_changes(split={"fold": fold}) for fold in range(recipe.split.folds)}
    runs = []
    with _claimed(out) as claim:
        resume = resume or _is_interrupted(folds, claim)
        if not resume and _rank() == 0:
            refuse_existing(out)
        for fold, (folder, one) in enumerate(folds.items()):
            if reporter is not None:
                reporter.notify(f"fold {fold} of {len(folds)}")
            runs.append(train_one(cells, audited, one, folder, resume, devices, allow_leaks, reporter))
    return runs


def train_one(
    cells: Cells,
    audit: Callable[[], Audit] | None,
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    devices: int = 1,
    allow_leaks: bool = False,
    reporter: Reporter | None = None,
    teacher: Model | None = None,
) -> Run:
    """Train one run; everything that can be wrong with cells and recipe shows itself before its folder is begun.

    Args:
        cells: undivided, or divided already where there is no audit.
        audit: makes that of the cells.
        recipe, out, resume, devices, allow_leaks, reporter: as in `train`.
        teacher: what the run learns from, as `recipe.distill` says.
    """
    with _claimed(out) as claim:
        resume = resume or _is_interrupted({out: recipe}, claim)
        return _train_one(Run(out), cells, audit, recipe, resume, devices, allow_leaks, reporter, teacher)


def _claimed(out: Path) -> AbstractContextManager[OutputLock]:
    """Claim a folder for all processes of a distributed training; the first one does."""
    return lock_output(out, in_place=True) if _rank() == 0 else nullcontext(OutputLock())


def _is_interrupted(recipes: Mapping[Path, Recipe], claim: OutputLock) -> bool:
    """Whether folders hold the runs of these very recipes, stopped before their end or killed right after it."""
    runs = {Run(folder): recipe for folder, recipe in recipes.items() if folder.is_dir()}
    try:
        same = all(not run.recipe_path.is_file() or run.recipe() == recipe for run, recipe in runs.items())
    except UrnetError:
        return False
    finished = sum(run.finished for run in runs)
    return bool(runs) and same and (claim.interrupted or finished < len(recipes))


def _train_one(
    run: Run,
    cells: Cells,
    audit: Callable[[], Audit] | None,
    recipe: Recipe,
    resume: bool,
    devices: int,
    allow_leaks: bool,
    reporter: Reporter | None,
    teacher: Model | None,
) -> Run:
    limit_torch()
    new = not (resume and run.recipe_path.is_file())
    if _rank() > 0:
        cells = run.wait().cells()
    elif new:
        run.refuse_existing()
        if audit is not None:
            cells = _divided(cells, audit(), recipe, allow_leaks, reporter)
    else:
        run.refuse_bundle()
        cells = _continued(run, cells, recipe, reporter)
    if run.finished:
        if reporter is not None:
            reporter.notify(f"{run.folder} is finished already")
        return run
    cells = use_cached_crops(cells)
    scaling, fit = _scaling_of(run) if run.recipe_path.is_file() else (None, fit_scaling)
    data = prepare_data(cells, recipe, reporter.update if reporter else None, scaling=scaling, fit=fit)
    if data.converted and reporter is not None:
        reporter.notify(f"{data.converted} image(s) converted between grey and colour")
    config = _config(data, recipe, cells.classes)
    check_config(config)
    L.seed_everything(recipe.seed, verbose=False)
    model = build_joint(
        recipe.enhancer.name,
        recipe.classifier.name,
        len(cells.classes),
        data.channels,
        enhancer_options=recipe.enhancer.options,
        classifier_options=recipe.classifier.options,
        pretrained=recipe.classifier.pretrained,
        weights=recipe.classifier.weights,
        concat_raw=recipe.classifier.input == "both",
    )
    if recipe.train.checkpointing:
        check_recomputation(model, recipe)
    check_forward_pass(model, data, recipe)
    learns = any(True for _ in model.enhancer.parameters())
    if recipe.pretrain.epochs and not learns and reporter is not None:
        reporter.notify(f"enhancer {recipe.enhancer.name} has nothing to learn; there is no pre-training")
    if new and _rank() == 0:
        hashing = (lambda share: reporter.update("hash cells", share)) if reporter else None
        Run.create(run.folder, recipe, cells, data.scaling, hashing)
    with translate_errors(run):
        if recipe.pretrain.epochs and learns:
            _pretrain(run, model, data, recipe, devices, reporter)
        module, seen = _joint_module(model, data, recipe, teacher, cells)
        epoch = _train_jointly(run, module, data, seen, recipe, devices, reporter)
        if _rank() == 0:
            warn_if_at_chance(run, epoch, data.validation.labels, recipe)
            if recipe.selection is not None:
                _select(run, model, data, recipe, reporter)
            trained = Model(replace(config, epoch=epoch), model)
            if run.cropping_path.is_file():
                trained.cropping = CropSettings.load(run.cropping_path)
            if recipe.protocol == "honest":  # protocol `paper` has no held-out part that training did not choose by
                trained.calibration = calibrate_model(trained, cells, progress=reporter.update if reporter else None)
            trained.save(run.model)
    return run


def _divided(cells: Cells, audit: Audit, recipe: Recipe, allow_leaks: bool, reporter: Reporter | None) -> Cells:
    """The cells of a new run with their parts."""
    divided = split_cells(cells, recipe, audit, allow_leaks=allow_leaks)
    if reporter is not None and recipe.protocol == "paper":
        reporter.notify("protocol paper: the epoch is chosen on the test part, so its figures will be optimistic")
    return replace(divided, classes=order_classes(recipe, divided))


def _continued(run: Run, cells: Cells, recipe: Recipe, reporter: Reporter | None) -> Cells:
    """The cells of an interrupted run, after a check that it is the same experiment."""
    if run.recipe() != recipe:
        raise RunError(
            f"{run.folder}: {_difference(run.recipe(), recipe)}; resume with the same recipe, or take a new --out"
        )
    if not run.has_cells(cells):
        raise RunError(f"{run.folder}: the run was begun with other cells; resume with the same, or take a new --out")
    changed = run.changed_images((lambda share: reporter.update("compare cells", share)) if reporter else None)
    if changed:
        raise RunError(
            f"{run.folder}: {len(changed)} image(s) have other pixels than when the run was begun: "
            f"{list_first(changed)} (from the run's folder). A run goes on with the very pixels that it began "
            "with; put the files back as they were, or train into a new --out"
        )
    return run.cells()


def _scaling_of(run: Run) -> tuple[Scaling | None, Callable[..., Scaling]]:
    """The scaling of a begun run, and the rule that fits one to its paired images."""
    scaling = run.scaling()
    return scaling, fit_scaling_0_1_0 if scaling is None else fit_scaling


def _difference(old: Recipe, new: Recipe) -> str:
    """The first key in which two recipes differ, in words."""

    def flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in data.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    before, after = dict(flat(old.model_dump())), dict(flat(new.model_dump()))
    key = next(key for key in [*before, *after] if before.get(key) != after.get(key))
    return f"the run was begun with {key}={before.get(key)}, now it is {after.get(key)}"


def _pretrain(
    run: Run, model: JointModel, data: TrainingData, recipe: Recipe, devices: int, reporter: Reporter | None
) -> None:
    """Train the enhancer by itself, and leave it with the weights of its lowest loss."""
    module = PretrainModule(model.enhancer, _loss(data, recipe), recipe.pretrain, recipe.augment, recipe.seed)
    # Under protocol `paper` the held part is the test part, which pre-training has no business with.
    held, monitor = (data.validation, "validation_loss") if recipe.protocol == "honest" else (None, "train_loss")
    checkpoints = CheckpointCallback(run.checkpoints / "pretrain", run.history_path, "pretrain", monitor, larger=False)
    _fit(run, module, checkpoints, data.train, held, recipe, recipe.pretrain, devices, reporter)
    best = read_checkpoint(checkpoints.best_path)
    model.enhancer.load_state_dict(_below("enhancer.", best["state_dict"]))
    if _rank() == 0:
        warn_if_identity_not_learned(run, best["epoch"] + 1, recipe)


def _joint_module(
    model: JointModel, data: TrainingData, recipe: Recipe, teacher: Model | None, cells: Cells
) -> tuple[JointModule, CellDataset]:
    """What trains enhancer and classifier, and the training part as it sees it."""
    weights = None
    if recipe.train.balance == "weights":
        weights = compute_class_weights(torch.from_numpy(np.bincount(data.train.labels, minlength=data.classes)))
    fixed = (recipe.train, recipe.augment, recipe.seed, data.classes, weights)
    if teacher is not None and recipe.distill is not None:
        module = DistillModule(teacher.joint, recipe.distill, model, nn.MSELoss(), *fixed)
        return module, seen_by_both(teacher, data, cells)
    # Without the term, its networks and their weights are not asked for.
    loss = _loss(data, recipe) if recipe.train.auxiliary else nn.Identity()
    return JointModule(model, loss, *fixed), data.train


def _train_jointly(
    run: Run,
    module: JointModule,
    data: TrainingData,
    seen: CellDataset,
    recipe: Recipe,
    devices: int,
    reporter: Reporter | None,
) -> int:
    """Train enhancer and classifier, leave the model with its best epoch's weights, and return that epoch."""
    monitor = "validation_macro_recall" if recipe.protocol == "honest" else "validation_accuracy"
    checkpoints = CheckpointCallback(run.checkpoints, run.history_path, "train", monitor, larger=True)
    _fit(run, module, checkpoints, seen, data.validation, recipe, recipe.train, devices, reporter)
    best = read_checkpoint(checkpoints.best_path)
    module.model.load_state_dict(_below("model.", best["state_dict"]))
    return int(best["epoch"]) + 1


def _loss(data: TrainingData, recipe: Recipe) -> nn.Module:
    settings = recipe.pretrain
    return build_enhancement_loss(
        settings.loss,
        channels=data.channels,
        size=data.size,
        perceptual=settings.perceptual,
        adversarial=settings.adversarial,
    )


def _below(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part of a training's state that belongs to one network."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _select(run: Run, model: JointModel, data: TrainingData, recipe: Recipe, reporter: Reporter | None) -> None:
    """Put a linear SVM over selected features in place of the classifier's last layer, and keep what was selected."""
    from urnet.nets.baselines.ant_colony import select_features  # scikit-learn takes a second to import

    progress = (lambda share: reporter.update("select features", share)) if reporter else None
    result = select_features(model, data.train, data.validation, recipe.selection, recipe.seed, progress=progress)
    with atomic_file(run.selection_path) as file:
        file.write((json.dumps(result.to_json(), indent=2) + "\n").encode())


def _fit(
    run: Run,
    module: PretrainModule | JointModule,
    checkpoints: CheckpointCallback,
    data: CellDataset,
    held: CellDataset | None,
    recipe: Recipe,
    settings: Pretrain | Train,
    devices: int,
    reporter: Reporter | None,
) -> None:
    """Train a stage to its end, from its beginning or from its last whole epoch."""
    resumed = checkpoints.last_path if checkpoints.last_path.is_file() else None
    done = int(read_checkpoint(resumed)["epoch"]) + 1 if resumed else 0
    if done >= settings.epochs:
        return
    if _rank() == 0:
        truncate_history(run.history_path, checkpoints.stage, done)
    callbacks: list[Callback] = [checkpoints]
    if reporter is not None:
        callbacks.append(reporter.epoch_bar(checkpoints.stage, settings.epochs))
    if recipe.train.checkpointing:
        callbacks.append(Recomputation())
    joint = isinstance(settings, Train)
    module.compiling, module.checkpointing = recipe.train.compile, recipe.train.checkpointing
    set_memory_format(module, torch.channels_last)
    with muted_lightning():
        trainer = L.Trainer(
            accelerator="cuda" if torch.cuda.is_available() else "cpu",  # as prediction; Apple's GPUs are untried
            devices=devices,
            strategy=_strategy(devices),
            precision=_precision(recipe.train.precision),
            max_epochs=settings.epochs,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=TensorBoardLogger(run.folder, name="tensorboard", version=checkpoints.stage),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(
                module,
                make_training_loader(
                    data,
                    settings.batch_size,
                    balanced=settings.balance == "sampling" if joint else True,
                    per_class=recipe.augment.per_class,
                    seed=recipe.seed,
                ),
                make_ordered_loader(held, settings.batch_size) if held is not None else None,
                ckpt_path=resumed,
                weights_only=True,
            )
        finally:  # what comes after has other needs; Lightning's own hook is not called after an error
            as_usual()
    set_memory_format(module, torch.contiguous_format)


def _config(data: TrainingData, recipe: Recipe, classes: tuple[str, ...]) -> ModelConfig:
    """The configuration of the model that is to be trained; the epoch is known at the end."""
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


def _rank() -> int:
    """This process's place in a run that torchrun or SLURM started; 0 alone."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def _strategy(devices: int) -> str:
    """Started by a launcher, the processes are there already; else they are spawned."""
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        return "ddp"
    return "ddp_spawn" if devices > 1 else "auto"


def _check_devices(devices: int) -> None:
    gpus = torch.cuda.device_count()
    if gpus and devices > gpus:
        raise TrainingError(f"--devices {devices}: this machine has {gpus} GPU(s); ask for that many at most")


def _precision(wanted: str) -> str:
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wanted]
