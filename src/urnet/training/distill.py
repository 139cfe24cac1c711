"""Distil a run: a small student learns from it, on its cells, and becomes a run like any other."""

from collections.abc import Iterable
from pathlib import Path

from urnet.bundle.model import Model
from urnet.errors import RecipeError, RunError
from urnet.progress import Reporter
from urnet.recipe import Distill, Recipe, load_recipe
from urnet.run_folder import Run
from urnet.training.fit import train_one

OF_THE_RUN = ("classes", "tile", "image", "target", "split", "protocol")
"""Keys of the student's recipe that are its teacher's: they belong to the cells."""


def distill(
    teacher: Path | str,
    student: Path | str = "urnet-small",
    out: Path | str | None = None,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train a student on the cells of a finished run, with the run's own split.

    Args:
        teacher: the run folder.
        student: a shipped recipe's name or a YAML file; its section `distill` says how what the teacher says is
            weighed. Classes, split and protocol are the teacher's, size and colour too where the recipe names none.
        out: the student's run folder; beside the teacher's, called after both, when not given.
        overrides: changes to the recipe, `key=value`.
        seed: of the training; the recipe's when not given.
        resume: go on with an interrupted run.
        reporter: is told how it goes.

    Returns:
        The finished run.

    Raises:
        UrnetError: the run is not trained to its end, has lost its cells, or the recipe or folder do not allow it.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    run = Run.open(teacher)
    recipe = run.recipe()
    model = Model.load(run.folder, calibrated=False)
    cells = run.cells()
    if cells.classes != model.classes:
        raise RunError(
            f"{run.cells_path}: its labels ({', '.join(cells.classes)}) are not the model's classes "
            f"({', '.join(model.classes)}); restore the file"
        )
    learns = student_recipe(student, recipe, model, overrides)
    if seed is not None:
        learns = learns.with_changes(seed=seed)
    if out is None:
        place = run.folder.resolve()
        out = place.with_name(f"{place.name}-{learns.name}")
    return train_one(cells, None, learns, Path(out), resume=resume, reporter=reporter, teacher=model)


def student_recipe(student: Path | str, teacher: Recipe, model: Model, overrides: Iterable[str] = ()) -> Recipe:
    """The resolved recipe of a student.

    Args:
        student: a shipped recipe's name or a YAML file.
        teacher: the recipe of the teacher's run.
        model: the teacher, without its calibration.
        overrides: changes to the student's recipe.

    Raises:
        RecipeError: no such recipe, an override does not fit, or changes what is the teacher's.
    """
    before, recipe = load_recipe(student), load_recipe(student, overrides)
    for key in (*OF_THE_RUN, "input.limits", "distill.teacher"):
        if _value(before, key) != _value(recipe, key):
            raise RecipeError(f"--set {key}: a student has its teacher's; leave it out, or train another teacher")
    config = model.config
    inherited = recipe.model_copy(update={key: getattr(teacher, key) for key in OF_THE_RUN})
    return inherited.with_changes(
        input={
            "size": recipe.input.size or config.size,
            "channels": recipe.input.channels or config.channels,
            "limits": [config.scaling.low, config.scaling.high],
        },
        distill=(recipe.distill or Distill()).model_dump() | {"teacher": model.digest()},
    )


def _value(recipe: Recipe, key: str) -> object:
    section, _, name = key.partition(".")
    value = getattr(recipe, section)
    return getattr(value, name, None) if name else value
