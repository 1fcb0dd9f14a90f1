"""What is written appears whole or not at all, and one writer at a time writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from shipnet.runtime.errors import OutputError
from shipnet.runtime.staging import locked, refuse_busy, staged_file, staged_folder, write_file


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as staged:
        (staged / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert contents(tmp_path) == ["deep", "deep/out", "deep/out/a"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with staged_folder(tmp_path / "out") as staged:
            (staged / name).write_text(name)
    assert contents(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_changes_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    with pytest.raises(error), staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("1")
        raise error
    with pytest.raises(error), staged_file(tmp_path / "file") as staged:
        staged.write_text("half")
        raise error
    assert contents(tmp_path) == ["out", "out/kept"]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "file", b"1")
    write_file(tmp_path / "new" / "file", b"22")
    assert (tmp_path / "new" / "file").read_bytes() == b"22"
    assert contents(tmp_path) == ["new", "new/file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(OutputError, match=r"file/out: cannot be written: .*choose another place")
    with refused, staged_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(OutputError, match=r"is a folder, expected a file's path"):
        write_file(tmp_path, b"")
    with pytest.raises(OutputError, match=r"cannot be written"):
        write_file(tmp_path / "file" / "below", b"")


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "other" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to("other/out")
    (tmp_path / "file").symlink_to("other/file")
    with locked(tmp_path / "out"), staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("1")
    write_file(tmp_path / "file", b"1")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "file").is_symlink()
    assert contents(tmp_path / "other") == ["file", "out", "out/new"]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "file").write_text("kept")
    for name in ("pipe", "link"):
        with pytest.raises(OutputError, match=f"{name}: is no plain file, so nothing can take its place"):
            write_file(tmp_path / name, b"")
    with (
        pytest.raises(OutputError, match="file: is a file, expected a folder's path"),
        staged_folder(tmp_path / "file"),
    ):
        pass
    assert contents(tmp_path) == ["file", "link", "pipe"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    refuse_busy(target)
    assert contents(tmp_path) == [], "asking makes nothing"
    with locked(target):
        message = rf"deep/out: is being written by another \(process {os.getpid()} on .*, since 20.*\): wait"
        with pytest.raises(OutputError, match=message), locked(target):
            pass
        with pytest.raises(OutputError, match=message):
            refuse_busy(target)
        with locked(tmp_path / "deep" / "other"):
            pass
    with locked(target):
        pass
    assert contents(tmp_path) == ["deep"]


def test_a_place_is_the_same_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path / "out"):
        for name in ("link/out", "./out", "none/../out"):
            with pytest.raises(OutputError, match="is being written by another"), locked(tmp_path / name):
                pass
    with pytest.raises(OutputError, match="/: is the root of a disk"), locked(Path("/")):
        pass


def test_of_many_threads_one_at_a_time_writes(tmp_path: Path) -> None:
    inside, most, refused = 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work() -> int:
        nonlocal inside, most, refused
        done = 0
        start.wait()
        for _ in range(50):
            try:
                with locked(tmp_path / "out"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    done += 1
                    with guard:
                        inside -= 1
            except OutputError:
                with guard:
                    refused += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(lambda _: work(), range(8)))
    assert done + refused == 400 and done >= 8 and most == 1
    assert contents(tmp_path) == []


HOLDER = """
import sys, time
from pathlib import Path
from shipnet.runtime.staging import locked, staged_folder
target = Path(sys.argv[1])
with locked(target), staged_folder(target) as staged:
    (staged / "half").write_text("half")
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing `tmp_path/out`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_another_process_is_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    message = rf"out: is being written by another \(process {holder.pid} on .*\): wait until that is done"
    with pytest.raises(OutputError, match=message):
        refuse_busy(tmp_path / "out")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_writer_blocks_nobody_and_leaves_nothing(
    tmp_path: Path, holder: subprocess.Popen[str], end: signal.Signals
) -> None:
    holder.send_signal(end)
    holder.wait()
    left = contents(tmp_path)
    assert ".out.lock" in left and any(name.endswith(".partial/half") for name in left)
    with locked(tmp_path / "out"), staged_folder(tmp_path / "out") as staged:
        (staged / "whole").write_text("whole")
    assert contents(tmp_path) == ["out", "out/whole"]


