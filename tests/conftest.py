"""Shared by all tests: the real data's place, and one torch thread a worker."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def jurkat() -> Path:
    """The stain-free Jurkat montages, or a skip that says where they were looked for."""
    folder = DATA / "jurkat_labelfree"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def pbc() -> Path:
    """The stained PBC crops, or a skip that says where they were looked for."""
    folder = DATA / "pbc_stained"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder
