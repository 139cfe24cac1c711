"""The commands that must survive a kill, their inputs, and the content of their outputs.

`benchmarks/kill.py` kills them at random moments, `tests/test_interrupted.py` at the renames of their outputs.
"""

import gzip
import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FROZEN = Path(__file__).parents[1] / "tests" / "frozen" / "0.1.0"
NETWORKS = (
    *("enhancer.width=1", "classifier.name=resnet10t", "classifier.options.channels=[4,4,4,4]"),
    *("classifier.options.stem_width=4", "classifier.pretrained=false", "classifier.weights=null", "input.size=32"),
    *("augment.per_class=12", "train.batch_size=16", "pretrain.batch_size=16"),
)
VOLATILE = (".html", ".ckpt", "outcome.json", "results.csv", "-cost.", "table3.")
"""Parts of the names of files with times in them. Of these only the names are compared."""


def build_commands(*, short: bool) -> dict[str, tuple[str, ...]]:
    """Build the command lines by name.

    Args:
        short: whether they process little, for tests; otherwise they run long enough for kills at random moments.
    """
    epochs = ("train.epochs=2", "pretrain.epochs=1") if short else ("train.epochs=4", "pretrain.epochs=2")
    train = ("train", "cells", "--recipe", "recipe.yaml", "--out", "out", "--set", *NETWORKS, *epochs)
    engine = ("--engine", "torch") if short else ()
    phantom = ("--cells", "24", "--size", "16") if short else ("--cells", "600", "--fields", "1")
    return {
        "phantom": ("phantom", *phantom, "--donors", "2", "--out", "out"),
        "destain": ("destain", "stained", "--size", "16" if short else "64", "--out", "out"),
        "audit": ("audit", "cells", "--out", "out.csv"),
        "split": ("split", "cells", "--augment-to", "20" if short else "200", "--out", "out"),
        "crop": ("crop", "fields.csv", "--size", "32", "--out", "out"),
        "train": train,
        "train folds": (*train, "split.folds=2", *(("train.epochs=1", "pretrain.epochs=0") if short else ())),
        "evaluate": ("evaluate", "run"),
        "evaluate --out": ("evaluate", "run", "--out", "out"),
        "predict": (
            *("predict", "run", "cells", "--enhanced", "out-enhanced", "--cam", "out-cam", *engine),
            *("--out", "out.csv"),
        ),
        "predict beside the images": ("predict", "run", "cells", *engine, "--out", "cells/out.csv"),
        "calibrate": ("calibrate", "run"),
        "differential": ("differential", "run", "fields.csv", *engine, "--out", "out"),
        "export onnx": ("export", "run", "--out", "out.onnx"),
        "export torch": ("export", "run", "--format", "torch", "--out", "out.pt2"),
        "export openvino": ("export", "run", "--format", "openvino", "--out", "out"),
        "export bioimageio": ("export", "run", "--format", "bioimageio", "--out", "out"),
        "export hub": ("export", "run", "--format", "hub", "--out", "out"),
        "compare": ("compare", "run", "copy", "--out", "out"),
        "stress": ("stress", "run", "run", "--out", "out"),
        "benchmark": (
            *("benchmark", "table3", "cells", "--folds", "2", "--scale", "laptop", "--only", "net1", "--out", "out"),
            *("--set", *NETWORKS, *epochs, "train.epochs=1" if short else "train.epochs=2"),
        ),
        "demo": ("demo", "--out", "out"),
    }


def write_inputs(folder: Path, *, stained: int = 60, size: int = 64) -> Path:
    """Write the inputs of all commands: cells, a field, stained cells, two finished runs and a recipe.

    Args:
        folder: where to write them.
        stained: number of stained cells.
        size: edge of the stained cells, in px.
    """
    for name in ("cells", "run", "field.tif", "fields.csv", "recipe.yaml"):
        copy = shutil.copytree if (FROZEN / name).is_dir() else shutil.copyfile
        copy(FROZEN / name, folder / name)
    shutil.copytree(folder / "run", folder / "copy")
    rng = np.random.default_rng(0)
    for number in range(stained):
        path = folder / "stained" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 250, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


def hash_outputs(folder: Path, volatile: Sequence[str] = VOLATILE) -> dict[str, str]:
    """Hash the content of every file and folder, without times.

    Args:
        folder: the folder of a command.
        volatile: parts of the names of files of which only the name counts.
    """
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in ("cache", "tmp", "output.txt") or "tensorboard" in name:
            continue
        content = b"" if path.is_dir() or any(part in name for part in volatile) else path.read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d[^\"<]*", b"", content)
        content = re.sub(rb'"parity": \{[^}]*\}', b"", content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes
