"""Fixtures that several folders share, and the switch that rewrites goldens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C and hand that down; tests that send it need the usual answer."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite the files that tests compare with"
    )


@pytest.fixture(scope="session")
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Photographs are cached in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with MNIST and real photographs."""
    root = os.environ.get("SHIPNET_DATA")
    if not root:
        pytest.skip("SHIPNET_DATA is not set: it names the folder with mnist/, flowers/ and hymenoptera/")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run on the built-in digits, few epochs, small network."""
    from shipnet.train import TrainConfig, fit

    out = tmp_path_factory.mktemp("digits") / "run"
    fit(TrainConfig(arch="conv_cnn", epochs=4, device="cpu"), out=out)
    return out


@pytest.fixture(scope="session")
def digits_bundle(digits_run: Path) -> Path:
    """A real bundle of that run. Read it only: see `bundle_copy`."""
    from shipnet.export import export

    return export(digits_run).path


@pytest.fixture
def bundle_copy(digits_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own to damage."""
    return Path(shutil.copytree(digits_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def digit_files(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder of PNG files: 5 validation digits of each class."""
    import numpy as np
    from PIL import Image

    from shipnet.train import load_data, load_run

    data = load_data(load_run(digits_bundle.parent / "run").record.config.data)
    root = tmp_path_factory.mktemp("digit_files")
    for label, name in enumerate(data.labels):
        (root / name).mkdir()
        for index in np.flatnonzero(data.valid.labels == label)[:5]:
            Image.fromarray(data.valid.sources[index][:, :, 0]).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kib)`: the folder of a real file system of that size."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
