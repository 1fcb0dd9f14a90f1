"""Does this bundle, on this machine, still do what it was sealed to do? Without torch and without data."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .backends import Backend
from .bundle import OPTIONAL_FOLDERS, Bundle
from .errors import DeviceError, UsageError
from .evidence import Probes, load_probes, logit_scale
from .manifest import Variant
from .plan import DEVICES, ExecutionPlan, open_engine
from .replay import (
    DecisionChange,
    EngineBreach,
    EngineReplay,
    PixelBreach,
    Pixels,
    Run,
    ask,
    decision_changes,
    decode,
    differing,
    judge_engine,
    pixel_breach,
    worst_first,
)

_BATCH_SIZES: Final = (2, 3, 7)
_SEED: Final = 0
Result = Literal["ok", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was tried, and what was found.

    Attributes:
        result: "skipped" is neither good nor bad: it could not be tried, and `detail` says why.
    """

    name: str
    result: Result
    detail: str

    @property
    def failed(self) -> bool:
        """Whether something was found to be wrong."""
        return self.result == "failed"


class Verification(Struct, frozen=True, kw_only=True):
    """What `verify` found.

    Attributes:
        plans: what ran, one for each variant that was tried.
        checks: in the order in which they were made.
        probes: how many images with known answers the bundle brought; 0 where this copy has none.
        probes_decoder, decoder: the libraries that decoded them where the bundle was made, and here.
        pixels: probes whose files give other pixels here, the worst first.
        engine: probes whose stored pixels a variant answers otherwise here, the worst first.
    """

    bundle: str
    identity: str
    plans: tuple[ExecutionPlan, ...]
    checks: tuple[Check, ...]
    probes: int
    probes_decoder: str | None
    decoder: str
    pixels: tuple[PixelBreach, ...]
    engine: tuple[EngineBreach, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.failed for check in self.checks)


