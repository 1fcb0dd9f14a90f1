"""What people see while a run trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Runs a command with stderr on a terminal; its exit code and everything it drew."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(ours)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())


def test_a_terminal_shows_a_live_table(tmp_path: Path) -> None:
    options = ("--arch", "conv_cnn", "--epochs", "3", "--device", "cpu", "--out", str(tmp_path / "run"))
    code, drawn = on_a_terminal([sys.executable, "-m", "shipnet", "train", *options])
    assert code == 0, drawn
    assert "conv_cnn (12,044 parameters) on digits: 1,438 training, 359 validation images" in drawn
    assert re.search(r"epoch\s+┃\s+train_loss\s+┃\s+valid_loss\s+┃\s+accuracy\s+┃\s+time", drawn)
    last = drawn[drawn.rindex("train_loss") :]
    assert re.findall(r"^\s*(\d+) │", last, re.MULTILINE) == ["1", "2", "3"]
    assert "steps/s" not in last.splitlines()[-1]
