"""Rows of each table, and their recipes."""

import pytest
import torch
import yaml

from urnet.benchmark.plans import SCALES, TABLES, PlannedRow, plan_rows
from urnet.benchmark.published import find_published
from urnet.nets import build_from_recipe, count_parameters, create_enhancer, list_enhancers
from urnet.nets.enhancers.registry import ARTEFACT_FREE, artefact_free_options
from urnet.recipe import Recipe, load_recipe

ROWS = {
    "table2": [
        f"{enhancer}-{classifier}"
        for enhancer in ("unet", "unetpp", "resunet")
        for classifier in ("vgg16", "mobilenetv2_100", "densenet121", "resnet101")
    ],
    "table3": ["net1", "net2", "net3", "net4"],
    "table4": [
        *("net1", "jeon2021", "shahzad2022", "huang2018", "sharma2018", "clahe", "retinex", "unsharp", "guided"),
        *("homomorphic", "wavelet", "net4"),
    ],
    "ablation": [
        *("net4", "net4-no-padded", "net4-no-strided", "net4-no-leaky", "net4-no-skip-conv", "net4-no-attention"),
        *("net3", "net4-residual", "net3-residual", "net1", "net1-stem", "net1-long"),
    ],
}


def flat(recipe: Recipe) -> dict[str, object]:
    """Flatten a recipe to dotted keys, without its name."""

    def walk(data: dict, prefix: str):
        for key, value in data.items():
            yield from walk(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    return {key: value for key, value in walk(recipe.model_dump(), "") if key != "name"}


def changed(one: Recipe, other: Recipe) -> set[str]:
    """List the keys in which two recipes differ."""
    a, b = flat(one), flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key, "absent") != b.get(key, "absent")}


def rows(table: str, **settings) -> dict[str, PlannedRow]:
    return {row.name: row for row in plan_rows(table, **settings)}


def joint(recipe: Recipe):
    """Build the networks without memory for weights (meta device)."""
    with torch.device("meta"):
        return build_from_recipe(recipe, 3, recipe.input.channels)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_table_is_a_recipe_that_builds(table, scale):
    planned = plan_rows(table, scale=scale, folds=4, channels=1)
    assert [row.name for row in planned] == ROWS[table]
    assert len({row.title for row in planned}) == len(planned)
    for row in planned:
        assert row.recipe.name == row.name
        assert (row.recipe.split.folds, row.recipe.split.fold, row.recipe.protocol) == (4, None, "honest")
        assert Recipe.model_validate(yaml.safe_load(row.recipe.to_yaml())) == row.recipe
        assert count_parameters(joint(row.recipe)) > 0
    # What decides who is in which fold, and what an input is, is the same for all.
    assert len({(row.recipe.split, row.recipe.input.size, row.recipe.input.channels) for row in planned}) == 1


def test_the_rows_of_the_paper_have_published_values():
    for name in ROWS["table3"]:
        assert find_published("table3", name, ("granulocyte", "lymphocyte", "monocyte")) is not None


@pytest.mark.parametrize("table", TABLES)
def test_paper_scale_does_not_change_the_recipes(table):
    for row in plan_rows(table):
        assert row.recipe.input.size == 200
        assert row.recipe.augment.per_class == 8000
        assert row.recipe.classifier.pretrained
        if row.name not in ("net1-long", "net1-stem"):
            assert row.recipe.train.epochs == 200
            assert row.recipe.enhancer.options.get("width", 64) in (64, 16)  # 16: RSGUNet's own


@pytest.mark.parametrize("table", TABLES)
def test_laptop_scale_is_small_and_downloads_nothing(table):
    for row in plan_rows(table, scale="laptop", channels=1):
        recipe = row.recipe
        assert (recipe.input.size, recipe.input.channels, recipe.augment.per_class) == (96, 1, None)
        assert not recipe.classifier.pretrained
        assert recipe.train.epochs <= 28
        if row.name != "net1-stem":
            assert recipe.enhancer.options.get("width", 8) in (8, 16)


def test_enhancers_have_linear_output_at_paper_scale_and_bounded_output_at_laptop_scale():
    for table in TABLES:
        for row in plan_rows(table):
            assert not row.recipe.enhancer.options.keys() & ARTEFACT_FREE.keys(), row.name
        for row in plan_rows(table, scale="laptop"):
            expected = artefact_free_options(row.recipe.enhancer.name)
            assert row.recipe.enhancer.options.items() >= expected.items(), row.name
            assert expected or row.recipe.enhancer.name not in ("unet", "unetpp", "resunet", "urnet", "plain")


