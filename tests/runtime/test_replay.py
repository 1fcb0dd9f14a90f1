"""What counts as the same answer, and the same pixels, to the last step of the tolerance."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shipnet.runtime import Bundle, DeviceError, ImageError
from shipnet.runtime.backends.ort import OrtBackend
from shipnet.runtime.evidence import (
    Probe,
    ProbeIndex,
    Probes,
    answers,
    load_probes,
    logit_scale,
    tensor_sha256,
)
from shipnet.runtime.manifest import Variant
from shipnet.runtime.replay import (
    DecisionChange,
    PixelBreach,
    ask,
    decision_changes,
    decode,
    differing,
    judge_engine,
    pixel_breach,
    prove_here,
    worst_first,
)

Logits = NDArray[np.float32]
Images = NDArray[np.uint8]
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle.open(digits_bundle)


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> Variant:
    return bundle.manifest.variant("fp32")


@pytest.fixture(scope="module")
def probes(bundle: Bundle) -> Probes:
    found = load_probes(bundle)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def run(bundle: Bundle, fp32: Variant) -> Iterator[Callable[[Images], Logits]]:
    """The bundle's own engine."""
    backend = OrtBackend.open(bundle.read(fp32.file), provider="CPUExecutionProvider")
    yield backend.run
    backend.close()


def made(logits: Logits) -> Probes:
    """Probes that answer so, each of one pixel."""
    tensors = np.arange(len(logits), dtype=np.uint8).reshape(-1, 1, 1, 1)
    index = ProbeIndex(
        origin="synthetic",
        decoder="none",
        probes=tuple(
            Probe(
                name=f"p{place}",
                kind="drawing",
                file=f"evidence/probes/p{place}.png",
                tensor_sha256=tensor_sha256(tensors[place]),
                answers=(answer,),
            )
            for place, answer in enumerate(answers("fp32", logits, LABELS))
        ),
    )
    return Probes(index, tensors, {"fp32": logits})


def tolerant(variant: Variant, tolerance: float) -> Variant:
    return msgspec.structs.replace(variant, replay_tolerance=tolerance)


def test_the_same_logits_hold(probes: Probes, fp32: Variant, bundle: Bundle, run: Any) -> None:
    found = ask(run, probes.tensors)
    replay = judge_engine(probes, fp32, found, labels=bundle.manifest.labels)
    assert (replay.breaches, replay.changed) == ((), 0)
    assert replay.largest <= fp32.replay_tolerance


@pytest.mark.parametrize(("step", "holds"), [(0.9, True), (1.1, False)])
def test_the_tolerance_is_a_share_of_the_largest_logit(fp32: Variant, step: float, holds: bool) -> None:
    expected = np.array([[8.0, 0.0, -2.0], [1.0, -4.0, 0.0]], np.float32)
    found = expected.copy()
    found[1, 2] += np.float32(step * 0.01 * 8.0)
    replay = judge_engine(made(expected), tolerant(fp32, 0.01), found, labels=LABELS)
    assert replay.largest == pytest.approx(step * 0.01, rel=1e-4)
    assert [item.probe for item in replay.breaches] == ([] if holds else ["p1"])
    if not holds:
        assert replay.breaches[0].describe() == (
            "p1: logits differ by 0.011 of their scale, tolerance 0.01; still 'a'"
        )


def test_a_close_call_may_go_the_other_way_and_is_counted(fp32: Variant) -> None:
    """Two logits that lie closer than twice the tolerance: each may move by one."""
    expected = np.array([[8.0, 7.9, 0.0], [8.0, 0.0, 0.0]], np.float32)
    found = np.array([[7.94, 7.96, 0.0], [8.0, 0.0, 0.0]], np.float32)
    replay = judge_engine(made(expected), tolerant(fp32, 0.01), found, labels=LABELS)
    assert (replay.breaches, replay.changed) == ((), 1)
    tight = judge_engine(made(expected), tolerant(fp32, 0.005), found, labels=LABELS)
    (breach,) = tight.breaches
    assert (breach.expected, breach.found, breach.margin) == ("a", "b", pytest.approx(0.0125, rel=1e-4))
    assert breach.describe().endswith("was 'a', is 'b'")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tolerance=st.floats(1e-4, 0.4))
