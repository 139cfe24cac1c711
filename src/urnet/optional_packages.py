"""Optional packages of formats, engines and the web application: check that they are installed."""

from collections.abc import Sequence
from importlib.util import find_spec

from urnet.errors import RunError

EXTRAS = {"openvino": "openvino", "bioimageio.core": "bioimageio"} | dict.fromkeys(
    ("fastapi", "uvicorn", "multipart", "sqlalchemy", "nicegui"), "serve"
)
"""The extra of urnet that installs a package; packages without an entry are dependencies of urnet."""


def is_installed(package: str) -> bool:
    """Return whether a package is installed; nothing is imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the first part of `bioimageio.core` is missing
        return False


def require_packages(packages: Sequence[str], what: str) -> None:
    """Check that packages are installed.

    Args:
        packages: names of their modules.
        what: what needs them, for the message.

    Raises:
        RunError: one is missing (code `package.missing`); the message holds the command that installs it.
    """
    for package in packages:
        if not is_installed(package):
            source = f'"urnet[{EXTRAS[package]}]"' if package in EXTRAS else package
            raise RunError(
                f"{what} needs the package {package}, which is not installed. Install it: pip install {source}",
                code="package.missing",
            )
