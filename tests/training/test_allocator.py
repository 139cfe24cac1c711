"""What large tensors leave is kept or given back, as was asked for."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import torch
from pathlib import Path
from urnet.training import allocator

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

def after_one():
    torch.ones(200 * 2**18).sum()  # 200 MiB
    return held()

begin = after_one()
allocator.keep_large_blocks()
kept = after_one()
allocator.return_large_blocks()
allocator.as_usual()
print(kept - begin, after_one() - begin)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_blocks_are_kept_until_memory_is_handed_out_as_usual():
    told = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout
    kept, later = map(int, told.split())
    assert kept > 150
    assert later < 50
