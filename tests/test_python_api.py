"""The Python interface: arrays and paths in, arrays and data frames out; every example in its documentation runs."""

import doctest
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile

import urnet

pytestmark = pytest.mark.slow

SMALL = {
    "input": {"size": 24},
    "augment": {"per_class": 12},
    "enhancer": {"name": "urnet", "width": 4, "residual": True},
    "classifier": {"name": "test_byobnet", "pretrained": False},
    "train": {"epochs": 2, "batch_size": 12},
}
FUNCTIONS = ("read_field", "detect", "crop", "train", "load", "evaluate", "differential", "compare")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with phantom cells and fields, and two runs."""
    from urnet.cells.simulate import write_phantom

    home = tmp_path_factory.mktemp("home")
    write_phantom(home / "phantom", 90, size=32, donors=9, fields=1, seed=1)
    for seed, name in enumerate(("run", "other run")):
        urnet.train(home / "phantom", "quick", home / name, seed=seed, progress=False, **SMALL)
    return home


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name, home, monkeypatch):
    monkeypatch.chdir(home)
    function = getattr(urnet, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert example.examples, f"urnet.{name} has no example"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    messages: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(example, out=messages.append)
    assert messages == [], "".join(messages)


def test_every_public_function_is_documented_and_typed():
    assert set(FUNCTIONS) == set(urnet.__all__) - {"__version__"}
    for name in FUNCTIONS:
        function = getattr(urnet, name)
        documentation = inspect.getdoc(function)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert f"{parameter.name}:" in documentation, f"{name}: {parameter.name} is not described"


def test_a_field_knows_its_channels_and_pixel_size(tmp_path):
    pixels = np.arange(2 * 40 * 50, dtype=np.uint16).reshape(2, 40, 50)
    metadata = {"axes": "CYX", "Channel": {"Name": ["BF", "DAPI"]}, "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, ome=True, photometric="minisblack", metadata=metadata)
    field = urnet.read_field(tmp_path / "a.ome.tif")
    assert field.channels == ("BF", "DAPI")
    assert field.pixel_size_um == pytest.approx(0.2)
    assert len(field.scenes) == 1
    np.testing.assert_array_equal(field.data, pixels)
    np.testing.assert_array_equal(np.asarray(field), pixels)
    np.testing.assert_array_equal(field.channel("DAPI"), pixels[1])
    assert "50 x 40 px" in repr(field)
    assert "DAPI" in field._repr_html_()


def test_a_colour_field_has_three_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    field = urnet.read_field(tmp_path / "a.tif")
    assert field.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(field.data, np.moveaxis(pixels, 2, 0))
    assert len(urnet.detect(field)) == len(urnet.detect(pixels))


def test_wrong_channels_and_shapes_are_refused(home, raises_code):
    field = urnet.read_field(home / "phantom" / "fields" / "field_000.tif")
    with raises_code("fields.no_such_channel"):
        field.channel("DAPI")
    with raises_code("fields.no_such_channel"):
        urnet.detect(field.data[0], nuclei="DAPI")
    with raises_code("fields.shape"):
        urnet.detect(field.data)
    with raises_code("fields.shapes_differ"):
        urnet.detect(field, nuclei=np.zeros((4, 4)))
    with raises_code("fields.pixel_size_unknown"):
        urnet.detect(field.data[0], diameter_um=(5, 20))
    with raises_code("fields.channel_needed"):
        urnet.detect(urnet.api.fields.FieldImage(np.zeros((2, 9, 9)), ("a", "b"), None, ("0",), "0", home))


def test_detections_are_the_same_from_a_path_a_field_and_an_array(home):
    path = home / "phantom" / "fields" / "field_000.tif"
    field = urnet.read_field(path)
    frames = [urnet.detect(source).to_frame() for source in (path, field, field.data[0])]
    assert len(frames[0]) > 5
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(frames[0].drop(columns="diameter_um"), frames[2].drop(columns="diameter_um"))
    assert frames[0]["diameter_um"].between(3, 30).all()
    assert frames[2]["diameter_um"].isna().all()


def test_detections_give_masks_crops_and_a_picture(home):
    cells = urnet.detect(home / "phantom" / "fields" / "field_000.tif")
    labels = cells.to_labels()
    assert labels.shape == cells.image.shape
    assert set(np.unique(labels)) == set(range(len(cells) + 1))
    crops = cells.crops(32)
    assert crops.shape == (len(cells), 32, 32)
    assert crops.dtype == cells.image.dtype
    y, x = round(cells[0].y - 16), round(cells[0].x - 16)
    if min(y, x) >= 0:
        np.testing.assert_array_equal(crops[0], cells.image[y : y + 32, x : x + 32])
    assert cells.plot().get_title() == f"{len(cells)} cells"
    assert "<table" in cells._repr_html_()
    assert len(urnet.detect(np.full((300, 300), 90, np.uint8)).crops(32)) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"overrides": ["train.epochs=7"]},
        {"overrides": {"train.epochs": 7}},
        {"overrides": {"train": {"epochs": 7}}},
        {"train": {"epochs": 7}},
    ],
)
def test_recipe_keys_are_given_as_texts_a_mapping_or_keywords(monkeypatch, arguments):
    from urnet.recipe import load_recipe

    recipes = []

    def train_runs(cells, recipe, out, *, overrides, **_):
        recipes.append(load_recipe(recipe, overrides))
        return [SimpleNamespace(folder=Path(out))]

    monkeypatch.setattr("urnet.training.fit.train", train_runs)
    urnet.train("cells", "quick", "run", progress=False, input={"size": 24}, **arguments)
    assert (recipes[0].train.epochs, recipes[0].input.size) == (7, 24)


def test_keys_change_a_recipe_object(home, tmp_path):
    from urnet.recipe import load_recipe

    recipe = load_recipe("quick").with_changes(**SMALL)
    run = urnet.train(home / "phantom", recipe, tmp_path / "run", progress=False, train={"epochs": 1})
    assert run.recipe().train.epochs == 1


def test_folds_give_one_run_each(home, tmp_path, capfd):
    small = SMALL | {"train": {"epochs": 1, "batch_size": 12}}
    runs = urnet.train(home / "phantom", "quick", tmp_path / "folds", split={"folds": 2}, **small)
    assert [run.folder.name for run in runs] == ["fold0", "fold1"]
    out, err = capfd.readouterr()
    assert "train epoch 1/1" in out
    assert "fold 0 of 2" in err
    assert urnet.evaluate(tmp_path / "folds", progress=False).metrics["n"] == 90


def test_a_notebook_shows_progress_in_place(monkeypatch):
    from rich.console import Console

    from urnet.progress import ProgressBars

    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(("update", content["text/plain"]))

    def display(content, raw, display_id):
        shown.append(("new", content["text/plain"]))
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with ProgressBars(Console(force_jupyter=True)) as bars:
        for share in (0, 0.004, 0.5, 1):
            bars.update("crop fields", share)
        bars.update("audit", 0)
    assert shown == [
        ("new", "crop fields: 0 %"),
        ("update", "crop fields: 50 %"),
        ("update", "crop fields: 100 %"),
        ("new", "audit: 0 %"),
    ]
