"""Number of CPUs that this process may use, and how threads wait for each other.

Containers and schedulers lend a part of a machine by affinity or by a cgroup's quota. More threads than that wait for
each other, and so do threads that share a CPU with another program.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from urnet.errors import RunError

THREADS_VARIABLE = "URNET_THREADS"
"""Environment variable that sets the number of threads."""

MAX_THREADS = 1024

_ROOT = Path("/")


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1: `URNET_THREADS`, else the smaller of affinity and cgroup quota.

    Raises:
        RunError: `URNET_THREADS` is no number of threads.
    """
    named = os.environ.get(THREADS_VARIABLE)
    if named:
        if not named.isascii() or not named.isdecimal() or not 1 <= int(named) <= MAX_THREADS:
            raise RunError(
                f"{THREADS_VARIABLE} is {named!r}; give a number of threads from 1 to {MAX_THREADS}, or leave it out",
                code="cpus.threads",
            )
        return int(named)
    return max(1, int(min(_affinity_cpus(), *_cgroup_quotas())))


def limit_torch() -> None:
    """Let torch use no more threads than there are usable CPUs; a smaller number that was set before stays."""
    import torch

    cpus = usable_cpus()
    if os.environ.get(THREADS_VARIABLE) or torch.get_num_threads() > cpus:
        torch.set_num_threads(cpus)


def set_environment() -> None:
    """Set up libraries that read the environment when they are loaded; variables that the user has set stay.

    Idle threads sleep: those of OpenMP would otherwise spin, on a CPU that the thread they wait for may need.

    Raises:
        RunError: `URNET_THREADS` is no number of threads.
    """
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": str(usable_cpus())}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _affinity_cpus() -> int:
    """CPUs of the process's affinity."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quotas() -> Iterator[float]:
    """CPUs that the cgroups of this process, and those above them, grant; first the most of all."""
    yield float(MAX_THREADS)
    for folder, unified in _cgroup_folders():
        with suppress(OSError, ValueError, ZeroDivisionError):
            if unified:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _cgroup_folders() -> Iterator[tuple[Path, bool]]:
    """Folders of the CPU cgroups from this process's own up to the root, and whether they are of version 2.

    Within a container the path may be that of the host, and only the root is there.
    """
    try:
        lines = (_ROOT / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        unified = controllers == ""
        if not unified and "cpu" not in controllers.split(","):
            continue
        for mount in ("unified", "") if unified else (controllers, "cpu"):
            top = _ROOT / "sys/fs/cgroup" / mount
            own = top / path.strip("/")
            yield from ((folder, unified) for folder in (own, *own.parents) if folder.is_relative_to(top))
