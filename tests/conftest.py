"""Fixtures of all tests: real data, small cells and runs, one torch thread per worker."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data"

LONGEST_FILES = (
    *("test_seal.py", "training/test_resume.py", "serve/test_serve_process.py", "serve/test_pages_about.py"),
    *("test_docs.py", "test_cli.py", "serve/test_serve_fields.py", "serve/test_pages_proxied.py"),
    *("serve/test_hostile_names.py", "benchmark/test_ray.py", "test_frozen.py", "evaluation/test_evaluate.py"),
)
"""Files of tests that take longest, about the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that at the end no worker is left with one of them."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def raises_code():
    """Expect an error of a code: `with raises_code("cells.leak") as caught`."""
    from urnet.errors import UrnetError

    @contextmanager
    def raises_code(code: str):
        with pytest.raises(UrnetError) as caught:
            yield caught
        assert caught.value.code == code, f"{caught.value.code}: {caught.value}"

    return raises_code


@pytest.fixture(scope="session")
def opened():
    """Record the files that this process opens, by their full paths: `with opened() as files`."""
    recorders: list[set[str]] = []

    def record(event: str, arguments: tuple) -> None:
        if recorders and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            path = str(Path(os.fsdecode(arguments[0])).resolve())
            for files in recorders:
                files.add(path)

    sys.addaudithook(record)

    @contextmanager
    def opened():
        files: set[str] = set()
        recorders.append(files)
        try:
            yield files
        finally:
            recorders.remove(files)

    return opened


@pytest.fixture(scope="session")
def cases() -> Path:
    """Folder of small files that failed in other programs; the test is skipped without it."""
    folder = SHARED / "cases"
    if not folder.is_dir():
        pytest.skip(f"cases absent: {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Put the cache of decoded cells into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("URNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def jurkat() -> Path:
    """Folder of the stain-free Jurkat montages; the test is skipped without it."""
    folder = DATA / "jurkat_labelfree"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def pbc() -> Path:
    """Folder of the stained PBC crops; the test is skipped without it."""
    folder = DATA / "pbc_stained"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder


SHAPES = ("bar", "disc", "ring")
TINY = """
name: tiny
input: {size: 24}
augment: {per_class: 32}
enhancer: {name: urnet, width: 4, residual: true}
classifier: {name: test_byobnet, pretrained: false}
train: {epochs: 4, optimizer: adamw, lr: 0.003, schedule: onecycle, batch_size: 12}
"""


@pytest.fixture(scope="session")
def draw():
    """Draw cells of distinct shapes into one folder for each class: `draw(folder, cells per class)`."""
    import numpy as np
    from PIL import Image

    def shape(label: str, rng, size: int) -> np.ndarray:
        y, x = np.mgrid[:size, :size] - size / 2 - rng.uniform(-2, 2, (2, 1, 1))
        r = np.hypot(x, y)
        inside = {"bar": abs(y) < size / 8, "disc": r < size / 3, "ring": (r > size / 5) & (r < size / 3)}[label]
        return np.where(inside, 190.0, 120.0)

    def draw(folder: Path, count: int, *, classes=SHAPES, size=24, seed=0, dtype=np.uint8, suffix=".png") -> Path:
        rng = np.random.default_rng(seed)
        for label in classes:
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = shape(label, rng, size) + rng.normal(0, 6, (size, size))
                pixels = (image if dtype == np.uint8 else image * 100).clip(0, np.iinfo(dtype).max).astype(dtype)
                Image.fromarray(pixels).save(folder / label / f"{number:03d}{suffix}")
        return folder

    return draw


@pytest.fixture(scope="session")
def shapes(draw, tmp_path_factory) -> Path:
    """Sixty cells of three classes, 24 px, 8 bits. Tests must not change them."""
    return draw(tmp_path_factory.mktemp("shapes") / "cells", 20)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A recipe that learns the shapes in about two seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def trained(shapes, tiny, tmp_path_factory):
    """A finished run over the shapes. Tests must not change it."""
    from urnet.training.fit import train

    return train(shapes, tiny, tmp_path_factory.mktemp("trained") / "run")[0]


@pytest.fixture(scope="session")
def trained_graph(trained) -> bytes:
    """The graph of `trained` in ONNX; its export takes seconds, so that tests share it."""
    from urnet.export.onnx_format import to_onnx

    return to_onnx(trained.load_model())
