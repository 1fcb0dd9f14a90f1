"""The documents tell the truth: the command reference is `--help`, and the README's commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shipnet.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "commands.md"
README = ROOT / "README.md"


def reference() -> str:
    parts = ["# Commands\n\nWhat `--help` prints. Exit codes: 0 done; 1 failed; 2 wrong usage; "]
    parts.append("3 done, but some inputs have no answer (their rows say why).\n")
    for command in ("", *COMMANDS):
        arguments = [*([command] if command else []), "--help"]
        done = CliRunner().invoke(main, arguments, prog_name="shipnet", terminal_width=100)
        assert done.exit_code == 0
        parts.append(f"\n## {' '.join(('shipnet', command)).strip()}\n\n```\n{done.output.rstrip()}\n```\n")
    return "".join(parts)


def test_the_command_reference_is_current(update_goldens: bool) -> None:
    if update_goldens:
        REFERENCE.write_text(reference(), encoding="utf-8")
    assert REFERENCE.read_text(encoding="utf-8") == reference(), (
        "run  pytest --update-goldens tests/test_docs.py"
    )


def test_every_option_has_a_help_text() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_first_two_commands_set_up_and_run(tmp_path: Path) -> None:
    """The first sets up and runs the main job, the second the tests; both install as CI does."""
    first, second, *_ = blocks("bash")
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[train,cpu,dev]'"
    assert first.strip() == f"{install} && shipnet pipeline"
    assert second.strip() == f"{install} && pytest"
    assert "pip install --quiet -e '.[train,cpu,dev]'\npytest\n" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> Path:
    """A folder in which `artifacts/digits` is finished, as the README's first command leaves it."""
    folder = tmp_path_factory.mktemp("home")
    artifacts = folder / "artifacts" / "digits"
    shutil.copytree(digits_bundle, artifacts / "bundle")
    from shipnet.train import load_data, load_run
    from shipnet.workflow import write_samples

    write_samples(load_data(load_run(digits_bundle.parent / "run").record.config.data), artifacts / "samples")
    return folder


def test_the_readmes_transcripts_run(home: Path) -> None:
    """Every `$ shipnet …` line of a transcript runs and prints what the transcript begins with."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for block in blocks("console"):
        for line in block.splitlines():
            if not line.startswith("$ shipnet") or line.startswith("$ shipnet pipeline"):
                continue
            command = shlex.split(line[2:])
            done = subprocess.run(
                command, cwd=home, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (line, done.stderr)
            assert done.stdout.strip(), line
            ran += 1
    assert ran >= 4


def test_the_readmes_library_example_runs(home: Path) -> None:
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
