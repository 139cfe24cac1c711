"""Figures of a comparison, for one to twenty-five entries."""

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from urnet.benchmark import figures
from urnet.benchmark.row import ResultRow
from urnet.evaluation.figure_style import to_png
from urnet.evaluation.metrics import score
from urnet.evaluation.paired import paired_differences
from urnet.recipe import load_recipe

CLASSES = ("granulocyte", "monocyte", "CD4$ <x>")
CELLS = 90


def entry(name: str = "net1", title: str = "Net1", right: float = 0.8, classes=CLASSES, **changes) -> ResultRow:
    """An entry of three folds whose share of right answers is about `right`."""
    K, rng = len(classes), np.random.default_rng([len(name), int(100 * right)])
    truth = np.arange(CELLS) % K
    called = np.where(rng.random(CELLS) < right, truth, (truth + 1) % K)
    probabilities = np.full((CELLS, K), 0.1 / K) + 0.9 * np.eye(K)[called]
    fold = np.arange(CELLS) // 30
    predictions = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(CELLS)],
            "label": [classes[k] for k in truth],
            "predicted": [classes[k] for k in called],
            "source": [f"{i // 2}" for i in range(CELLS)],
            "seed": 0,
            "fold": fold,
            "cam_share": np.where(np.arange(CELLS) == 3, np.nan, rng.uniform(0.4, 0.6, CELLS)),
            "cam_chance": 0.25,
        }
    )
    runs = pd.DataFrame(
        [{"seed": 0, "fold": f, "status": "done", "accuracy": (truth == called)[fold == f].mean()} for f in range(3)]
    )
    epochs = np.arange(1, 5)
    history = pd.concat(
        pd.DataFrame(
            {
                "seed": 0,
                "fold": f,
                "stage": ["pretrain"] + ["train"] * 4,
                "epoch": [1, *epochs],
                "train_loss": [9.0, *(1 / epochs)],
                "validation_loss": [9.0, *(f + 1 / epochs)],
                "train_accuracy": [np.nan, *(1 - 1 / epochs)],
                "validation_accuracy": [np.nan, *(1 - 1.1 / epochs)],
            }
        )
        for f in range(3)
    )
    metrics = score(truth, probabilities, list(classes), predictions["source"])
    fields = {"recipe": load_recipe("net1"), "parameters": 1, "macs": 1, "device": "CPU"}
    fields |= {"runs": runs, "predictions": predictions, "history": history, "metrics": metrics}
    return ResultRow(name=name, title=title, **(fields | changes))


def unfinished() -> ResultRow:
    return entry("net9", "Net9", metrics=None, predictions=pd.DataFrame(), history=pd.DataFrame())


def many(count: int) -> list[ResultRow]:
    return [entry(f"row{k}", f"ResUNet + DenseNet121, number {k}", 0.5 + 0.015 * k) for k in range(count)]


def texts(figure: matplotlib.figure.Figure) -> list[str]:
    return [item.get_text() for item in figure.findobj(matplotlib.text.Text)]


def images(count: int, channels: tuple[int, ...] = ()) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, 16, 16, *channels)))


def legible(figure: matplotlib.figure.Figure) -> bool:
    """Check that the figure fits the width of a page, without text beyond its edges."""
    picture = np.asarray(Image.open(io.BytesIO(to_png(figure, dpi=100))).convert("L"))
    edges = [picture[:, 0], picture[:, -1], picture[0], picture[-1]]
    return 300 < picture.shape[1] <= 730 and all((edge > 240).mean() > 0.97 for edge in edges)


