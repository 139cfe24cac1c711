"""Stress test: the perturbations of the images, and the written files."""

import shutil

import numpy as np
import pandas as pd
import pytest

from urnet.evaluation.evaluate import evaluate
from urnet.evaluation.stress import PERTURBATIONS, perturb, run_stress_test
from urnet.images.read import read_image
from urnet.training.fit import train

SHORT = ("train.epochs=1", "augment.per_class=8")


def crops(size: int = 128, dtype: type = np.uint16) -> np.ndarray:
    """Four grey images of a disc with some texture, (4, 1, S, S)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    disc = np.hypot(y, x) < size / 4
    images = [900 + 200 * disc + rng.normal(0, 10, disc.shape) for _ in range(4)]
    scale = {np.uint8: 0.1, np.uint16: 1, np.float32: 1e-3}[dtype]
    return (scale * np.stack(images)[:, None]).astype(dtype)


@pytest.fixture(scope="module")
def result(trained, shapes, tmp_path_factory):
    return run_stress_test([trained.folder], shapes, tmp_path_factory.mktemp("stress") / "out")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_keeps_the_depth_is_repeated_exactly_and_grows(name, dtype):
    images = crops(64, dtype)
    severities = [s for s in PERTURBATIONS[name].severities if s >= 0]
    worse = [perturb(images, name, severity, float(np.ptp(images))) for severity in severities]
    assert all(one.dtype == images.dtype and one.shape == images.shape for one in worse)
    assert (worse[0] == images).all()
    change = [np.abs(one.astype(float) - images).mean() for one in worse]
    assert change == sorted(change)
    assert change[-1] > change[0]
    again = perturb(images[2:], name, severities[-1], float(np.ptp(images)))
    assert (again == worse[-1][2:]).all()  # whichever batch it is in


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_grey_and_colour_give_images_of_their_own_shape(name):
    colour = np.repeat(crops(48), 3, axis=1)
    assert perturb(colour, name, PERTURBATIONS[name].severities[-1], 500.0).shape == colour.shape


def test_counts_clip_as_a_camera_clips():
    images = crops(64, np.uint8)
    images[0] = 220
    assert (perturb(images, "gain", 0.3, 255.0)[0] == 255).all()
    assert perturb(np.zeros((1, 1, 16, 16), np.uint8), "noise", 0.5, 255.0).min() == 0
    assert perturb(np.ones((1, 1, 16, 16), np.float32), "gain", 0.3, 1.0).max() == pytest.approx(1.3)


def test_defocus_keeps_the_light_and_an_empty_image_and_inverts_fine_contrast():
    images = crops()
    far = perturb(images, "defocus", 8, 500.0)
    assert far.mean() == pytest.approx(images.mean(), rel=0.01)
    empty = np.full((1, 1, 64, 64), 700, np.uint16)
    assert np.abs(perturb(empty, "defocus", 8, 500.0).astype(int) - 700).max() <= 1
    # A weak grating of wave number k passes as cos(z·k²/2): with k = 2π/8 and z = 8, as cos(2.47) = −0.78.
    grating = np.cos(2 * np.pi * np.arange(128) / 8)
    image = (1000 + 20 * np.tile(grating, (128, 1))).astype(np.float32)[None, None]
    middle = slice(40, 88)
    seen = perturb(image, "defocus", 8, 500.0)[0, 0, middle, middle].mean(axis=0) - 1000
    assert seen @ grating[middle] / (grating[middle] @ grating[middle]) / 20 == pytest.approx(-0.78, abs=0.03)


def test_lengths_and_noise_scale_with_the_crop():
    change = {}
    for size in (64, 128):
        flat = np.full((2, 1, size, size), 1000, np.uint16)
        noisy = perturb(flat, "noise", 0.1, 500.0) - 1000.0
        assert noisy.std() == pytest.approx(50 * size / 128, rel=0.05)
        y = np.arange(size) < size / 2
        step = np.where(y, 1000, 2000).astype(np.float32)[None, None, :, None] * np.ones((1, 1, 1, size), np.float32)
        change[size] = np.abs(perturb(step, "blur", 3, 500.0) - step).mean()
    assert change[64] == pytest.approx(change[128], rel=0.1)


def test_the_ramp_is_as_steep_as_stated_and_turns_from_cell_to_cell():
    flat = np.full((8, 1, 64, 64), 1000, np.uint16)
    flat += np.arange(8, dtype=np.uint16)[:, None, None, None]  # so that the cells differ
    lit = perturb(flat, "ramp", 0.4, 500.0)[:, 0].astype(float)
    slope = np.hypot(np.diff(lit, axis=1).mean(axis=(1, 2)), np.diff(lit, axis=2).mean(axis=(1, 2))) * 63 / 1000
    assert slope == pytest.approx(0.4, rel=0.05)
    assert lit.mean(axis=(1, 2)) == pytest.approx(1000, rel=0.01)
    brightest = {int(image.argmax()) for image in lit}
    assert len(brightest) > 2


@pytest.mark.slow
def test_the_folder_of_a_stress_test(result):
    assert {path.name for path in result.folder.iterdir()} == {"stress.csv", "figures", "report.html"}
    pictures = {path.name for path in (result.folder / "figures").iterdir()}
    assert pictures == {"accuracy.png", "macro_recall.png", "recall_1.png", "recall_2.png", "recall_3.png"}
    assert all(min(read_image(result.folder / "figures" / name).shape[:2]) > 500 for name in pictures)
    page = result.report.read_text(encoding="utf-8")
    assert "Illumination ramp" in page
    assert "not taken with a microscope" in page
    assert "By donor" not in page


@pytest.mark.slow
def test_the_table_begins_with_the_evaluation_and_falls(result, trained):
    table = pd.read_csv(result.folder / "stress.csv")
    assert len(table) == sum(len(kind.severities) for kind in PERTURBATIONS.values())
    metrics = evaluate(trained, out=result.folder.parent / "evaluation").metrics
    unharmed = table[table["severity"] == 0]
    assert len(unharmed) == len(PERTURBATIONS)
    assert unharmed["macro_recall"].to_numpy() == pytest.approx(metrics["macro_recall"]["value"], abs=1e-5)
    assert unharmed["accuracy"].to_numpy() == pytest.approx(metrics["accuracy"]["value"], abs=1e-5)
    assert (table["cells"] == metrics["n"]).all()
    noisy = table[(table["perturbation"] == "noise") & (table["severity"] == 0.16)].iloc[0]
    assert noisy["macro_recall"] <= unharmed["macro_recall"].iloc[0]
    known = table.dropna(subset=["macro_recall_low"])
    assert (known["macro_recall_low"] <= known["macro_recall"]).all()
    assert (known["macro_recall_high"] >= known["macro_recall"]).all()


@pytest.mark.slow
def test_several_runs_a_cross_validation_among_them_share_one_table(trained, shapes, tiny, tmp_path, raises_code):
    train(shapes, tiny, tmp_path / "cv", overrides=[*SHORT, "split.folds=2"])
    steps = []
    result = run_stress_test(
        [trained.folder, tmp_path / "cv"], shapes, tmp_path / "out", progress=lambda *step: steps.append(step)
    )
    assert list(result.table["run"].unique()) == ["run", "cv"]
    assert set(result.table.loc[result.table["run"] == "cv", "cells"]) == {60}
    assert any("different test cells" in warning for warning in result.warnings)
    assert dict(steps)["stress"] == 1.0
    with raises_code("evaluation.folds_pool_test"):
        run_stress_test([tmp_path / "cv"], shapes, tmp_path / "out2", split="train")
    with raises_code("run.is_cross_validation"):
        run_stress_test([tmp_path / "cv"], shutil.copytree(shapes, tmp_path / "moved"), tmp_path / "out2")


@pytest.mark.slow
def test_other_cells_are_used_whole_and_results_by_donor_are_given(trained, draw, tmp_path):
    other = draw(tmp_path / "other", 6, seed=9)
    paths = sorted(other.rglob("*.png"))
    rows = [(p.relative_to(other).as_posix(), p.parent.name, "<A>" if int(p.stem) < 4 else "B") for p in paths]
    pd.DataFrame(rows, columns=["path", "label", "donor"]).to_csv(other / "cells.csv", index=False)
    result = run_stress_test([trained.folder], other, tmp_path / "out")
    assert set(result.table["cells"]) == {18}
    donors = pd.read_csv(result.folder / "donors.csv")
    assert dict(zip(donors["donor"], donors["cells"], strict=True)) == {"<A>": 12, "B": 6}
    whole = result.table[result.table["severity"] == 0]["accuracy"].iloc[0]
    assert np.average(donors["accuracy"], weights=donors["cells"]) == pytest.approx(whole)
    page = result.report.read_text(encoding="utf-8")
    assert "By donor" in page
    assert "&lt;A&gt;" in page


def test_bad_requests(trained, shapes, tmp_path, raises_code):
    with raises_code("evaluation.split_unknown"):
        run_stress_test([trained.folder], shapes, tmp_path / "out", split="tset")
    with raises_code("evaluation.no_run"):
        run_stress_test([], shapes, tmp_path / "out")
    with raises_code("evaluation.run_repeated"):
        run_stress_test([trained.folder, trained.folder], shapes, tmp_path / "out")
    with raises_code("run.not_a_run"):
        run_stress_test([tmp_path / "nothing"], shapes, tmp_path / "out")
    with raises_code("cells.not_found"):
        run_stress_test([trained.folder], tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        run_stress_test([trained.folder], shapes, tmp_path / "full")
    with raises_code("run.within_cells"):
        run_stress_test([trained.folder], shapes, shapes / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_of_other_classes_are_refused(trained, shapes, draw, tiny, tmp_path, raises_code):
    two = draw(tmp_path / "two", 8, classes=("bar", "disc"))
    run = train(two, tiny, tmp_path / "other", overrides=SHORT)[0]
    with raises_code("evaluation.classes_differ"):
        run_stress_test([run.folder, trained.folder], two, tmp_path / "out")
