"""Checks before and after training, and plain messages for errors during training."""

import copy
import errno
import logging
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.multiprocessing import ProcessRaisedException

from urnet.errors import RecipeError, TrainingError
from urnet.nets.checkpointing import supports_checkpointing
from urnet.nets.joint import JointModel
from urnet.recipe import Recipe
from urnet.run_folder import Run
from urnet.training.data import TrainingData

DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Error numbers of a full disk or an exceeded quota."""

Z_95 = 1.645
"""One-sided 95 % quantile of the normal distribution."""

IDENTITY_THRESHOLD = 0.01
"""Largest error of a learned identity, as a share of the images' own variance."""

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def check_networks(model: JointModel, data: TrainingData, recipe: Recipe) -> None:
    """Check with a black image that the networks accept such images, and their batch norms such batches.

    Raises:
        RecipeError: the networks do not accept them, or no network has activation checkpointing.
        TrainingError: the memory is full with one image.
    """
    if recipe.train.checkpointing and not supports_checkpointing(model):
        raise RecipeError(
            f"train.checkpointing=true: neither enhancer {recipe.enhancer.name} nor classifier "
            f"{recipe.classifier.name} has activation checkpointing. Set it to false, and lower train.batch_size if "
            "memory is short",
            code="recipe.checkpointing",
        )
    single = recipe.train.batch_size == 1
    probe = copy.deepcopy(model) if single else model.eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            probe(torch.zeros(1, data.channels, data.size, data.size))
    except (RuntimeError, ValueError, AssertionError) as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise TrainingError(
                "the memory is full with a single image; lower input.size or enhancer.width", code="training.memory"
            ) from None
        raise RecipeError(
            f"classifier.name={recipe.classifier.name} cannot be trained on images of {data.size} x {data.size} px"
            f"{' with train.batch_size=1' if single else ''} ({' '.join(str(error).split())[:160]}). "
            f"Change input.size{', train.batch_size' if single else ''} or the classifier",
            code="recipe.networks",
        ) from None
    model.train()


def warn_if_at_chance(run: Run, epoch: int, labels: np.ndarray, recipe: Recipe) -> None:
    """Warn if the chosen epoch separates the classes no better than guessing.

    Guessing has a macro recall of 1/K on average. If all classes are guessed alike, the recall of a class of n_k cells
    is a binomial share. The macro recall then has a standard deviation of sqrt(Σ (1/K)(1 - 1/K) / n_k) / K, and exceeds
    1/K by `Z_95` standard deviations with a probability of 5 %. That the epoch is the best of several is not corrected
    for, so the warning comes rather too seldom.

    Args:
        run: the run with its history.
        epoch: the chosen epoch, from 1.
        labels: (N,) labels of the cells that chose it.
        recipe: recipe of the run.
    """
    history = run.history()
    figures = history["validation_macro_recall"][(history["stage"] == "train") & (history["epoch"] == epoch)]
    counts = np.bincount(labels)
    chance = 1 / np.count_nonzero(counts)
    deviation = chance * math.sqrt(chance * (1 - chance) * float((1 / counts[counts > 0]).sum()))
    limit = min(1.0, chance + Z_95 * deviation)
    if figures.empty or not figures.iloc[-1] <= limit:
        return
    logger.warning(
        "%s: the chosen epoch (%d) has a macro recall of %.1f %% on the %d cells of the %s part. That is no better "
        "than guessing, which gives %.1f %%, and up to %.1f %% by luck. Check that images and labels belong together. "
        "Then try more epochs or another learning rate (train.epochs=%d, train.lr=%g now), or add cells",
        run.folder,
        epoch,
        100 * figures.iloc[-1],
        len(labels),
        "test" if recipe.protocol == "paper" else "validation",
        100 * chance,
        100 * limit,
        recipe.train.epochs,
        recipe.train.lr,
    )


def warn_if_identity_not_learned(run: Run, epoch: int, recipe: Recipe) -> None:
    """Warn if the pre-training to the identity (section 3.3) did not reach it.

    Args:
        run: the run with its history.
        epoch: epoch of the pre-training whose weights are used, from 1.
        recipe: recipe of the run.
    """
    history = run.history()
    errors = history["identity_error"][(history["stage"] == "pretrain") & (history["epoch"] == epoch)]
    if errors.empty or not errors.iloc[-1] > IDENTITY_THRESHOLD:
        return
    logger.warning(
        "%s: the enhancer has not learned the identity: its error is %.1f %% of the image variance after %d epochs, "
        "and should be below %.0f %%. Pre-train longer (pretrain.epochs=%d, pretrain.lr=%g now), or start from the "
        "identity (enhancer.residual=true)",
        run.folder,
        100 * errors.iloc[-1],
        epoch,
        100 * IDENTITY_THRESHOLD,
        recipe.pretrain.epochs,
        recipe.pretrain.lr,
    )


@contextmanager
def translate_errors(run: Run) -> Iterator[None]:
    """Translate errors of a training into one line that says how to continue.

    Raises:
        TrainingError: the memory or the disk is full, the networks cannot be compiled, or a process of several failed.
        KeyboardInterrupt: Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    resume = f"{run.folder} keeps every complete epoch; the same command continues from there"
    full = TrainingError(
        f"the disk is full while writing {run.folder}; free space. {resume}", code="training.disk_full"
    )
    memory = TrainingError(
        "the memory is full; lower train.batch_size, input.size or enhancer.width, or set train.checkpointing=true, "
        "and train into a new --out",
        code="training.memory",
    )
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        # Lightning exits the process on Ctrl-C, and leaves the signal ignored.
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt(f"interrupted; {resume}") from None
    except MemoryError:
        raise memory from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise full from None
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise memory from None
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"train.compile=true: torch cannot compile the networks here ({reason}). Set it to false",
                code="training.compile",
            ) from None
        raise
    except ProcessRaisedException as error:
        # A spawned process sends its error as the text of a traceback; the last line is the error itself.
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind.startswith("urnet.errors."):
            raise TrainingError(message) from None
        if kind == "OSError" and any(message.startswith(f"[Errno {number}]") for number in DISK_FULL):
            raise full from None
        if kind == "MemoryError" or _OUT_OF_MEMORY.search(message):
            raise memory from None
        raise
