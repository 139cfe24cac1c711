"""Engines that run a model's graph: PyTorch, ONNX Runtime and OpenVINO.

PyTorch is the reference. ONNX Runtime and OpenVINO run the same graph on the CPU, at least a third faster. The graph is
exported once and stored in the bundle as `engine-<digest>.onnx`. At each start its outputs for fixed images are
compared with those of PyTorch (`parity.check_graph`).

Outputs of ONNX Runtime and OpenVINO for an image depend neither on its batch nor on the number of threads, bit for bit.
PyTorch chooses its arithmetic by both, and by the position in the batch. All of its batches therefore have one size;
another number of threads may change the last of six decimals.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from urnet.errors import RunError
from urnet.export.engine_graph import CachedGraph
from urnet.export.onnx_format import open_onnx
from urnet.export.openvino_format import open_openvino
from urnet.export.parity import GraphFunction, check_graph, check_parity
from urnet.optional_packages import is_installed, require_packages

if TYPE_CHECKING:
    from urnet.bundle.model import Model

logger = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "onnx", "openvino")

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
GRAPH_ENGINES = ("onnx", "openvino")
"""Engines on the CPU, the fastest first; equally fast on the paper's network (`benchmarks/inference.py`)."""

EXPORT_PACKAGES = ("onnx", "onnxscript")

MAX_SAMPLE = 4
"""Number of images on which float16 is compared with float32; a graph is compared on one of them and fixed images."""

MIN_PIXELS_FOR_GRAPH = 4_000_000
"""Minimum number of pixels over all images for which a graph is exported; for fewer, the export costs more time."""

MAX_CPU_BATCH = 16
"""Maximum number of images in a batch on a CPU; larger batches are not faster."""
MAX_CPU_PIXELS, MAX_GPU_PIXELS = 2**19, 2**22
"""Maximum number of pixels in a batch; larger batches need more memory, and are not faster on a CPU."""


