"""A calibration on disk is read back exactly; files that do not fit together are refused."""

import json

import numpy as np
import pytest
from test_rejection import fitted, good

from urnet.calibration.calibration import Calibration
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.files import load_calibration, save_calibration


def reference(confusion: list[list[int]]) -> ReferenceCells:
    """Cells that give this confusion."""
    table = np.array(confusion)
    truth, decisions = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
    probabilities = 0.1 + 0.8 * np.eye(len(table) + 1)[decisions][:, :-1]
    return ReferenceCells(probabilities / probabilities.sum(axis=1, keepdims=True), truth, decisions == len(table))


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
        scores_part="test",
        parts={"train": 200, "validation": 50, "test": 57},
        false_rejection=0.02,
    )


def test_a_calibration_is_read_exactly(calibration, tmp_path):
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


def test_the_json_holds_the_limits_by_reason(calibration, tmp_path):
    save_calibration(calibration, tmp_path)
    about = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert about["confusion"] == [[40, 5, 1], [2, 9, 0]]
    assert about["limits"]["too bright"] > 0.6 > 0.4 > about["limits"]["too dark"]


def test_set_names_are_joined(calibration):
    assert calibration.set_names(np.array([[0.5, 0.5]]), 0.99) == ["granulocyte|mönocyte"]


@pytest.mark.parametrize(
    ("keys", "code", "part"),
    [
        ({"format": 9}, "model.newer", "newer"),
        ({"temperature": 0}, "model.calibration_invalid", "temperature is 0"),
        ({"confusion": [[1, 2], [3, 4]]}, "model.calibration_invalid", "the confusion"),
        ({"classes": ["a", "b", "c"]}, "model.calibration_invalid", "scores.2"),
        ({"checks": [["weight", 1]]}, "model.calibration_invalid", "checks.0.0 is 'weight'"),
        ({"sha256": "0" * 64}, "model.calibration_invalid", "belongs to another calibration"),
    ],
)
def test_inconsistent_values_are_refused(calibration, tmp_path, keys, code, part, raises_code):
    save_calibration(calibration, tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")
    with raises_code(code) as caught:
        load_calibration(tmp_path)
    assert part in str(caught.value)


def test_tensors_of_another_calibration_are_refused(calibration, tmp_path, raises_code):
    from dataclasses import replace

    save_calibration(calibration, tmp_path)
    old = (tmp_path / "calibration.json").read_bytes()
    save_calibration(replace(calibration, scores=(np.zeros(3), np.zeros(3))), tmp_path)
    (tmp_path / "calibration.json").write_bytes(old)  # as a process leaves them that was killed in between
    with raises_code("model.calibration_invalid"):
        load_calibration(tmp_path)
