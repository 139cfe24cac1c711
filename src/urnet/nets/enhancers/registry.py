"""The enhancers by name: a decorator puts a constructor here, its signature says which options it takes."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from urnet.errors import RecipeError
from urnet.nets.enhancers.base import Enhancer

Width = Annotated[int, Field(ge=1, le=1024)]
"""Channels of the first scale, or of every layer where there is one scale; an option of learned enhancers."""

ARTEFACT_FREE: dict[str, Any] = {"bounded": True, "upsample": "resize", "padding_mode": "reflect"}
"""Options with which an enhanced image is a picture: in [0, 1], without a checkerboard and without an edge artefact."""

_constructors: dict[str, Callable[..., Enhancer]] = {}


def register_enhancer(constructor: Callable[..., Enhancer]) -> Callable[..., Enhancer]:
    """Make a constructor known to `create_enhancer` under its own name.

    Its first parameter is `channels`; every other one is an option, and needs a default and a type annotation. A range
    is given in the annotation, as `Annotated[int, Field(ge=1)]` of pydantic.
    """
    if constructor.__name__ in _constructors:
        raise ValueError(f"two enhancers are called {constructor.__name__!r}")
    _constructors[constructor.__name__] = constructor
    return constructor


def list_enhancers() -> list[str]:
    """Give the names that `create_enhancer` accepts."""
    return list(_constructors)


def list_enhancer_options(name: str) -> dict[str, Any]:
    """Give the options of a registered enhancer with their defaults."""
    return {parameter.name: parameter.default for parameter in _options(_constructors[name])}


def artefact_free_options(name: str) -> dict[str, Any]:
    """Give those of the options `ARTEFACT_FREE` that a registered enhancer has; `none` and the fixed ones need none."""
    known = list_enhancer_options(name)
    return {option: value for option, value in ARTEFACT_FREE.items() if option in known and name != "none"}


def create_enhancer(name: str, channels: int, /, **options: Any) -> Enhancer:
    """Build an enhancer by its name.

    Args:
        name: One of `list_enhancers()`.
        channels: C of the images, 1 (grey) or 3 (RGB).
        options: What the constructor of that name takes (`enhancer_options`).

    Returns:
        The network, (B, C, H, W) → (B, C, H, W); what it learns starts from random weights.

    Raises:
        RecipeError: The name or an option is unknown, or a value is outside its range.
    """
    if name not in _constructors:
        raise RecipeError(f"enhancer {name!r} is unknown; choose one of: {', '.join(_constructors)}")
    if channels not in (1, 3):
        raise RecipeError(f"enhancer {name!r} was asked for {channels} channels; images have 1 (grey) or 3 (RGB)")
    constructor = _constructors[name]
    _check_options(name, constructor, options)
    return constructor(channels, **options)


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
            raise RecipeError(f"enhancer {name!r} has no option {option!r}; {known}") from None
        rule = problem["msg"].removeprefix("Input should be ")
        raise RecipeError(f"enhancer {name!r}: {option} = {problem['input']!r}, but it should be {rule}") from None


def _options(constructor: Callable[..., Enhancer]) -> list[inspect.Parameter]:
    _, *options = inspect.signature(constructor).parameters.values()
    return options
