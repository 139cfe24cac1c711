"""Silence Lightning's loader and hardware warnings, which are of no use to the user of a command."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = tuple(logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric"))


@contextmanager
def muted_lightning() -> Iterator[None]:
    """Mute Lightning and all warnings while the context is open."""
    levels = [logger.level for logger in _LOGGERS]
    with warnings.catch_warnings():
        mute_lightning()
        try:
            yield
        finally:
            for logger, level in zip(_LOGGERS, levels, strict=True):
                logger.setLevel(level)


def mute_lightning() -> None:
    """Mute Lightning and all warnings from now on, for processes that only train."""
    warnings.simplefilter("ignore")
    for logger in _LOGGERS:
        logger.setLevel(logging.ERROR)
