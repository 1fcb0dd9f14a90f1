"""Which code and libraries trained."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("shipnet", "torch", "torchvision", "numpy", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Of Python and every library that has a part in the weights."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, "-dirty" behind it where files were changed.

    None for installed code, also where its environment lies inside somebody's repository.
    """
    here = Path(__file__).resolve()
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
