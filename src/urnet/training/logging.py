"""Lightning's remarks about loaders and hardware are not for the user of a command."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = tuple(logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric"))


@contextmanager
def muted_lightning() -> Iterator[None]:
    """No remarks and no warnings inside; afterwards all is as it was."""
    levels = [logger.level for logger in _LOGGERS]
    with warnings.catch_warnings():
        mute_lightning()
        try:
            yield
        finally:
            for logger, level in zip(_LOGGERS, levels, strict=True):
                logger.setLevel(level)


def mute_lightning() -> None:
    """No remarks and no warnings from here on; for processes that do nothing but train."""
    warnings.simplefilter("ignore")
    for logger in _LOGGERS:
        logger.setLevel(logging.ERROR)
