"""Format OpenVINO: the graph as `model.xml` and `model.bin`, in float32."""

from pathlib import Path

import numpy as np

from urnet.cpus import usable_cpus
from urnet.errors import RunError
from urnet.export.onnx_format import read_graph
from urnet.export.parity import GraphFunction

PACKAGES = ("openvino",)
NAME = "model.xml"


def to_openvino(onnx: bytes, folder: Path) -> None:
    """Convert a graph in ONNX to the two files of OpenVINO.

    Args:
        onnx: the content of an ONNX file.
        folder: folder for the files.

    Raises:
        RunError: OpenVINO is not installed, or cannot read the graph.
    """
    from urnet.optional_packages import require_packages

    require_packages((*PACKAGES, "onnx"), "format openvino")
    import openvino
    from onnx import load_from_string

    try:
        network = openvino.Core().read_model(model=onnx)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"OpenVINO cannot read the graph ({reason}); use --format onnx", code="export.not_exportable"
        ) from None
    for one in load_from_string(onnx).metadata_props:
        network.set_rt_info(one.value, ["urnet", one.key])
    openvino.save_model(network, folder / NAME, compress_to_fp16=False)


def open_openvino(source: Path | bytes, threads: int | None = None) -> GraphFunction:
    """Open a graph on the CPU, always in float32.

    Args:
        source: `model.xml`, or an ONNX file or its content.
        threads: number of threads; that of the usable CPUs if not given.

    Raises:
        RunError: OpenVINO is not installed, or the files are damaged.
    """
    from urnet.optional_packages import require_packages

    require_packages(PACKAGES, "running OpenVINO")
    import openvino

    if isinstance(source, bytes) or source.suffix == ".onnx":
        require_packages(("onnx",), "running ONNX")
        content: Path | bytes = read_graph(source)
    else:
        content = source
    name = source if isinstance(source, Path) else "the graph in memory"
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or usable_cpus()}
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows cannot move a mapped file
    try:
        network = core.compile_model(core.read_model(model=content), "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{name}: this OpenVINO graph cannot be run ({reason}); export the run again", code="model.graph_unusable"
        ) from None

    def run(counts: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = network([np.ascontiguousarray(counts, np.float32)])
        return tuple(np.array(outputs[end]) for end in network.outputs)

    return run
