"""Lightning trainer of one stage: devices, processes, precision, logs."""

import os
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from urnet.errors import TrainingError
from urnet.run_folder import Run
from urnet.training.checkpoints import AtomicCheckpointIO


def build_trainer(
    run: Run, stage: str, epochs: int, callbacks: Sequence[Callback], *, devices: int, precision: str
) -> L.Trainer:
    """Build the trainer of one stage.

    Args:
        run: run folder, which receives the TensorBoard logs.
        stage: `pretrain` or `train`.
        epochs: number of epochs.
        callbacks: callbacks of the stage.
        devices: number of GPUs, or of processes on the CPU.
        precision: `train.precision` of the recipe.
    """
    return L.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",  # as in prediction; Apple's GPUs are untested
        devices=devices,
        strategy=choose_strategy(devices),
        precision=choose_precision(precision),
        max_epochs=epochs,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        logger=TensorBoardLogger(run.folder, name="tensorboard", version=stage),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def get_rank() -> int:
    """Return the number of this process, from 0, in a training that torchrun or SLURM started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def check_devices(devices: int) -> None:
    """Check that the machine has as many GPUs as asked for, if it has any.

    Raises:
        TrainingError: it has fewer.
    """
    gpus = torch.cuda.device_count()
    if gpus and devices > gpus:
        raise TrainingError(
            f"--devices {devices}: this machine has {gpus} GPU(s); use at most that many", code="training.devices"
        )


def choose_strategy(devices: int) -> str:
    """Return the Lightning strategy: a launcher has already started the processes, or Lightning spawns them."""
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        return "ddp"
    return "ddp_spawn" if devices > 1 else "auto"


def choose_precision(precision: str) -> str:
    """Return the Lightning precision of a recipe's `train.precision`: 32, bf16, 16 or auto."""
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