def test_no_clear_decision_changes_within_the_tolerance(fp32: Variant, seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    expected = rng.normal(size=(20, 3)).astype(np.float32)
    reach = np.float32(0.999 * tolerance * logit_scale(expected))
    found = expected + rng.uniform(-1, 1, expected.shape).astype(np.float32) * reach
    replay = judge_engine(made(expected), tolerant(fp32, tolerance), found, labels=LABELS)
    assert replay.breaches == ()
    clear = [probe for probe in made(expected).index.probes if probe.answers[0].margin > 2 * tolerance]
    for probe in clear:
        place = int(probe.name[1:])
        assert LABELS[int(found[place].argmax())] == probe.answers[0].label


def test_what_is_not_finite_comes_first_and_is_counted(fp32: Variant) -> None:
    expected = np.array([[8.0, 0.0, 0.0]] * 4, np.float32)
    found = expected.copy()
    found[1] += 1.0
    found[2] = [np.nan, np.inf, 0.0]
    found[3] += 2.0
    replay = judge_engine(made(expected), fp32, found, labels=LABELS)
    assert [item.probe for item in replay.breaches] == ["p2", "p3", "p1"]
    worst = replay.breaches[0]
    assert (worst.relative_difference, worst.not_finite, worst.found) == (None, 2, None)
    assert worst.describe() == "p2: 2 logits are NaN or infinite, was 'a'"
    assert replay.largest == np.inf and replay.changed == 1


def test_each_image_is_asked_alone() -> None:
    sizes = []

    def run(images: Images) -> Logits:
        sizes.append(len(images))
        return images.reshape(len(images), 1).astype(np.float32)

    found = ask(run, np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1))
    assert sizes == [1] * 5 and found[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_files_decode_to_the_stored_pixels(bundle: Bundle, probes: Probes) -> None:
    decoded = decode(bundle, probes)
    assert all(np.array_equal(a, b) for a, b in zip(decoded, probes.tensors, strict=True))
    assert differing(probes, decoded, tolerance=0) == ()


def test_levels_are_counted_in_both_directions_without_wrapping() -> None:
    stored = made(np.eye(3, dtype=np.float32))
    stored.tensors[:] = np.array([0, 255, 100], np.uint8).reshape(3, 1, 1, 1)
    decoded = [np.full((1, 1, 1), value, np.uint8) for value in (255, 0, 102)]
    assert differing(stored, decoded, tolerance=254) == (0, 1)
    assert differing(stored, decoded, tolerance=2) == (0, 1)
    assert differing(stored, decoded, tolerance=1) == (0, 1, 2)
    assert differing(stored, [*decoded[:2], ImageError("gone")], tolerance=255) == (2,)
    breach = pixel_breach(stored, 2, decoded[2], decisions=())
    assert breach.describe() == "p2: up to 2 levels on 1 of 1 pixels; no decision changes here"
    broken = pixel_breach(stored, 2, ImageError("gone"), decisions=())
    assert (broken.max_difference, broken.pixels_differing, broken.describe()) == (
        None,
        None,
        "p2: cannot be decoded: gone",
    )


def test_decisions_are_compared_on_this_machine() -> None:
    def run(images: Images) -> Logits:
        value = images.reshape(len(images), 1).astype(np.float32)
        return np.concatenate([100 - value, value, np.where(value == 7, np.nan, -1)], axis=1).astype(
            np.float32
        )

    stored = run(np.array([10, 10, 10, 7], np.uint8).reshape(4, 1, 1, 1))
    decoded = [np.full((1, 1, 1), v, np.uint8) for v in (11, 200, 7)]
    changes = decision_changes(run, [0, 1, 2, 3], [*decoded, ImageError("gone")], stored=stored)
    assert changes == {1: (0, 1), 2: (0, None)}
    assert decision_changes(run, [0], decoded, stored=stored) == {}


def breach(name: str, *, size: int | None, decides: bool = False, error: str | None = None) -> PixelBreach:
    change = DecisionChange(precision="fp32", expected="a", found="b")
    return PixelBreach(
        probe=name,
        kind="image",
        max_difference=size,
        pixels_differing=size,
        pixels=9,
        error=error,
        decisions=(change,) if decides else (),
    )


def test_the_worst_pixels_come_first() -> None:
    given = [
        breach("small", size=1),
        breach("large", size=200),
        breach("broken", size=None, error="gone"),
        breach("decides", size=2, decides=True),
    ]
    assert [item.probe for item in worst_first(given)] == ["broken", "decides", "large", "small"]
    assert given[3].describe() == (
        "decides: up to 2 levels on 2 of 9 pixels; fp32 decides 'b' on them, 'a' on the stored ones"
    )


def test_a_certified_variant_runs_where_it_was_proved(bundle: Bundle, fp32: Variant, run: Any) -> None:
    def never(images: Images) -> Logits:
        raise AssertionError("nothing is asked")

    assert prove_here(bundle, fp32, never, device="cpu") == "certified"
    found = prove_here(bundle, fp32, run, device="cuda")
    assert found.startswith("certified, on another device; ") and found.endswith(" probes agreed here")
    doubtful = msgspec.structs.replace(fp32, status="uncertified", status_reasons=("180 images are few",))
    assert prove_here(bundle, doubtful, never, device="cpu") == (
        "uncertified (180 images are few): accepted at export"
    )


def test_an_unproved_variant_has_to_answer(bundle: Bundle, fp32: Variant, run: Any, probes: Probes) -> None:
    unproved = msgspec.structs.replace(fp32, status="unproved")
    assert prove_here(bundle, unproved, run, device="cpu") == f"{len(probes)} probes agreed here"
    message = rf"digits: fp32 answers {len(probes)} of {len(probes)} probes otherwise on cpu .*the worst is \d{{3}}-"
    with pytest.raises(DeviceError, match=message):
        prove_here(bundle, unproved, lambda images: run(images) * np.float32(-1.0), device="cpu")
    with pytest.raises(DeviceError, match=r"gives logits \(9,\) on cpu"):
        prove_here(bundle, unproved, lambda images: run(images)[:, :-1], device="cpu")


def test_without_evidence_an_unproved_variant_does_not_run(
    bundle_copy: Path, fp32: Variant, run: Any
) -> None:
    shutil.rmtree(bundle_copy / "evidence")
    bundle = Bundle.open(bundle_copy)
    unproved = msgspec.structs.replace(fp32, status="unproved")
    with pytest.raises(DeviceError, match="was never proved on cpu, and this copy has no evidence/"):
        prove_here(bundle, unproved, run, device="cpu")
    assert prove_here(bundle, fp32, run, device="cuda") == (
        "certified, but not on cuda, and this copy has no probes to ask there"
    )