class Engine(Protocol):
    """Interface of an object that runs a model's graph.

    Attributes:
        name: name in tables.
        size: number of images in a batch; outputs do not depend on it.
    """

    name: str
    size: int

    def run(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classify and enhance.

        Args:
            counts: (B, C, S, S) raw counts at the network's size, from `Model.resize_crop`.

        Returns:
            Probabilities (B, K), enhanced images (B, C, S, S) in about [0, 1], and features (B, F).
        """
        ...


class TorchEngine:
    """PyTorch, on the GPU if there is one.

    Args:
        model: the model; its weights are stored with channels last, which is fastest.
        images: number of images to come; all batches then have one size, and the last one is filled.
        half: whether convolutions and matrix products use float16.
    """

    def __init__(self, model: "Model", images: int | None = None, *, half: bool = False):
        import torch

        from urnet.export.graph import Graph

        self.name = "torch-float16" if half else "torch"
        self.device, self.half = model.device, half
        self.graph = Graph(model).to(memory_format=torch.channels_last)
        most = _max_cpu_batch(model) if self.device.type == "cpu" else _max_batch(model, MAX_GPU_PIXELS)
        self.fill = images is not None
        self.size = -(-images // -(-images // most)) if images else most  # as even as possible

    def run(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classify and enhance, as `Engine.run`; halve the batches if the memory of the GPU is full.

        Raises:
            RunError: the memory does not hold a single image (code `engine.memory`).
        """
        import torch

        parts, start = [], 0
        while start < len(counts):
            chunk = counts[start : start + self.size]
            try:
                parts.append(self._run_batch(chunk))
            except torch.OutOfMemoryError:
                self._halve_batch()
                continue
            start += len(chunk)
        probabilities, enhanced, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return probabilities, enhanced, features

    def _run_batch(self, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        import torch

        images = torch.from_numpy(counts.astype(np.float32))
        if self.fill and len(counts) < self.size:
            images = torch.cat([images, images[:1].expand(self.size - len(counts), -1, -1, -1)])
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            return tuple(out[: len(counts)].float().cpu().numpy() for out in self.graph(images))

    def _halve_batch(self) -> None:
        import torch

        if self.size == 1:
            raise RunError(
                f"the memory of {self.device} does not hold a single image. Close other programs that use it, or set "
                "CUDA_VISIBLE_DEVICES=-1 to predict on the CPU",
                code="engine.memory",
            )
        logger.warning(
            "the memory of %s is full at %d images per batch; continuing with %d",
            self.device,
            self.size,
            self.size // 2,
        )
        self.size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class GraphEngine:
    """An exported graph, on the CPU."""

    name: str
    run: GraphFunction
    size: int


def check_engine(name: str) -> None:
    """Check that an engine is available.

    Raises:
        RunError: the name is unknown (code `engine.unknown`), or the engine is not installed (code
            `package.missing`).
    """
    if name not in ENGINES:
        raise RunError(f"engine {name!r} is unknown; choose one of: {', '.join(ENGINES)}", code="engine.unknown")
    if name in PACKAGES:
        require_packages((PACKAGES[name],), f"engine {name}")


def choose_engine(
    model: "Model", name: str = "auto", sample: np.ndarray | None = None, images: int | None = None
) -> Engine:
    """Choose the engine of a name, or the fastest exact one.

    On a GPU that is PyTorch, in float16 if it keeps parity. On a CPU it is ONNX Runtime, OpenVINO or PyTorch. An engine
    that is not exact, or a model that cannot be exported, gives a warning.

    Args:
        model: the model.
        name: one of `ENGINES`.
        sample: (N, C, S, S) raw counts to compare on; noise if not given.
        images: number of images to come; for a few, no new graph is exported.

    Raises:
        RunError: the name is unknown, or the engine is not installed, cannot run the model, or has other outputs than
            PyTorch.
    """
    check_engine(name)
    if name == "torch":
        return TorchEngine(model, images)
    sample = sample[:MAX_SAMPLE] if sample is not None and len(sample) else None
    if name != "auto":
        return _graph_engine(model, name, CachedGraph(model), sample)
    if model.device.type == "cuda":
        half = TorchEngine(model, images, half=True)
        try:
            check_parity(model, half.run, _noise(model) if sample is None else sample)
            return half
        except RunError as error:
            logger.info("float16 is not used: %s", error)
            return TorchEngine(model, images)
    graph = CachedGraph(model)
    if _is_worthwhile(model, graph, images):
        for candidate in filter(lambda one: is_installed(PACKAGES[one]), GRAPH_ENGINES):
            try:
                return _graph_engine(model, candidate, graph, sample)
            except RunError as error:
                logger.warning("engine %s is not used: %s", candidate, error)
    return TorchEngine(model, images)


def _max_cpu_batch(model: "Model") -> int:
    """Compute the number of images in a batch on a CPU."""
    return min(MAX_CPU_BATCH, _max_batch(model, MAX_CPU_PIXELS))


def _max_batch(model: "Model", pixels: int) -> int:
    """Compute the largest power of two, from 1 to 256, of images that together have at most `pixels` pixels."""
    fitting = max(1, min(256, pixels // model.config.size**2))
    return 2 ** (fitting.bit_length() - 1)


def _noise(model: "Model") -> np.ndarray:
    """Draw random counts within the scaling, (N, C, S, S)."""
    config = model.config
    low, high = config.scaling.low, config.scaling.high
    shape = (MAX_SAMPLE, config.channels, config.size, config.size)
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def _is_worthwhile(model: "Model", graph: CachedGraph, images: int | None) -> bool:
    """Return whether a graph exists, or can be exported and saves time."""
    exportable = all(map(is_installed, EXPORT_PACKAGES)) and getattr(model.joint.enhancer, "exportable", True)
    return graph.is_valid or (exportable and (images is None or images * model.config.size**2 >= MIN_PIXELS_FOR_GRAPH))


def _graph_engine(model: "Model", name: str, graph: CachedGraph, sample: np.ndarray | None) -> GraphEngine:
    """Open an engine for the graph, after a comparison with PyTorch."""
    import torch

    if model.device.type != "cpu":  # convolutions on a GPU round to fewer bits than a graph
        model.device = torch.device("cpu")
        model.joint.to(model.device)
    if graph.is_valid:
        try:
            return _open_graph(model, name, graph.path, sample)
        except RunError as error:
            logger.warning("%s: the graph is exported again, because it cannot be used (%s)", graph.path, error)
    return _open_graph(model, name, graph.export(), sample)


def _open_graph(model: "Model", name: str, source: "Path | bytes", sample: np.ndarray | None) -> GraphEngine:
    import torch

    opened = {"onnx": open_onnx, "openvino": open_openvino}[name](source, torch.get_num_threads())
    try:
        check_graph(model, opened, None if sample is None else sample[:1])
    except RunError as error:
        raise RunError(f"engine {name}: {error}; use --engine torch", code=error.code) from None
    return GraphEngine(name, opened, _max_cpu_batch(model))
