"""Compute the highest training speed of the paper-size model on a GPU, from each of its operations.

    python benchmarks/roofline.py --tflops 789 --bandwidth 3.35 --json roofline-h100.json

No GPU is needed: a training step (UR-Net of width 64 before ResNet101, 200 × 200 px, batches of 32) in bf16 is traced
without values. For each operation the arithmetic operations and the bytes of inputs and outputs are counted. The least
time of an operation is the slower of both at the rates of the GPU: S. Williams et al.,
"Roofline: an insightful visual performance model for multicore architectures", 2009. Fused operations need not
write what the next one reads, so a compiled step may be faster than this bound. Not included: augmentation, the
optimiser, and maps that stay in a cache from one operation to the next.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from urnet.nets.joint import build_joint

BATCH, SIZE, WIDTH, CLASSES = 32, 200, 64, 3
KINDS = {
    "convolutions": ("convolution", "mm"),
    "batch norm": ("batch_norm",),
    "activations": ("relu", "threshold", "sigmoid"),
    "sums": ("add",),
}


class Traffic(TorchDispatchMode):
    """Counter of operations, bytes and least seconds.

    Args:
        flops: operations a second of matrix products.
        bandwidth: bytes a second.
    """

    def __init__(self, flops: float, bandwidth: float):
        super().__init__()
        self.rates = flops, bandwidth
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._overloadpacket.__name__
        flops = bytes_ = 0.0
        if function._overloadpacket in flop_registry:
            flops = flop_registry[function._overloadpacket](*args, **kwargs, out_val=out)
        returned = function._schema.returns
        is_view = not function._schema.is_mutable and any(one.alias_info for one in returned)
        if not is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
            bytes_ = sum(one.numel() * one.element_size() for one in tensors)
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "others")
        least = max(flops / self.rates[0], bytes_ / self.rates[1])
        self.sums[kind] = [total + new for total, new in zip(self.sums[kind], (flops, bytes_, least), strict=True)]
        return out


def main() -> None:
    """Print the figures, and write them to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, required=True, help="of bf16 matrix products, as measured")
    parser.add_argument("--bandwidth", type=float, required=True, help="of the memory, TB a second")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    traffic = Traffic(1e12 * arguments.tflops, 1e12 * arguments.bandwidth)
    with torch.device("meta"):
        model = build_joint("urnet", "resnet101", CLASSES, 3, enhancer_options={"width": WIDTH}).bfloat16().train()
        images = torch.empty(BATCH, 3, SIZE, SIZE, dtype=torch.bfloat16)
        labels = torch.zeros(BATCH, dtype=torch.long)
    with traffic:
        F.cross_entropy(model.enhance_and_classify(images)[0], labels).backward()
    flops, bytes_, least = (sum(one[part] for one in traffic.sums.values()) for part in range(3))
    kinds = sorted(traffic.sums.items(), key=lambda item: -item[1][2])
    result = {
        "tflops": arguments.tflops,
        "bandwidth_tb": arguments.bandwidth,
        "batch": BATCH,
        **amounts(flops, bytes_),
        "images_a_second_at_most": BATCH / least,
        "utilisation_at_most": flops / least / traffic.rates[0],
        "kinds": {kind: amounts(*counted) | {"share_of_time": time / least} for kind, (*counted, time) in kinds},
    }
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def amounts(flops: float, bytes_: float) -> dict[str, float]:
    """Return the figures of one image."""
    return {"gflop_an_image": 1e-9 * flops / BATCH, "megabytes_an_image": 1e-6 * bytes_ / BATCH}


if __name__ == "__main__":
    main()
