"""Number of CPUs that this process may use, and the environment of the libraries that use threads.

Containers and schedulers limit a process by CPU affinity or by a cgroup quota. More threads than the limit slow each
other down.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from urnet.errors import RunError

THREADS_VARIABLE = "URNET_THREADS"
"""Environment variable that sets the number of threads."""

MAX_THREADS = 1024
"""Maximum number of threads."""

_ROOT = Path("/")


def usable_cpus() -> int:
    """Count the CPUs that this process may use, at least 1.

    `URNET_THREADS` decides where it is set, else the smaller of the CPU affinity and the cgroup quota.

    Raises:
        RunError: `URNET_THREADS` is not a number of threads.
    """
    value = os.environ.get(THREADS_VARIABLE)
    if value:
        if not value.isascii() or not value.isdecimal() or not 1 <= int(value) <= MAX_THREADS:
            raise RunError(
                f"{THREADS_VARIABLE} is {value!r}. Set it to a number of threads from 1 to {MAX_THREADS}, or unset it",
                code="cpus.threads",
            )
        return int(value)
    return max(1, int(min(_affinity_cpus(), *_cgroup_quotas())))


def limit_torch() -> None:
    """Limit torch to as many threads as there are usable CPUs. A smaller number that was set before stays."""
    import torch

    cpus = usable_cpus()
    if os.environ.get(THREADS_VARIABLE) or torch.get_num_threads() > cpus:
        torch.set_num_threads(cpus)


def set_environment() -> None:
    """Set the variables that libraries read when they are imported. Variables that the user has set stay.

    Idle OpenMP threads sleep: by default they spin, and take the CPU from working threads.

    Raises:
        RunError: `URNET_THREADS` is not a number of threads.
    """
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": str(usable_cpus())}
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _affinity_cpus() -> int:
    """Count the CPUs in the affinity of the process."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quotas() -> Iterator[float]:
    """Yield the CPU quota of each cgroup of this process and of its parents, after the maximum number."""
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
    """Yield the folders of the CPU cgroups, from that of this process to the root, and whether they are version 2.

    In a container the path may be that of the host, where only the root exists.
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
