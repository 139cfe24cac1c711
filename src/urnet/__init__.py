"""urnet: enhance and classify stain-free white blood cells with one jointly trained network.

Examples:
    >>> import urnet
    >>> run = urnet.train("cells", "quick", "run")  # doctest: +SKIP
    >>> urnet.evaluate(run)  # doctest: +SKIP
    >>> urnet.load(run).predict("new cells").to_frame()  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.api.fields import crop, detect, read_field
    from urnet.api.models import compare, differential, evaluate, load, train

__all__ = [
    "__version__",
    "compare",
    "crop",
    "detect",
    "differential",
    "evaluate",
    "load",
    "read_field",
    "train",
]

_MODULES = {
    **dict.fromkeys(("crop", "detect", "read_field"), "urnet.api.fields"),
    **dict.fromkeys(("compare", "differential", "evaluate", "load", "train"), "urnet.api.models"),
}
"""Modules of the public functions; they are imported at the first use, since torch takes seconds to import."""


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'urnet' has no attribute {name!r}")
