"""Asks a bundle's probes again on this machine, pixels and engine apart: a decoder's fault is not a kernel's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import DeviceError, ImageError
from .evidence import Probes, load_probes, logit_scale
from .manifest import Variant
from .preprocess import preprocess

Run: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
# What a file became here: uint8 (H, W, C), or why it became nothing.
Pixels: TypeAlias = NDArray[np.uint8] | ImageError


class DecisionChange(Struct, frozen=True, kw_only=True):
    """A variant that decides otherwise here; a label is None where logits are NaN or infinite."""

    precision: str
    expected: str | None
    found: str | None


class PixelBreach(Struct, frozen=True, kw_only=True):
    """A probe's file that gives other pixels here than where the bundle was made.

    Attributes:
        max_difference: in levels of 256; None like `pixels_differing` where the file cannot be decoded.
        pixels_differing: of `pixels`, in any channel.
        error: why it cannot be decoded.
        decisions: variants that decide otherwise here on these pixels than here on the stored ones.
    """

    probe: str
    kind: str
    max_difference: int | None
    pixels_differing: int | None
    pixels: int
    error: str | None
    decisions: tuple[DecisionChange, ...] = ()

    def describe(self) -> str:
        """What differs, in one line."""
        if self.error is not None:
            return f"{self.probe}: cannot be decoded: {self.error}"
        size = f"{self.probe}: up to {self.max_difference} levels on {self.pixels_differing} of {self.pixels} pixels"
        changes = "".join(
            f"; {item.precision} decides {item.found!r} on them, {item.expected!r} on the stored ones"
            for item in self.decisions
        )
        return size + (changes or "; no decision changes here")


class EngineBreach(Struct, frozen=True, kw_only=True):
    """A probe's stored pixels that a variant answers otherwise here than where the bundle was made.

    Attributes:
        relative_difference: the largest absolute logit difference over the logits' scale; None where
            it is not finite.
        not_finite: logits that are NaN or infinite.
        tolerance: that was allowed.
        expected: the label then.
        found: the label now; None where logits are NaN or infinite.
        margin: between the two highest logits then, over their scale.
    """

    precision: str
    probe: str
    kind: str
    relative_difference: float | None
    not_finite: int
    tolerance: float
    expected: str
    found: str | None
    margin: float

    def describe(self) -> str:
        """What differs, in one line."""
        if self.relative_difference is None:
            return f"{self.probe}: {self.not_finite} logits are NaN or infinite, was {self.expected!r}"
        size = f"{self.probe}: logits differ by {self.relative_difference:.2g} of their scale"
        if self.found == self.expected:
            return f"{size}, tolerance {self.tolerance:.2g}; still {self.expected!r}"
        return f"{size}, tolerance {self.tolerance:.2g}; was {self.expected!r}, is {self.found!r}"


@dataclass(frozen=True, slots=True)
class EngineReplay:
    """How a variant answered all probes.

    Attributes:
        breaches: the worst first.
        largest: relative difference; infinite where logits are not finite.
        changed: probes that get another label.
    """

    breaches: tuple[EngineBreach, ...]
    largest: float
    changed: int


def ask(run: Run, tensors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The logits of each tensor, alone in its batch, as the expected ones were made."""
    return np.concatenate([run(tensors[i : i + 1]) for i in range(len(tensors))])


def judge_engine(
    probes: Probes, variant: Variant, found: NDArray[np.float32], *, labels: tuple[str, ...]
) -> EngineReplay:
    """Holds logits against those that were sealed.

    A probe holds where its logits differ by no more than the variant's tolerance, and its decision is the sealed
    one unless the sealed margin is within twice the tolerance.

    Args:
        probes: of the bundle.
        variant: that answered.
        found: float32 (N, num_classes), as `ask` gives them for `probes.tensors`.
        labels: in the order of the logits.
    """
    expected, tolerance = probes.logits[variant.precision], variant.replay_tolerance
    relative = np.abs(found.astype(np.float64) - expected).max(axis=1) / logit_scale(expected)
    breaches, changed = [], 0
    for probe, row, difference in zip(probes.index.probes, found, relative, strict=True):
        (answer,) = (item for item in probe.answers if item.precision == variant.precision)
        not_finite = int((~np.isfinite(row)).sum())
        label = None if not_finite else labels[int(row.argmax())]
        changed += label != answer.label
        if difference <= tolerance and (label == answer.label or answer.margin <= 2 * tolerance):
            continue
        breaches.append(
            EngineBreach(
                precision=variant.precision,
                probe=probe.name,
                kind=probe.kind,
                relative_difference=None if not_finite else float(difference),
                not_finite=not_finite,
                tolerance=tolerance,
                expected=answer.label,
                found=label,
                margin=answer.margin,
            )
        )
    breaches.sort(key=lambda item: -_size(item.relative_difference))
    return EngineReplay(tuple(breaches), float(np.nan_to_num(relative, nan=np.inf).max()), changed)


