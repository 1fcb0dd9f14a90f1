"""The package as it is shipped: the wheel holds everything, and its runtime needs no PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {
    "pipeline": "shipnet",
    "train": "shipnet/train",
    "export": "shipnet/export",
    "runtime": "shipnet/runtime",
}
EXAMPLE = """
import sys
from shipnet.runtime import Classifier
classifier = Classifier.load(sys.argv[1])
for prediction in classifier.stream(sys.argv[2:], top_k=3):
    print(prediction.label, prediction.top)
assert "torch" not in sys.modules
"""


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation, from a copy: setuptools leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "artifacts")
    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{package}/{path.relative_to(ROOT / stage).as_posix()}"
        for stage, package in STAGES.items()
        for path in (ROOT / stage).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "shipnet = shipnet.cli:main" in archive.read(metadata).decode()
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert shipped == expected


@pytest.mark.slow
@pytest.mark.network
def test_the_runtime_works_where_torch_is_not_installed(
    wheel: Path, digits_bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    """A fresh environment with the extra `cpu` alone runs every runtime command and the library."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", f"shipnet[cpu] @ {wheel.as_uri()}")
    run(python, "-c", "import torch", code=1)
    shipnet = tmp_path / "venv" / "bin" / "shipnet"
    assert "verified" in run(shipnet, "verify", digits_bundle, cwd=tmp_path)
    assert "0 of 359" in run(shipnet, "inspect", digits_bundle, cwd=tmp_path)
    assert len(run(shipnet, "classify", digits_bundle, digit_files, cwd=tmp_path).splitlines()) == 51
    assert "accuracy" in run(shipnet, "evaluate", digits_bundle, digit_files, cwd=tmp_path)
    assert "median" in run(shipnet, "bench", digits_bundle, "--min-seconds", "0", cwd=tmp_path)
    assert "no problems found" in run(shipnet, "doctor", cwd=tmp_path)
    files = sorted(digit_files.rglob("*.png"))[:3]
    assert len(run(python, "-c", EXAMPLE, digits_bundle, *files, cwd=tmp_path).splitlines()) == 3
    assert (
        "pip install 'shipnet[train]'"
        in subprocess.run(
            [shipnet, "train"], cwd=tmp_path, capture_output=True, text=True, check=False
        ).stderr
    )
