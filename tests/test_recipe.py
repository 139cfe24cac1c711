"""A recipe is complete, validated, and read back unchanged; errors name the key."""

import itertools

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from urnet.errors import RecipeError
from urnet.recipe import Recipe, list_recipes, load_recipe

PAPER = ("net1", "net2", "net3", "net4")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- what is shipped


def test_the_papers_networks_and_the_laptops_are_shipped():
    assert {*PAPER, "quick", "demo"} <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_is_valid_and_called_by_its_name(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize("name", PAPER)
def test_table_1_of_the_paper(name):
    recipe = load_recipe(name)
    assert (recipe.input.size, recipe.input.channels) == (200, 3)
    assert recipe.classifier.name == "resnet101"
    assert recipe.classifier.pretrained
    train = recipe.train
    assert (train.optimizer, train.momentum, train.lr, train.batch_size, train.epochs) == ("sgd", 0.9, 1e-4, 32, 200)
    assert train.schedule == "constant"
    enhancers = {"net1": "none", "net2": "resunet", "net3": "urnet", "net4": "urnet"}
    assert recipe.enhancer.name == enhancers[name]
    assert recipe.enhancer.options == ({} if name == "net1" else {"width": 64})
    assert recipe.pretrain.epochs == (100 if name == "net4" else 0)
    assert recipe.split.test == 0.2
    assert recipe.augment.per_class == 8000


def test_net4_is_pretrained_to_the_identity_as_net4_is_trained():
    recipe = load_recipe("net4")
    assert recipe.pretrain.target == "identity"
    for key in ("optimizer", "momentum", "lr", "batch_size", "schedule"):
        assert getattr(recipe.pretrain, key) == getattr(recipe.train, key)


def test_quick_needs_no_download():
    for name in ("quick", "demo"):
        classifier = load_recipe(name).classifier
        assert not classifier.pretrained
        assert classifier.weights is None


def test_the_default_is_the_honest_protocol():
    assert Recipe().protocol == "honest"
    assert (Recipe().split.test, Recipe().split.seed) == (0.2, 0)


# --- changes


def test_overrides_reach_every_depth_and_keep_the_rest():
    recipe = load_recipe(
        "net4",
        [
            *("train.epochs=3", "train.lr=1e-2", "enhancer.residual=true", "classifier.options.drop_rate=0.5"),
            *("input.limits=[200, 1650]", "split.folds=5", "seed=7", " tile = 40", "classifier.weights=C:\\w\\x.pth"),
            *("classes.granulocyte=[neutrophil, eosinophil]", "classes.monocyte=monocyte", "name=a=b"),
        ],
    )
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.momentum) == (3, 0.01, 0.9)
    assert recipe.enhancer.options == {"width": 64, "residual": True}
    assert recipe.classifier.options == {"drop_rate": 0.5}
    assert recipe.classifier.weights == "C:\\w\\x.pth"
    assert recipe.input.limits == (200, 1650)
    assert (recipe.split.folds, recipe.seed, recipe.tile, recipe.name) == (5, 7, 40, "a=b")
    assert recipe.classes == {"granulocyte": ["neutrophil", "eosinophil"], "monocyte": ["monocyte"]}
    assert list(recipe.classes) == ["granulocyte", "monocyte"]


