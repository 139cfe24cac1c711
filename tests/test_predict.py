"""Classification of files: the images found, the written files, and unusable images."""

import errno
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from urnet import predict
from urnet.bundle.model import Model
from urnet.cells.read import find_images
from urnet.files.csv_tables import read_own_table
from urnet.images.read import read_image
from urnet.nets.gradcam import CAPTION_PX, MARGIN_PX, draw_side_by_side
from urnet.predict import predict_cells, predict_files


@pytest.fixture(scope="module")
def model(trained) -> Model:
    return trained.load_model()


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_files_folders_and_tables_are_classified(model, shapes, tmp_path):
    rows = [("disc/000.png", "x"), ("ring/000.png", "y")]
    table = tmp_path / "liste.csv"
    pd.DataFrame([(shapes / p, note) for p, note in rows], columns=["path", "note"]).to_csv(table, index=False)
    steps = []
    done = predict_files(
        model,
        [shapes / "bar" / "000.png", shapes / "disc", table],
        tmp_path / "neu ü" / "predictions.csv",
        progress=lambda what, share: steps.append((what, share)),
    )
    result = read(tmp_path / "neu ü" / "predictions.csv")
    assert result.columns.tolist() == [
        *("path", "predicted", "p_bar", "p_disc", "p_ring", "rejected", "set", "engine", "error")
    ]
    assert (result["engine"] == "torch").all()  # no graph is exported for so few
    assert done.engines == {"torch": 23}
    assert len(result) == done.images == sum(done.counts.values()) + done.rejected == 23
    assert done.rejected == (result["rejected"] != "").sum() < 5
    assert done.failed == 0
    assert list(dict.fromkeys(what for what, _ in steps)) == ["find images", "prepare the networks", "classify"]
    assert steps[-1] == ("classify", 1.0)
    direct = model.predict(result["path"])
    assert direct["predicted"].tolist() == result["predicted"].tolist()
    assert np.allclose(direct["p_disc"], result["p_disc"].astype(float), atol=1e-6)
    assert not (tmp_path / "neu ü" / "predictions.csv.part").exists()