def test_a_stopped_writer_still_holds(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(OutputError, match="is being written by another"):
        refuse_busy(tmp_path / "out")
    assert any(name.endswith(".partial/half") for name in contents(tmp_path)), "it was not a leftover"


def test_what_had_stepped_aside_comes_back(tmp_path: Path) -> None:
    """As a machine leaves it that fails between the two renames of a swap."""
    (tmp_path / ".out.abcd_123.old" / "out").mkdir(parents=True)
    (tmp_path / ".out.abcd_123.old" / "out" / "kept").write_text("kept")
    (tmp_path / ".out.zyxw9876.partial").mkdir()
    kept = [".out.abcd_123.partial.d", ".outer.abcd_123.partial", "out.partial", ".out.lock.d"]
    for name in kept:
        (tmp_path / name).mkdir()
    refuse_busy(tmp_path / "out")
    assert contents(tmp_path) == sorted([*kept, "out", "out/kept"])


def test_an_old_one_does_not_replace_a_newer(tmp_path: Path) -> None:
    (tmp_path / ".out.abcd_123.old" / "out").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "newer").write_text("newer")
    refuse_busy(tmp_path / "out")
    assert contents(tmp_path) == ["out", "out/newer"]


def test_a_lock_file_with_anything_in_it_does_not_block(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_bytes(b"\xff\x00 process 1" * 1000)
    with locked(tmp_path / "out"):
        pass
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(OutputError, match="out: cannot be written: Is a directory"), locked(tmp_path / "out"):
        pass


OTHER_USER = """
import fcntl, os, sys  # all that is imported before it may read no more
from pathlib import Path
from shipnet.runtime.errors import OutputError
from shipnet.runtime.staging import locked, write_file
target = Path(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with locked(target):
        write_file(target, b"1")
except OutputError as error:
    print(error)
"""


def as_nobody(target: Path) -> str:
    """What another user is told who writes there."""
    command = [sys.executable, "-c", OTHER_USER, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_lock_that_another_user_left_does_not_block() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may write as another user")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o777)
        (folder / ".out.lock").write_text("process 1 on nowhere")
        assert as_nobody(folder / "out") == ""
        assert contents(folder) == ["out"]
        with locked(folder / "out"):
            assert f"is being written by another (process {os.getpid()} on " in as_nobody(folder / "out")
        (folder / ".out.lock").write_text("process 1 on nowhere")
        folder.chmod(0o755)
        assert "out: cannot be written: Permission denied" in as_nobody(folder / "out")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker that outlives its parent, as those of a data loader may."""
    program = (
        "import os, sys, time; from pathlib import Path; from shipnet.runtime.staging import locked\n"
        f"with locked(Path({str(tmp_path / 'out')!r})):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True); time.sleep(600)\n"
        "    sys.stdin.readline()\n"
        "    os._exit(0)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(OutputError, match="is being written by another"):
                refuse_busy(tmp_path / "out")
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait(60)
            os.kill(child, 0)
            refuse_busy(tmp_path / "out")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_full_disk_leaves_what_was_there(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(256)
    with staged_folder(disk / "out") as staged:
        (staged / "kept").write_bytes(b"kept" * 1000)
    write_file(disk / "file", b"kept")
    before = contents(disk)
    big = bytes(300 * 1024)
    message = "cannot be written: No space left on device: choose another place or free this one"
    with (
        pytest.raises(OutputError, match=f"out: {message}"),
        locked(disk / "out"),
        staged_folder(disk / "out") as staged,
    ):
        (staged / "model").mkdir()
        (staged / "model" / "big").write_bytes(big)
    with pytest.raises(OutputError, match=f"file: {message}"), locked(disk / "file"):
        write_file(disk / "file", big)
    assert contents(disk) == before
    assert (disk / "out" / "kept").read_bytes() == b"kept" * 1000
    assert (disk / "file").read_bytes() == b"kept"


def test_a_lock_on_a_full_disk_leaves_no_litter(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(1 << 20))
    with (
        pytest.raises(OutputError, match="out: cannot be written: No space left on device"),
        locked(disk / "out"),
    ):
        pytest.fail("there is no room for a note")
    assert contents(disk) == ["filler"]


def test_a_limit_on_files_sizes_is_a_full_disk(tmp_path: Path) -> None:
    """Python takes SIGXFSZ away, so that the write fails and the message can be written."""
    program = (
        "import resource, sys; from pathlib import Path; from shipnet.runtime.errors import OutputError\n"
        "from shipnet.runtime.staging import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: write_file(Path({str(tmp_path / 'file')!r}), bytes(2000))\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "file: cannot be written: File too large: choose another place" in done.stdout
    assert contents(tmp_path) == []


def test_other_errors_of_a_block_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"), staged_folder(tmp_path / "out"):
        (tmp_path / "none").read_bytes()
    assert contents(tmp_path) == []
