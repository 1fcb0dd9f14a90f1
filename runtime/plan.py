"""What will run: everything that can change a decision or a speed, resolved once, in one place."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from .backends import Backend
from .backends.ort import PROVIDERS, OrtBackend
from .bundle import Bundle
from .errors import DeviceError, UsageError, require
from .machine import PROC, available_cores, unmet_needs
from .manifest import Status, Variant
from .preprocess import decoder_version
from .replay import prove_here

DEVICES: Final = ("auto", *PROVIDERS)
FASTEST: Final = "fastest"
DEFAULT_BATCH_SIZE: Final = 32
# Under this, handing work to a second thread costs more than it saves (docs/measurements.md).
_ONE_THREAD_BELOW_MS: Final = 1.0
# Another precision than fp32 is taken where it needs at most this share of the time: less is noise.
_WORTH_IT: Final = 0.95
_RACE_RUNS: Final = 5
# A race is over after so long, of rounds that were begun: to start fast matters more than to be sure.
_RACE_MS: Final = 1000.0
_RACE_IMAGES: Final = 8
_LIBRARIES: Final = ("shipnet", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu")
# TF32 rounds the inputs of convolutions to 10 bits, so that the network is not the one that was validated.
_PROVIDER_OPTIONS: Final[dict[str, dict[str, str]]] = {
    "cpu": {},
    "cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"},
}


class ExecutionPlan(Struct, frozen=True, kw_only=True):
    """What runs and on what, as every result file and report carries it.

    Attributes:
        bundle: the bundle's name.
        identity: sha256 of the bundle's manifest.
        precision, file: the variant.
        precision_reason: why this one: "asked for", or what was measured.
        status: of the variant in the manifest.
        device, device_reason: where it runs, and why there.
        provider, provider_options: of ONNX Runtime.
        intra_op_threads, threads_reason: threads that one batch uses on the CPU, and why.
        decode_threads: threads that turn files into pixels.
        batch_size: images that `predict` and `stream` run at a time.
        decoder: the libraries that decode images.
        temperature: the logits are divided by it before softmax.
        versions: of the libraries that run.
        proof: why the variant may run here: "certified", or how it answered the bundle's probes on this device.
    """

    bundle: str
    identity: str
    precision: str
    precision_reason: str
    status: Status
    file: str
    device: str
    device_reason: str
    provider: str
    provider_options: dict[str, str]
    intra_op_threads: int
    threads_reason: str
    decode_threads: int
    batch_size: int
    decoder: str
    temperature: float
    versions: dict[str, str]
    proof: str


def resolve(
    bundle: Bundle,
    *,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    proc: Path = PROC,
) -> tuple[ExecutionPlan, Backend]:
    """Decides what runs, opens it, and lets it run where it is proved: at export, or on the bundle's probes here.

    Args:
        bundle: an opened bundle.
        device: "cpu", "cuda", or "auto": CUDA where it opens, else the CPU.
        precision: of the variant, or "fastest": the certified one that takes the least time here, on the device
            that runs fp32; fp32 itself where none is a twentieth faster. The times stand in the plan; where two are
            close, another start may choose the other, so name the precision where answers must stay the same.
        threads: that one batch uses on the CPU; None measures and chooses.
        batch_size: images that `predict` and `stream` run at a time.
        proc: where the proc file system lies, which tells what the CPU can do.

    Returns:
        The plan and the backend that was opened to obey it.

    Raises:
        UsageError: an unknown device, or a number below one.
        BundleError: the bundle has no such variant, or probes that the format does not allow.
        DeviceError: the device cannot run it, the variant is not meant for the device, the CPU would decide
            otherwise (see `machine.unmet_needs`), or it has to answer probes (see `replay.prove_here`) and does not.
        MissingExtraError: onnxruntime is not installed.
    """
    if precision == FASTEST:
        return _resolve_fastest(bundle, device=device, threads=threads, batch_size=batch_size, proc=proc)
    plan, backend = open_engine(
        bundle, device=device, precision=precision, threads=threads, batch_size=batch_size, proc=proc
    )
    try:
        proof = prove_here(bundle, bundle.manifest.variant(precision), backend.run, device=plan.device)
    except BaseException:
        backend.close()
        raise
    return msgspec.structs.replace(plan, proof=proof), backend


def open_engine(
    bundle: Bundle,
    *,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    proc: Path = PROC,
) -> tuple[ExecutionPlan, Backend]:
    """As `resolve` for one variant, but asks no probe: for `verify`, which asks them all and reports."""
    _refuse_unknown(device, threads, batch_size)
    variant = bundle.manifest.variant(precision)
    model = bundle.read(variant.file)
    where, reason, backend = _open_device(device, variant, model)
    if where == "cpu" and (unmet := unmet_needs(variant.needs, proc=proc)):
        backend.close()
        raise DeviceError(f"{variant.precision}: {'; '.join(unmet)}")
    decode_threads = available_cores().usable
    intra_op_threads, threads_reason = 1, "the device computes"
    if where == "cpu":
        intra_op_threads, threads_reason = _choose_threads(backend, bundle, threads, decode_threads)
        if intra_op_threads > 1:
            backend.close()
            backend = _open(where, model, intra_op_threads)
    plan = ExecutionPlan(
        bundle=bundle.manifest.name,
        identity=bundle.identity,
        precision=variant.precision,
        precision_reason="asked for",
        status=variant.status,
        file=variant.file,
        device=where,
        device_reason=reason,
        provider=PROVIDERS[where],
        provider_options=_PROVIDER_OPTIONS[where],
        intra_op_threads=intra_op_threads,
        threads_reason=threads_reason,
        decode_threads=decode_threads,
        batch_size=batch_size,
        decoder=decoder_version(),
        temperature=variant.temperature,
        versions=installed_versions(_LIBRARIES),
        proof=variant.status,
    )
    return plan, backend


def _resolve_fastest(
    bundle: Bundle, *, device: str, threads: int | None, batch_size: int, proc: Path
) -> tuple[ExecutionPlan, Backend]:
    """The certified variant that takes the least time on the device that runs fp32, and why the others were not."""
    opened = [resolve(bundle, device=device, threads=threads, batch_size=batch_size, proc=proc)]
    first = opened[0][0]
    passed_over = []
    try:
        for variant in bundle.manifest.variants:
            if variant.precision == first.precision:
                continue
            if variant.status != "certified":
                passed_over.append(f"{variant.precision} is {variant.status}")
                continue
            try:
                plan, backend = resolve(
                    bundle,
                    device=first.device,
                    precision=variant.precision,
                    threads=threads,
                    batch_size=batch_size,
                    proc=proc,
                )
            except DeviceError as error:
                passed_over.append(str(error))
                continue
            opened.append((msgspec.structs.replace(plan, device_reason=first.device_reason), backend))
        images = min(batch_size, _RACE_IMAGES)
        times = _race([backend for _, backend in opened], bundle, images)
    except BaseException:
        for _, backend in opened:
            backend.close()
        raise
    best = min(range(len(times)), key=times.__getitem__)
    if times[best] > times[0] * _WORTH_IT:
        best = 0
    for place, (_, backend) in enumerate(opened):
        if place != best:
            backend.close()
    plan, backend = opened[best]
    shown = ", ".join(f"{plan.precision} {ms:.3g} ms" for (plan, _), ms in zip(opened, times, strict=True))
    reason = f"fastest: {shown} for {images} images" if len(opened) > 1 else "fastest: no other may run here"
    return msgspec.structs.replace(plan, precision_reason="; ".join([reason, *passed_over])), backend


def _race(backends: Sequence[Backend], bundle: Bundle, count: int) -> list[float]:
    """The median time of each for so many images of random pixels, in milliseconds.

    They run in turn, so that what else the machine does hits all alike: once to warm up, then five times, or as
    often as a second allows, once at least.
    """
    if len(backends) == 1:
        return [0.0]
    spec = bundle.manifest.input
    shape = (count, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    samples: list[list[float]] = [[] for _ in backends]
    for backend in backends:
        backend.run(images)
    begun = time.perf_counter_ns()
    while len(samples[0]) < _RACE_RUNS and (not samples[0] or _ms_since(begun) < _RACE_MS):
        for backend, taken in zip(backends, samples, strict=True):
            start = time.perf_counter_ns()
            backend.run(images)
            taken.append(_ms_since(start))
    return [statistics.median(taken) for taken in samples]


def _ms_since(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those distributions that are installed, by name."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _refuse_unknown(device: str, threads: int | None, batch_size: int) -> None:
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is unknown: choose one of {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, expected at least 1 (or none, to measure and choose)")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, expected at least 1")


def _open_device(device: str, variant: Variant, model: bytes) -> tuple[str, str, Backend]:
    """The device that runs the variant, why, and a backend on it (on the CPU: with one thread)."""
    if device != "auto":
        if device not in variant.targets:
            raise DeviceError(
                f"{variant.precision} is meant for {', '.join(variant.targets)}, not for {device}: "
                "choose another precision or device"
            )
        return device, "asked for", _open(device, model, 1)
    reason = "auto: this onnxruntime has no CUDA provider"
    if "cuda" in variant.targets and PROVIDERS["cuda"] in require("onnxruntime").get_available_providers():
        try:
            return "cuda", "auto: CUDA opens", _open("cuda", model, 1)
        except DeviceError as error:
            reason = f"auto: {error}"
    if "cpu" not in variant.targets:
        raise DeviceError(
            f"{variant.precision} is meant for {', '.join(variant.targets)}, and none opens here ({reason})"
        )
    return "cpu", reason, _open("cpu", model, 1)


def _open(device: str, model: bytes, threads: int) -> Backend:
    return OrtBackend.open(
        model,
        provider=PROVIDERS[device],
        provider_options=_PROVIDER_OPTIONS[device],
        intra_op_threads=threads,
    )


def _choose_threads(backend: Backend, bundle: Bundle, threads: int | None, cores: int) -> tuple[int, str]:
    """How many threads one batch uses, and why. `backend` is the network on one thread."""
    if threads is not None:
        return threads, "asked for"
    if cores == 1:
        return 1, "one core is available"
    spec = bundle.manifest.input
    image = np.zeros((1, spec.height, spec.width, spec.channels), dtype=np.uint8)
    if _is_quick(backend, image):
        return 1, f"measured: one image takes under {_ONE_THREAD_BELOW_MS:g} ms on one thread"
    return cores, f"measured: one image takes over {_ONE_THREAD_BELOW_MS:g} ms on one thread"


def _is_quick(backend: Backend, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
    """Whether the median of five runs, after one that warms up, is below the threshold; three that agree decide it."""
    backend.run(images)
    quick: list[bool] = []
    while max(quick.count(True), quick.count(False)) < 3:
        start = time.perf_counter_ns()
        backend.run(images)
        quick.append(time.perf_counter_ns() - start < _ONE_THREAD_BELOW_MS * 1e6)
    return quick.count(True) == 3