def test_an_image_that_cannot_be_read_has_a_row_with_its_reason(model, draw, tmp_path):
    cells = draw(tmp_path / "cells", 3, classes=("disc",)) / "disc"
    (cells / "empty.png").write_bytes(b"")
    (cells / "text.png").write_text("not an image", encoding="utf-8")
    whole = (cells / "000.png").read_bytes()
    (cells / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(cells / "dot.png")
    tifffile.imwrite(cells / "nan.tif", np.full((24, 24), np.nan, np.float32))
    tifffile.imwrite(cells / "deep.tif", np.zeros((24, 24), np.uint16))
    done = predict_files(model, [cells], tmp_path / "p.csv", enhanced=tmp_path / "enhanced")
    result = read(tmp_path / "p.csv").set_index(read(tmp_path / "p.csv")["path"].str.rpartition("/")[2])
    assert done.failed == 6
    assert (result["error"] != "").sum() == 6
    for name, words in (("empty", "0 bytes"), ("text", "no PNG"), ("dot", "at least 8 px"), ("nan", "NaN")):
        assert result["error"].filter(like=name).str.contains(words).all()
    assert "uint16" in result.loc["deep.tif", "error"]
    assert (result.loc[["000.png", "001.png", "002.png"], "predicted"] != "").all()
    assert len(list((tmp_path / "enhanced").iterdir())) == 3


def test_a_table_may_name_missing_files(model, shapes, tmp_path):
    table = tmp_path / "cells.csv"
    pd.DataFrame({"path": [str(shapes / "disc" / "000.png"), "gone.png"]}).to_csv(table, index=False)
    done = predict_files(model, [table], tmp_path / "p.csv")
    assert (done.images, done.failed) == (2, 1)
    assert "no such file" in read(tmp_path / "p.csv")["error"][1]


def test_enhanced_images_and_grad_cam_are_written_under_the_images_names(model, shapes, tmp_path):
    predict_files(
        model,
        [shapes / "bar" / "000.png", shapes / "disc" / "000.png"],
        tmp_path / "p.csv",
        enhanced=tmp_path / "enhanced",
        cam=tmp_path / "cam",
    )
    result = read(tmp_path / "p.csv")
    assert result["enhanced"].tolist() == [(tmp_path / f"enhanced/{n}/000.tif").as_posix() for n in ("bar", "disc")]
    assert result["cam"].tolist() == [(tmp_path / f"cam/{n}/000.png").as_posix() for n in ("bar", "disc")]
    enhanced = read_image(tmp_path / "enhanced" / "bar" / "000.tif")
    assert enhanced.shape == (24, 24)
    assert enhanced.dtype == np.uint8  # the raw image's own depth and range
    assert abs(float(enhanced.mean()) - read_image(shapes / "bar" / "000.png").mean()) < 60
    picture = read_image(tmp_path / "cam" / "disc" / "000.png")  # the raw image beside its map
    assert picture.shape == draw_side_by_side(np.zeros((24, 24)), np.zeros((24, 24))).shape
    assert picture.shape[1] > 2 * 192
    raw = picture[CAPTION_PX : CAPTION_PX + 192, MARGIN_PX : MARGIN_PX + 192]
    assert (raw[..., 0] == raw[..., 1]).all()


def test_pictures_have_distinct_names(model, shapes, tmp_path):
    image = Image.open(shapes / "bar" / "000.png")
    for name in ("a.png", "A.bmp", "a.v2.png", "a_.png"):
        image.save(tmp_path / name)
    names = [tmp_path / name for name in ("a.png", "A.bmp", "a.v2.png", "a_.png")]
    predict_files(model, names, tmp_path / "p.csv", enhanced=tmp_path / "enhanced")
    written = [path.name.casefold() for path in (tmp_path / "enhanced").iterdir()]
    assert len(set(written)) == 4
    assert len(set(read(tmp_path / "p.csv")["enhanced"])) == 4


def test_montages_are_divided_into_tiles(model, shapes, tmp_path):
    tiled = Model(replace(model.config, tile=24), model.joint)
    tiles = [read_image(sorted((shapes / name).iterdir())[0]) for name in ("bar", "disc", "ring", "ring")]
    (tmp_path / "in").mkdir()
    Image.fromarray(np.block([[tiles[0], tiles[1]], [tiles[2], tiles[3]]])).save(tmp_path / "in" / "montage.png")
    Image.fromarray(tiles[0]).save(tmp_path / "in" / "single.png")
    done = predict_files(tiled, [tmp_path / "in"], tmp_path / "p.csv", enhanced=tmp_path / "enhanced")
    result = read(tmp_path / "p.csv")
    assert done.images == 5
    assert result["path"].str.contains("#r").sum() == 4
    assert result["p_bar"][0] == result["p_bar"][4]
    assert (tmp_path / "enhanced" / "montage.png_r01c00.tif").is_file()


@pytest.mark.parametrize("which", ["out", "enhanced", "cam"])
def test_nothing_that_exists_is_overwritten(model, shapes, tmp_path, raises_code, which):
    places = {"out": tmp_path / "p.csv", "enhanced": tmp_path / "enhanced", "cam": tmp_path / "cam"}
    if which == "out":
        places["out"].write_text("mine", encoding="utf-8")
    else:
        places[which].mkdir()
        (places[which] / "note.txt").write_text("mine", encoding="utf-8")
    with raises_code("run.exists") as caught:
        predict_files(model, [shapes], **places)
    assert str(places[which]) in str(caught.value)
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == 1


def test_a_folder_in_the_place_of_the_table_is_refused_at_once(model, shapes, tmp_path, raises_code):
    (tmp_path / "p.csv").mkdir()
    with raises_code("run.exists"):
        predict_files(model, [shapes], tmp_path / "p.csv")


def test_missing_paths_and_empty_folders_are_refused(model, tmp_path, raises_code):
    (tmp_path / "empty").mkdir()
    for name, code in (("gone", "cells.not_found"), ("empty", "cells.no_images")):
        with raises_code(code) as caught:
            predict_files(model, [tmp_path / name], tmp_path / "p.csv")
        assert name in str(caught.value)
    assert not (tmp_path / "p.csv").exists()


def test_a_classifier_without_feature_maps_cannot_show_grad_cam(shapes, tmp_path, raises_code):
    from urnet.bundle.config import ModelConfig
    from urnet.images.scale import Scaling

    classifier = {"name": "test_vit", "img_size": 32}
    config = ModelConfig("x", ("a", "b"), 32, 1, Scaling(0, 255, "uint8"), {"name": "none"}, classifier)
    model = Model(config, config.build())
    with raises_code("recipe.no_feature_maps"):
        predict_files(model, [shapes], tmp_path / "p.csv", cam=tmp_path / "cam")
    assert not list(tmp_path.iterdir())
    assert predict_files(model, [shapes], tmp_path / "p.csv").failed == 0


def test_the_table_cannot_be_a_folder_of_pictures(model, shapes, tmp_path, raises_code):
    with raises_code("predict.same_output"):
        predict_files(model, [shapes], tmp_path / "same", enhanced=tmp_path / "same")
    assert not (tmp_path / "same").exists()


def test_the_padding_of_a_montage_is_not_a_cell(model, shapes, tmp_path):
    tiles = [read_image(shapes / "disc" / f"{k:03d}.png") for k in range(4)] + [
        read_image(shapes / "ring/000.png")
    ] * 12
    montage = np.concatenate([np.concatenate(tiles[row : row + 4], axis=1) for row in range(0, 16, 4)])
    Image.fromarray(montage).save(tmp_path / "montage.png")
    tiled = Model(replace(model.config, tile=24), model.joint)
    done = predict_files(tiled, [tmp_path / "montage.png"], tmp_path / "out.csv")
    result = read(tmp_path / "out.csv")
    assert (done.images, done.left_out, done.failed, sum(done.counts.values())) == (16, 12, 0, 4)
    assert (result["predicted"] == "").sum() == 12
    assert result["error"][15].startswith("padding")


def test_a_folder_gives_the_files_that_the_training_named(model, shapes, tmp_path):
    for name in ("brightfield.png", "dna.png"):
        Image.fromarray(read_image(shapes / "disc" / "000.png")).save(tmp_path / name)
    named = Model(replace(model.config, image="brightfield.png"), model.joint)
    predict_files(named, [tmp_path], tmp_path / "out.csv")
    assert [path.rsplit("/", 1)[1] for path in read(tmp_path / "out.csv")["path"]] == ["brightfield.png"]


def test_a_rejected_crop_has_its_reason_and_is_not_counted(model, shapes, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    done = predict_files(model, [tmp_path / "noise.png", shapes / "disc" / "000.png"], tmp_path / "out.csv")
    result = read(tmp_path / "out.csv")
    assert (result["rejected"] != "").tolist() == [True, False]
    assert (done.rejected, done.failed, sum(done.counts.values())) == (1, 0, 1)
    assert result["predicted"].isin(model.classes).all()


def test_sets_hold_more_classes_at_a_higher_coverage(model, shapes, tmp_path, raises_code):
    sizes = []
    for coverage in (0.5, 0.9):
        predict_files(model, [shapes], tmp_path / f"{coverage}.csv", coverage=coverage)
        result = read(tmp_path / f"{coverage}.csv")
        assert all(p in s.split("|") for p, s in zip(result["predicted"], result["set"], strict=True))
        sizes.append(result["set"].str.split("|").str.len().mean())
    assert sizes[0] < sizes[1]
    with raises_code("predict.coverage_invalid"):
        predict_files(model, [shapes], tmp_path / "no.csv", coverage=90)


def test_a_model_without_calibration_rejects_nothing(model, shapes, tmp_path):
    plain = Model(model.config, model.joint)
    done = predict_files(plain, [shapes / "disc"], tmp_path / "out.csv")
    assert done.rejected == 0
    assert read(tmp_path / "out.csv").columns.tolist() == [
        "path",
        "predicted",
        "p_bar",
        "p_disc",
        "p_ring",
        "engine",
        "error",
    ]


@pytest.mark.slow
def test_rows_do_not_depend_on_the_batch(model, trained_graph, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("urnet.export.engine_graph.to_onnx", lambda model: trained_graph)
    bundle = Model.load(shutil.copytree(model.folder, tmp_path / "bundle"))
    predict_files(bundle, [shapes], tmp_path / "some.csv", engine="onnx")
    monkeypatch.setattr("urnet.export.engine.MAX_CPU_BATCH", 7)
    predict_files(bundle, [shapes], tmp_path / "others.csv", engine="onnx")
    assert (tmp_path / "some.csv").read_bytes() == (tmp_path / "others.csv").read_bytes()
    predict_files(bundle, [shapes], tmp_path / "torch.csv", engine="torch")
    one, other = read(tmp_path / "some.csv"), read(tmp_path / "torch.csv")
    assert set(one["engine"]) == {"onnx"}
    assert set(other["engine"]) == {"torch"}
    assert one["predicted"].equals(other["predicted"])
    assert np.allclose(one["p_ring"].astype(float), other["p_ring"].astype(float), atol=2e-6)


def stopped(model, paths, out, after, **options) -> None:
    """Run a prediction that is killed when a share of the rows is written."""

    def stop(what, share):
        if what == "classify" and share >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(model, paths, out, progress=stop, **options)


def test_a_resumed_prediction_has_the_same_rows_and_pictures(model, shapes, tmp_path):
    (tmp_path / "bad.png").write_text("no image", encoding="utf-8")
    paths = [tmp_path / "bad.png", shapes]
    whole = predict_files(model, paths, tmp_path / "whole.csv", enhanced=tmp_path / "e1")
    out, folder = tmp_path / "parts.csv", tmp_path / "e2"
    stopped(model, paths, out, 0.25, enhanced=folder)
    assert not out.exists()
    begun = len((tmp_path / "parts.csv.part").read_text(encoding="utf-8").splitlines()) - 1
    assert 16 <= begun < 61
    steps = []
    done = predict_files(model, paths, out, enhanced=folder, progress=lambda what, share: steps.append((what, share)))
    assert done.resumed == begun
    shares = [share for what, share in steps if what == "classify"]
    assert shares[0] > begun / 61
    assert shares[-1] == 1.0
    assert (done.counts, done.failed, done.rejected) == (whole.counts, whole.failed, whole.rejected)
    assert out.read_text(encoding="utf-8").replace("/e2/", "/e1/") == (tmp_path / "whole.csv").read_text(
        encoding="utf-8"
    )
    for path in (tmp_path / "e1").rglob("*.tif"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "e1")).read_bytes()
    assert not list(tmp_path.glob("parts.csv.*"))


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("pictures", ["enhanced", "cam"])
def test_a_prediction_interrupted_at_its_first_pictures_is_resumed(model, draw, tmp_path, monkeypatch, pictures, error):
    cells, out, options = draw(tmp_path / "cells", 20), tmp_path / "p.csv", {pictures: tmp_path / "pictures"}
    write, written = getattr(predict, f"_write_{pictures}"), []

    def fail(path, *content):
        written.append(write(path, *content))
        if len(written) == 2:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(predict, f"_write_{pictures}", fail)
        for _ in range(2):  # the second time while it goes on
            written.clear()
            with pytest.raises(type(error)):
                predict_files(model, [cells], out, **options)
    assert predict_files(model, [cells], out, **options).failed == 0
    assert len(list((tmp_path / "pictures").rglob("*.*"))) == len(read(out)) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "p.csv", "pictures"]


def test_an_interrupted_prediction_is_not_resumed_with_other_settings(model, draw, tmp_path, raises_code):
    cells, out = draw(tmp_path / "cells", 20), tmp_path / "p.csv"
    stopped(model, [cells], out, 0.25)
    part = (tmp_path / "p.csv.part").read_bytes()
    plain = Model(model.config, model.joint)
    with raises_code("predict.other_rows") as caught:
        predict_files(Model(replace(model.config, epoch=77), model.joint, model.calibration), [cells], out)
    assert "p.csv.part" in str(caught.value)
    with raises_code("predict.other_rows"):
        predict_files(plain, [cells], out)
    for changed, options in (("coverage", {"coverage": 0.5}), ("pictures", {"enhanced": tmp_path / "enhanced"})):
        with raises_code("predict.other_rows") as caught:
            predict_files(model, [cells], out, **options)
        assert changed in str(caught.value)
    last = cells / "ring" / "019.png"
    last.write_bytes((cells / "ring" / "018.png").read_bytes() + b" ")
    with raises_code("predict.other_rows") as caught:
        predict_files(model, [cells], out)
    assert "images" in str(caught.value)
    assert (tmp_path / "p.csv.part").read_bytes() == part


def test_a_complete_part_file_is_moved_to_its_place(model, shapes, tmp_path):
    stopped(model, [shapes], tmp_path / "p.csv", 1.0)
    done = predict_files(model, [shapes], tmp_path / "p.csv")
    assert (done.resumed, done.images, sum(done.counts.values()) + done.rejected) == (60, 60, 60)
    assert len(read(tmp_path / "p.csv")) == 60


def test_an_unknown_engine_is_refused_before_the_work(model, tmp_path, raises_code):
    with raises_code("engine.unknown"):
        predict_files(model, [tmp_path / "gone"], tmp_path / "p.csv", engine="tpu")


def test_reasons_of_failures_are_listed_by_frequency(model, draw, tmp_path):
    cells = draw(tmp_path / "cells", 1, classes=("disc",)) / "disc"
    for number in range(4):
        (cells / f"empty{number}.png").write_bytes(b"")
    for number in range(2):
        (cells / f"key {number}.tif").write_bytes(b"II*\0garbage")
    (cells / "text: a.png").write_text("not an image", encoding="utf-8")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(cells / "small.png")
    done = predict_files(model, [cells], tmp_path / "p.csv")
    (first, empty), (second, damaged) = list(done.reasons.items())[:2]
    assert (first, empty) == ("the file is empty (0 bytes)", 4)
    assert (second.partition(":")[0], damaged) == ("truncated or damaged TIFF", 2)
    assert done.failure_message == (
        f"8 of 9 image(s) could not be used: 4 x the file is empty (0 bytes) | 2 x {second} | 1 x "
        f"{list(done.reasons)[2]} | 1 more reason(s); the column 'error' says which"
    )
    for file in cells.iterdir():
        file.write_bytes(b"")
    done = predict_files(model, [cells], tmp_path / "none.csv")
    assert done.failure_message == (
        "none of the 9 image(s) could be used: the file is empty (0 bytes); the column 'error' says which"
    )


@pytest.mark.parametrize("which", ["enhanced", "cam"])
def test_pictures_are_not_written_among_the_images(model, draw, tmp_path, raises_code, which):
    cells = draw(tmp_path / "cells", 1)
    with raises_code("predict.output_among_images"):
        predict_files(model, [cells / "disc", cells], tmp_path / "p.csv", **{which: cells / "disc" / "pictures"})
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_a_broken_link_has_a_row_with_its_reason(model, draw, tmp_path):
    cells = draw(tmp_path / "cells", 1, classes=("disc",)) / "disc"
    try:
        (cells / "gone.png").symlink_to("nowhere.png")
    except OSError:
        pytest.skip("links are not allowed here")
    assert predict_files(model, [cells], tmp_path / "p.csv").reasons == {"no such file": 1}


def test_enhanced_images_that_hardly_differ_from_the_raw_ones_are_reported(model, shapes, tmp_path, monkeypatch):
    summary = predict_files(model, [shapes / "disc"], tmp_path / "p.csv", enhanced=tmp_path / "enhanced")
    inputs = np.stack([model.prepare(read_image(path)) for path in sorted((shapes / "disc").iterdir())])
    enhanced = np.concatenate([images for _, images in model.forward(inputs)])
    pairs = zip(inputs.reshape(20, -1), enhanced.reshape(20, -1), strict=True)
    assert summary.correlation == pytest.approx(np.median([np.corrcoef(*pair)[0, 1] for pair in pairs]), abs=1e-3)
    assert bool(summary.notes) == (summary.correlation > 0.99)
    assert replace(summary, correlation=0.995).notes
    assert not replace(summary, correlation=0.9).notes
    assert predict_files(model, [shapes / "disc"], tmp_path / "none.csv").correlation is None


def test_cells_are_classified_in_memory_as_in_a_file(model, shapes, tmp_path):
    predict_files(model, [shapes], tmp_path / "p.csv", engine="torch")
    seen = []
    cells = find_images([shapes])
    predicted = predict_cells(
        model, cells, engine="torch", hash_crops=True, on_classified=lambda index, row, crop: seen.append(index)
    )
    assert predicted.table.equals(read_own_table(tmp_path / "p.csv"))
    assert seen == list(range(60))
    assert len(predicted.copy_keys) == 60
    assert predicted.summary.images == 60
