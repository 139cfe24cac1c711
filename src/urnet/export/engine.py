"""Engines: what runs a model's graph, the fastest exact one at hand.

PyTorch is the reference. ONNX Runtime and OpenVINO run the same graph on the CPU, a third faster and more. The graph is
exported once and stored in the bundle as `engine-<digest>.onnx`. At each start its outputs for fixed images are
compared with those of PyTorch (`parity.check_graph`).

What ONNX Runtime and OpenVINO say of an image depends neither on its batch nor on the number of threads, bit for bit.
PyTorch chooses its arithmetic by both, and by the place in the batch: its batches all get one size, and another number
of threads may change the last of six decimals.
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
"""As measured by `benchmarks/inference.py`: alike on the paper-size network, and the first is ahead on small ones."""

EXPORT_PACKAGES = ("onnx", "onnxscript")

MAX_SAMPLE = 4
"""Images on which float16 is compared with float32; a graph is compared on the first of them and on fixed images."""

MIN_PIXELS_FOR_GRAPH = 4_000_000
"""Pixels, over all images, from which on a graph is exported for them; for fewer, that takes longer than it saves."""

MAX_CPU_BATCH = 16
GRAPH_BATCH_SIZES = (4, 8, 16, 32, 64)
MAX_CPU_PIXELS, MAX_GPU_PIXELS = 2**19, 2**22
"""Pixels of the largest batches: beyond, the memory that they take grows, and on a CPU the speed does not."""


class Engine(Protocol):
    """Runs a model's graph.

    Attributes:
        name: what tables say of it.
        sizes: sizes of batches that are worth trying, ascending; what comes out does not depend on them.
    """

    name: str
    sizes: tuple[int, ...]

    def run(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classify and enhance.

        Args:
            counts: (B, C, S, S) raw counts at the network's size, from `Model.resize_crop`.

        Returns:
            Probabilities (B, K), enhanced images (B, C, S, S) in about [0, 1], and features (B, F).
        """
        ...


