"""Does this bundle, on this machine, still do what it was sealed to do? Without torch and without data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .backends import Backend
from .bundle import Bundle
from .errors import DeviceError
from .manifest import Variant
from .plan import ExecutionPlan, resolve

_BATCH_SIZES: Final = (1, 2, 3, 7)
_SEED: Final = 0


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was tried, and what was found."""

    name: str
    passed: bool
    detail: str


class Verification(Struct, frozen=True, kw_only=True):
    """What `verify` found.

    Attributes:
        plans: what ran, one for each variant that was tried.
        checks: in the order in which they were made.
    """

    bundle: str
    identity: str
    plans: tuple[ExecutionPlan, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def verify(
    path: str | os.PathLike[str], *, device: str = "auto", precision: str | None = None
) -> Verification:
    """Checks a bundle's files, opens its variants, and runs them.

    Args:
        path: the bundle's folder.
        device: "auto", "cpu" or "cuda".
        precision: of the variant to run; None runs every one that is meant for the device.

    Returns:
        The checks: files, and for each variant that it opens, gives finite logits, and gives an
        image the same logits alone and in batches of 2, 3 and 7 within the variant's budget.

    Raises:
        BundleError: no bundle, a changed one, or one without that precision.
        DeviceError: no variant can run on the device.
        UsageError: an unknown device.
        MissingExtraError: onnxruntime is not installed.
    """
    bundle = Bundle.open(path)
    files = f"{len(bundle.manifest.files)} files listed, {bundle.size_bytes:,} bytes, all as sealed"
    checks = [Check(name="files", passed=True, detail=files)]
    chosen = bundle.manifest.variants if precision is None else (bundle.manifest.variant(precision),)
    plans = []
    for variant in chosen:
        if precision is None and device != "auto" and device not in variant.targets:
            continue
        plan, backend = resolve(bundle, device=device, precision=variant.precision)
        try:
            plans.append(plan)
            checks += _run(bundle, variant, plan, backend)
        finally:
            backend.close()
    if not plans:
        raise DeviceError(f"{bundle.manifest.name}: no variant of this bundle is meant for {device}")
    return Verification(
        bundle=bundle.manifest.name, identity=bundle.identity, plans=tuple(plans), checks=tuple(checks)
    )


def _run(bundle: Bundle, variant: Variant, plan: ExecutionPlan, backend: Backend) -> Iterator[Check]:
    found = backend.describe()
    yield Check(
        name=f"{variant.precision} opens",
        passed=True,
        detail=f"on {found.provider} with {_count(plan.intra_op_threads, 'thread')} ({plan.device_reason})",
    )
    spec = bundle.manifest.input
    shape = (max(_BATCH_SIZES), spec.height, spec.width, spec.channels)
    images = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
    alone = np.concatenate([backend.run(images[i : i + 1]) for i in range(len(images))])
    finite = bool(np.isfinite(alone).all()) and alone.shape == (len(images), len(bundle.manifest.labels))
    yield Check(
        name=f"{variant.precision} runs",
        passed=finite,
        detail=f"logits {alone.shape}, " + ("all finite" if finite else "some NaN or infinite, or too few"),
    )
    if finite:
        yield _batches_agree(variant, backend, images, alone)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _batches_agree(
    variant: Variant, backend: Backend, images: NDArray[np.uint8], alone: NDArray[np.float32]
) -> Check:
    """Whether an image's logits depend on what else is in its batch."""
    scale = max(float(np.abs(alone).max()), float(np.finfo(np.float32).tiny))
    worst, worst_size = 0.0, 1
    for size in _BATCH_SIZES:
        together = np.concatenate([backend.run(images[i : i + size]) for i in range(0, len(images), size)])
        difference = float(np.abs(together - alone).max()) / scale
        if not difference <= worst:
            worst, worst_size = difference, size
    budget = variant.replay_tolerance
    sizes = ", ".join(map(str, _BATCH_SIZES))
    where = f", at batch size {worst_size}" if worst else ""
    return Check(
        name=f"{variant.precision} batches agree",
        passed=worst <= budget,
        detail=f"batch sizes {sizes}: logits differ by {worst:.2g} of their scale{where}, budget {budget:.2g}",
    )