def test_net4_at_laptop_scale_is_net4_laptop():
    ours, net4 = load_recipe("net4-laptop"), rows("table3", scale="laptop")["net4"].recipe
    assert ours.enhancer == net4.enhancer
    assert (ours.pretrain, ours.classifier) == (net4.pretrain, net4.classifier)


@pytest.mark.slow
def test_at_laptop_scale_all_trainable_enhancers_have_the_same_learning_rate():
    gentle = load_recipe("net4-laptop").train.enhancer_lr
    for table in ("table2", "table3", "table4", "ablation"):
        for row in plan_rows(table, scale="laptop"):
            learns = list(create_enhancer(row.recipe.enhancer.name, 3, **row.recipe.enhancer.options).parameters())
            train = row.recipe.train
            if row.name != "huang2018" and learns:
                assert (train.lr if train.enhancer_lr is None else train.enhancer_lr) == gentle, row.name
            elif row.name != "huang2018":
                assert train.enhancer_lr is None, row.name


def test_the_packaged_classifier_replaces_resnet101_at_laptop_scale():
    for table in ("table3", "ablation"):
        for row in plan_rows(table, scale="laptop"):
            assert (row.recipe.classifier.name, row.recipe.classifier.weights) == ("tf_efficientnet_lite0", "packaged")
    four = rows("table4", scale="laptop")
    assert four["shahzad2022"].recipe.classifier.options["backbones"] == ["tf_efficientnet_lite0"]
    assert four["shahzad2022"].recipe.classifier.weights == "packaged"
    assert four["huang2018"].recipe.classifier.name == "tf_efficientnet_lite0"
    # Where the table asks for networks whose weights no package has, all of them start from random ones, and longer.
    for row in [*plan_rows("table2", scale="laptop"), four["jeon2021"]]:
        assert row.recipe.classifier.weights is None
        assert (row.recipe.train.optimizer, row.recipe.train.epochs) == ("adamw", 24)
    assert {row.recipe.classifier.name for row in plan_rows("table2", scale="laptop")} == {
        *("vgg16", "mobilenetv2_100", "densenet121", "resnet101"),
    }


@pytest.mark.parametrize("scale", SCALES)
def test_table_2_exchanges_one_network_at_a_time(scale):
    first, *others = plan_rows("table2", scale=scale)
    for row in others:
        assert changed(first.recipe, row.recipe) <= {"enhancer.name", "classifier.name"}


@pytest.mark.parametrize("scale", SCALES)
def test_ablation_rows_differ_from_net4_in_one_thing(scale):
    ablation = {name: row.recipe for name, row in rows("ablation", scale=scale).items()}
    net4 = ablation.pop("net4")
    for switch in ("padded", "strided", "leaky", "skip_conv", "attention"):
        row = ablation[f"net4-no-{switch.replace('_', '-')}"]
        assert changed(net4, row) == {f"enhancer.{switch}"}
        assert row.enhancer.options[switch] is False
    assert changed(net4, ablation["net4-residual"]) == {"enhancer.residual"}
    assert changed(ablation["net3"], ablation["net3-residual"]) == {"enhancer.residual"}
    assert ablation["net3"].pretrain.epochs == 0 < net4.pretrain.epochs


def test_without_pretraining_nothing_else_changes_at_paper_scale():
    ablation = rows("ablation")
    assert {key.partition(".")[0] for key in changed(ablation["net4"].recipe, ablation["net3"].recipe)} == {"pretrain"}


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_controls_are_net1_with_net4s_parameters_or_epochs(scale):
    ablation = {name: row.recipe for name, row in rows("ablation", scale=scale).items()}
    net1, net4, stem, long = (ablation[name] for name in ("net1", "net4", "net1-stem", "net1-long"))
    assert changed(net1, long) == {"train.epochs"}
    assert long.train.epochs == net4.train.epochs + net4.pretrain.epochs
    assert {key for key in changed(net1, stem) if not key.startswith("enhancer.")} <= {"train.enhancer_lr"}
    assert stem.train.enhancer_lr == net4.train.enhancer_lr
    assert stem.enhancer.name == "plain"
    assert count_parameters(joint(stem)) == pytest.approx(count_parameters(joint(net4)), rel=0.02)


def test_the_same_row_is_the_same_recipe_in_every_table():
    everywhere = [rows(table, scale="laptop") for table in ("table3", "table4", "ablation")]
    for name in ("net1", "net4"):
        assert len({repr(found[name].recipe) for found in everywhere}) == 1
    assert everywhere[0]["net3"].recipe == everywhere[2]["net3"].recipe


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_overrides_reach_every_row_and_pretraining_only_those_that_pretrain(table, scale):
    before = rows(table, scale=scale)
    overrides = ["train.epochs=3", "train.precision=bf16", "input.size=64"]
    overrides += ["pretrain.epochs=5"] if table != "table2" else []
    for name, row in rows(table, scale=scale, overrides=overrides).items():
        recipe = row.recipe
        assert recipe.train.epochs == (8 if name == "net1-long" else 3)
        assert (recipe.train.precision, recipe.input.size) == ("bf16", 64)
        assert recipe.pretrain.epochs == (5 if before[name].recipe.pretrain.epochs else 0)