def test_the_last_override_wins():
    assert load_recipe("quick", ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_a_changed_recipe_is_a_checked_copy(raises_code):
    recipe = load_recipe("quick")
    changed = recipe.with_changes(seed=3, split={"folds": 5, "fold": 2})
    assert (changed.seed, changed.split.fold, changed.split.test) == (3, 2, recipe.split.test)
    assert recipe.seed == 0
    with raises_code("recipe.value_invalid") as caught:
        changed.with_changes(split={"fold": 5})
    assert all(part in str(caught.value) for part in ("split: fold 5", "6"))


def test_labels_may_be_numbers():
    recipe = load_recipe("quick", ["classes={1: 2, b: [3, x]}"])
    assert recipe.classes == {"1": ["2"], "b": ["3", "x"]}


# --- files

# YAML folds the line separators that no keyboard has.
PRINTABLE = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
NAMES = st.text(PRINTABLE, min_size=1, max_size=8)
TRICKY = st.sampled_from(["1e5", "1.5e3", "no", "null", "~", "07", "2020-01-01", "- x", "#", "größe", "1_000", "é: è"])
LABELS = st.one_of(NAMES, TRICKY)


@quick
@given(
    classes=st.lists(LABELS, min_size=1, max_size=6, unique=True),
    name=LABELS,
    lr=st.floats(1e-12, 10),
    limits=st.none() | st.tuples(st.floats(-1e30, 0), st.floats(0.001, 1e30)),
    width=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_recipe_survives_its_file(tmp_path, classes, name, lr, limits, width, seed):
    recipe = Recipe(
        name=name,
        classes={label: [label] for label in classes},
        input={"limits": limits},
        enhancer={"name": "urnet", "width": width, "residual": True},
        train={"lr": lr},
        seed=seed,
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8", newline="\n")
    assert load_recipe(path) == recipe
    assert list(load_recipe(path).classes) == classes


def test_the_file_holds_every_key():
    data = yaml.safe_load(load_recipe("quick").to_yaml())
    assert set(data) == set(Recipe.model_fields)
    assert set(data["train"]) == set(type(Recipe().train).model_fields)


def test_a_file_with_a_mark_and_windows_lines(tmp_path):
    path = tmp_path / "größe.yaml"
    path.write_bytes("\ufeffname: größe\r\ntrain: {lr: 1e-3}\r\n".encode())
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.lr) == ("größe", 1e-3)
    assert recipe.train.epochs == Recipe().train.epochs


# --- mistakes

MISTAKES = {
    "train.epoch=3": ("key_unknown", "train.epoch;", "train.epochs?", "epochs"),
    "trian.epochs=3": ("key_unknown", "trian;", "train?"),
    "nonsense=1": ("key_unknown", "nonsense;", "name, classes"),
    "=5": ("override", "--set =5"),
    ".=5": ("key_unknown",),
    "train.epochs": ("override", "train.epochs=20"),
    "train.epochs=0": ("value_invalid", "train.epochs is 0: ", "equal to 1"),
    "train.epochs=many": ("value_invalid", "train.epochs is 'many': ", "integer"),
    "train.epochs.x=5": ("value_invalid", "train.epochs is {'x': 5}"),
    "train.lr=0": ("value_invalid", "train.lr is 0: ", "greater than 0"),
    "train.lr=.nan": ("value_invalid", "train.lr is nan"),
    "train.lr=11": ("value_invalid", "train.lr is 11: ", "equal to 10"),
    "train.optimizer=adam": ("value_invalid", "train.optimizer is 'adam': ", "'sgd' or 'adamw'"),
    "train=5": ("value_invalid", "train is 5: "),
    "split.test=1": ("value_invalid", "split.test is 1: ", "less than 1"),
    "split.fold=0": ("value_invalid", "split: fold 0", "1"),
    "split.folds=1": ("value_invalid", "split.folds is 1: ", "equal to 2"),
    "input.limits=[5, 5]": ("value_invalid", "input: limits", "[low, high]", "low < high"),
    "input.limits=[0, .inf]": ("value_invalid", "input.limits.1 is inf: ", "finite"),
    "input.channels=2": ("value_invalid", "input.channels is 2: ", "1 or 3"),
    "input.size=8": ("value_invalid", "input.size is 8: ", "equal to 16"),
    "tile=4": ("value_invalid", "tile is 4: ", "equal to 8"),
    "protocol=fair": ("value_invalid", "protocol is 'fair': ", "'honest' or 'paper'"),
    "classes={a: [x], b: [x]}": ("value_invalid", "classes: label 'x'"),
    "classes=[a, b]": ("value_invalid", "classes is ['a', 'b']: ", "dictionary"),
    "classes.a=[1.5]": ("value_invalid", "classes.a.0 is 1.5: ", "string"),
    "seed=-1": ("value_invalid", "seed is -1: "),
    "seed=4294967296": ("value_invalid", "seed is 4294967296: ", "less than 4294967296"),
    "train.lr=[": ("not_yaml", "--set train.lr=["),
    "name=2020-99-99": ("not_yaml", "--set name=2020-99-99"),
    "name=": ("value_invalid", "name is None: ", "string"),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_names_the_key_and_the_rule(override, raises_code):
    code, *parts = MISTAKES[override]
    with raises_code(f"recipe.{code}") as caught:
        load_recipe("quick", [override])
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_reported_together(raises_code):
    with raises_code("recipe.value_invalid") as caught:
        load_recipe("quick", ["train.epochs=0", "tile=1", "what=2"])
    assert len(str(caught.value).splitlines()) == 3
    assert all(line.startswith("recipe quick: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("content", "code", "found"),
    [
        (b"", "recipe.no_mapping", "an empty file"),
        (b"- a\n- b\n", "recipe.no_mapping", "list"),
        (b"just words", "recipe.no_mapping", "str"),
        (b"train: {lr: 1", "recipe.not_yaml", ""),
        (b"name: \xff\xfe", "recipe.not_yaml", "UTF-8"),
        (b"name: \x00", "recipe.not_yaml", ""),
        (b"!!python/object/apply:os.system [echo]", "recipe.not_yaml", ""),
        (b"{[1]: 2}", "recipe.not_yaml", ""),
        (b"1: 2", "recipe.value_invalid", ""),
        (b"train: {epochs: 0}", "recipe.value_invalid", "train.epochs is 0"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, content, code, found, raises_code):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with raises_code(code) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)


def test_an_unknown_name_is_an_error(tmp_path, raises_code):
    for name in ("net5", str(tmp_path), str(tmp_path / "absent.yaml")):
        with raises_code("recipe.unknown"):
            load_recipe(name)


@quick
@given(st.binary(max_size=120))
def test_any_bytes_are_a_recipe_or_a_recipe_error(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml", ["no.such.key=1"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(PRINTABLE, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(PRINTABLE, max_size=5), inner, max_size=3),
    max_leaves=5,
)


@quick
@given(st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)), JSON, min_size=1, max_size=3))
def test_any_values_are_a_recipe_or_a_recipe_error(tmp_path, data):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        recipe = load_recipe(tmp_path / "r.yaml")
    except RecipeError:
        return
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8", newline="\n")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_aliases_are_refused(tmp_path, raises_code):
    path = tmp_path / "bomb.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]" for b, c in itertools.pairwise("abcdefghi")]
    path.write_text("\n".join([*lines, "train: *i"]), encoding="utf-8")
    with raises_code("recipe.not_yaml"):
        load_recipe(path)


def test_a_recipe_nested_without_end_is_refused(tmp_path, raises_code):
    path = tmp_path / "deep.yaml"
    path.write_text("name: " + "[" * 5000, encoding="utf-8")
    with raises_code("recipe.not_yaml"):
        load_recipe(path)


def test_a_long_value_is_cut_in_its_error(raises_code):
    with raises_code("recipe.value_invalid") as caught:
        load_recipe("quick", ["train.epochs=" + "y" * 100_000])
    assert "train.epochs is 'yyyy" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["train.epochs", "train.batch_size", "pretrain.epochs", "augment.per_class"])
