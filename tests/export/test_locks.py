"""Two writers of one place, a killed one, and a disk that fills: what was there stays whole, and messages are clear."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner, Result

from shipnet.cli import main
from shipnet.export import ExportConfig, export
from shipnet.runtime import Bundle, OutputError
from shipnet.runtime.staging import locked
from shipnet.runtime.verify import verify
from shipnet.train import TrainConfig, fit, load_run

PATIENCE_S = 120
QUICK = ExportConfig(interop=False, batch_sizes=(1, 2))


def shipnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


@contextmanager
def in_background(*arguments: str | Path, lock: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, which holds a lock by now."""
    command = [sys.executable, "-m", "shipnet", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not holds(process, lock):
                assert process.poll() is None, "it ended before it held the lock"
                assert time.monotonic() < deadline, "it never held the lock"
                time.sleep(0.01)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def holds(process: subprocess.Popen[bytes], lock: Path) -> bool:
    with suppress(FileNotFoundError):
        return f"process {process.pid} ".encode() in lock.read_bytes()
    return False


def freeze(process: subprocess.Popen[bytes], lock: Path) -> None:
    """Stops it where it stands, if it still holds the lock: so that what follows is no race."""
    process.send_signal(signal.SIGSTOP)
    assert holds(process, lock), "it was done before it was stopped"


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def fill(disk: Path, *, leave_kib: int) -> None:
    """Takes a disk's room up to so much."""
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - leave_kib * 1024
    (disk / "filler").write_bytes(bytes(max(0, size)))


def test_two_exports_into_one_place_and_one_that_was_killed(
    digits_run: Path, digits_bundle: Path, tmp_path: Path
) -> None:
    out = Path(copytree(digits_bundle, tmp_path / "bundle"))
    before = Bundle.open(out).identity
    lock = tmp_path / ".bundle.lock"
    command = ("export", digits_run, "--out", out)
    with in_background(*command, lock=lock) as first:
        while not any(name.endswith(".partial") for name in litter(tmp_path)):
            time.sleep(0.005)
        freeze(first, lock)
        second = shipnet(*command)
        assert (second.exit_code, second.stdout) == (1, "")
        assert second.stderr.startswith(f"Error: {out}: is being written by another (process {first.pid} on ")
        assert second.stderr.endswith("): wait until that is done, or choose another place\n")
        assert Bundle.open(out).identity == before, "readers see the previous bundle meanwhile"
        first.kill()
        first.wait()
    assert [name for name in litter(tmp_path) if name.endswith(".partial")], "it was killed while it wrote"
    assert Bundle.open(out).identity == before
    bundle = export(digits_run, QUICK, out=out)
    assert bundle.identity != before
    assert litter(tmp_path) == [], "what the killed one left is cleared"
    assert verify(out, device="cpu").passed


def test_two_trainings_into_one_place_and_one_that_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    lock = tmp_path / ".run.lock"
    options = ("--data", "digits", "--arch", "conv_cnn", "--device", "cpu", "--out", out)
    with in_background("train", *options, "--epochs", "2000", lock=lock) as first:
        freeze(first, lock)
        second = shipnet("train", *options, "--epochs", "1")
        assert (second.exit_code, second.stdout) == (1, "")
        assert second.stderr.startswith(f"Error: {out}: is being written by another (process {first.pid} on ")
        with pytest.raises(OutputError, match="is being written by another"):
            fit(TrainConfig(arch="conv_cnn", epochs=1, device="cpu"), out=out)
        first.kill()
        first.wait()
    assert not out.exists()
    run = fit(TrainConfig(arch="conv_cnn", epochs=1, device="cpu"), out=out)
    assert load_run(out).record == run.record
    assert litter(tmp_path) == []


def test_a_disk_that_fills_during_an_export_keeps_the_previous_bundle(
    digits_run: Path, digits_bundle: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(4096)
    out = Path(copytree(digits_bundle, disk / "bundle"))
    before = Bundle.open(out).identity
    fill(disk, leave_kib=64)
    done = shipnet("export", digits_run, "--out", out, "--no-interop")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"Error: {out}: cannot be written: No space left on device: choose another place or free this one"
    )
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in disk.iterdir()) == ["bundle", "filler"], "litter"
    assert Bundle.open(out).identity == before
    (disk / "filler").unlink()
    assert export(digits_run, QUICK, out=out).identity != before


@pytest.mark.parametrize("leave_kib", [0, 16, 64])
def test_a_disk_that_fills_during_training_keeps_the_previous_run(
    digits_run: Path, small_disk: Callable[[int], Path], leave_kib: int
) -> None:
    disk = small_disk(2048)
    out = Path(copytree(digits_run, disk / "run"))
    before = load_run(out).record
    fill(disk, leave_kib=leave_kib)
    with pytest.raises(
        OutputError, match=r"cannot be written: No space left on device: choose another place or"
    ):
        fit(TrainConfig(arch="conv_cnn", epochs=1, device="cpu"), out=out)
    assert load_run(out).record == before
    assert not [name for name in litter(disk) if not name.startswith(".run.")], litter(disk)
    (disk / "filler").unlink()
    assert fit(TrainConfig(arch="conv_cnn", epochs=1, device="cpu"), out=out).record.epochs == 1
    assert sorted(path.name for path in disk.iterdir()) == ["run"]


def test_a_place_in_use_is_told_before_any_work_begins(digits_run: Path, tmp_path: Path) -> None:
    """Even the run's images are not read."""
    steps: list[str] = []
    with (
        locked(tmp_path / "bundle"),
        pytest.raises(OutputError, match=r"bundle: is being written by another \(process"),
    ):
        export(
            digits_run,
            QUICK,
            out=tmp_path / "bundle",
            on_progress=lambda what, done, total: steps.append(what),
        )
    assert steps == []
