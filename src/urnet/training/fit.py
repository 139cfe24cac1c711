"""Train a run from a table of cells and a recipe: pre-training, joint training, the bundle.

Read top to bottom, this is what `urnet train` does.
"""

import errno
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from urnet.bundle import Model, ModelConfig
from urnet.cells.audit import Audit, audit_cells
from urnet.cells.batches import CellDataset, ordered_loader, train_loader
from urnet.cells.divide import divide
from urnet.cells.table import Cells, read_cells
from urnet.errors import RunError, TrainingError
from urnet.nets.joint import JointModel, build_joint
from urnet.recipe import Recipe, load_recipe
from urnet.training.checkpoints import Keeper, WholeFileIO, cut_history
from urnet.training.data import Prepared, prepare
from urnet.training.modules import JointModule, PretrainModule, inverse_frequency
from urnet.training.run import Run, refuse_existing


class Watcher(Protocol):
    """Who is told how a training goes; the command shows bars."""

    def doing(self, what: str, share: float) -> None:
        """Preparation: what is done, and how much of it."""

    def say(self, message: str) -> None:
        """Something that the user should know."""

    def epoch_bar(self, stage: str, epochs: int) -> Callback:
        """A Lightning callback that shows the epochs of a stage."""


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
    watcher: Watcher | None = None,
) -> list[Run]:
    """Train one run, or one for each fold.

    Args:
        cells: a table, or the path of one.
        recipe: a recipe, a shipped recipe's name, or a YAML file.
        out: the run folder; with folds and no `split.fold`, the folder of the runs `fold0`, `fold1`, ….
        overrides: changes to the recipe, `key=value`.
        seed: of the training; the recipe's when not given.
        resume: go on with an interrupted run; with the same arguments it ends as if it had never stopped.
        devices: processes on as many GPUs, or on the CPU.
        allow_leaks: train although a given split has one cell or donor in two parts.
        watcher: is told how it goes.

    Returns:
        The finished runs.

    Raises:
        UrnetError: the cells, the recipe or the folder do not allow it; training diverged or was interrupted.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    if seed is not None:
        recipe = recipe.changed(seed=seed)
    if not isinstance(cells, Cells):
        cells = read_cells(
            Path(cells), tile=recipe.tile, image=recipe.image, target=recipe.target, classes=recipe.classes
        )
    out = Path(out)

    @cache
    def audit() -> Audit:
        return audit_cells(cells, progress=(lambda share: watcher.doing("audit", share)) if watcher else None)

    if recipe.split.folds is None or recipe.split.fold is not None:
        return [_train_one(cells, audit, recipe, out, resume, devices, allow_leaks, watcher)]
    if not resume:
        refuse_existing(out)
    runs = []
    for fold in range(recipe.split.folds):
        if watcher is not None:
            watcher.say(f"fold {fold} of {recipe.split.folds}")
        one = recipe.changed(split={"fold": fold})
        runs.append(_train_one(cells, audit, one, out / f"fold{fold}", resume, devices, allow_leaks, watcher))
    return runs


def _train_one(
    cells: Cells,
    audit: Callable[[], Audit],
    recipe: Recipe,
    out: Path,
    resume: bool,
    devices: int,
    allow_leaks: bool,
    watcher: Watcher | None,
) -> Run:
    run = _begin(cells, audit, recipe, out, resume, allow_leaks, watcher)
    if run.finished:
        if watcher is not None:
            watcher.say(f"{run.folder} is finished already")
        return run
    with _plain_errors(run):
        data = prepare(run.cells(), recipe, watcher.doing if watcher else None)
        if data.converted and watcher is not None:
            watcher.say(f"{data.converted} image(s) converted between grey and colour")
        L.seed_everything(recipe.seed, verbose=False)
        model = build_joint(
            recipe.enhancer.name,
            recipe.classifier.name,
            data.classes,
            data.channels,
            enhancer_options=recipe.enhancer.options,
            classifier_options=recipe.classifier.options,
            pretrained=recipe.classifier.pretrained,
            weights=recipe.classifier.weights,
        )
        if recipe.pretrain.epochs and recipe.enhancer.name != "none":
            _pretrain(run, model, data, recipe, devices, watcher)
        epoch = _train_jointly(run, model, data, recipe, devices, watcher)
        _bundle(run, model, data, recipe, cells.classes, epoch).save(run.model)
    return run


def _begin(
    cells: Cells,
    audit: Callable[[], Audit],
    recipe: Recipe,
    out: Path,
    resume: bool,
    allow_leaks: bool,
    watcher: Watcher | None,
) -> Run:
    """A new run folder, or an interrupted one after a check that it is the same experiment."""
    if _rank() > 0:
        return Run(out).wait()
    if resume and Run(out).recipe_path.is_file():
        run = Run.open(out)
        if run.recipe() != recipe:
            raise RunError(
                f"{out}: {_difference(run.recipe(), recipe)}; resume with the same recipe, or take a new --out"
            )
        if sorted(run.cells().table["source"]) != sorted(cells.table["source"]):
            raise RunError(f"{out}: the run was begun with other cells; resume with the same, or take a new --out")
        return run
    refuse_existing(out)
    divided = divide(cells, recipe, audit(), allow_leaks=allow_leaks)
    if watcher is not None and audit().findings:
        kinds = [finding.kind for finding in audit().findings]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        watcher.say(f"audit: {counts}; `urnet audit` lists the files")
    return Run.create(out, recipe, divided)


def _difference(old: Recipe, new: Recipe) -> str:
    """The first key in which two recipes differ, in words."""

    def flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in data.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    before, after = dict(flat(old.model_dump())), dict(flat(new.model_dump()))
    key = next(key for key in [*before, *after] if before.get(key) != after.get(key))
    return f"the run was begun with {key}={before.get(key)}, now it is {after.get(key)}"


def _pretrain(
    run: Run, model: JointModel, data: Prepared, recipe: Recipe, devices: int, watcher: Watcher | None
) -> None:
    """Train the enhancer by itself, and leave it with the weights of its lowest loss."""
    folder = run.checkpoints / "pretrain"
    done = run.checkpoints / "pretrained.pt"
    if not done.is_file():
        module = PretrainModule(model.enhancer, recipe.pretrain, recipe.augment, recipe.seed)
        # Under protocol `paper` the held part is the test part, which pre-training has no business with.
        honest = recipe.protocol == "honest"
        keeper = Keeper(
            folder, run.history_path, "pretrain", "validation_loss" if honest else "train_loss", larger=False
        )
        _fit(
            run,
            module,
            keeper,
            data.train,
            data.validation if honest else None,
            recipe,
            recipe.pretrain,
            devices,
            watcher,
        )
        best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        WholeFileIO().save_checkpoint(best, done)
        (folder / "last.ckpt").unlink(missing_ok=True)
    state = torch.load(done, map_location="cpu", weights_only=True)
    model.enhancer.load_state_dict({name.removeprefix("enhancer."): tensor for name, tensor in state.items()})


def _train_jointly(
    run: Run, model: JointModel, data: Prepared, recipe: Recipe, devices: int, watcher: Watcher | None
) -> int:
    """Train enhancer and classifier, leave the model with its best epoch's weights, and return that epoch."""
    classes = data.classes
    weights = None
    if recipe.train.balance == "weights":
        weights = inverse_frequency(torch.bincount(torch.from_numpy(data.train.labels), minlength=classes))
    module = JointModule(model, recipe.train, recipe.augment, recipe.seed, classes, weights)
    monitor = "validation_macro_recall" if recipe.protocol == "honest" else "validation_accuracy"
    keeper = Keeper(run.checkpoints, run.history_path, "train", monitor, larger=True)
    _fit(run, module, keeper, data.train, data.validation, recipe, recipe.train, devices, watcher)
    state = torch.load(run.checkpoints / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    history = run.history()
    scores = history[history["stage"] == "train"][monitor]
    return int(scores.to_numpy().argmax()) + 1


def _fit(
    run: Run,
    module: L.LightningModule,
    keeper: Keeper,
    data: CellDataset,
    held: CellDataset | None,
    recipe: Recipe,
    settings: Any,
    devices: int,
    watcher: Watcher | None,
) -> None:
    last = keeper.folder / "last.ckpt"
    resumed = last if last.is_file() else None
    epochs_done = int(torch.load(last, map_location="cpu", weights_only=True)["epoch"]) + 1 if resumed else 0
    if _rank() == 0:
        cut_history(run.history_path, keeper.stage, epochs_done)
    callbacks: list[Callback] = [keeper]
    if watcher is not None:
        callbacks.append(watcher.epoch_bar(keeper.stage, settings.epochs))
    precision = getattr(settings, "precision", "auto")
    with _quiet():
        trainer = L.Trainer(
            accelerator="auto",
            devices=devices,
            strategy=_strategy(devices),
            precision=_precision(precision),
            max_epochs=settings.epochs,
            callbacks=callbacks,
            plugins=[WholeFileIO()],
            logger=TensorBoardLogger(run.folder, name="tensorboard", version=keeper.stage),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        trainer.fit(
            module,
            train_loader(
                data,
                settings.batch_size,
                balanced=getattr(settings, "balance", "sampling") == "sampling",
                per_class=recipe.augment.per_class,
                seed=recipe.seed,
            ),
            ordered_loader(held, settings.batch_size) if held is not None else None,
            ckpt_path=resumed,
            weights_only=True,
        )


def _bundle(run: Run, model: JointModel, data: Prepared, recipe: Recipe, classes: tuple[str, ...], epoch: int) -> Model:
    config = ModelConfig(
        name=recipe.name,
        classes=classes,
        size=data.size,
        channels=data.channels,
        scaling=data.scaling,
        enhancer={"name": recipe.enhancer.name, **recipe.enhancer.options},
        classifier={"name": recipe.classifier.name, **recipe.classifier.options},
        tile=recipe.tile,
        protocol=recipe.protocol,
        seed=recipe.seed,
        epoch=epoch,
    )
    return Model(config, model)


def _rank() -> int:
    """This process's place in a run that torchrun or SLURM started; 0 alone."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def _strategy(devices: int) -> str:
    """Started by a launcher, the processes are there already; else they are spawned."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return "ddp"
    return "ddp_spawn" if devices > 1 else "auto"


def _precision(wanted: str) -> str:
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wanted]


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks about loaders and hardware are not for the user of a command."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _plain_errors(run: Run) -> Iterator[None]:
    """What can happen during hours of training, said in one line, with what is kept."""
    handler = signal.getsignal(signal.SIGINT)
    kept = f"{run.folder} keeps the last whole epoch; the same command with --resume goes on from there"
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        # Lightning ends a process on Ctrl-C and leaves the signal ignored.
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise TrainingError(f"interrupted; {kept}") from None
    except torch.cuda.OutOfMemoryError:
        raise TrainingError(f"the GPU's memory is full; lower train.batch_size or input.size. {kept}") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TrainingError(f"the disk is full while writing {run.folder}; free space. {kept}") from None
