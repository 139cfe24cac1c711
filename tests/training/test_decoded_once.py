"""From audit to evaluation, each cell of a table is decoded once. Prediction of a folder caches nothing."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from urnet.cells.audit import audit_cells
from urnet.cells.cache.storage import locate_cell_cache
from urnet.cells.read import read_cells
from urnet.cells.simulate import write_phantom
from urnet.evaluation.evaluate import evaluate
from urnet.images import montage
from urnet.predict import predict_files
from urnet.training.calibrate import calibrate
from urnet.training.fit import train

SHORT = ["train.epochs=1", "augment.per_class=16"]


@pytest.fixture(scope="module")
def used(tiny, tmp_path_factory):
    """Phantom cells larger than the input of the network, a run over them, and the number of decodings of each file."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("URNET_CACHE", str(folder / "cache"))
        decodings: Counter[str] = Counter()
        read = montage.read_image

        def counted(path: Path, page: int = 0):
            decodings[Path(path).resolve().relative_to(folder.resolve()).as_posix()] += 1
            return read(path, page)

        patch.setattr(montage, "read_image", counted)
        write_phantom(folder / "phantom", 45, size=32, donors=9)
        decodings.clear()
        (run,) = train(folder / "phantom", tiny, folder / "run", overrides=SHORT)
        yield folder, run, decodings


@pytest.mark.slow
def test_training_calibration_evaluation_and_audits_decode_each_cell_once(used):
    folder, run, decodings = used
    cells = read_cells(folder / "phantom")
    calibrate(run)
    evaluate(run)
    evaluate(run, split="validation", out=folder / "validation")
    evaluate(run, folder / "phantom", out=folder / "whole")
    audit_cells(cells)
    train(cells, run.recipe(), folder / "again")
    predict_files(run.load_model(), [run.cells_path], folder / "table.csv")
    phantom = (folder / "phantom").resolve()
    expected = [(phantom / path).relative_to(folder.resolve()).as_posix() for path in cells.table["path"]]
    assert decodings == Counter(expected)


@pytest.mark.slow
def test_a_folder_of_images_is_not_cached(used, draw):
    folder, run, decodings = used
    before, images = sorted(locate_cell_cache().iterdir()), draw(folder / "images", 2)
    decodings.clear()
    predict_files(run.load_model(), [images], folder / "images.csv")
    assert {name for name in decodings if name.startswith("images/")} == set(decodings)
    assert len(decodings) == 6
    assert sorted(locate_cell_cache().iterdir()) == before


@pytest.mark.slow
def test_without_the_cache_all_is_the_same(used):
    folder, run, decodings = used
    evaluate(run, out=folder / "with")
    calibrate(run)
    saved = (run.model / "calibration.json").read_bytes(), (run.model / "calibration.safetensors").read_bytes()
    shutil.rmtree(locate_cell_cache())
    decodings.clear()
    evaluate(run, out=folder / "without")
    calibrate(run)
    assert decodings
    assert saved == (
        (run.model / "calibration.json").read_bytes(),
        (run.model / "calibration.safetensors").read_bytes(),
    )
    for name in ("predictions.csv", "metrics.json"):
        assert (folder / "with" / name).read_bytes() == (folder / "without" / name).read_bytes()


def test_a_file_damaged_after_training_is_named_as_without_the_cache(used, raises_code):
    folder, run, _ = used
    audit_cells(read_cells(folder / "phantom"))
    damaged = run.cells().part("test").table["path"][0]
    (run.folder / damaged).write_bytes(b"no image")
    with raises_code("images.format_unknown") as caught:
        evaluate(run, out=folder / "damaged")
    assert Path(damaged).name in str(caught.value)
