"""Targets of pre-training: paired images from the table, or the output of a fixed enhancer."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from urnet.cells.read import read_cells
from urnet.evaluation.evaluate import evaluate
from urnet.nets import create_enhancer, list_traditional
from urnet.recipe import load_recipe
from urnet.training.data import prepare_data
from urnet.training.fit import train

KINDS = {"target": 40, "target_nuclei": 80, "target_stain": 120, "target_clean": 200}
"""Value that each paired image of the fixture adds to its cell, modulo 256."""


@pytest.fixture(scope="module")
def paired(draw, tmp_path_factory):
    """Cells with a split and a paired image in every column; not to be changed."""
    folder = draw(tmp_path_factory.mktemp("paired"), 6)
    rows = []
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        number = int(path.stem)
        split = {4: "validation", 5: "test"}.get(number, "train")
        row = {"path": name, "label": path.parent.name, "split": split}
        for column, added in KINDS.items():
            row[column] = f"{column}/{name}"
            (folder / row[column]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(Image.open(path)) + np.uint8(added)).save(folder / row[column])
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "cells.csv", index=False)
    return folder


@pytest.fixture
def prepared(paired, tiny):
    """Prepare the cells with some columns only."""

    def call(*overrides, columns=tuple(KINDS), table=None):
        cells = read_cells(paired)
        selected = [column for column in cells.table if column not in KINDS or column in columns]
        table = cells.table[selected] if table is None else table
        recipe = load_recipe(tiny, ["pretrain.epochs=1", *overrides])
        return prepare_data(type(cells)(cells.root, table, cells.classes), recipe)

    return call


def targets(data) -> np.ndarray:
    """Read the target images, (N, C, S, S) in [0, 1]."""
    return data.__getitems__(list(range(len(data))))[2].numpy()


@pytest.mark.parametrize(
    ("target", "columns", "column"),
    [
        ("target", tuple(KINDS), "target"),
        ("nuclei", tuple(KINDS), "target_nuclei"),
        ("stain", tuple(KINDS), "target_stain"),
        ("clean", tuple(KINDS), "target_clean"),
        ("nuclei", ("target",), "target"),
        ("stain", ("target", "target_nuclei"), "target"),
    ],
)
def test_the_paired_image_comes_from_its_own_column_or_the_common_one(prepared, caplog, target, columns, column):
    with caplog.at_level(logging.WARNING, logger="urnet"):
        data = prepared(f"pretrain.target={target}", columns=columns)
    for part in (data.train, data.validation):
        expected = data.train.target_scaling.apply(part.images + np.uint8(KINDS[column]))
        np.testing.assert_allclose(targets(part), expected, atol=1e-6)
    # That another image than the named one is painted is said.
    assert (f"the column '{column}' is used" in caplog.text) == (column != f"target_{target}" and target != "target")


@pytest.mark.parametrize(
    ("target", "columns", "named"),
    [
        ("target", ("target_nuclei",), "'target'"),
        ("nuclei", ("target_clean",), "'target_nuclei' or 'target'"),
        ("stain", (), "'target_stain' or 'target'"),
    ],
)
def test_without_the_image_the_columns_are_named(prepared, raises_code, target, columns, named):
    with raises_code("cells.target_missing") as caught:
        prepared(f"pretrain.target={target}", columns=columns)
    assert f"pretrain.target={target} needs" in str(caught.value)
    assert f"in the column {named} " in str(caught.value)


def test_one_cell_without_its_image_is_enough_to_refuse(prepared, paired, raises_code):
    table = read_cells(paired).table
    table.loc[table.index[table["split"] == "validation"][0], ["target", "target_nuclei"]] = ""
    with raises_code("cells.target_missing"):
        prepared("pretrain.target=nuclei", table=table)
    # Cells that are only tested need none: prediction is label-free.
    table = read_cells(paired).table
    table.loc[table["split"] == "test", list(KINDS)] = ""
    assert targets(prepared("pretrain.target=nuclei", table=table).train).ndim == 4


@pytest.mark.parametrize("name", list_traditional())
def test_the_output_of_a_traditional_method_can_be_the_target(prepared, name):
    data = prepared(f"pretrain.target={name}", columns=())
    enhancer = create_enhancer(name, 1)
    for part in (data.train, data.validation):
        inputs = torch.from_numpy(part.scaling.apply(part.images[:]))
        np.testing.assert_allclose(targets(part), enhancer(inputs).clamp(0, 1).numpy(), atol=1e-5)
        assert not np.allclose(targets(part), inputs.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "painted"),
    [
        ((), False),
        (("pretrain.epochs=0",), False),
        (("pretrain.target=clahe", "pretrain.epochs=0"), False),
        (("pretrain.target=clahe",), True),
        (("pretrain.target=clahe", "pretrain.epochs=0", "train.auxiliary=0.5"), True),
        (("train.auxiliary=0.5",), False),  # towards the input itself
    ],
)
def test_target_images_are_read_only_if_they_are_used(prepared, tiny, overrides, painted):
    data = prepared(*overrides, columns=())
    assert load_recipe(tiny, ["pretrain.epochs=1", *overrides]).uses_target_images is painted
    assert (data.train.targets is not None) is painted
    assert targets(data.validation).ndim == (4 if painted else 2)


def test_paired_images_have_a_scale_of_their_own(prepared, paired, tmp_path, raises_code):
    cells = read_cells(shutil.copytree(paired, tmp_path / "cells"))
    for path in cells.table["target"]:
        pixels = np.asarray(Image.open(cells.root / path)).astype(np.uint16) * 200
        Image.fromarray(pixels).save(cells.root / path)
    table = cells.table.assign(target=[str(cells.root / path) for path in cells.table["target"]])
    data = prepared("pretrain.target=target", table=table)
    assert data.train.target_scaling.dtype == "uint16"
    assert data.train.scaling.dtype == "uint8"
    assert targets(data.train).min() == 0.0
    assert targets(data.train).max() == 1.0
    for path in table.loc[table["split"] == "validation", "target"]:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint8)).save(path)
    with raises_code("cells.depths"):
        prepared("pretrain.target=target", table=table)


def test_a_paired_image_that_cannot_be_read_is_named(prepared, paired, tmp_path, raises_code):
    table = read_cells(paired).table
    (tmp_path / "broken.png").write_bytes(b"no image")
    table.loc[0, "target"] = str(tmp_path / "broken.png")
    with raises_code("images.format_unknown") as caught:
        prepared("pretrain.target=target", table=table)
    assert "broken.png" in str(caught.value)


# Through a whole training.


@pytest.mark.slow
def test_an_auxiliary_loss_pulls_the_enhancer_towards_the_paired_image(paired, tiny, tmp_path):
    error = {}
    for weight in (0, 300):
        overrides = [
            *("pretrain.target=clean", f"train.auxiliary={weight}", "train.epochs=6", "train.lr=0.01"),
            *("train.batch_size=6", "train.weight_decay=0", "augment.per_class=12", "enhancer.residual=true"),
        ]
        run = train(paired, tiny, tmp_path / f"run{weight}", overrides=overrides)[0]
        model, cells = run.load_model(), run.cells().part("train")
        inputs = np.stack([model.prepare(cells.read(i)) for i in range(len(cells))])
        wanted = np.stack([cells.read(i, "target_clean") for i in range(len(cells))])[:, None] / 255
        _, enhanced = next(model.forward(inputs))
        error[weight] = float(((enhanced - wanted) ** 2).mean())
    assert error[300] < 0.7 * error[0]


@pytest.mark.slow
def test_selection_replaces_the_last_layer_and_lists_the_features(shapes, tiny, tmp_path):
    overrides = ["train.epochs=2", "augment.per_class=8", "selection={ants: 4, iterations: 3}"]
    run = train(shapes, tiny, tmp_path / "run", overrides=overrides)[0]
    result = json.loads(run.selection_path.read_text(encoding="utf-8"))
    layer = run.load_model().joint.classifier.get_classifier()
    selected = set(result["kept"])
    assert 0 < len(selected) < layer.in_features
    assert {k for k in range(layer.in_features) if bool(layer.weight[:, k].any())} == selected
    before = run.selection_path.read_bytes()
    again = train(shapes, tiny, tmp_path / "again", overrides=overrides)[0]
    assert again.selection_path.read_bytes() == before
    plain = train(shapes, tiny, tmp_path / "plain", overrides=overrides[:2])[0]
    assert not plain.selection_path.exists()


@pytest.mark.slow
def test_an_empty_selection_section_selects(shapes, tiny, tmp_path):
    run = train(shapes, tiny, tmp_path / "run", overrides=["train.epochs=1", "augment.per_class=8", "selection={}"])[0]
    assert run.selection_path.is_file()
    assert evaluate(run).metrics["n"] == 12


@pytest.mark.parametrize(
    ("override", "code", "names"),
    [
        (
            "pretrain.target=nucleus",
            "value_invalid",
            ["pretrain.target is 'nucleus'", "'identity', 'target', 'nuclei'"],
        ),
        ("pretrain.adversarial=1", "value_invalid", ["perceptual", "adversarial", "loss: huang2018"]),
        ("selection.ants=0", "value_invalid", ["selection.ants is 0"]),
        ("selection.antz=3", "key_unknown", ["selection.antz;", "selection.ants?"]),
    ],
)
def test_wrong_targets_and_selections_are_named(shapes, tiny, tmp_path, override, code, names, raises_code):
    with raises_code(f"recipe.{code}") as caught:
        train(shapes, tiny, tmp_path / "run", overrides=[override])
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "run").exists()
