"""What can fail while networks are trained, found out early where it can be, and said in one line."""

import copy
import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing import ProcessRaisedException

from urnet.errors import RecipeError, TrainingError
from urnet.nets.joint import JointModel
from urnet.recipe import Recipe
from urnet.training.data import Prepared
from urnet.training.run import Run

LESS_MEMORY = "train.batch_size, input.size or enhancer.width, or set train.checkpointing=true"
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def check_step(model: JointModel, data: Prepared, recipe: Recipe) -> None:
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


@contextmanager
def plain_errors(run: Run) -> Iterator[None]:
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
