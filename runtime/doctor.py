"""What this machine can run, what is broken, and the one command that mends it."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from typing import Final

import msgspec
from msgspec import Struct

from .machine import Hardware, hardware
from .plan import installed_versions
from .preprocess import decoder_version
from .probe import NATIVE_TENSORRT, Probe

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
_TIMEOUT_S: Final = 120.0  # the first touch of a GPU after boot takes long
_LIBRARIES: Final = (
    *("shipnet", "numpy", "pillow", "msgspec", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "torch", "torchvision", "onnx"),
)
_TENSORRT: Final = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
# What the loader says in the log of a provider that cannot start; its exception does not tell.
_MISSING_LIBRARY: Final = re.compile(r"(lib[\w.+-]+\.so[.\d]*): cannot open shared object file")


class Engine(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to run a network here.

    Attributes:
        name: an execution provider of onnxruntime, or "tensorrt" for the library without onnxruntime.
        works: whether a tiny network really ran on it (of "tensorrt": whether it loads).
        detail: its version, or why it does not work.
    """

    name: str
    works: bool
    detail: str


class Finding(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that is not as it should be, and what mends it."""

    what: str
    mend: str


class Report(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `examine` found.

    Attributes:
        versions: of the libraries that are installed, by distribution.
        decoder: the libraries that decode images.
        driver_cuda: the newest CUDA that the NVIDIA driver runs; None without a driver.
        engines: what can run, tried out.
        problems: what is broken.
        hints: what works but could be better.
    """

    versions: dict[str, str]
    decoder: str
    hardware: Hardware
    driver_cuda: str | None
    engines: tuple[Engine, ...]
    problems: tuple[Finding, ...]
    hints: tuple[Finding, ...]


class Facts(Struct, frozen=True, kw_only=True):
    """All that a diagnosis rests on.

    Attributes:
        versions: of the libraries that are installed, by distribution.
        gpus: the names of the NVIDIA GPUs.
        driver_cuda: the newest CUDA that the driver runs.
        probes: of every engine, by name.
    """

    versions: dict[str, str]
    gpus: tuple[str, ...]
    driver_cuda: str | None
    probes: dict[str, Probe]


def examine() -> Report:
    """Looks at this machine and tries each engine in a process of its own. Takes seconds, changes nothing."""
    found = hardware()
    facts = Facts(
        versions=installed_versions(_LIBRARIES),
        gpus=tuple(gpu.name for gpu in found.gpus),
        driver_cuda=_driver_cuda(),
        probes={name: run_probe(name) for name in (CPU, CUDA, TENSORRT, NATIVE_TENSORRT)},
    )
    return Report(
        versions=facts.versions,
        decoder=decoder_version(),
        hardware=found,
        driver_cuda=facts.driver_cuda,
        engines=tuple(_engine(name, result, facts) for name, result in facts.probes.items()),
        problems=tuple(find_problems(facts)),
        hints=tuple(find_hints(facts)),
    )


def run_probe(name: str, *, timeout_s: float = _TIMEOUT_S) -> Probe:
    """Tries an engine in a new process, which may crash or hang.

    Args:
        name: as `probe.probe` takes it.
        timeout_s: after which it counts as hanging.
    """
    command = [sys.executable, "-P", "-m", "shipnet.runtime.probe", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(opens=False, reason=f"gave no answer in {timeout_s:g} s")
    if done.returncode == 0:
        result = msgspec.json.decode(done.stdout.splitlines()[-1], type=Probe)
        missing = _MISSING_LIBRARY.search(done.stderr)
        if missing is None or result.opens:
            return result
        return msgspec.structs.replace(result, reason=f"{missing[1]} cannot be found")
    said = done.stderr.strip().splitlines() or ["without a word"]
    return Probe(opens=False, reason=f"the process that tried it ended with {done.returncode}: {said[-1]}")


def find_problems(facts: Facts) -> list[Finding]:
    """What is broken, with its mend."""
    extra = "gpu" if facts.gpus else "cpu"
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in facts.versions]
    if not wheels:
        return [Finding(what="onnxruntime is not installed", mend=f"pip install 'shipnet[{extra}]'")]
    if len(wheels) == 2:
        return [
            Finding(
                what="onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
                mend=f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'shipnet[{extra}]'",
            )
        ]
    cpu, cuda = facts.probes[CPU], facts.probes[CUDA]
    if not cpu.opens:
        reinstall = f"pip install --force-reinstall --no-deps {wheels[0]}=={facts.versions[wheels[0]]}"
        return [Finding(what=f"onnxruntime does not run on the CPU: {cpu.reason}", mend=reinstall)]
    problems = []
    if facts.gpus and CUDA in cpu.listed and not cuda.opens:
        problems.append(Finding(what=f"CUDA does not run: {cuda.reason}", mend=_mend_cuda(facts)))
    native = facts.probes[NATIVE_TENSORRT]
    if facts.gpus and _tensorrt(facts) and not native.opens:
        mend = "pip install --upgrade 'shipnet[tensorrt]'"
        problems.append(Finding(what=f"TensorRT does not load: {native.reason}", mend=mend))
    return problems


def find_hints(facts: Facts) -> list[Finding]:
    """What works but leaves something unused, with what would use it."""
    hints = []
    if facts.gpus and "onnxruntime" in facts.versions and "onnxruntime-gpu" not in facts.versions:
        swap = "pip uninstall -y onnxruntime && pip install 'shipnet[gpu]'"
        hints.append(Finding(what=f"{facts.gpus[0]} is not used: this onnxruntime has no CUDA", mend=swap))
    version = _tensorrt(facts)
    if version and int(version.partition(".")[0]) > 10 and not facts.probes[TENSORRT].opens:
        hints.append(
            Finding(
                what=f"TensorRT {version} serves a native engine only: onnxruntime's TensorRT provider needs 10.x",
                mend="pip install 'tensorrt-cu13<11'",
            )
        )
    return hints


def _mend_cuda(facts: Facts) -> str:
    """What to do about a GPU on which CUDA does not run."""
    built = facts.probes[CPU].cuda
    if facts.driver_cuda is None:
        return "install the NVIDIA driver, or start the container with it (docker run --gpus all)"
    if built and int(built.partition(".")[0]) > int(facts.driver_cuda.partition(".")[0]):
        return (
            f"update the NVIDIA driver, which runs CUDA up to {facts.driver_cuda}, to one for CUDA {built}: "
            "https://www.nvidia.com/drivers"
        )
    return "pip install --upgrade 'shipnet[gpu]'"


def _tensorrt(facts: Facts) -> str | None:
    """The version of TensorRT that is installed."""
    return next((facts.versions[name] for name in _TENSORRT if name in facts.versions), None)


def _engine(name: str, result: Probe, facts: Facts) -> Engine:
    if result.opens:
        library = "TensorRT" if name == NATIVE_TENSORRT else "onnxruntime"
        return Engine(name=name, works=True, detail=f"{library} {result.version}")
    if name == NATIVE_TENSORRT and _tensorrt(facts) is None:
        return Engine(name=name, works=False, detail="not installed")
    if result.listed and name not in result.listed:
        return Engine(name=name, works=False, detail=f"not in this build of onnxruntime ({result.version})")
    if name != CPU and not facts.gpus:
        return Engine(name=name, works=False, detail="nvidia-smi finds no NVIDIA GPU")
    return Engine(name=name, works=False, detail=result.reason)


def _driver_cuda() -> str | None:
    """The newest CUDA version that the NVIDIA driver runs.

    Source: CUDA Driver API, cuDriverGetVersion: 1000 * major + 10 * minor.
    """
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0 or number.value == 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
