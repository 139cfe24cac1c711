"""Every shipped recipe trains, shrunk to seconds: a few cells, narrow networks, an epoch."""

import pytest

from urnet.evaluation.evaluate import evaluate
from urnet.nets.enhancers.registry import ARTEFACT_FREE, artefact_free_options, list_enhancer_options
from urnet.recipe import list_recipes, load_recipe
from urnet.training.fit import train


def shrunk(name: str) -> list[str]:
    recipe = load_recipe(name)
    changes = ["input.size=32", "classifier.pretrained=false"]
    if recipe.classifier.name == "shahzad2022":
        changes.append("classifier.options={backbones: [test_byobnet], width: 2}")
    else:
        changes.append("classifier.name=test_byobnet")
    changes += ["classifier.weights=null", "augment.per_class=6", "train.epochs=1", "train.batch_size=8"]
    changes += ["pretrain.batch_size=8"]
    if "width" in list_enhancer_options(recipe.enhancer.name):
        changes.append("enhancer.width=2")
    if recipe.pretrain.epochs:
        changes.append("pretrain.epochs=1")
    if recipe.pretrain.target in ("target", "nuclei", "stain", "clean"):  # these cells have no paired image
        changes.append("pretrain.target=clahe")
    if recipe.selection is not None:
        changes += ["selection.ants=4", "selection.iterations=2"]
    return changes


@pytest.mark.slow
@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_trains_and_is_evaluated(name, shapes, tmp_path):
    recipe = load_recipe(name)
    run = train(shapes, name, tmp_path / "run", overrides=shrunk(name))[0]
    stages = ["pretrain"] * bool(recipe.pretrain.epochs) + ["train"]
    assert run.history()["stage"].tolist() == stages
    config = run.load_model().config
    assert config.name == recipe.name == name
    assert config.enhancer["name"] == recipe.enhancer.name
    assert config.channels == (recipe.input.channels or 1)
    assert run.selection_path.is_file() == (recipe.selection is not None)
    assert evaluate(run).metrics["recipe"] == name


def test_the_papers_recipes_are_its_table_1():
    recipes = {name: load_recipe(name) for name in ("net1", "net2", "net3", "net4")}
    assert [recipe.enhancer.name for recipe in recipes.values()] == ["none", "resunet", "urnet", "urnet"]
    for recipe in recipes.values():
        assert recipe.classifier.name == "resnet101"
        assert recipe.classifier.pretrained
        assert recipe.input.size == 200
        stage = recipe.train
        assert (stage.optimizer, stage.momentum, stage.lr, stage.batch_size) == ("sgd", 0.9, 1e-4, 32)
        assert (stage.epochs, stage.schedule) == (200, "constant")
    assert [recipe.pretrain.epochs for recipe in recipes.values()] == [0, 0, 0, 100]
    stage = recipes["net4"].pretrain
    assert (stage.target, stage.optimizer, stage.momentum, stage.lr, stage.batch_size) == (
        *("identity", "sgd", 0.9, 1e-4, 32),
    )


@pytest.mark.parametrize("name", list_recipes())
def test_our_recipes_bound_the_enhanced_image_and_the_papers_do_not(name):
    enhancer = load_recipe(name).enhancer
    pictures = {"demo", "quick", "net4-laptop", "urnet-best", "urnet-small"}
    expected = artefact_free_options(enhancer.name) if name in pictures else {}
    assert {key: value for key, value in enhancer.options.items() if key in ARTEFACT_FREE} == expected
    assert bool(expected) is (name in pictures)


def test_the_quick_recipe_needs_no_hub_file_or_extra():
    for name in ("quick", "demo"):
        classifier = load_recipe(name).classifier
        assert not classifier.pretrained
        assert classifier.weights is None
