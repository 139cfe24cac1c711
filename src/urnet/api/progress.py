"""Progress of the Python interface, in a terminal or a notebook."""

from contextlib import AbstractContextManager, nullcontext

from rich.console import Console

from urnet.progress import NoProgress, ProgressBars, Reporter


def show_progress(visible: bool) -> AbstractContextManager[Reporter]:
    """Open progress bars, which close with the `with` statement.

    Args:
        visible: show bars, messages and warnings; else nothing.
    """
    if not visible:
        return nullcontext(NoProgress())
    return ProgressBars(Console(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True))
