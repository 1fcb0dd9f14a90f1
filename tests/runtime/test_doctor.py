"""Diagnoses, from real probes in real processes and from facts written down."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shipnet.runtime.doctor import (
    CPU,
    CUDA,
    TENSORRT,
    Facts,
    Report,
    examine,
    find_hints,
    find_problems,
    run_probe,
)
from shipnet.runtime.probe import NATIVE_TENSORRT, Probe

CPU_WHEEL = (CPU,)
GPU_WHEEL = (TENSORRT, CUDA, CPU)
H100 = ("NVIDIA H100 80GB HBM3",)


def facts(
    versions: dict[str, str],
    *,
    opens: tuple[str, ...] = (CPU,),
    gpus: tuple[str, ...] = (),
    driver_cuda: str | None = None,
    reasons: dict[str, str] | None = None,
) -> Facts:
    """A machine on which these engines open, and the others give these reasons."""
    listed = GPU_WHEEL if "onnxruntime-gpu" in versions else CPU_WHEEL if versions else ()
    probes = {
        name: Probe(
            opens=name in opens,
            reason="" if name in opens else (reasons or {}).get(name, "cannot"),
            listed=listed,
            cuda="13.0" if listed == GPU_WHEEL else None,
            version="1.31.1" if listed else None,
        )
        for name in (CPU, CUDA, TENSORRT, NATIVE_TENSORRT)
    }
    return Facts(versions=versions, gpus=gpus, driver_cuda=driver_cuda, probes=probes)


def said(found: Facts) -> list[tuple[str, str]]:
    return [(finding.what, finding.mend) for finding in (*find_problems(found), *find_hints(found))]


def test_a_machine_without_gpu_is_well() -> None:
    assert said(facts({"onnxruntime": "1.32.0"})) == []


def test_the_gpu_wheel_without_gpu_is_well_too() -> None:
    assert said(facts({"onnxruntime-gpu": "1.31.1"})) == []


def test_a_gpu_that_runs_is_well() -> None:
    assert said(facts({"onnxruntime-gpu": "1.31.1"}, opens=(CPU, CUDA), gpus=H100, driver_cuda="13.0")) == []


@pytest.mark.parametrize(("gpus", "extra"), [((), "cpu"), (H100, "gpu")])
def test_no_onnxruntime(gpus: tuple[str, ...], extra: str) -> None:
    expected = [("onnxruntime is not installed", f"pip install 'shipnet[{extra}]'")]
    assert said(facts({}, opens=(), gpus=gpus)) == expected


@pytest.mark.parametrize(("gpus", "extra"), [((), "cpu"), (H100, "gpu")])
def test_both_wheels(gpus: tuple[str, ...], extra: str) -> None:
    both = facts({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, gpus=gpus)
    mend = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'shipnet[{extra}]'"
    what = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
    assert [(finding.what, finding.mend) for finding in find_problems(both)] == [(what, mend)]


def test_a_wheel_whose_files_are_gone() -> None:
    broken = facts({"onnxruntime-gpu": "1.31.1"}, opens=(), reasons={CPU: "import onnxruntime fails: no"})
    assert said(broken) == [
        (
            "onnxruntime does not run on the CPU: import onnxruntime fails: no",
            "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
        )
    ]


@pytest.mark.parametrize(
    ("driver_cuda", "mend"),
    [
        (None, "install the NVIDIA driver, or start the container with it (docker run --gpus all)"),
        (
            "12.4",
            "update the NVIDIA driver, which runs CUDA up to 12.4, to one for CUDA 13.0: "
            "https://www.nvidia.com/drivers",
        ),
        ("13.0", "pip install --upgrade 'shipnet[gpu]'"),
    ],
)
def test_cuda_that_does_not_run(driver_cuda: str | None, mend: str) -> None:
    found = facts(
        {"onnxruntime-gpu": "1.31.1"},
        gpus=H100,
        driver_cuda=driver_cuda,
        reasons={CUDA: "libcublasLt.so.13 cannot be found"},
    )
    assert said(found) == [("CUDA does not run: libcublasLt.so.13 cannot be found", mend)]


def test_a_gpu_that_the_cpu_wheel_leaves_unused() -> None:
    assert said(facts({"onnxruntime": "1.32.0"}, gpus=H100, driver_cuda="13.0")) == [
        (
            "NVIDIA H100 80GB HBM3 is not used: this onnxruntime has no CUDA",
            "pip uninstall -y onnxruntime && pip install 'shipnet[gpu]'",
        )
    ]


def test_which_tensorrt_serves_what() -> None:
    opens = (CPU, CUDA, NATIVE_TENSORRT)
    versions = {"onnxruntime-gpu": "1.31.1", "tensorrt-cu13": "11.4.0.1"}
    assert said(facts(versions, opens=opens, gpus=H100, driver_cuda="13.0")) == [
        (
            "TensorRT 11.4.0.1 serves a native engine only: onnxruntime's TensorRT provider needs 10.x",
            "pip install 'tensorrt-cu13<11'",
        )
    ]
    versions["tensorrt-cu13"] = "10.14.1"
    assert said(facts(versions, opens=(*opens, TENSORRT), gpus=H100, driver_cuda="13.0")) == []


def test_tensorrt_that_does_not_load() -> None:
    versions = {"onnxruntime-gpu": "1.31.1", "tensorrt-cu13": "10.14.1"}
    found = facts(
        versions,
        opens=(CPU, CUDA),
        gpus=H100,
        driver_cuda="13.0",
        reasons={NATIVE_TENSORRT: "ImportError: libnvinfer.so.10"},
    )
    assert said(found) == [
        ("TensorRT does not load: ImportError: libnvinfer.so.10", "pip install --upgrade 'shipnet[tensorrt]'")
    ]


def test_this_machine() -> None:
    ort = pytest.importorskip("onnxruntime")
    report = examine()
    works = {engine.name: engine.works for engine in report.engines}
    assert list(works) == [CPU, CUDA, TENSORRT, NATIVE_TENSORRT]
    assert works[CPU]
    assert report.versions["shipnet"]
    assert report.engines[0].detail == f"onnxruntime {ort.__version__}"
    assert report.problems == ()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


class TestProbesInTheirOwnProcess:
    """With another `onnxruntime` in front of the real one, as a broken installation leaves it."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path / "onnxruntime.py"

    def test_a_crash_is_an_answer(self, module: Path) -> None:
        module.write_text(
            "import os, sys\nsys.stderr.write('driver fell over\\n')\nsys.stderr.flush()\nos.abort()"
        )
        result = run_probe(CPU)
        assert not result.opens
        assert result.reason == "the process that tried it ended with -6: driver fell over"

    def test_an_empty_module_is_an_answer(self, module: Path) -> None:
        module.write_text("")
        assert run_probe(CPU).reason.startswith("import onnxruntime fails: AttributeError")

    def test_a_missing_module_is_an_answer(self, module: Path) -> None:
        module.write_text("raise ModuleNotFoundError('gone', name='onnxruntime')")
        assert run_probe(CPU).reason.startswith(
            "onnxruntime is not installed: run  pip install 'shipnet[cpu]'"
        )

    def test_a_missing_library_is_named(self, module: Path) -> None:
        line = "FAIL with error: libcublasLt.so.13: cannot open shared object file: No such file"
        module.write_text(f"import sys\nsys.stderr.write({line!r})\nraise ImportError('no')")
        assert run_probe(CUDA).reason == "libcublasLt.so.13 cannot be found"

    def test_a_hang_is_an_answer(self, module: Path) -> None:
        module.write_text("import time\ntime.sleep(60)")
        assert run_probe(CPU, timeout_s=1.0).reason == "gave no answer in 1 s"

    def test_nothing_is_spilled(self, module: Path, capfd: pytest.CaptureFixture[str]) -> None:
        module.write_text("import sys\nprint('noise')\nsys.stderr.write('noise')\nraise ImportError('no')")
        assert run_probe(CPU).reason == "import onnxruntime fails: ImportError: no"
        assert capfd.readouterr() == ("", "")