def test_numbers_beyond_all_use_are_refused(key, raises_code):
    with raises_code("recipe.value_invalid") as caught:
        load_recipe("quick", [f"{key}=10000000000"])
    assert all(part in str(caught.value) for part in (f"{key} is 10000000000", "equal to 1000000"))


def test_a_class_called_no_must_be_quoted(raises_code):
    with raises_code("recipe.value_invalid") as caught:
        load_recipe("quick", ["classes={no: [a], yes: [b]}"])
    assert "quotes" in str(caught.value)
    assert list(load_recipe("quick", ["classes={'no': [a], 'yes': [b]}"]).classes) == ["no", "yes"]


@pytest.mark.parametrize("given", ["train.precision=32", "train.precision='32'"])
def test_precision_may_be_written_as_a_number(given):
    assert load_recipe("quick", [given]).train.precision == "32"


@pytest.mark.parametrize("order", [1, -1])
def test_another_classifier_does_not_inherit_options(order):
    changes = ["classifier.name=densenet121", "classifier.options={drop_rate: 0.1}"]
    assert load_recipe("quick", changes[:1]).classifier.options == {}
    assert load_recipe("quick", changes[::order]).classifier.options == {"drop_rate": 0.1}
    assert load_recipe("quick", ["classifier.name=resnet10t"]).classifier.options == {"output_stride": 8}
    assert load_recipe("quick").with_overrides(changes[:1]).classifier.options == {}


def test_the_removed_section_distill_has_no_effect(tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text("distill: {temperature: 2.0, logits: 0.5, image: 1.0}\n", encoding="utf-8")
    with pytest.warns(DeprecationWarning, match="recipe key distill"):
        recipe = load_recipe(path)
    assert recipe == Recipe()
    assert load_recipe("quick", ["distill=null"]) == load_recipe("quick")  # as in recipes of earlier runs