def decode(bundle: Bundle, probes: Probes) -> tuple[Pixels, ...]:
    """Decodes every probe's file as production does.

    Raises:
        BundleError: a file was changed since the bundle was opened.
    """
    decoded: list[Pixels] = []
    for probe in probes.index.probes:
        data = bundle.read(probe.file)
        try:
            decoded.append(preprocess(data, bundle.manifest.preprocess))
        except ImageError as error:
            decoded.append(error)
    return tuple(decoded)


def differing(probes: Probes, decoded: Sequence[Pixels], *, tolerance: int) -> tuple[int, ...]:
    """Which probes could not be decoded, or differ from the stored pixels by more than so many levels."""
    return tuple(
        place
        for place, (found, stored) in enumerate(zip(decoded, probes.tensors, strict=True))
        if isinstance(found, ImageError) or int(_levels(found, stored).max()) > tolerance
    )


def decision_changes(
    run: Run, places: Sequence[int], decoded: Sequence[Pixels], *, stored: NDArray[np.float32]
) -> dict[int, tuple[int | None, int | None]]:
    """Where other pixels make one engine decide otherwise.

    Args:
        run: the engine.
        places: of the probes to try; those that could not be decoded are passed over.
        decoded: what every probe became here.
        stored: float32 (N, num_classes), what this engine says of the stored pixels.

    Returns:
        For each place where the decision changes the class on the stored pixels and on the decoded
        ones; None where logits are NaN or infinite.
    """
    changes = {}
    for place in places:
        found = decoded[place]
        if not isinstance(found, ImageError):
            before, now = _decision(stored[place]), _decision(run(found[np.newaxis])[0])
            if before != now:
                changes[place] = (before, now)
    return changes


def pixel_breach(
    probes: Probes, place: int, found: Pixels, *, decisions: tuple[DecisionChange, ...]
) -> PixelBreach:
    """What is wrong with the pixels of one probe."""
    probe, stored = probes.index.probes[place], probes.tensors[place]
    pixels = stored.shape[0] * stored.shape[1]
    if isinstance(found, ImageError):
        return PixelBreach(
            probe=probe.name,
            kind=probe.kind,
            max_difference=None,
            pixels_differing=None,
            pixels=pixels,
            error=str(found),
        )
    levels = _levels(found, stored)
    return PixelBreach(
        probe=probe.name,
        kind=probe.kind,
        max_difference=int(levels.max()),
        pixels_differing=int((levels.max(axis=2) > 0).sum()),
        pixels=pixels,
        error=None,
        decisions=decisions,
    )


def worst_first(breaches: Sequence[PixelBreach]) -> tuple[PixelBreach, ...]:
    """What cannot be decoded, then what changes a decision, then by size."""
    return tuple(
        sorted(
            breaches, key=lambda item: (item.error is None, not item.decisions, -(item.max_difference or 0))
        )
    )


def prove_here(bundle: Bundle, variant: Variant, run: Run, *, device: str) -> str:
    """Why a variant may run on a device: it was proved there, or it answers the probes there now.

    A variant that was never proved on any of its targets has to answer them. One that was, on another device
    than this, has to where the copy has probes.

    Args:
        bundle: that was opened.
        variant: that was opened on the device.
        run: its engine.
        device: "cpu" or "cuda".

    Returns:
        The reason, in a phrase.

    Raises:
        DeviceError: it answers otherwise than where it was made, or has to answer and there are no probes.
        BundleError: the probes are not what the format allows.
    """
    said: str = variant.status
    if variant.status == "uncertified":
        said = f"uncertified ({'; '.join(variant.status_reasons)}): accepted at export"
    if variant.status != "unproved" and any(parity.device == device for parity in variant.parities):
        return said
    probes = load_probes(bundle)
    name = f"{bundle.manifest.name}: {variant.precision}"
    if probes is None:
        if variant.status == "unproved":
            raise DeviceError(
                f"{name} was never proved on {device}, and this copy has no evidence/ to prove it by: "
                "use a whole copy of the bundle, or another precision"
            )
        return f"{said}, but not on {device}, and this copy has no probes to ask there"
    found = ask(run, probes.tensors)
    if found.shape != probes.logits[variant.precision].shape:
        raise DeviceError(f"{name} gives logits {found.shape[1:]} on {device}: use another precision")
    replay = judge_engine(probes, variant, found, labels=bundle.manifest.labels)
    if replay.breaches:
        raise DeviceError(
            f"{name} answers {len(replay.breaches)} of {len(probes)} probes otherwise on {device} than where it was "
            f"made; the worst is {replay.breaches[0].describe()}: use another precision or device"
        )
    agreed = f"{len(probes)} probes agreed here"
    return agreed if variant.status == "unproved" else f"{said}, on another device; {agreed}"


def _levels(found: NDArray[np.uint8], stored: NDArray[np.uint8]) -> NDArray[np.int16]:
    levels: NDArray[np.int16] = np.abs(found.astype(np.int16) - stored)
    return levels


def _decision(logits: NDArray[np.float32]) -> int | None:
    return int(logits.argmax()) if np.isfinite(logits).all() else None


def _size(difference: float | None) -> float:
    return np.inf if difference is None else difference
