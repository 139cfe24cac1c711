"""ONNX: the graph as one file, weights inside, run by ONNX Runtime."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet.cpus import usable_cpus
from urnet.errors import RunError
from urnet.export.parity import GraphFunction
from urnet.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from torch.export import ExportedProgram

    from urnet.bundle.model import Model

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 24)
"""Versions of ONNX's operators that torch writes; older ones would need a conversion, which fails."""
OPSET = 20
"""Written unless another is asked for."""
_MAX_WEIGHT_BYTES = 2**31 - 2**24
"""Of weights: one protobuf file holds 2 GiB, the graph included."""


def check_opset(opset: int | None) -> int:
    """The version of ONNX's operators to write.

    Raises:
        RunError: torch does not write that one.
    """
    if opset is not None and opset not in OPSETS:
        raise RunError(
            f"opset {opset} cannot be written; choose one from {OPSETS[0]} to {OPSETS[-1]}, or leave it out for {OPSET}"
        )
    return opset or OPSET


def to_onnx(model: "Model", opset: int | None = None, program: "ExportedProgram | None" = None) -> bytes:
    """A model's graph as the content of an ONNX file.

    Input `counts`, outputs `probabilities`, `enhanced` and `features`; its properties name the classes and what the
    counts are expected to be.

    Args:
        model: the trained model.
        opset: version of ONNX's operators; 20 when not given.
        program: the model's captured graph, where it is there already.

    Raises:
        RunError: an unknown opset, networks that cannot be followed or are too large for one file, or packages that
            are not installed.
    """
    from urnet.export.graph import INPUT, OUTPUTS, capture
    from urnet.optional_packages import require_packages

    require_packages(PACKAGES, "a graph in ONNX")
    version = check_opset(opset)
    size = sum(tensor.nbytes for tensor in model.joint.state_dict().values())
    if size > _MAX_WEIGHT_BYTES:
        raise RunError(f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds 2; use format torch")
    import torch
    from onnx.helper import set_model_props

    program = capture(model) if program is None else program
    with _silence_exporter():
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=version,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"the networks have no form in ONNX ({reason}); use format torch or hub") from error
    proto = written.model_proto
    _anonymise(proto)
    _name_batch(proto)
    set_model_props(proto, graph_properties(model))
    return proto.SerializeToString()


def open_onnx(source: Path | bytes, threads: int | None = None) -> GraphFunction:
    """Read a graph that `to_onnx` made, to be run on the CPU.

    Args:
        source: the file, or its content.
        threads: that ONNX Runtime may use; as many as there are usable CPUs when not given.

    Raises:
        RunError: the file is damaged, is no graph of this package, or ONNX Runtime is not installed.
    """
    from urnet.export.graph import INPUT, OUTPUTS
    from urnet.optional_packages import require_packages

    require_packages(("onnx", "onnxruntime"), "running ONNX")
    import onnxruntime

    content = read_graph(source)
    name = source if isinstance(source, Path) else "the graph in memory"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said by the error below
    options.intra_op_num_threads = threads or usable_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # on CPUs that others use as well
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{name}: no ONNX graph that can be run here ({reason}); export the run again", code="model.graph_unusable"
        ) from None
    ends = ([node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])
    if ends != ([INPUT], list(OUTPUTS)):
        raise RunError(
            f"{name}: its inputs and outputs are {', '.join(ends[0])} and {', '.join(ends[1])}, those of urnet's "
            f"graphs {INPUT} and {', '.join(OUTPUTS)}; give a file written by `urnet export`"
        )
    return lambda counts: tuple(session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(counts, np.float32)}))


def read_graph(source: Path | bytes) -> bytes:
    """Read an ONNX file, and refuse one that names other files.

    A graph can keep its weights in external files, by any path. Those that urnet writes never do, so that a runtime has
    no reason to open another file.

    Args:
        source: the file, or its content.

    Raises:
        RunError: the file is damaged, or names external data (code `model.external_data`).
    """
    import onnx
    from google.protobuf.message import DecodeError

    name = source if isinstance(source, Path) else "the graph in memory"
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        proto = onnx.load_from_string(content)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{name}: no ONNX graph ({reason}); export the run again", code="model.graph_unusable") from None
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise RunError(
                f"{name}: tensor {tensor.name[:80]!r} lies in another file; graphs of urnet hold all of their weights. "
                "Export the run again",
                code="model.external_data",
            )
    return content


def _tensors(part: Any) -> "Iterator[TensorProto]":
    """All tensors within a message of ONNX, however deep."""
    from onnx import TensorProto

    waiting = [part]
    while waiting:
        message = waiting.pop()
        if isinstance(message, TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else list(value)


def graph_properties(model: "Model") -> dict[str, str]:
    """What a graph says of itself, so that it can be used without its run."""
    config = model.config
    return {
        "urnet": __version__,
        "name": config.name,
        "digest": model.digest(),
        "classes": json.dumps(list(config.classes), ensure_ascii=False),
        "counts": f"raw {config.scaling.dtype} counts as float32, {config.channels} x {config.size} x {config.size}; "
        "scaled within",
        "use": "research only",
    }


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """What the exporter remarks on its own steps is not for the user; what fails raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _anonymise(proto: "ModelProto") -> None:
    """Take out where each node comes from: it names files of this machine."""
    graphs = [proto.graph]
    for graph in graphs:  # grows by what is nested
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    for function in proto.functions:
        for part in (function, *function.node):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")


def _name_batch(proto: "ModelProto") -> None:
    """Call the free dimension `batch`, which torch gives a running number."""
    graph = proto.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{free}\b", "batch", dim.dim_param)
