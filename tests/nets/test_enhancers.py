"""Tests of every registered enhancer, and of all enhancers with a given option."""

import inspect

import numpy as np
import pytest
import torch

from urnet.nets import Enhancer, create_enhancer, list_enhancers, register_enhancer
from urnet.nets.enhancers import registry
from urnet.nets.enhancers.base import reflect_pad
from urnet.nets.enhancers.registry import artefact_free_options


def options(name: str) -> list[str]:
    """List the options of an enhancer from the signature of its constructor."""
    return list(inspect.signature(registry._constructors[name]).parameters)[1:]


def images(channels: int, size: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def build(name: str, channels: int = 1, **chosen) -> Enhancer:
    torch.manual_seed(0)
    small = {option: 4 for option in ("width", "depth") if option in options(name)}
    return create_enhancer(name, channels, **small, **chosen)


VARIANTS = [
    *(("dynamic", {"variant": variant}) for variant in ("static", "streams")),
    ("plain", {"fold": 4}),
    ("plain", {"fold": 4, **artefact_free_options("plain")}),
    *((name, artefact_free_options(name)) for name in list_enhancers() if artefact_free_options(name)),
]
ALL = [*((name, {}) for name in list_enhancers()), *VARIANTS]
TRAINABLE = [(name, chosen) for name, chosen in ALL if any(True for _ in build(name, **chosen).parameters())]
RESIDUAL = [name for name in list_enhancers() if "residual" in options(name)]
PAINTERS = [name for name in RESIDUAL if name != "none"]
U_SHAPED = ["unet", "unetpp", "resunet", "urnet"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chosen"), ALL)
@pytest.mark.parametrize(("size", "channels"), [(200, 1), (199, 3), (41, 1), (40, 3), (16, 1), (2, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_keeps_shape(name, chosen, size, channels, training):
    enhancer = build(name, channels, **chosen).train(training)
    y = enhancer(images(channels, size))
    assert y.shape == (2, channels, size, size)
    assert y.isfinite().all()


@pytest.mark.parametrize(("name", "chosen"), ALL)
def test_takes_oblong_images(name, chosen):
    assert build(name, **chosen)(torch.rand(2, 1, 23, 50)).shape == (2, 1, 23, 50)


@pytest.mark.parametrize("name", U_SHAPED)
def test_body_takes_sizes_that_16_does_not_divide(name):
    assert build(name).body(images(1, 41)).shape == (2, 1, 41, 41)


@pytest.mark.parametrize(("name", "chosen"), TRAINABLE)
def test_gradients_reach_every_parameter(name, chosen):
    # in training, batch norm cancels a bias before it; in evaluation, a static filter is a constant
    enhancer = build(name, **chosen).train(chosen.get("variant") == "static")
    enhancer(images(1, 40)).square().mean().backward()
    assert [key for key, p in enhancer.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", PAINTERS)
def test_gradients_reach_every_parameter_of_a_residual_enhancer_after_one_step(name):
    enhancer = build(name, residual=True)
    optimiser = torch.optim.SGD(enhancer.parameters(), lr=0.1)
    enhancer(images(1, 40)).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    enhancer.eval()
    enhancer(images(1, 40)).square().mean().backward()
    assert [key for key, p in enhancer.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("training", [True, False])
def test_residual_is_the_identity_before_the_first_step(name, training):
    x = images(3, 41)
    assert torch.equal(build(name, 3, residual=True).train(training)(x), x)


@pytest.mark.parametrize("name", PAINTERS)
def test_without_residual_it_is_not_the_identity(name):
    x = images(3, 41)
    assert not torch.allclose(build(name, 3)(x), x, atol=0.1)


def test_none_is_the_identity_and_has_nothing_to_train():
    x = images(3, 41)
    assert torch.equal(build("none", 3)(x), x)
    assert list(build("none").parameters()) == []


@pytest.mark.parametrize(("name", "chosen"), ALL)
def test_images_of_a_batch_do_not_see_each_other_in_eval(name, chosen):
    enhancer = build(name, **chosen).eval()
    x = images(1, 40, batch=3)
    torch.testing.assert_close(enhancer(x)[1:2], enhancer(x[1:2]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chosen"), ALL)
def test_exported_program_gives_the_same_numbers_for_any_batch(name, chosen):
    enhancer = build(name, **chosen).eval()
    if not getattr(enhancer, "exportable", True):
        pytest.skip(f"{name} says that it cannot be exported")
    program = torch.export.export(enhancer, (images(1, 41),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for batch in (1, 5):
        x = images(1, 41, batch)
        torch.testing.assert_close(program(x), enhancer(x))


@pytest.mark.parametrize("size", [2, 3, 5, 40])
@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (7, 7, 7, 7), (50, 1, 0, 13)])
def test_reflect_pad_agrees_with_numpy(size, margins):
    x = images(1, size)
    left, right, top, bottom = margins
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(x, *margins).numpy(), expected)


def test_image_of_one_pixel_is_an_error_that_gives_the_smallest_size(raises_code):
    with raises_code("images.too_small"):
        build("unet")(images(1, 1))


def test_unknown_name_lists_the_good_ones(raises_code):
    with raises_code("recipe.enhancer_unknown") as caught:
        create_enhancer("unett", 1)
    assert all(name in str(caught.value) for name in ("'unett'", "none", "unet,", "unetpp", "urnet"))


@pytest.mark.parametrize("name", list_enhancers())
def test_unknown_option_lists_the_good_ones(name, raises_code):
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer(name, 1, widht=8)
    assert all(part in str(caught.value) for part in (f"'{name}'", "'widht'", ", ".join(options(name))))


@pytest.mark.parametrize("option", ["name", "channels"])
def test_arguments_are_no_options(option, raises_code):
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer("unet", 1, **{option: 3})
    assert f"'{option}'" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in list_enhancers() if "width" in options(name)])
@pytest.mark.parametrize("width", [0, -4])
def test_impossible_width_names_the_range(name, width, raises_code):
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer(name, 1, width=width)
    assert all(part in str(caught.value) for part in ("width", str(width), "equal to 1"))


@pytest.mark.parametrize(("option", "value"), [("width", 8.5), ("width", "8"), ("residual", "yes"), ("residual", 1)])
def test_value_of_the_wrong_type_names_option_and_value(option, value, raises_code):
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer("urnet", 1, **{option: value})
    assert f"{option} = {value!r}" in str(caught.value)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_only_grey_and_rgb(channels, raises_code):
    with raises_code("recipe.channels"):
        create_enhancer("unet", channels)


def test_a_new_enhancer_needs_nothing_but_the_decorator(monkeypatch, raises_code):
    monkeypatch.setattr("urnet.nets.enhancers.registry._constructors", {})

    @register_enhancer
    def blur(channels: int, *, strength: float = 1.0) -> Enhancer:
        return Enhancer(torch.nn.AvgPool2d(3, 1, padding=1))

    assert list_enhancers() == ["blur"]
    assert create_enhancer("blur", 1, strength=2.0)(images(1, 20)).shape == (2, 1, 20, 20)
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer("blur", 1, width=8)
    assert all(name in str(caught.value) for name in ("'blur'", "'width'", "strength"))
    with pytest.raises(ValueError, match="blur"):
        register_enhancer(blur)
