"""Checks of a training: warnings about results no better than guessing, and about an identity that was not learned."""

import logging

import numpy as np
import pytest

from urnet.progress_bar import EpochBar
from urnet.recipe import load_recipe
from urnet.run_folder import Run
from urnet.training.checkpoints import append_history
from urnet.training.checks import warn_if_at_chance, warn_if_identity_not_learned
from urnet.training.fit import train


@pytest.fixture
def note(tmp_path, caplog):
    """Return the warning about a macro recall in epoch 2 on a number of cells of each class."""

    def call(recall: float, counts: tuple[int, ...], *overrides: str) -> str:
        run = Run(tmp_path / "run")
        run.folder.mkdir(exist_ok=True)
        run.history_path.unlink(missing_ok=True)
        for epoch, figure in enumerate((0.99, recall, 0.99), 1):
            append_history(run.history_path, {"stage": "train", "epoch": epoch, "validation_macro_recall": figure})
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="urnet"):
            warn_if_at_chance(run, 2, np.repeat(np.arange(len(counts)), counts), load_recipe("quick", overrides))
        return caplog.text

    return call


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_recall_of_the_majority_class_is_chance(note, classes):
    warning = note(1 / classes, (100, *[20] * (classes - 1)))
    assert (
        f"macro recall of {100 / classes:.1f} % on the {100 + 20 * (classes - 1)} cells of the validation part"
        in warning
    )
    assert f"guessing, which gives {100 / classes:.1f} %" in warning
    assert "train.epochs=" in warning
    assert "train.lr=" in warning


def test_no_warning_for_a_recall_that_guessing_rarely_reaches(note):
    assert note(0.60, (200, 200)) == ""
    assert "no better than guessing" in note(0.52, (200, 200))
    assert "no better than guessing" in note(0.60, (10, 10))  # so few cells cannot tell
    assert note(0.99, (10, 10)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(40, 40), (100, 10), (30, 30, 30), (60, 20, 8)])
def test_guessing_is_reported_in_about_95_percent(note, counts):
    rng = np.random.default_rng(0)
    recalls = np.mean([rng.binomial(n, 1 / len(counts), 300) / n for n in counts], axis=0)
    share = np.mean([bool(note(recall, counts)) for recall in recalls])
    assert 0.9 <= share <= 0.99


@pytest.mark.slow
def test_only_a_training_at_chance_warns(shapes, draw, tiny, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="urnet"):
        train(shapes, tiny, tmp_path / "stuck", overrides=["train.epochs=1", "train.lr=1e-9"])
    assert "stuck: the chosen epoch (1) has a macro recall of" in caplog.text
    caplog.clear()
    train(draw(tmp_path / "cells", 40), tiny, tmp_path / "learnt")
    assert "guessing" not in caplog.text


@pytest.mark.parametrize(("error", "warns"), [("", False), (0.004, False), (0.032, True)])
def test_an_identity_that_was_not_learned_is_reported(error, warns, tmp_path, caplog):
    run = Run(tmp_path)
    for epoch, share in enumerate((0.9, error), 1):
        append_history(run.history_path, {"stage": "pretrain", "epoch": epoch, "identity_error": share})
    with caplog.at_level(logging.WARNING, logger="urnet"):
        warn_if_identity_not_learned(run, 2, load_recipe("net4"))
    assert ("its error is 3.2 % of the image variance after 2 epochs, and should be below 1 %" in caplog.text) is warns


@pytest.mark.slow
def test_the_error_of_the_identity_is_in_history_and_progress(shapes, tiny, tmp_path, capsys, caplog):
    class Shown:
        def update(self, task, share):
            pass

        def notify(self, message):
            pass

        def epoch_bar(self, stage, epochs):
            return EpochBar(stage, epochs)

    overrides = ["enhancer.residual=false", "pretrain.epochs=2", "train.epochs=1", "augment.per_class=8"]
    with caplog.at_level(logging.WARNING, logger="urnet"):
        run = train(shapes, tiny, tmp_path / "run", overrides=overrides, reporter=Shown())[0]
    history = run.history()
    shares = history["identity_error"][history["stage"] == "pretrain"]
    assert (shares > 0.01).all()
    assert history["identity_error"][history["stage"] == "train"].isna().all()
    assert f"identity error {100 * shares.iloc[0]:.1f} % of the image variance" in capsys.readouterr().out
    assert "has not learned the identity" in caplog.text
