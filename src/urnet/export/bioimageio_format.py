"""Format bioimageio: a folder for the BioImage Model Zoo with `rdf.yaml`, the graph in ONNX and test tensors."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet.errors import RunError
from urnet.export.graph import INPUT, OUTPUTS
from urnet.export.model_card import DOI, PAPER, RESEARCH_USE, model_card

if TYPE_CHECKING:
    from urnet.bundle.model import Model
    from urnet.run_folder import Run

PACKAGES = ("bioimageio.core",)
DESCRIPTION, WEIGHTS, CARD = "rdf.yaml", "model.onnx", "README.md"
TEST_CELLS = 2
"""Number of real cells in the folder: enough for a batch."""

_USAGE = """\
In any program that runs models of the BioImage Model Zoo, or with `bioimageio predict`. Input `counts`: raw counts as
float32 (batch, channel, {size}, {size}), which the graph scales. Outputs: `probabilities` of the classes, the
`enhanced` image in about 0 to 1, and `features`."""


def write(model: "Model", run: "Run | None", onnx: bytes, counts: np.ndarray, folder: Path) -> list[str]:
    """Fill a folder with a model description, and test it with `bioimageio.core`.

    Args:
        model: the trained model, which makes the test tensors.
        run: its run folder, for the documentation.
        onnx: its graph, from `to_onnx`.
        counts: (N, C, S, S) raw counts of real cells; the first two become the test input.
        folder: the folder to fill.

    Returns:
        Notes for the user.

    Raises:
        RunError: the description does not pass the test of `bioimageio.core` (code `export.bioimageio`).
    """
    from bioimageio.core import test_model
    from bioimageio.spec import ValidationContext, save_bioimageio_yaml_only
    from pydantic import ValidationError

    config = model.config
    few = counts[:TEST_CELLS]
    outputs = next(model.outputs(config.scaling.apply(few), len(few)))
    tensors = [few, outputs.probabilities, outputs.enhanced, outputs.features]
    for name, tensor in zip((INPUT, *OUTPUTS), tensors, strict=True):
        np.save(folder / f"{name}.npy", tensor.astype(np.float32))
    (folder / WEIGHTS).write_bytes(onnx)
    card = model_card(model, run, _USAGE.format(size=config.size))
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
    with ValidationContext(root=folder):  # paths are relative to the folder, which is moved later
        try:
            description = _describe(model, onnx, tensors)
        except ValidationError as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"bioimageio.spec rejects the description ({reason}); report this, or use --format hub",
                code="export.bioimageio",
            ) from None
        save_bioimageio_yaml_only(description, folder / DESCRIPTION)
    summary = test_model(folder / DESCRIPTION, weight_format="onnx")
    if summary.status != "passed":
        errors = [f"{'.'.join(map(str, e.loc))}: {e.msg}" for detail in summary.details for e in detail.errors]
        reason = " ".join("; ".join(errors).split())[:400]
        raise RunError(
            f"the description did not pass the test of bioimageio.core ({summary.status}: {reason}); report this, or "
            "use --format hub",
            code="export.bioimageio",
        )
    return [
        f"{len(few)} real cells are in it as test tensors",
        f"authors and licence are empty: add them to {DESCRIPTION} before you publish it",
    ]


def _describe(model: "Model", onnx: bytes, tensors: list[np.ndarray]) -> Any:
    """Make the description as an object of `bioimageio.spec`."""
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model import v0_5 as spec

    config = model.config
    colours = ["grey"] if config.channels == 1 else ["red", "green", "blue"]
    batch, channels = spec.BatchAxis(), spec.ChannelAxis(channel_names=colours)
    rows, columns = spec.AxisId("y"), spec.AxisId("x")

    def tensor(kind: type, name: str, about: str, axes: list[Any]) -> Any:
        file = FileDescr(source=Path(f"{name}.npy"))
        return kind(id=spec.TensorId(name), description=about, axes=axes, test_tensor=file)

    inputs = tensor(
        spec.InputTensorDescr,
        INPUT,
        f"Crops of one cell each, raw {config.scaling.dtype} counts as float32",
        [batch, channels, *(spec.SpaceInputAxis(id=axis, size=config.size) for axis in (rows, columns))],
    )
    probabilities = tensor(
        spec.OutputTensorDescr,
        OUTPUTS[0],
        "Probabilities of the classes",
        [batch, spec.ChannelAxis(channel_names=list(config.classes))],
    )
    enhanced = tensor(
        spec.OutputTensorDescr,
        OUTPUTS[1],
        "Enhanced crop, in about 0 to 1",
        [batch, channels, *(spec.SpaceOutputAxis(id=axis, size=config.size) for axis in (rows, columns))],
    )
    features = tensor(
        spec.OutputTensorDescr,
        OUTPUTS[2],
        "Mean feature maps of several depths",
        [batch, spec.IndexOutputAxis(size=tensors[-1].shape[1])],
    )
    tolerances = [
        spec.ReproducibilityTolerance(
            output_ids=[spec.TensorId(name)], relative_tolerance=1e-3, absolute_tolerance=1e-4 * _largest(expected)
        )
        for name, expected in zip(OUTPUTS, tensors[1:], strict=True)
    ]
    return spec.ModelDescr(
        name=_name(config.name),
        description=f"Enhances and classifies crops of single cells ({', '.join(config.classes)}). {RESEARCH_USE}"[
            :512
        ],
        cite=[spec.CiteEntry(text=PAPER, doi=spec.Doi(DOI))],
        tags=["white-blood-cells", "classification", "image-enhancement", "label-free", "2d", "onnx"],
        documentation=FileDescr(source=Path(CARD)),
        inputs=[inputs],
        outputs=[probabilities, enhanced, features],
        weights=spec.WeightsDescr(
            onnx=spec.OnnxWeightsDescr(source=Path(WEIGHTS), opset_version=_opset(onnx)),
        ),
        config=spec.Config(
            bioimageio=spec.BioimageioConfig(reproducibility_tolerance=tolerances), urnet={"digest": model.digest()}
        ),
    )


def _opset(onnx: bytes) -> int:
    from onnx import load_from_string

    return next(one.version for one in load_from_string(onnx).opset_import if one.domain == "")


def _largest(values: np.ndarray) -> float:
    """Return the largest absolute value, above 0 so that it can scale a tolerance."""
    return max(float(np.abs(values).max()), 1e-6)


def _name(name: str) -> str:
    """Make a name of the letters that the zoo allows, at most 64."""
    allowed = re.sub(r"[^A-Za-z0-9_+\- ()]", "-", f"urnet {name}")
    return allowed[:64]
