"""Model card in Markdown: model, data, protocol, measured figures and limits."""

import json
from typing import TYPE_CHECKING, Any

from urnet.calibration.conformal import COVERAGE
from urnet.cells.table import PARTS
from urnet.errors import UrnetError
from urnet.html_pages import describe_intervals, format_interval
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.bundle.model import Model
    from urnet.run_folder import Run

PAPER = "Zheng et al., UR-Net, Sensors 2023, 23, 7605"
DOI = "10.3390/s23177605"
RESEARCH_USE = "For research use only: not a medical device, not for diagnosis."
OPTIMISTIC = (
    "Protocol `paper` is **optimistic**: the epoch was chosen on the test part, which was augmented and balanced too."
)
_HONEST = (
    "Protocol `honest`: the epoch was chosen on a validation part; the test part took no part in the training and was "
    "not augmented."
)
_SIMULATED = "The cells are **simulated** ({kinds}); nothing here was measured on real unstained cells."


def model_card(model: "Model", run: "Run | None", usage: str) -> str:
    """Make the text of the card, without metadata.

    Args:
        model: the trained model.
        run: its run folder; none for a bundle, whose card then names what is not known.
        usage: use of the files beside the card, in Markdown.
    """
    parts = [
        f"# {escape(model.config.name)}",
        f"**{RESEARCH_USE}**",
        _about(model),
        "## Use\n\n" + usage,
        "## Data\n\n" + _data(run),
        "## Protocol\n\n" + _protocol(model),
        "## Validation\n\n" + _validation(model, read_test_metrics(model, run)),
        "## Limits\n\n" + _limits(model),
        f"Written by urnet {__version__} from the run. Cite the method as: {PAPER}, https://doi.org/{DOI}.",
    ]
    return "\n\n".join(parts) + "\n"


def read_test_metrics(model: "Model", run: "Run | None") -> dict[str, Any] | None:
    """Read the figures of a run's test part; none if it was not evaluated with these weights."""
    path = None if run is None else run.folder / "evaluation" / "test" / "metrics.json"
    if path is None or not path.is_file():
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return (
            metrics if metrics["epoch"] == model.config.epoch and metrics["macro_recall"]["value"] is not None else None
        )
    except (ValueError, KeyError, TypeError):
        return None


def escape(text: str) -> str:
    """Escape a name for Markdown, also in tables."""
    for sign in "\\`*_|<>[]#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _about(model: "Model") -> str:
    from urnet.nets import count_parameters

    config, scaling = model.config, model.config.scaling
    colour = "grey" if config.channels == 1 else "colour"
    classes = ", ".join(escape(name) for name in config.classes)
    return (
        f"Classifies crops of single cells by an image enhancer (`{config.enhancer['name']}`) in front of a classifier "
        f"(`{config.classifier['name']}`), as one network of {count_parameters(model.joint):,} parameters.\n\n"
        f"- **Classes:** {classes}\n"
        f"- **Input:** {colour} crops of one cell, brought to {config.size} × {config.size} px; {scaling.dtype} "
        f"counts, of which {scaling.low:g} to {scaling.high:g} become 0 to 1 inside the network\n"
        f"- **Digest:** `{model.digest()}`"
    )


def _data(run: "Run | None") -> str:
    if run is None:
        return "Exported from a bundle without its run: its training data are not known here."
    try:
        counts = run.counts()
        donors = {part: run.donors(part) for part in PARTS}
        left_out, simulated = len(run.excluded_reasons()), run.cells().simulated
    except (UrnetError, OSError, ValueError, KeyError):
        return "The cells table of the run could not be read: its training data are not known here."
    rows = [
        "| class | " + " | ".join(counts.columns) + " |",
        "|---|" + "---:|" * counts.shape[1],
        *(f"| {escape(str(name))} | " + " | ".join(str(n) for n in row) + " |" for name, row in counts.iterrows()),
    ]
    known = ", ".join(f"{part} {len(names)}" for part, names in donors.items() if names)
    text = "Cells by class and part.\n\n" + "\n".join(rows) + "\n\n"
    text += f"Donors: {known}." if known else "The donors of the cells are not known."
    if both := donors["train"] & donors["test"]:
        text += f" {len(both)} of them gave cells to training and to test."
    if left_out:
        text += f" {left_out} images are excluded: copies, padding or constant images."
    return f"{text}\n\n{_SIMULATED.format(kinds=simulated)}" if simulated else text


def _protocol(model: "Model") -> str:
    config = model.config
    text = OPTIMISTIC if config.protocol == "paper" else _HONEST
    return f"{text}\n\nSeed {config.seed}; weights of epoch {config.epoch}."


def _validation(model: "Model", metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "This run was not evaluated, so there are no figures. Run `urnet evaluate RUN`, then export again."
    rows = ["| class | recall, % | precision, % | F1, % | cells |", "|---|---:|---:|---:|---:|"]
    for name, figures in metrics["per_class"].items():
        shares = " | ".join(format_interval(figures[key]) for key in ("recall", "precision", "f1"))
        rows.append(f"| {escape(name)} | {shares} | {figures['support']} |")
    shares = " | ".join(format_interval(metrics[f"macro_{key}"]) for key in ("recall", "precision", "f1"))
    rows += [f"| **macro average** | {shares} | {metrics['n']} |"]
    intervals = metrics["intervals"]
    joined = ". In brackets" if intervals["groups"] > 1 else ";"
    text = [
        f"On the run's own test part, {metrics['n']} cells; accuracy {format_interval(metrics['accuracy'])} %"
        f"{joined} {describe_intervals(intervals)}.",
        "\n".join(rows),
    ]
    notes = [intervals.get("note", ""), *metrics["warnings"]]
    text += ["\n".join(f"- {escape(note)}" for note in notes if note)] if any(notes) else []
    return "\n\n".join(text)


def _limits(model: "Model") -> str:
    calibration, scaling = model.calibration, model.config.scaling
    lines = [
        "The figures hold for cells like those above. Another microscope, objective, camera, preparation or laboratory "
        "was not tested unless the table says so.",
        f"A graph scales whatever counts it gets by {scaling.low:g} and {scaling.high:g}; another exposure, or "
        f"another depth than {scaling.dtype}, gives other results without a warning.",
        "Every crop gets one of the classes above, whatever it shows.",
        "A classifier trained on balanced classes miscounts blood. `urnet differential` corrects the counts.",
        "The enhanced image serves the classification, not the eye: it can show structures that do not exist.",
    ]
    if calibration is None:
        lines.append("The model is not calibrated: its probabilities are not shares of correct predictions.")
    else:
        lines += [
            f"Probabilities are calibrated (temperature {calibration.temperature:.3f}). Read by urnet, crops that are "
            f"no countable cell are rejected (and about {100 * calibration.false_rejection:g} % of good cells with "
            f"them), and sets of classes have a coverage of {100 * COVERAGE:g} %; a graph by itself gives only the "
            "features for it.",
        ]
    return "\n".join(f"- {line}" for line in lines)
