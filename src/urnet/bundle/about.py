"""Facts about a model, as `urnet about` and the page About show them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urnet.bundle.model import Model


def model_facts(model: "Model") -> list[tuple[str, str]]:
    """List facts about a model: their names, and their values as text."""
    config, calibration = model.config, model.calibration
    scaling, cropping = config.scaling, model.cropping
    colour = "grey" if config.channels == 1 else "colour"
    protocol = "paper (optimistic: the epoch was chosen on the test part)" if config.protocol == "paper" else "honest"
    calibrated = "no; probabilities are not shares of correct predictions (run `urnet calibrate`)"
    if calibration is not None:
        cells = ", ".join(f"{count} {part}" for part, count in calibration.parts.items() if count)
        calibrated = (
            f"temperature {calibration.temperature:.3f}, {100 * calibration.false_rejection:g} % of good cells "
            f"rejected; cells: {cells}"
        )
    crops = "not cut out of fields"
    if cropping is not None:
        scale = "" if cropping.pixel_um is None else f", {cropping.pixel_um:.4g} µm per pixel"
        crops = f"cut out of fields, {cropping.size} px{scale}"
    sealed = "yes; all files match the digest" if model.is_sealed else "no; changes of its files cannot be detected"
    return [
        ("model", config.name),
        ("digest", model.digest()),
        ("sealed", sealed),
        ("classes", ", ".join(config.classes)),
        ("input", f"{colour}, {config.size} x {config.size} px, {scaling.dtype}"),
        ("scaling", f"raw counts {scaling.low:g} to {scaling.high:g} become 0 to 1"),
        ("enhancer", str(config.enhancer["name"])),
        ("classifier", str(config.classifier["name"])),
        ("protocol", protocol),
        ("training", f"seed {config.seed}, epoch {config.epoch}, urnet {config.versions.get('urnet', 'unknown')}"),
        ("calibration", calibrated),
        ("crops", crops),
    ]
