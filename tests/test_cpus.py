"""The number of threads is the number of CPUs that the process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from urnet import cpus
from urnet.cpus import limit_torch, set_environment, usable_cpus


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Simulate a system with files of cgroups and an affinity: `system({path: content}, CPUs)`."""

    def system(files: dict[str, str], allowed: int = 16) -> None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content, encoding="ascii")
        monkeypatch.setattr(cpus, "_ROOT", tmp_path)
        monkeypatch.setattr(cpus, "_affinity_cpus", lambda: allowed)
        monkeypatch.delenv("URNET_THREADS", raising=False)

    return system


CGROUP, TOP = "proc/self/cgroup", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({CGROUP: "0::/\n"}, 16),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "max 100000\n"}, 16),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "200000 100000\n"}, 2),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "150000 100000\n"}, 1),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "20000 100000\n"}, 1),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "6400000 100000\n"}, 16),
        ({CGROUP: "0::/a/b\n", f"{TOP}/a/b/cpu.max": "max 100000\n", f"{TOP}/a/cpu.max": "300000 100000\n"}, 3),
        ({CGROUP: "0::/of/the/host\n", f"{TOP}/cpu.max": "400000 100000\n"}, 4),
        ({CGROUP: "0::/\n", f"{TOP}/cpu.max": "what?\n"}, 16),
        ({CGROUP: "1:cpu:/\n", f"{TOP}/cpu/cpu.cfs_quota_us": "-1\n", f"{TOP}/cpu/cpu.cfs_period_us": "100000\n"}, 16),
        (
            {
                CGROUP: "4:memory:/x\n3:cpu,cpuacct:/slurm/job\n0::/\n",
                f"{TOP}/cpu,cpuacct/slurm/job/cpu.cfs_quota_us": "500000\n",
                f"{TOP}/cpu,cpuacct/slurm/job/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                CGROUP: "3:cpuacct,cpu:/docker/1f\n",
                f"{TOP}/cpu/cpu.cfs_quota_us": "250000\n",
                f"{TOP}/cpu/cpu.cfs_period_us": "50000\n",
            },
            5,
        ),
        ({CGROUP: "1:cpu:/\n", f"{TOP}/cpu/cpu.cfs_quota_us": "100000\n", f"{TOP}/cpu/cpu.cfs_period_us": "0\n"}, 16),
    ],
)
def test_a_quota_limits_the_cpus(system, files, expected):
    system(files)
    assert usable_cpus() == expected


def test_the_smaller_of_affinity_and_quota_counts(system):
    system({CGROUP: "0::/\n", f"{TOP}/cpu.max": "400000 100000\n"}, allowed=3)
    assert usable_cpus() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_is_that_of_the_process():
    code = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); "
    code += "from urnet.cpus import usable_cpus; print(usable_cpus())"
    environment = {name: value for name, value in os.environ.items() if name != "URNET_THREADS"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert process.stdout == "1\n"


def test_the_environment_variable_decides(system, monkeypatch):
    system({CGROUP: "0::/\n", f"{TOP}/cpu.max": "400000 100000\n"})
    monkeypatch.setenv("URNET_THREADS", "7")
    assert usable_cpus() == 7
    monkeypatch.setenv("URNET_THREADS", "")
    assert usable_cpus() == 4


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "١", " 2"])
def test_an_invalid_number_of_threads_is_refused(monkeypatch, raises_code, value):
    monkeypatch.setenv("URNET_THREADS", value)
    with raises_code("cpus.threads") as caught:
        usable_cpus()
    assert repr(value) in str(caught.value)


def test_torch_gets_no_more_threads_than_there_are_cpus(system, monkeypatch):
    import torch

    system({}, allowed=2)
    before = torch.get_num_threads()
    try:
        for had, expected in ((4, 2), (1, 1)):  # a smaller number was set on purpose
            torch.set_num_threads(had)
            limit_torch()
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("URNET_THREADS", "3")
        limit_torch()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_idle_threads_sleep_unless_the_user_sets_otherwise(system, monkeypatch):
    system({}, allowed=2)
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    set_environment()
    assert [os.environ[name] for name in names] == ["PASSIVE", "200", "2"]


def test_the_command_refuses_an_invalid_number_of_threads():
    process = subprocess.run(
        [sys.executable, "-c", "from urnet.cli import main; main()", "models"],
        capture_output=True,
        text=True,
        env=os.environ | {"URNET_THREADS": "many"},
    )
    assert process.returncode == 2
    assert process.stderr.startswith("urnet: URNET_THREADS is 'many'. Set it to a number of threads")


def test_no_other_module_counts_cpus():
    """Only `usable_cpus` counts CPUs."""
    source = Path(cpus.__file__).parent
    counting = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if "cpu_count(" in path.read_text(encoding="utf-8")
    ]
    assert counting == ["cpus.py"]
