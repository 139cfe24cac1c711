"""Registry of enhancers: a decorator registers a constructor, whose signature defines the options of the enhancer."""

from collections.abc import Callable, Iterable
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from urnet.errors import RecipeError
from urnet.nets.enhancers.base import Enhancer
from urnet.nets.enhancers.blocks import PaddingMode, Upsample

Width = Annotated[int, Field(ge=1, le=1024)]
"""Channels of the first scale, or of every layer of a network with one scale."""

ARTEFACT_FREE: dict[str, Any] = {"bounded": True, "upsample": "resize", "padding_mode": "reflect"}
"""Options that keep an enhanced image in [0, 1], without a checkerboard and without edge artefacts."""

_constructors: dict[str, Callable[..., Enhancer]] = {}


def register_enhancer(constructor: Callable[..., Enhancer]) -> Callable[..., Enhancer]:
    """Register a constructor for `create_enhancer` under its own name.

    Its first parameter is `channels`. Every other parameter is an option and needs a default and a type annotation. The
    annotation gives the range, as `Annotated[int, Field(ge=1)]` of pydantic.
    """
    if constructor.__name__ in _constructors:
        raise ValueError(f"two enhancers are called {constructor.__name__!r}")
    _constructors[constructor.__name__] = constructor
    return constructor


def _shared_options(
    *,
    width: Width = 64,
    residual: bool = False,
    bounded: bool = False,
    upsample: Upsample = "transposed",
    padding_mode: PaddingMode = "zeros",
) -> None:
    """Declare the options that all U-shaped enhancers share.

    Args:
        width: Channels of the first scale.
        residual: Return `x + f(x)`, the identity before the first step (see `Enhancer`).
        bounded: Keep the output in [0, 1] by a sigmoid (see `Enhancer`).
        upsample: "transposed": 2×2 transposed convolutions. "resize": 1×1 convolutions and bilinear resizing.
        padding_mode: Values beyond the border of a map: "zeros", or the map reflected ("reflect").
    """


def add_shared_options(constructor: Callable[..., Enhancer], own: Iterable[Parameter] = ()) -> Callable[..., Enhancer]:
    """Give a constructor that takes `**options` the signature (channels, shared options, own options)."""
    channels, *_ = signature(constructor).parameters.values()
    setattr(constructor, "__signature__", Signature([channels, *signature(_shared_options).parameters.values(), *own]))  # noqa: B010
    return constructor


def list_enhancers() -> list[str]:
    """Return the names that `create_enhancer` accepts."""
    return list(_constructors)


def list_enhancer_options(name: str) -> dict[str, Any]:
    """Return the options of a registered enhancer with their defaults."""
    return {parameter.name: parameter.default for parameter in _options(_constructors[name])}


def artefact_free_options(name: str) -> dict[str, Any]:
    """Return the options of `ARTEFACT_FREE` that an enhancer has. `none` and the traditional methods need none."""
    known = list_enhancer_options(name)
    return {option: value for option, value in ARTEFACT_FREE.items() if option in known and name != "none"}


def create_enhancer(name: str, channels: int, /, **options: Any) -> Enhancer:
    """Build an enhancer by its name, with random initial weights.

    Args:
        name: One of `list_enhancers()`.
        channels: C of the images, 1 (grey) or 3 (RGB).
        options: Options of this enhancer (see `list_enhancer_options`).

    Returns:
        The network, (B, C, H, W) → (B, C, H, W).

    Raises:
        RecipeError: The name or an option is unknown, or a value is outside its range.
    """
    if name not in _constructors:
        raise RecipeError(
            f"enhancer {name!r} is unknown; choose one of: {', '.join(_constructors)}", code="recipe.enhancer_unknown"
        )
    if channels not in (1, 3):
        raise RecipeError(
            f"enhancer {name!r} cannot be built for {channels} channels; images have 1 (grey) or 3 (RGB)",
            code="recipe.channels",
        )
    constructor = _constructors[name]
    _check_options(name, constructor, options)
    return constructor(channels, **list_enhancer_options(name) | options)


def _check_options(name: str, constructor: Callable[..., Enhancer], options: dict[str, Any]) -> None:
    fields = {parameter.name: (parameter.annotation, parameter.default) for parameter in _options(constructor)}
    schema = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        schema(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        option = problem["loc"][0]
        if problem["type"] == "extra_forbidden":
            known = f"its options are: {', '.join(fields)}" if fields else "it has none"
            raise RecipeError(
                f"enhancer {name!r} has no option {option!r}; {known}", code="recipe.enhancer_option"
            ) from None
        rule = problem["msg"].removeprefix("Input should be ")
        raise RecipeError(
            f"enhancer {name!r}: {option} = {problem['input']!r}, but it should be {rule}",
            code="recipe.enhancer_option",
        ) from None


def _options(constructor: Callable[..., Enhancer]) -> list[Parameter]:
    _, *options = signature(constructor).parameters.values()
    return options
