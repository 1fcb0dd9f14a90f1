"""Checkpoints on disk: whole whenever the process dies, and refused where they are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from shipnet.runtime import OutputError
from shipnet.runtime.manifest import Normalization
from shipnet.train import RunError, TrainConfig
from shipnet.train.checkpoint import CHECKPOINT, Checkpoint, CheckpointFolder
from shipnet.train.events import EpochDone

TENSORS = {"model.weight": torch.arange(6.0).view(2, 3)}


def epochs(count: int) -> tuple[EpochDone, ...]:
    return tuple(
        EpochDone(epoch=n, train_loss=1.0, valid_loss=1.0, accuracy=0.5, learning_rate=0.1, wall_s=1.0)
        for n in range(1, count + 1)
    )


def checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(
        asked=TrainConfig(epochs=9),
        config=TrainConfig(epochs=9),
        data_fingerprint="a" * 64,
        normalization=Normalization(mean=(0.5,), std=(0.5,)),
        hardware="cpu",
        versions={},
        history=epochs(epoch),
        resumed_after=(),
        elapsed_s=1.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "run")
    assert folder.open(TrainConfig(epochs=9), "a" * 64, resume=False) is None
    return folder


def test_only_the_last_one_stays(folder: CheckpointFolder) -> None:
    for epoch in (1, 2, 3):
        folder.write(checkpoint(epoch), TENSORS)
    assert {path.name for path in folder.path.iterdir()} == {CHECKPOINT, "epoch-3.safetensors"}
    found = folder.read()
    assert found is not None
    assert found.epoch == 3
    assert msgspec.structs.replace(found, tensors_sha256="0" * 64) == checkpoint(3)


DIE = """
import os, signal, sys
from pathlib import Path
import msgspec, torch
from shipnet.train.checkpoint import CheckpointFolder

folder = CheckpointFolder(Path(sys.argv[1]))
first = folder.read()
tensors = folder.read_tensors(first)

def later(epoch):
    done = msgspec.structs.replace(first.history[0], epoch=epoch)
    return msgspec.structs.replace(first, history=(*first.history, done))

def write(nth):
    calls = 0
    def count(event, arguments):
        nonlocal calls
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(sys.argv[1]):
            calls += 1
            if calls == nth:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    folder.write(later(nth + 1), tensors)

for nth in range(1, 100):
    pid = os.fork()
    if pid == 0:
        write(nth)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    found = folder.read()
    assert torch.equal(folder.read_tensors(found)["model.weight"], tensors["model.weight"])
    print(os.waitstatus_to_exitcode(status), found.epoch)
    if status == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_death_at_any_file_operation_leaves_a_whole_one(folder: CheckpointFolder) -> None:
    folder.write(checkpoint(1), TENSORS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIE, str(folder.run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    deaths = len(lines) - 1
    assert deaths >= 6  # two files are opened, synced and renamed, others removed
    assert [code for code, _ in lines] == [-signal.SIGKILL] * deaths + [0]
    assert lines[-1][1] == deaths + 2


def test_half_a_file_is_refused(folder: CheckpointFolder) -> None:
    folder.write(checkpoint(1), TENSORS)
    path = folder.path / CHECKPOINT
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2])
    with pytest.raises(
        RunError, match=r"checkpoint\.json: .*damaged, or of another shipnet: .*without --resume"
    ):
        folder.read()


def test_another_version_is_refused(folder: CheckpointFolder) -> None:
    folder.write(checkpoint(1), TENSORS)
    path = folder.path / CHECKPOINT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint_version": 2}))
    with pytest.raises(RunError, match=r"checkpoint_version"):
        folder.read()


def test_changed_tensors_are_refused(folder: CheckpointFolder) -> None:
    folder.write(checkpoint(1), TENSORS)
    found = folder.read()
    assert found is not None
    path = folder.path / "epoch-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"epoch-1\.safetensors: not the file that checkpoint\.json names"):
        folder.read_tensors(found)
    path.unlink()
    with pytest.raises(RunError, match=r"epoch-1\.safetensors: cannot be read: No such file"):
        folder.read_tensors(found)


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"run\.partial: something that is no unfinished run stands there"):
        CheckpointFolder(tmp_path / "run").open(TrainConfig(), "a" * 64, resume=False)
    assert (tmp_path / "run.partial" / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/run: cannot be written: Not a directory"):
        CheckpointFolder(tmp_path / "file" / "run").open(TrainConfig(), "a" * 64, resume=False)
