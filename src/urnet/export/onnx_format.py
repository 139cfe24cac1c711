"""Format ONNX: the graph with its weights in one file, run by ONNX Runtime."""

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
"""Versions of ONNX's operators that torch writes; a conversion to older ones fails."""
OPSET = 20
"""Default version of ONNX's operators."""
_MAX_WEIGHT_BYTES = 2**31 - 2**24
"""Maximum size of the weights: one protobuf file holds 2 GiB with the graph."""


def check_opset(opset: int | None) -> int:
    """Check a version of ONNX's operators; return the default if none is given.

    Raises:
        RunError: torch does not write this version (code `export.opset_invalid`).
    """
    if opset is not None and opset not in OPSETS:
        raise RunError(
            f"opset {opset} cannot be written; choose one from {OPSETS[0]} to {OPSETS[-1]}, or leave it out for "
            f"{OPSET}",
            code="export.opset_invalid",
        )
    return opset or OPSET


def to_onnx(model: "Model", opset: int | None = None, program: "ExportedProgram | None" = None) -> bytes:
    """Encode the graph of a model as an ONNX file.

    Input: `counts`. Outputs: `probabilities`, `enhanced` and `features`. The properties of the graph name the classes
    and the expected counts.

    Args:
        model: the trained model.
        opset: version of ONNX's operators; 20 if not given.
        program: the captured graph of the model, if it exists.

    Raises:
        RunError: an unknown opset, networks that cannot be captured or are too large for one file, or packages that
            are not installed.
    """
    from urnet.export.graph import INPUT, OUTPUTS, capture
    from urnet.optional_packages import require_packages

    require_packages(PACKAGES, "a graph in ONNX")
    version = check_opset(opset)
    size = sum(tensor.nbytes for tensor in model.joint.state_dict().values())
    if size > _MAX_WEIGHT_BYTES:
        raise RunError(
            f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds 2; use --format torch",
            code="export.too_large",
        )
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
            raise RunError(
                f"the networks have no form in ONNX ({reason}); use --format torch or hub", code="export.not_exportable"
            ) from error
    proto = written.model_proto
    _anonymise(proto)
    _name_batch(proto)
    set_model_props(proto, graph_properties(model))
    return proto.SerializeToString()


def open_onnx(source: Path | bytes, threads: int | None = None) -> GraphFunction:
    """Open a graph of `to_onnx` on the CPU.

    Args:
        source: the file, or its content.
        threads: number of threads; that of the usable CPUs if not given.

    Raises:
        RunError: the file is damaged or not a graph of urnet (code `model.graph_unusable`), or ONNX Runtime is not
            installed.
    """
    from urnet.export.graph import INPUT, OUTPUTS
    from urnet.optional_packages import require_packages

    require_packages(("onnx", "onnxruntime"), "running ONNX")
    import onnxruntime

    content = read_graph(source)
    name = source if isinstance(source, Path) else "the graph in memory"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error below reports problems
    options.intra_op_num_threads = threads or usable_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs use the CPUs, too
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base class
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{name}: this ONNX graph cannot be run ({reason}); export the run again", code="model.graph_unusable"
        ) from None
    ends = ([node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])
    if ends != ([INPUT], list(OUTPUTS)):
        raise RunError(
            f"{name}: its inputs and outputs are {', '.join(ends[0])} and {', '.join(ends[1])}, those of urnet's "
            f"graphs {INPUT} and {', '.join(OUTPUTS)}; give a file of `urnet export`",
            code="model.graph_unusable",
        )
    return lambda counts: tuple(session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(counts, np.float32)}))


def read_graph(source: Path | bytes) -> bytes:
    """Read an ONNX file, and refuse one that names other files.

    An ONNX graph can store its weights in external files at any path. Graphs of urnet never do.

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
        raise RunError(
            f"{name}: not an ONNX graph ({reason}); export the run again", code="model.graph_unusable"
        ) from None
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise RunError(
                f"{name}: tensor {tensor.name[:80]!r} is in another file, and graphs of urnet hold all of their "
                f"weights. "
                "Export the run again",
                code="model.external_data",
            )
    return content


def _tensors(part: Any) -> "Iterator[TensorProto]":
    """Find all tensors within a message of ONNX, at any depth."""
    from onnx import TensorProto

    remaining = [part]
    while remaining:
        message = remaining.pop()
        if isinstance(message, TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                remaining += [value] if hasattr(value, "ListFields") else list(value)


def graph_properties(model: "Model") -> dict[str, str]:
    """Describe a graph, so that it can be used without its run."""
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
    """Silence the messages of torch's ONNX exporter; failures raise errors."""
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
    """Remove the origin of each node, which names files of this computer."""
    graphs = [proto.graph]
    for graph in graphs:  # nested graphs are appended
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    for function in proto.functions:
        for part in (function, *function.node):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")


def _name_batch(proto: "ModelProto") -> None:
    """Name the free dimension `batch`; torch gives it a number."""
    graph = proto.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{free}\b", "batch", dim.dim_param)
