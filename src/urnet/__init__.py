"""urnet: enhance and classify stain-free white blood cells with one jointly trained network.

runs = urnet.train("cells", "quick", "run")
urnet.evaluate("run")
model = urnet.load("run")
table = model.predict(["cell.png"])
"""

from typing import TYPE_CHECKING, Any

from urnet.version import __version__

__all__ = ["__version__", "evaluate", "load", "train"]

if TYPE_CHECKING:
    from pathlib import Path

    from urnet.bundle.model import Model
    from urnet.evaluation.evaluate import evaluate
    from urnet.training.fit import train


def load(path: "Path | str", *, expect: str | None = None) -> "Model":
    """Read a trained model from a run folder or a bundle.

    Args:
        path: the folder.
        expect: the first 8 to 32 digits of the model's digest (`urnet about`); another model is refused.
    """
    from urnet.bundle.model import Model

    return Model.load(path, expect=expect)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and most of the package does not need it.
    if name == "train":
        from urnet.training.fit import train

        return train
    if name == "evaluate":
        from urnet.evaluation.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module 'urnet' has no attribute {name!r}")