@pytest.mark.parametrize("count", [1, 4, pytest.param(25, marks=pytest.mark.slow)])
def test_every_figure_is_legible_from_one_to_twenty_five_entries(count):
    entries = [*many(count), unfinished()]
    raw, labels = images(6), ["granulocyte"] * 2 + ["monocyte"] * 2 + ["CD4$ <x>"] * 2
    rows = {one.title: images(6) for one in entries}
    assert legible(figures.draw_confusion_matrix(entries))
    assert legible(figures.draw_training_curves(entries[:8]))
    assert legible(figures.draw_accuracy(entries, {"row0": 0.8}))
    assert legible(figures.draw_cam_share(entries))
    assert legible(figures.draw_gallery(rows, raw, labels))
    assert legible(figures.draw_cam_gallery(rows, raw, labels))


def test_confusion_matrices_give_recall_and_counts_of_each_entry():
    net1, net2 = entry(), entry("net2", "Net2", 1.0)
    shown = texts(figures.draw_confusion_matrix([net1, net2, unfinished()]))
    first = np.asarray(net1.metrics["confusion_matrix"])
    assert f"{100 * first[0, 0] / 30:.0f} %\n{first[0, 0]}" in shown
    assert shown.count("100 %\n30") == 3
    assert "Net2" in shown
    assert "Net9" not in shown


def test_confusion_matrices_of_many_classes_and_of_a_class_without_cells():
    seven = [f"class {k}" for k in range(7)]
    shown = texts(figures.draw_confusion_matrix([entry(classes=seven, right=1.0)]))
    assert shown.count("100") == 7
    metrics = entry().metrics | {"confusion_matrix": [[5, 0, 0], [0, 0, 0], [0, 0, 5]]}
    assert texts(figures.draw_confusion_matrix([entry(metrics=metrics)])).count("–") == 3


def test_curves_are_means_of_the_joint_training_with_bands_over_the_folds():
    figure = figures.draw_training_curves([entry(), entry("net4", "Net4")])
    loss, validation, accuracy, _ = figure.axes
    assert loss.lines[0].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert accuracy.lines[0].get_ydata() == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert validation.lines[0].get_ydata()[0] == pytest.approx(2)  # folds at 1, 2, 3
    corners = validation.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((1 / 4, 3))
    looks = {(line.get_color(), str(line.get_linestyle())) for line in loss.lines}
    assert len(looks) == 2
    assert not figures.draw_training_curves(many(5)).axes[0].collections


def test_curves_of_protocol_paper_say_what_its_validation_is():
    paper = replace(entry(), recipe=load_recipe("net1").with_changes(protocol="paper"))
    assert "Accuracy, validation (test part)" in texts(figures.draw_training_curves([paper]))
    assert "Accuracy, validation" in texts(figures.draw_training_curves([paper, entry()]))


def test_class_counts_before_and_after():
    before = pd.DataFrame({"train": [1360, 80, 620], "test": [340, 20, 155]}, index=CLASSES)
    figure = figures.draw_class_counts(before, before.assign(train=2000))
    shown = texts(figure)
    assert {"1,360", "80", "155", "Before", "After balancing", "train", "test"} <= set(shown)
    assert shown.count("2,000") == 3
    assert shown.count("340") == 2
    assert legible(figure)


def test_accuracy_shows_the_papers_value_if_there_is_one():
    net1, net4 = entry(), entry("net4", "Net4", 0.9)
    figure = figures.draw_accuracy([net1, net4], {"net1": 0.8032})
    places = [float(c.get_offsets()[0][0]) for c in figure.axes[0].collections]
    assert 80.32 in [pytest.approx(place) for place in places]
    assert any(place == pytest.approx(100 * net4.metrics["accuracy"]["value"]) for place in places)
    assert sum(abs(place - 80.32) < 1e-9 for place in places) == 1
    assert "paper, its own cells" in texts(figure)
    assert "paper, its own cells" not in texts(figures.draw_accuracy([net4], {"net1": 0.8032}))


