"""Packages that only some formats and engines need: whether they are there, and what brings them."""

from collections.abc import Sequence
from importlib.util import find_spec

from urnet.errors import RunError

EXTRAS = {"openvino": "openvino", "bioimageio.core": "bioimageio"} | dict.fromkeys(
    ("fastapi", "uvicorn", "multipart", "sqlalchemy", "nicegui"), "serve"
)
"""The extra of urnet that brings a package; those without one come with urnet itself."""


def is_installed(package: str) -> bool:
    """Whether a package is there to be imported; nothing is imported to find out."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of `bioimageio.core` the first part is missing
        return False


def require_packages(packages: Sequence[str], what: str) -> None:
    """Find out before the work begins whether packages are there.

    Args:
        packages: the names that they are imported by.
        what: what needs them, for the message.

    Raises:
        RunError: one is missing; the message says what to install.
    """
    for package in packages:
        if not is_installed(package):
            source = f'"urnet[{EXTRAS[package]}]"' if package in EXTRAS else package
            raise RunError(f"{what} needs the package {package}, which is not installed; pip install {source}")
