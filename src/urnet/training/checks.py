"""What can fail while networks are trained, found out early where it can be, and said in one line."""

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
from urnet.nets.joint import JointModel
from urnet.recipe import Recipe
from urnet.run_folder import Run
from urnet.training.data import TrainingData

LESS_MEMORY = "train.batch_size, input.size or enhancer.width, or set train.checkpointing=true"
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
Z_95 = 1.645
"""Standard deviations of a normal distribution that it exceeds one time in twenty."""

IDENTITY_THRESHOLD = 0.01
"""Error of the identity, as a share of the images' variance, below which an enhancer has learned it."""

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def check_forward_pass(model: JointModel, data: TrainingData, recipe: Recipe) -> None:
    """Find out with a black image whether the networks take such images, and batch norm such batches.

    Raises:
        RecipeError: they do not.
        TrainingError: memory is full with one image.
    """
    alone = recipe.train.batch_size == 1
    probe = copy.deepcopy(model) if alone else model.eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            probe(torch.zeros(1, data.channels, data.size, data.size))
    except (RuntimeError, ValueError, AssertionError) as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise TrainingError("memory is full with a single image; lower input.size or enhancer.width") from None
        raise RecipeError(
            f"classifier.name={recipe.classifier.name} cannot be trained on images of {data.size} x {data.size} px"
            f"{' with train.batch_size=1' if alone else ''} ({' '.join(str(error).split())[:160]}); "
            f"change input.size{', train.batch_size' if alone else ''} or the classifier"
        ) from None
    model.train()


def warn_if_at_chance(run: Run, epoch: int, labels: np.ndarray, recipe: Recipe) -> None:
    """Say so where the chosen epoch tells the classes no better apart than guessing could.

    Whoever guesses without looking has a macro recall of 1/K on average, whatever he prefers: always the most frequent
    class, or all alike. Guessing all alike, the recall of a class of n_k cells is a binomial share, so the macro recall
    varies by sqrt(Σ (1/K)(1 - 1/K) / n_k) / K, and is above 1/K by `Z_95` such deviations one time in twenty.
    A recall up to there is said to be chance's. That the epoch is the best of several isn't counted, so that the note
    comes rather too seldom.

    Args:
        run: with its history.
        epoch: the chosen one, from 1.
        labels: (N,) of the cells that it was chosen on.
        recipe: of the run.
    """
    history = run.history()
    figures = history["validation_macro_recall"][(history["stage"] == "train") & (history["epoch"] == epoch)]
    counts = np.bincount(labels)
    chance = 1 / np.count_nonzero(counts)
    deviation = chance * math.sqrt(chance * (1 - chance) * float((1 / counts[counts > 0]).sum()))
    reach = min(1.0, chance + Z_95 * deviation)
    if figures.empty or not figures.iloc[-1] <= reach:
        return
    part = "test" if recipe.protocol == "paper" else "validation"
    logger.warning(
        "%s: the chosen epoch (%d) has a macro recall of %.1f %% on the %d cells of the %s part, no better than "
        "guessing: chance gives %.1f %%, and up to %.1f %% by luck. Look whether images and labels belong together; "
        "then try more epochs or another learning rate (train.epochs=%d, train.lr=%g now), and where cells are few, "
        "more of them",
        run.folder,
        epoch,
        100 * figures.iloc[-1],
        len(labels),
        part,
        100 * chance,
        100 * reach,
        recipe.train.epochs,
        recipe.train.lr,
    )


def warn_if_identity_not_learned(run: Run, epoch: int, recipe: Recipe) -> None:
    """Warn where pre-training towards the identity has not reached it.

    Args:
        run: with its history.
        epoch: of the pre-training whose weights are kept, from 1.
        recipe: of the run.
    """
    history = run.history()
    errors = history["identity_error"][(history["stage"] == "pretrain") & (history["epoch"] == epoch)]
    if errors.empty or not errors.iloc[-1] > IDENTITY_THRESHOLD:
        return
    logger.warning(
        "%s: the enhancer has not learned the identity: its error is %.1f %% of the image variance after %d epochs, "
        "and should be below %.0f %%. Pre-train it longer (pretrain.epochs=%d, pretrain.lr=%g now), or let it start as "
        "the identity (enhancer.residual=true)",
        run.folder,
        100 * errors.iloc[-1],
        epoch,
        100 * IDENTITY_THRESHOLD,
        recipe.pretrain.epochs,
        recipe.pretrain.lr,
    )


@contextmanager
def translate_errors(run: Run) -> Iterator[None]:
    """What can happen during hours of training, said in one line, with what is kept.

    Raises:
        TrainingError: memory or disk is full, the networks cannot be compiled, or a process of several failed.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    handler = signal.getsignal(signal.SIGINT)
    kept = f"{run.folder} keeps every whole epoch; the same command with --resume goes on from there"
    full = f"the disk is full while writing {run.folder}; free space. {kept}"
    memory = f"memory is full; lower {LESS_MEMORY}. {kept}"
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        # Lightning ends a process on Ctrl-C and leaves the signal ignored.
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    except MemoryError:
        raise TrainingError(memory) from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise TrainingError(full) from None
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise TrainingError(memory) from None
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"train.compile=true: torch cannot compile the networks here ({reason}); set it to false. {kept}"
            ) from None
        raise
    except ProcessRaisedException as error:
        # A spawned process hands its error over as the text of a traceback, which ends in the error's own line.
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind.startswith("urnet.errors."):
            raise TrainingError(message) from None
        if kind == "OSError" and any(message.startswith(f"[Errno {number}]") for number in DISK_FULL):
            raise TrainingError(full) from None
        if kind == "MemoryError" or _OUT_OF_MEMORY.search(message):
            raise TrainingError(memory) from None
        raise