@pytest.mark.parametrize("scale", SCALES)
def test_huang2018_is_trained_towards_the_paired_image_where_there_is_one(scale):
    assert rows("table4", scale=scale)["huang2018"].recipe.pretrain.target == "clahe"
    for target in ("target", "nuclei"):
        four = rows("table4", scale=scale, paired=target)
        huang = four.pop("huang2018").recipe
        assert (huang.pretrain.target, huang.pretrain.loss, huang.train.enhancer_lr) == (target, "huang2018", 0)
        assert all(row.recipe.pretrain.target != target for row in four.values())


def test_fixed_enhancers_of_table_4_are_net1_behind_them():
    four = {name: row.recipe for name, row in rows("table4").items()}
    for name in ("clahe", "retinex", "unsharp", "guided", "homomorphic", "wavelet"):
        assert changed(four["net1"], four[name]) == {"enhancer.name"}
        assert name in list_enhancers()
        assert count_parameters(create_enhancer(name, 3)) == 0


def test_options_of_some_methods_reach_the_rows_that_have_them():
    overrides = ["enhancer.width=4", "selection.ants=3", "pretrain.adversarial=2", "pretrain.target=unsharp"]
    four = {name: row.recipe for name, row in rows("table4", overrides=overrides).items()}
    for name in ("huang2018", "net4"):
        assert four[name].enhancer.options["width"] == 4
    assert "width" not in four["clahe"].enhancer.options | four["sharma2018"].enhancer.options
    assert {name for name, recipe in four.items() if recipe.selection} == {"shahzad2022"}
    assert four["shahzad2022"].selection.ants == 3
    assert {name for name, recipe in four.items() if recipe.pretrain.adversarial} == {"huang2018"}
    assert {name for name, recipe in four.items() if recipe.pretrain.target == "unsharp"} == {
        *("huang2018", "sharma2018", "net4"),
    }


def test_an_override_may_add_the_option_that_another_one_changes():
    for overrides in (["enhancer.name=dynamic", "enhancer.size=3"], ["enhancer.size=3", "enhancer.name=dynamic"]):
        for row in plan_rows("table3", overrides=overrides):
            assert (row.recipe.enhancer.name, row.recipe.enhancer.options["size"]) == ("dynamic", 3)
    net4 = rows("table3", overrides=["pretrain.adversarial=2", "pretrain.loss=huang2018"])["net4"].recipe
    assert (net4.pretrain.loss, net4.pretrain.adversarial) == ("huang2018", 2)


@pytest.mark.parametrize(
    ("override", "options"),
    [("enhancer.widht=4", ["width, ", "attention"]), ("selection.ants=3", []), ("pretrain.adversarial=3", [])],
)
def test_an_override_that_no_row_uses_is_an_error(override, options, raises_code):
    with raises_code("benchmark.key_unused") as caught:
        plan_rows("table3", overrides=["train.epochs=2", override])
    assert all(part in str(caught.value) for part in (f"--set {override}", "table3", *options))


def test_an_unknown_enhancer_is_reported_when_it_is_built(raises_code):
    planned = plan_rows("table3", overrides=["enhancer.name=unit", "enhancer.foo=3"])
    assert {row.recipe.enhancer.name for row in planned} == {"unit"}
    with raises_code("benchmark.key_unused") as caught:
        plan_rows("table3", overrides=["enhancer.name=unit", "selection.ants=3"])
    assert "--set selection.ants=3" in str(caught.value)


def test_net4_is_no_row_of_table_2(raises_code):
    with raises_code("benchmark.key_unused") as caught:
        plan_rows("table2", overrides=["pretrain.epochs=3"])
    assert all(part in str(caught.value) for part in ("--set pretrain.epochs=3", "table2"))


def test_an_override_that_does_not_fit_is_an_error(raises_code):
    with raises_code("recipe.key_unknown") as caught:
        plan_rows("table3", overrides=["train.epoch=3"])
    assert "train.epochs?" in str(caught.value)


@pytest.mark.parametrize("override", ["split.folds=7", "split.fold=1", "protocol=paper", "seed=3", "name=mine"])
def test_reserved_keys_cannot_be_set(override, raises_code):
    with raises_code("benchmark.key_reserved") as caught:
        plan_rows("table3", scale="laptop", overrides=[override])
    assert f"--set {override}" in str(caught.value)