def test_galleries_show_the_same_cells_in_each_row_and_say_what_they_rescale():
    raw = images(3, (3,))
    figure = figures.draw_gallery({"Net2": images(3), "Net4": [4 * image for image in raw]}, raw, ["a", "a", "b"])
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 9
    assert shown[0] == pytest.approx(raw[0])
    assert shown[3].shape == (16, 16)
    assert [text for text in texts(figure) if text in ("raw", "Net2", "Net4", "a", "b")] == [
        "a",
        "b",
        "raw",
        "Net2",
        "Net4",
    ]
    assert any(text.startswith("Net4: black is") for text in texts(figure))
    with pytest.raises(ValueError, match="3 raw, 2 Net2 images for 3 labels"):
        figures.draw_gallery({"Net2": images(2)}, raw, ["a", "a", "b"])


def test_cam_gallery_lays_the_maps_over_the_raw_cells():
    raw, cam = [np.full((16, 16), 0.5)] * 2, np.zeros((16, 16), np.float16)
    cam[8:] = 1
    figure = figures.draw_cam_gallery({"Net1": [cam, 0 * cam]}, raw, ["a", "b"])
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    red, blue = shown[2][12, 0], shown[2][2, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert shown[3] == pytest.approx(np.broadcast_to(blue, (16, 16, 3)))


def test_cam_share_leaves_out_empty_maps_and_marks_the_uniform_map():
    net1 = entry()
    figure = figures.draw_cam_share([net1, unfinished()])
    mean = 100 * net1.predictions["cam_share"].mean()
    assert float(figure.axes[0].collections[0].get_offsets()[0][0]) == pytest.approx(mean)
    assert any(list(line.get_xdata()) == [25, 25] for line in figure.axes[0].lines)
    assert "uniform map" in texts(figure)
    without = replace(net1, predictions=net1.predictions.drop(columns="cam_chance"))
    assert "uniform map" not in texts(figures.draw_cam_share([without]))


def test_the_interval_of_a_mean_allows_for_cells_that_are_alike():
    values = np.random.default_rng(0).normal(0, 1, 200)
    alone = pd.DataFrame({"source": np.arange(200)})
    mean, half = figures._mean_with_error(values, alone)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(stats.t.ppf(0.975, 199) * values.std(ddof=1) / np.sqrt(200))
    twice = figures._mean_with_error(values.repeat(2), pd.DataFrame({"source": np.arange(200).repeat(2)}))
    assert twice == pytest.approx((mean, half))


def test_a_difference_without_an_interval_is_a_cross_and_has_no_verdict():
    frames = {name: entry(name, name, skill).predictions.assign(source="one") for name, skill in (("a", 0.5), ("b", 1))}
    figure = figures.draw_differences(paired_differences(frames, [("a", "b")], CLASSES))
    assert "no interval" in texts(figure)
    assert not {"counts", "could be chance"} & set(texts(figure))
    assert np.isnan(figures._mean_with_error(np.ones(3), pd.DataFrame({"source": ["one"] * 3}))[1])


def test_differences_are_filled_where_they_count():
    entries = {"a": entry("a", "A", 0.2), "b": entry("b", "B", 1.0), "c": entry("c", "C", 0.22)}
    frames = {name: one.predictions.assign(fold=np.arange(CELLS) // 3 % 6) for name, one in entries.items()}
    differences = paired_differences(frames, [("a", "b"), ("a", "c")], CLASSES)
    figure = figures.draw_differences(differences, {name: one.title for name, one in entries.items()})
    assert {"B − A", "C − A", "macro recall", "counts", "could be chance"} <= set(texts(figure))
    accuracy = differences[differences["metric"] == "accuracy"]
    assert accuracy["chance"].tolist() == [False, True]
    dots = figure.axes[0].collections
    assert [float(dot.get_offsets()[0][0]) for dot in dots] == pytest.approx((100 * accuracy["difference"]).tolist())
    faces = [tuple(dot.get_facecolor()[0][:3]) for dot in dots]
    assert faces[1] == (1, 1, 1) != faces[0]
    assert legible(figure)
