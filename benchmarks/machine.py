"""What figures were measured with: machine, versions, threads, commit; and how busy the machine was."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from urnet.export.packages import installed


def describe(*packages: str) -> dict[str, Any]:
    """For the JSON of a benchmark.

    Args:
        packages: whose versions matter besides those of urnet and torch.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("urnet", "torch", *packages) if installed(name)},
        "commit": commit.stdout.strip(),
    }


def load() -> float | None:
    """Processes that wanted to run, on average over the last minute; not known on Windows."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
