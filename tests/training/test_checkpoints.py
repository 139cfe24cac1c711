"""The history and the checkpoints are complete at any moment."""

import pytest
import torch

from urnet.run_folder import HISTORY_COLUMNS, NEW_HISTORY_COLUMNS, Run
from urnet.training.checkpoints import AtomicCheckpointIO, append_history, read_checkpoint, truncate_history

HEADER = ",".join(NEW_HISTORY_COLUMNS)


def history(path, *rows) -> None:
    for stage, epoch in rows:
        append_history(path, {"stage": stage, "epoch": epoch, "train_loss": 0.5, "no_column": 1})


def read_epochs(path) -> list[str]:
    return [",".join(line.split(",")[:2]) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def test_rows_are_added_under_one_header(tmp_path):
    path = tmp_path / "history.csv"
    history(path, ("train", 1), ("train", 2))
    assert path.read_text(encoding="utf-8") == f"{HEADER}\ntrain,1,0.5,,,,,,\ntrain,2,0.5,,,,,,\n"


def test_only_rows_after_the_last_checkpoint_are_removed(tmp_path):
    path = tmp_path / "history.csv"
    history(path, ("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2), ("train", 3))
    before = path.read_bytes()
    truncate_history(path, "train", 3)
    assert path.read_bytes() == before
    truncate_history(path, "train", 2)
    assert read_epochs(path) == ["pretrain,1", "pretrain,2", "train,1", "train,2"]
    truncate_history(path, "pretrain", 1)
    assert read_epochs(path) == ["pretrain,1"]


@pytest.mark.parametrize("half", ["", "tra", "train,1", "train,12,0.3,0.2,0.1,0.5,0.5,0.0"])
def test_an_incomplete_row_is_removed(tmp_path, half):
    path = tmp_path / "history.csv"
    history(path, *(("train", epoch) for epoch in range(1, 12)))
    whole = path.read_bytes()
    path.write_bytes(whole + half.encode())
    truncate_history(path, "train", 11)
    assert path.read_bytes() == whole


def test_half_a_header_is_made_whole(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("stage,ep", encoding="utf-8")
    truncate_history(path, "train", 0)
    append_history(path, {"stage": "train", "epoch": 1})
    assert path.read_text(encoding="utf-8").splitlines()[0] == HEADER
    assert read_epochs(path) == ["train,1"]


def test_a_history_of_an_earlier_version_has_the_same_columns_after_resuming(tmp_path):
    path = tmp_path / "history.csv"
    header = ",".join(HISTORY_COLUMNS)
    path.write_text(f"{header}\npretrain,1,0.5,,,,,0.1\ntrain,1,0.5,,,,,0.1\n", encoding="utf-8")
    truncate_history(path, "train", 0)
    append_history(path, {"stage": "train", "epoch": 1, "train_loss": 0.25, "identity_error": 0.1})
    assert path.read_text(encoding="utf-8") == f"{header}\npretrain,1,0.5,,,,,0.1\ntrain,1,0.25,,,,,\n"
    history = Run(tmp_path).history()
    assert list(history) == list(NEW_HISTORY_COLUMNS)
    assert history["identity_error"].isna().all()


def test_no_history_yet_is_no_fault(tmp_path):
    truncate_history(tmp_path / "history.csv", "train", 0)
    assert not (tmp_path / "history.csv").exists()


def test_a_checkpoint_comes_back_exactly(tmp_path):
    state = {"epoch": 3, "state_dict": {"w": torch.rand(3)}}
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "new folder" / "last.ckpt")
    read = read_checkpoint(tmp_path / "new folder" / "last.ckpt")
    assert read["epoch"] == 3
    assert torch.equal(read["state_dict"]["w"], state["state_dict"]["w"])


def test_code_in_a_checkpoint_is_not_run(tmp_path, raises_code):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"epoch": Trap()}, tmp_path / "last.ckpt")
    with raises_code("run.checkpoint_damaged"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1]])
def test_a_file_that_is_no_checkpoint_is_damaged(tmp_path, content, raises_code):
    torch.save(content, tmp_path / "last.ckpt")
    with raises_code("run.checkpoint_damaged"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n1\n", b"a,b\n1,2\n", b"stage,epoch\ntrain,x\n", b"stage,epoch\nfoo,1\n"]
)
def test_a_file_that_is_no_history_is_an_error_and_does_not_change(tmp_path, content, raises_code):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with raises_code("run.history_damaged"):
        truncate_history(path, "train", 1)
    assert path.read_bytes() == content
