"""A calibration on disk: it comes back exactly, and what does not belong together is refused."""

import json

import numpy as np
import pytest
from test_rejection import fitted, good

from urnet.calibration.calibration import Calibration
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.files import load_calibration, save_calibration
from urnet.errors import RunError


def reference(confusion: list[list[int]]) -> ReferenceCells:
    """Cells that give this confusion."""
    table = np.array(confusion)
    truth, said = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
    probabilities = 0.1 + 0.8 * np.eye(len(table) + 1)[said][:, :-1]
    return ReferenceCells(probabilities / probabilities.sum(axis=1, keepdims=True), truth, said == len(table))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return Calibration(
        classes=("granulocyte", "mönocyte"),
        temperature=1.7,
        scores=(np.sort(rng.random(50)), np.sort(rng.random(12))),
        rejection=fitted(200, 50),
        reference=reference([[40, 5, 1], [2, 9, 0]]),
        reference_part="test",
        parts={"train": 200, "validation": 50, "test": 57},
        false_rejection=0.02,
    )


def test_it_comes_back_exactly(calibration, tmp_path):
    save_calibration(calibration, tmp_path)
    copy = load_calibration(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.json", "calibration.safetensors"}
    for name in ("classes", "temperature", "reference_part", "parts", "false_rejection"):
        assert getattr(copy, name) == getattr(calibration, name)
    assert (copy.confusion == calibration.confusion).all()
    rows, features = good(100, 9)
    assert (copy.rejection.score(rows, features) == calibration.rejection.score(rows, features)).all()
    probabilities = np.random.default_rng(1).dirichlet([1, 1], 40)
    assert copy.set_names(probabilities, 0.8) == calibration.set_names(probabilities, 0.8)


def test_the_json_says_the_limits_in_plain_words(calibration, tmp_path):
    save_calibration(calibration, tmp_path)
    about = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert about["confusion"] == [[40, 5, 1], [2, 9, 0]]
    assert about["limits"]["too bright"] > 0.6 > 0.4 > about["limits"]["too dark"]


def test_set_names_are_joined(calibration):
    assert calibration.set_names(np.array([[0.5, 0.5]]), 0.99) == ["granulocyte|mönocyte"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"format": 9}, "written by a newer urnet"),
        ({"temperature": 0}, "temperature is 0"),
        ({"confusion": [[1, 2], [3, 4]]}, "not that of the reference"),
        ({"classes": ["a", "b", "c"]}, "scores.2"),
        ({"checks": [["weight", 1]]}, "checks.0.0 is 'weight'"),
        ({"sha256": "0" * 64}, "not the file that it was written with"),
    ],
)
def test_what_does_not_fit_is_refused(calibration, tmp_path, keys, words):
    save_calibration(calibration, tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")
    with pytest.raises(RunError, match=words):
        load_calibration(tmp_path)


def test_tensors_of_another_calibration_are_refused(calibration, tmp_path):
    from dataclasses import replace

    save_calibration(calibration, tmp_path)
    old = (tmp_path / "calibration.json").read_bytes()
    save_calibration(replace(calibration, scores=(np.zeros(3), np.zeros(3))), tmp_path)
    (tmp_path / "calibration.json").write_bytes(old)  # as a process leaves them that was killed in between
    with pytest.raises(RunError, match="urnet calibrate"):
        load_calibration(tmp_path)