@dataclass(slots=True)
class _Findings:
    """What the variants left behind, one after the other."""

    plans: list[ExecutionPlan] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    engine: list[EngineBreach] = field(default_factory=list)
    decisions: dict[int, list[DecisionChange]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A bundle with its probes as they were decoded here.

    Attributes:
        other: places of the probes whose pixels differ.
    """

    bundle: Bundle
    probes: Probes | None
    decoded: tuple[Pixels, ...]
    other: tuple[int, ...]


def verify(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str | None = None,
    pixel_tolerance: int = 0,
    public_key: str | os.PathLike[str] | None = None,
) -> Verification:
    """Checks a bundle's files, opens its variants, and replays the probes in its evidence.

    Pixels and engine are judged apart: the probes' files are decoded and compared with the stored pixels, and the
    stored pixels are run and compared with the stored logits.

    Args:
        path: the bundle's folder, or a packed one.
        device: "auto", "cpu" or "cuda".
        precision: of the variant to run; None runs every one that is meant for the device.
        pixel_tolerance: levels, of 256, by which decoded pixels may differ where no decision changes.
        public_key: a PEM file; the bundle must be signed by that key's owner.

    Returns:
        The checks: files; the signature, where there is one; the probes' pixels; and for each variant that it opens,
        gives finite logits, answers every probe as it did where the bundle was made, and gives an image the same
        logits alone and in batches of 2, 3 and 7, within the variant's tolerance. A copy without probes runs on
        seeded noise.

    Raises:
        BundleError: no bundle, a changed one, one without that precision, or probes that the format
            does not allow.
        SignatureError: it is not signed by that key.
        DeviceError: no variant can run on the device.
        UsageError: an unknown device, a negative tolerance, or a key that cannot be read.
        MissingExtraError: onnxruntime is not installed, or model-signing for a key.
    """
    if not 0 <= pixel_tolerance <= 255:
        raise UsageError(f"pixel_tolerance is {pixel_tolerance}, expected 0 to 255 levels")
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is unknown: choose one of {', '.join(DEVICES)}")
    bundle = Bundle.open(path, public_key=public_key)
    probes = load_probes(bundle)
    decoded = decode(bundle, probes) if probes else ()
    other = differing(probes, decoded, tolerance=0) if probes else ()
    asked = _Asked(bundle, probes, decoded, other)
    findings = _Findings()
    _try_variants(asked, findings, device=device, precision=precision)
    breaches = _pixel_breaches(asked, findings, tolerance=pixel_tolerance)
    files = Check(name="files", result="ok", detail=_what_is_here(bundle))
    pixels = _pixels_check(asked, breaches, tolerance=pixel_tolerance)
    return Verification(
        bundle=bundle.manifest.name,
        identity=bundle.identity,
        plans=tuple(findings.plans),
        checks=(files, *_signature_check(bundle), pixels, *findings.checks),
        probes=len(probes) if probes else 0,
        probes_decoder=probes.index.decoder if probes else None,
        decoder=findings.plans[0].decoder,
        pixels=breaches,
        engine=tuple(findings.engine),
    )


def _what_is_here(bundle: Bundle) -> str:
    """How many of the listed files this copy has; that they are as sealed was found when it was opened."""
    listed = bundle.manifest.files
    here = [entry for entry in listed if bundle.has(entry.path)]
    size = sum(entry.size_bytes for entry in here)
    if len(here) == len(listed):
        return f"{len(here)} files listed, {size:,} bytes, all as sealed"
    missing = [folder for folder in OPTIONAL_FOLDERS if any(e.path.startswith(folder) for e in listed)]
    missing = [folder for folder in missing if not any(e.path.startswith(folder) for e in here)]
    return (
        f"{len(here)} of {len(listed)} files listed, {size:,} bytes, as sealed; "
        f"this copy was made without {' and '.join(missing)}"
    )


def _signature_check(bundle: Bundle) -> tuple[Check, ...]:
    """What is known of the signature; nothing where there is none."""
    if bundle.signature is None:
        return ()
    if bundle.signature.checked_by is None:
        return (Check(name="signature", result="skipped", detail="signed, not checked: give --public-key"),)
    detail = f"by the key of sha256 {bundle.signature.checked_by}"
    return (Check(name="signature", result="ok", detail=detail),)


def _try_variants(asked: _Asked, findings: _Findings, *, device: str, precision: str | None) -> None:
    """Runs every variant that was asked for.

    Raises:
        DeviceError: the one that was asked for cannot run, or none can.
    """
    manifest = asked.bundle.manifest
    chosen = manifest.variants if precision is None else (manifest.variant(precision),)
    refusals: list[str] = []
    for variant in chosen:
        name = f"{variant.precision} opens"
        if precision is None and device not in ("auto", *variant.targets):
            detail = f"is meant for {', '.join(variant.targets)}, not for {device}"
            findings.checks.append(Check(name=name, result="skipped", detail=detail))
            continue
        try:
            plan, backend = open_engine(asked.bundle, device=device, precision=variant.precision)
        except DeviceError as error:
            if precision is not None:
                raise
            refusals.append(str(error))
            findings.checks.append(Check(name=name, result="skipped", detail=str(error)))
            continue
        try:
            _run(asked, findings, variant, plan=plan, backend=backend)
        finally:
            backend.close()
    if not findings.plans:
        reason = refusals[0] if refusals else f"no variant of this bundle is meant for {device}"
        raise DeviceError(f"{manifest.name}: {reason}")


def _run(
    asked: _Asked, findings: _Findings, variant: Variant, *, plan: ExecutionPlan, backend: Backend
) -> None:
    """Everything that is tried of one variant, in order; it stops where going on would say nothing."""
    name, checks = variant.precision, findings.checks
    threads = _count(plan.intra_op_threads, "thread")
    detail = f"on {backend.describe().provider} with {threads} ({plan.device_reason})"
    checks.append(Check(name=f"{name} opens", result="ok", detail=detail))
    tensors = asked.probes.tensors if asked.probes else _noise(asked.bundle)
    alone = ask(backend.run, tensors)
    whole = alone.shape == (len(tensors), len(asked.bundle.manifest.labels))
    finite = whole and bool(np.isfinite(alone).all())
    found = f"logits {alone.shape}, " + ("all finite" if finite else "some NaN or infinite, or too few")
    checks.append(Check(name=f"{name} runs", result="ok" if finite else "failed", detail=found))
    if whole:
        plan = _replay(asked, findings, variant, plan=plan, run=backend.run, alone=alone)
    findings.plans.append(plan)
    if finite:
        checks.append(_batches_agree(variant, backend.run, tensors[: max(_BATCH_SIZES)], alone))


def _replay(
    asked: _Asked,
    findings: _Findings,
    variant: Variant,
    *,
    plan: ExecutionPlan,
    run: Run,
    alone: NDArray[np.float32],
) -> ExecutionPlan:
    """Judges what a variant says of the stored pixels, and what it makes of other ones; the plan with the proof."""
    name, probes, labels = variant.precision, asked.probes, asked.bundle.manifest.labels
    if probes is None:
        findings.checks.append(_without_probes(asked.bundle, variant))
        return plan
    replay = judge_engine(probes, variant, alone, labels=labels)
    findings.engine += replay.breaches
    findings.checks.append(_engine_check(variant, probes, replay))
    changes = decision_changes(run, asked.other, asked.decoded, stored=alone)
    for place, (before, now) in changes.items():
        expected, found = (None if item is None else labels[item] for item in (before, now))
        change = DecisionChange(precision=name, expected=expected, found=found)
        findings.decisions.setdefault(place, []).append(change)
    agreed = f"{len(probes) - len(replay.breaches)} of {len(probes)} probes agreed here"
    return msgspec.structs.replace(plan, proof=f"{variant.status}; {agreed}")


def _noise(bundle: Bundle) -> NDArray[np.uint8]:
    """What a copy without probes runs on."""
    spec = bundle.manifest.input
    shape = (max(_BATCH_SIZES), spec.height, spec.width, spec.channels)
    return np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)


def _no_probes(bundle: Bundle) -> str:
    has = any(entry.path.startswith("evidence/") for entry in bundle.manifest.files)
    where = "this copy was made without its evidence/" if has else "this bundle was made without probes"
    return f"no probes could be replayed: {where}"


def _without_probes(bundle: Bundle, variant: Variant) -> Check:
    name, detail = f"{variant.precision} engine", _no_probes(bundle)
    if variant.status == "unproved":
        detail = f"was never proved on its targets, and {detail}: it does not load"
        return Check(name=name, result="failed", detail=detail)
    return Check(name=name, result="skipped", detail=detail)


def _pixel_breaches(asked: _Asked, findings: _Findings, *, tolerance: int) -> tuple[PixelBreach, ...]:
    """Probes that differ by more than the tolerance, or by less where a decision changes."""
    if asked.probes is None:
        return ()
    beyond = {*differing(asked.probes, asked.decoded, tolerance=tolerance), *findings.decisions}
    return worst_first(
        [
            pixel_breach(
                asked.probes, place, asked.decoded[place], decisions=tuple(findings.decisions.get(place, ()))
            )
            for place in sorted(beyond)
        ]
    )


def _pixels_check(asked: _Asked, breaches: Sequence[PixelBreach], *, tolerance: int) -> Check:
    probes = asked.probes
    if probes is None:
        return Check(name="pixels", result="skipped", detail=_no_probes(asked.bundle))
    total = f"{len(probes)} {probes.index.origin} probes"
    if not breaches:
        within = "to the bit" if not asked.other else f"but {len(asked.other)} within {tolerance} levels"
        return Check(name="pixels", result="ok", detail=f"{total} decode to the stored pixels, {within}")
    detail = f"{len(breaches)} of {total} decode to other pixels; {breaches[0].describe()}"
    return Check(name="pixels", result="failed", detail=detail)


def _engine_check(variant: Variant, probes: Probes, replay: EngineReplay) -> Check:
    name = f"{variant.precision} engine"
    if replay.breaches:
        detail = (
            f"{len(replay.breaches)} of {len(probes)} probes are answered otherwise; "
            f"{replay.breaches[0].describe()}"
        )
        return Check(name=name, result="failed", detail=detail)
    labels = (
        "no other label" if not replay.changed else f"{_count(replay.changed, 'other label')}, on close calls"
    )
    detail = (
        f"{len(probes)} probes: logits differ by {replay.largest:.2g} of their scale, "
        f"tolerance {variant.replay_tolerance:.2g}; {labels}"
    )
    return Check(name=name, result="ok", detail=detail)


def _batches_agree(
    variant: Variant, run: Run, images: NDArray[np.uint8], alone: NDArray[np.float32]
) -> Check:
    """Whether an image's logits depend on what else is in its batch."""
    scale, expected = logit_scale(alone), alone[: len(images)]
    differences = {}
    for size in _BATCH_SIZES:
        parts = [run(images[first : first + size]) for first in range(0, len(images), size)]
        difference = float(np.abs(np.concatenate(parts) - expected).max()) / scale
        differences[size] = difference if math.isfinite(difference) else math.inf
    worst_size = max(differences, key=lambda size: differences[size])
    worst, budget = differences[worst_size], variant.replay_tolerance
    sizes = ", ".join(map(str, _BATCH_SIZES))
    where = f", at batch size {worst_size}" if worst else ""
    return Check(
        name=f"{variant.precision} batches agree",
        result="ok" if worst <= budget else "failed",
        detail=f"batch sizes 1, {sizes}: logits differ by {worst:.2g} of their scale{where}, budget {budget:.2g}",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
