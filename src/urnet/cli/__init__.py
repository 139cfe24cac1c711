"""The commands: parse, call, print.

Nothing heavy is imported at the top of these modules, so that every `--help` answers at once.
"""

from urnet.cli import runs, cells, comparisons, serve  # noqa: F401, I001  (their order is that of `urnet --help`)
from urnet.cli.app import main, run

__all__ = ["main", "run"]
