"""The house rules: who may import whom, what is installed, what an import loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from shipnet.cli import COMMANDS

ROOT = Path(__file__).parent.parent
STAGES = {
    "runtime": set(),
    "train": {"runtime"},
    "export": {"train", "runtime"},
    "pipeline": {"train", "export", "runtime"},
}
HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "sklearn", "matplotlib", "safetensors")


def sources(stage: str) -> list[Path]:
    return sorted((ROOT / stage).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The absolute modules that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stage_of(module: str) -> str | None:
    """The stage of one of our modules; None for other people's."""
    parts = module.split(".")
    if parts[0] != "shipnet":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in STAGES else "pipeline"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_only_what_lies_before_them(stage: str) -> None:
    assert sources(stage)
    for path in sources(stage):
        stages = {stage_of(name) for name in imported(path)} - {None}
        assert stages <= STAGES[stage], f"{path.relative_to(ROOT)}: inside a stage imports are relative"


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_imports_no_second_copy_of_ours(stage: str) -> None:
    """`import train` from the checkout would make a second copy of every class."""
    for path in [*sources(stage), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        tops = {name.partition(".")[0] for name in imported(path)}
        assert not tops & set(STAGES), path


def test_the_runtime_never_imports_what_trains() -> None:
    for path in sources("runtime"):
        tops = {name.partition(".")[0] for name in imported(path)}
        assert not tops & set(HEAVY), path


def test_the_listed_packages_are_the_folders() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for stage in STAGES for path in (ROOT / stage).rglob("*.py")}
    names = {
        ".".join(("shipnet", *folder.parts)).replace("shipnet.pipeline", "shipnet") for folder in folders
    }
    assert set(config["packages"]) == names == set(config["package-dir"])
    assert {Path(folder) for folder in config["package-dir"].values()} == folders


def python(code: str) -> str:
    """What a fresh interpreter prints, away from the checkout."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_runtime_loads_little() -> None:
    loaded = set(
        python("import sys, shipnet.runtime; print(*{m.partition('.')[0] for m in sys.modules})").split()
    )
    assert "shipnet" in loaded
    assert not loaded & {*HEAVY, "onnxruntime", "click", "rich"}


BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_every_runtime_module_imports_without_what_trains() -> None:
    modules = [
        ".".join(("shipnet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in sources("runtime")
    ]
    assert "shipnet.runtime.classifier" in modules
    python(BLOCK.format(blocked=set(HEAVY)) + "".join(f"import {module}\n" for module in modules))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_works_with_the_core_alone(command: str) -> None:
    blocked = set(HEAVY) | {"onnxruntime"}
    arguments = [command, "--help"] if command else ["--help"]
    shown = python(
        BLOCK.format(blocked=blocked) + f"from shipnet.cli import main\nmain({arguments!r}, 'shipnet')"
    )
    assert "Usage: shipnet" in shown


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["train"], "torch", "train"),
        (["pipeline"], "torch", "train"),
        (["export", "run"], "torch", "train"),
    ],
)
def test_a_missing_extra_gives_its_install_line(
    arguments: list[str], module: str, extra: str, tmp_path: Path
) -> None:
    code = BLOCK.format(blocked=set(HEAVY)) + f"from shipnet.cli import main\nmain({arguments!r}, 'shipnet')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"Error: {module} is not installed: run  pip install 'shipnet[{extra}]'"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["shipnet.runtime", "shipnet.train", "shipnet.export"])
def test_public_names_exist_and_are_sorted(module: str) -> None:
    code = (
        f"import {module} as m; print(*[type(getattr(m, name)).__name__ for name in m.__all__], *m.__all__)"
    )
    names = python(code).split()
    names = names[len(names) // 2 :]
    assert names == sorted(names)
