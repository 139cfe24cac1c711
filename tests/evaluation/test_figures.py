"""Figures of the report, and their captions."""

import io
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet.evaluation.figure_style import encode_png, to_png
from urnet.evaluation.figures import draw_class_counts, draw_confusion_matrix, draw_reliability, draw_training_curves
from urnet.evaluation.galleries import draw_gallery, draw_grad_cam

NAMES = ['a<b & "c"', "CD4$ x$_y", "granulocyte très longue sans fin", "单核细胞"]


def texts(figure: matplotlib.figure.Figure) -> list[str]:
    return [item.get_text() for item in figure.findobj(matplotlib.text.Text)]


def shown(figure: matplotlib.figure.Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def history(pretraining: int, training: int) -> pd.DataFrame:
    recall = [0.5, 0.9, 0.7, 0.6][:training]
    return pd.DataFrame(
        {
            "stage": ["pretrain"] * pretraining + ["train"] * training,
            "epoch": [*range(1, pretraining + 1), *range(1, training + 1)],
            "train_loss": np.linspace(1, 0.1, pretraining + training),
            "validation_loss": np.linspace(1.1, 0.3, pretraining + training),
            "train_accuracy": [np.nan] * pretraining + recall,
            "validation_accuracy": [np.nan] * pretraining + recall,
            "validation_macro_recall": [np.nan] * pretraining + recall,
        }
    )


def test_png_is_legible_small_and_always_the_same():
    first, second = (to_png(draw_confusion_matrix([[3, 1], [0, 2]], ["a", "b"])) for _ in range(2))
    assert first == second
    assert 600 <= Image.open(io.BytesIO(first)).width <= 1000


def test_image_keeps_every_pixel_and_clips():
    grey = np.array([[-0.5, 0.0, 0.4], [0.6, 1.0, 2.0]])
    for image in (grey, grey[..., None]):
        read = np.asarray(Image.open(io.BytesIO(encode_png(image))))
        assert read.tolist() == [[0, 0, 102], [153, 255, 255]]
    assert Image.open(io.BytesIO(encode_png(np.zeros((2, 3, 3), np.float32)))).mode == "RGB"


def test_the_style_does_not_change_matplotlibs_defaults():
    before = dict(matplotlib.rcParams)
    draw_confusion_matrix([[3, 1], [0, 2]], ["a", "b"])
    assert dict(matplotlib.rcParams) == before


def test_confusion_counts_and_row_percent():
    written = texts(draw_confusion_matrix([[30, 10], [0, 1200]], ["a", "b"]))
    assert {"30\n75 %", "10\n25 %", "0\n0 %", "1,200\n100 %", "a\n(n = 40)"} <= set(written)


def test_confusion_of_a_class_without_cells():
    assert texts(draw_confusion_matrix([[4, 0], [0, 0]], ["a", "b"])).count("0") == 2


@pytest.mark.parametrize("K", [2, 4, 12])
def test_confusion_with_any_names(K):
    names = (NAMES * 3)[:K]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_png(draw_confusion_matrix(np.arange(K * K).reshape(K, K), names), dpi=50)


def test_curves_mark_the_best_validation_macro_recall():
    written = texts(draw_training_curves(history(3, 4)))
    assert "chosen epoch (2)" in written
    assert "chosen epoch (3)" in written  # the lowest loss of pre-training
    assert any("Pre-training" in text for text in written)


def test_curves_of_pre_training_without_validation():
    rows = history(3, 0)
    rows["validation_loss"] = np.nan
    rows["train_loss"] = [0.3, 0.1, 0.2]
    assert "chosen epoch (2)" in texts(draw_training_curves(rows))


def test_curves_mark_the_given_epoch():
    assert "chosen epoch (4)" in texts(draw_training_curves(history(0, 4), chosen_epoch=4))


@pytest.mark.parametrize(("pretraining", "training", "panels"), [(0, 1, 2), (1, 0, 1), (2, 2, 3)])
def test_curves_leave_out_missing_values(pretraining, training, panels):
    figure = draw_training_curves(history(pretraining, training))
    assert len(figure.axes) == panels
    to_png(figure, dpi=50)


def test_curves_of_an_empty_history_are_an_error():
    with pytest.raises(ValueError, match="at least one epoch"):
        draw_training_curves(history(0, 0))


def test_gallery_never_stretches_a_single_image():
    dim, bright = np.full((8, 8), 0.4), np.full((8, 8), 0.8)
    dim[4:] = 0.5
    figure = draw_gallery([dim, bright], [bright, dim], ["a", "b"])
    pictures = shown(figure)
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 1)}
    np.testing.assert_allclose(pictures[0], dim)
    np.testing.assert_allclose(pictures[3], dim)


def test_gallery_clips_and_says_so_only_then():
    raw = [np.full((10, 10), 0.5)]
    enhanced = [np.full((10, 10), 0.5)]
    assert not any("clipped" in text for text in texts(draw_gallery(raw, enhanced, ["a"])))
    enhanced[0][0, :2] = 1.5
    assert "enhanced: 2.0 % of the pixels lie outside [0, 1] and are clipped" in texts(
        draw_gallery(raw, enhanced, ["a"])
    )


def test_gallery_far_outside_shares_limits_and_says_which():
    raw = [np.linspace(0, 1, 100).reshape(10, 10)] * 2
    figure = draw_gallery(raw, [4 * raw[0] - 2, 2 * raw[0] - 1], ["a", "b"])
    _, first, _, second = shown(figure)
    assert np.ptp(first) == pytest.approx(2 * np.ptp(second), rel=0.05)
    assert any(text.startswith("enhanced: black is -1.9") for text in texts(figure))


def test_gallery_with_targets_colour_and_blocks():
    raw = [np.full((8, 10, 3), 0.5)] * 7
    figure = draw_gallery(raw, raw, ["a"] * 4 + NAMES[:3], raw, target_name="DNA", columns=4)
    assert len(shown(figure)) == 21
    assert texts(figure).count("DNA") == 2
    assert texts(figure).count("a") == 1
    to_png(figure, dpi=50)


def test_gallery_of_unequal_rows():
    with pytest.raises(ValueError, match="2 raw, 1 enhanced images for 2 titles"):
        draw_gallery([np.zeros((4, 4))] * 2, [np.zeros((4, 4))], ["a", "b"])


def test_grad_cam_colours_are_not_rescaled():
    laid = np.zeros((8, 8, 3), np.uint8)
    laid[..., 0] = 255
    figure = draw_grad_cam([np.full((8, 8), 0.5)], [laid], ["a"])
    np.testing.assert_allclose(shown(figure)[1], laid / 255)
    assert "Grad-CAM" in texts(figure)


def test_reliability_states_the_calibration_error():
    probabilities = np.array([[0.7, 0.3]] * 4 + [[0.1, 0.9]] * 6)
    figure = draw_reliability(np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 0]), probabilities)
    assert any("26.0 %" in text for text in texts(figure))
    to_png(figure, dpi=50)


@pytest.mark.slow
def test_counts_are_written_at_the_bars():
    counts = pd.DataFrame({"train": [4000, 12], "test": [1000, 0]}, index=NAMES[:2])
    figure = draw_class_counts(counts)
    assert {"4,000", "12", "1,000", "0"} <= set(texts(figure))
    to_png(figure, dpi=50)
