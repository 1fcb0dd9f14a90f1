"""`--compile` compiles, or says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shipnet.train import TrainConfig, fit
from shipnet.train.architectures import build
from shipnet.train.compiling import compiled
from shipnet.train.normalize import Deployable


def test_a_machine_without_a_compiler_says_so(tmp_path: Path) -> None:
    code = (
        "from shipnet.train import TrainConfig, fit\n"
        "fit(TrainConfig(arch='conv_cnn', epochs=1, device='cpu', compile=True), 'run')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": str(tmp_path),
            "CXX": "g++",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        },
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "DeviceError: torch.compile does not work on cpu: " in last
    assert last.endswith("install a C++ compiler, such as g++, or leave out --compile")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_compiled_steps_train_the_network_that_is_kept(tmp_path: Path) -> None:
    options = {"arch": "conv_cnn", "epochs": 2, "device": "cpu"}
    eager = fit(TrainConfig(**options), tmp_path / "eager" / "run")
    fast = fit(TrainConfig(**options, compile=True), tmp_path / "compiled" / "run")
    assert fast.record.history[1].train_loss == pytest.approx(eager.record.history[1].train_loss, rel=1e-2)
    assert set(fast.network().state_dict()) == set(eager.network().state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_the_compiler_is_really_used() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    model = Deployable(build("conv_cnn", channels=1, num_classes=10, image_size=8), (0.5,), (0.5,))
    images = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8)
    fast = compiled(model)
    fast(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert counters["stats"]["unique_graphs"] == 2  # the probe's, and one for the whole network
    assert not counters["graph_break"]