class TorchEngine:
    """PyTorch, on the GPU where there is one.

    Args:
        model: the model; its weights are put into the order that is fastest (channels last).
        images: how many will come; all batches then get the same size, the last one filled up.
        half: whether convolutions and matrix products are made in float16.
    """

    def __init__(self, model: "Model", images: int | None = None, *, half: bool = False):
        import torch

        from urnet.export.graph import Graph

        self.name = "torch-float16" if half else "torch"
        self.device, self.half = model.device, half
        self.graph = Graph(model).to(memory_format=torch.channels_last)
        most = (
            min(MAX_CPU_BATCH, _max_batch(model, MAX_CPU_PIXELS))
            if self.device.type == "cpu"
            else _max_batch(model, MAX_GPU_PIXELS)
        )
        self.fill = images is not None
        self.size = -(-images // -(-images // most)) if images else most  # as even as can be

    @property
    def sizes(self) -> tuple[int, ...]:
        """The one size of its batches."""
        return (self.size,)

    def run(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Engine.run`; halves its batches when the memory of the GPU is full.

        Raises:
            RunError: the memory does not hold a single image.
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
                f"the memory of {self.device} does not hold a single image; end what else uses it, or hide it "
                "(CUDA_VISIBLE_DEVICES=-1) to predict on the CPU"
            )
        logger.warning(
            "the memory of %s is full at %d images a batch; going on with %d", self.device, self.size, self.size // 2
        )
        self.size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class GraphEngine:
    """A graph that left PyTorch, on the CPU."""

    name: str
    run: GraphFunction
    sizes: tuple[int, ...]


def check_engine(name: str) -> None:
    """Find out before the work begins whether an engine can be had.

    Raises:
        RunError: an unknown name, or an engine that is not installed.
    """
    if name not in ENGINES:
        raise RunError(f"engine {name!r} is unknown; choose one of: {', '.join(ENGINES)}")
    if name in PACKAGES:
        require_packages((PACKAGES[name],), f"engine {name}")


def choose_engine(
    model: "Model", name: str = "auto", sample: np.ndarray | None = None, images: int | None = None
) -> Engine:
    """The engine of a name, or the fastest exact one at hand.

    That is PyTorch on a GPU, in float16 where it keeps parity; else ONNX Runtime, else OpenVINO where it is installed,
    else PyTorch. What is not exact, or cannot be exported, is passed over and said.

    Args:
        model: the model.
        name: one of `ENGINES`.
        sample: (N, C, S, S) raw counts to compare on; float16 is judged on noise when not given.
        images: how many will come; for a few, no graph is exported that is not there already.

    Raises:
        RunError: an unknown name; or the engine of that name is not installed, cannot run the model, or does not say
            what PyTorch says.
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


class BatchSizeTuner:
    """Finds the fastest size of a batch, on images that are to be classified anyhow.

    Each size has its turn, beginning with the smallest, until one is less than a twentieth faster than the best before.

    Args:
        sizes: ascending.
    """

    def __init__(self, sizes: tuple[int, ...]):
        self.untested = [sizes[0], *sizes]  # the first batch of all is slow, and only warms up
        self.fastest, self.rate = sizes[0], 0.0

    @property
    def current(self) -> int:
        """The size of the next batch."""
        return self.untested[0] if self.untested else self.fastest

    def record(self, images: int, seconds: float) -> None:
        """Say how long a batch took; one that was not full counts for nothing."""
        if not self.untested or images < self.untested[0]:
            return
        warming_up, size, rate = (
            len(self.untested) > 1 and self.untested[0] == self.untested[1],
            self.untested.pop(0),
            0.0,
        )
        if warming_up:
            return
        rate = images / max(seconds, 1e-9)
        if rate < 1.05 * self.rate:
            self.untested.clear()
        if rate > self.rate:
            self.fastest, self.rate = size, rate


def _max_batch(model: "Model", pixels: int) -> int:
    """Images of a batch with so many pixels, a power of two up to 256."""
    fitting = max(1, min(256, pixels // model.config.size**2))
    return 2 ** (fitting.bit_length() - 1)


def _noise(model: "Model") -> np.ndarray:
    """Some counts of the scale's own range, (N, C, S, S)."""
    config = model.config
    low, high = config.scaling.low, config.scaling.high
    shape = (MAX_SAMPLE, config.channels, config.size, config.size)
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def _is_worthwhile(model: "Model", graph: CachedGraph, images: int | None) -> bool:
    """Whether a graph is there, or can be made and saves more time than that takes."""
    exportable = all(map(is_installed, EXPORT_PACKAGES)) and getattr(model.joint.enhancer, "exportable", True)
    return graph.is_valid or (exportable and (images is None or images * model.config.size**2 >= MIN_PIXELS_FOR_GRAPH))


def _graph_engine(model: "Model", name: str, graph: CachedGraph, sample: np.ndarray | None) -> GraphEngine:
    """An engine that runs the graph, once it is known to say what PyTorch says."""
    import torch

    if model.device.type != "cpu":  # convolutions on a GPU round to fewer bits, and no graph says the same
        model.device = torch.device("cpu")
        model.joint.to(model.device)
    if graph.is_valid:
        try:
            return _open_graph(model, name, graph.path, sample)
        except RunError as error:
            logger.warning("%s: is made anew, since it cannot be used (%s)", graph.path, error)
    return _open_graph(model, name, graph.export(), sample)


def _open_graph(model: "Model", name: str, source: "Path | bytes", sample: np.ndarray | None) -> GraphEngine:
    import torch

    opened = {"onnx": open_onnx, "openvino": open_openvino}[name](source, torch.get_num_threads())
    try:
        check_graph(model, opened, None if sample is None else sample[:1])
    except RunError as error:
        raise RunError(f"engine {name}: {error}; use --engine torch", code=error.code) from None
    most = _max_batch(model, MAX_CPU_PIXELS)
    return GraphEngine(name, opened, tuple(size for size in GRAPH_BATCH_SIZES if size <= most) or (most,))
