"""Each way to answer otherwise is made for real, and `verify` names the probe, the stage and the size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from shipnet.cli import main
from shipnet.export.assemble import list_files, seal
from shipnet.export.probes import pack
from shipnet.runtime import Bundle, BundleError, Classifier, DeviceError, UsageError
from shipnet.runtime.backends.ort import OrtBackend
from shipnet.runtime.encoding import encode
from shipnet.runtime.evidence import INDEX, LOGITS, TENSORS, answers, load_probes, tensor_sha256
from shipnet.runtime.manifest import Manifest, Variant, decode_manifest
from shipnet.runtime.replay import ask
from shipnet.runtime.verify import Verification, verify

SKIPPED = "no probes could be replayed: this copy was made without its evidence/"


def manifest_of(bundle: Path) -> Manifest:
    return decode_manifest((bundle / "manifest.json").read_bytes(), where="manifest")


def reseal(bundle: Path, **changes: Any) -> None:
    """Seals what lies in the folder, with some fields of the manifest changed."""
    files = list_files(bundle)
    seal(bundle, msgspec.structs.replace(manifest_of(bundle), files=files, **changes))


def change_variant(bundle: Path, **changes: Any) -> None:
    (variant,) = manifest_of(bundle).variants
    reseal(bundle, variants=(msgspec.structs.replace(variant, **changes),))


def change_spec(bundle: Path, **changes: Any) -> None:
    reseal(bundle, preprocess=msgspec.structs.replace(manifest_of(bundle).preprocess, **changes))


def change_weights(bundle: Path, factor: float) -> None:
    """Multiplies the first convolution's weights."""
    path = bundle / "model" / "fp32.onnx"
    model = onnx.load(path)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    (weights,) = (item for item in model.graph.initializer if item.name == name)
    scaled = numpy_helper.to_array(weights) * np.float32(factor)
    weights.CopyFrom(numpy_helper.from_array(scaled, name))
    onnx.save(model, path)
    reseal(bundle)


def rewrite_probes(
    bundle: Path, tensors: np.ndarray[Any, Any] | None = None, *, variants: tuple[Variant, ...] | None = None
) -> None:
    """Other tensors, or other variants, with the answers that the bundle's own engine gives to them."""
    probes = load_probes(Bundle.open(bundle))
    assert probes is not None
    tensors = probes.tensors if tensors is None else tensors
    variants = variants or manifest_of(bundle).variants
    labels = manifest_of(bundle).labels
    logits = {}
    for variant in variants:
        model = (bundle / variant.file).read_bytes()
        logits[variant.precision] = ask(OrtBackend.open(model, provider="CPUExecutionProvider").run, tensors)
    answered = [answers(precision, rows, labels) for precision, rows in logits.items()]
    changed = tuple(
        msgspec.structs.replace(
            probe,
            tensor_sha256=tensor_sha256(tensor),
            answers=tuple(rows[place] for rows in answered),
        )
        for place, (probe, tensor) in enumerate(zip(probes.index.probes, tensors, strict=True))
    )
    (bundle / INDEX).write_bytes(encode(msgspec.structs.replace(probes.index, probes=changed)))
    (bundle / TENSORS).write_bytes(pack({"tensors": tensors}))
    (bundle / LOGITS).write_bytes(pack(logits))
    reseal(bundle, variants=variants)


def results(report: Verification) -> dict[str, str]:
    return {check.name: check.result for check in report.checks}


def detail(report: Verification, name: str) -> str:
    return next(check.detail for check in report.checks if check.name == name)


def test_every_probe_answers_where_the_bundle_was_made(digits_bundle: Path) -> None:
    report = verify(digits_bundle, device="cpu")
    assert report.passed
    assert set(results(report).values()) == {"ok"}
    assert report.probes >= 32
    assert (report.pixels, report.engine) == ((), ())
    assert report.probes_decoder == report.decoder == report.plans[0].decoder
    assert report.plans[0].proof == f"certified; {report.probes} of {report.probes} probes agreed here"
    assert "to the bit" in detail(report, "pixels")
    assert "no other label" in detail(report, "fp32 engine")


def test_a_copy_without_evidence_says_what_it_cannot_say(bundle_copy: Path) -> None:
    shutil.rmtree(bundle_copy / "evidence")
    report = verify(bundle_copy, device="cpu")
    assert report.passed
    assert results(report) == {
        "files": "ok",
        "pixels": "skipped",
        "fp32 opens": "ok",
        "fp32 runs": "ok",
        "fp32 engine": "skipped",
        "fp32 batches agree": "ok",
    }
    assert detail(report, "pixels") == detail(report, "fp32 engine") == SKIPPED
    assert report.probes == 0
    shown = CliRunner().invoke(main, ["verify", str(bundle_copy)])
    assert shown.exit_code == 0
    assert shown.stdout.count("skipped") == 2


def test_a_weight_off_by_one_per_cent_is_the_engines_fault(bundle_copy: Path) -> None:
    change_weights(bundle_copy, 1.01)
    report = verify(bundle_copy, device="cpu")
    assert {name for name, result in results(report).items() if result == "failed"} == {"fp32 engine"}
    assert report.pixels == ()
    assert len(report.engine) > 16
    sizes = [item.relative_difference for item in report.engine]
    assert sizes == sorted(sizes, key=lambda size: -(size or 0))
    assert min(size or 0 for size in sizes) > 1e-4
    worst = report.engine[0]
    assert worst.probe in detail(report, "fp32 engine")
    assert (worst.precision, worst.not_finite, worst.tolerance) == ("fp32", 0, 1e-4)


def test_a_changed_decision_is_named_then_and_now(bundle_copy: Path) -> None:
    change_weights(bundle_copy, -1.0)
    report = verify(bundle_copy, device="cpu")
    changed = [item for item in report.engine if item.found != item.expected]
    assert changed
    assert f"was {changed[0].expected!r}, is {changed[0].found!r}" in changed[0].describe()
    with Classifier.load(bundle_copy, device="cpu") as classifier:  # sealed anew, it is what it says it is
        probes = load_probes(classifier.bundle)
        assert probes is not None
        place = [probe.name for probe in probes.index.probes].index(changed[0].probe)
        assert classifier.labels[classifier.logits(probes.tensors)[place].argmax()] == changed[0].found


def test_a_network_that_gives_nan_fails_and_prints_json(bundle_copy: Path) -> None:
    change_weights(bundle_copy, float("nan"))
    report = verify(bundle_copy, device="cpu")
    assert results(report)["fp32 runs"] == results(report)["fp32 engine"] == "failed"
    assert len(report.engine) == report.probes
    assert {item.relative_difference for item in report.engine} == {None}
    assert {item.found for item in report.engine} == {None}
    done = CliRunner().invoke(main, ["verify", str(bundle_copy), "--json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["engine"]) == report.probes
    assert "10 logits are NaN or infinite" in CliRunner().invoke(main, ["verify", str(bundle_copy)]).stdout


EXIF = {f"exif-orientation-{value}-jpeg" for value in range(2, 9)}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"exif_orientation": False}, EXIF),
        ({"interpolation": "nearest"}, {"enlarged", "wide", "tall", "tiny"}),
        ({"background": (0, 0, 0)}, {"alpha", "grey-alpha", "palette-transparent"}),
        ({"color_profile": "srgb"}, {"icc-jpeg"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_decoder_is_told_from_another_engine(
    bundle_copy: Path, change: dict[str, Any], kinds: set[str]
) -> None:
    change_spec(bundle_copy, **change)
    report = verify(bundle_copy, device="cpu")
    assert {name for name, result in results(report).items() if result == "failed"} == {"pixels"}
    assert {item.kind for item in report.pixels} == kinds
    for item in report.pixels:
        assert item.max_difference is not None and item.max_difference > 0
        assert item.pixels_differing is not None and 0 < item.pixels_differing <= item.pixels == 64
    assert report.pixels[0].probe in detail(report, "pixels")


def test_a_pixel_breach_says_whether_the_decision_changes(bundle_copy: Path) -> None:
    change_spec(bundle_copy, exif_orientation=False)
    report = verify(bundle_copy, device="cpu")
    changed = {item.probe: item.decisions for item in report.pixels if item.decisions}
    assert changed, "a digit on its head is none of the seven another digit?"
    same = [item for item in report.pixels if not item.decisions]
    assert [bool(item.decisions) for item in report.pixels] == [True] * len(changed) + [False] * len(same)
    with Classifier.load(bundle_copy, device="cpu") as classifier:
        probes = load_probes(classifier.bundle)
        assert probes is not None
        for probe in probes.index.probes:
            if probe.kind in EXIF:
                found = classifier((bundle_copy / probe.file).read_bytes()).label
                assert (found != probe.answers[0].label) == (probe.name in changed)
                assert [item.found for item in changed.get(probe.name, ())] in ([], [found])


def test_a_file_that_cannot_be_decoded_is_a_breach(bundle_copy: Path) -> None:
    (bundle_copy / "evidence" / "probes" / "000-image.png").write_bytes(b"no image")
    reseal(bundle_copy)
    report = verify(bundle_copy, device="cpu")
    (breach,) = report.pixels
    assert (breach.probe, breach.max_difference) == ("000-image", None)
    assert "000-image: cannot be decoded: " in breach.describe()
    assert results(report)["fp32 engine"] == "ok"


def test_a_level_may_be_tolerated_where_no_decision_changes(bundle_copy: Path) -> None:
    probes = load_probes(Bundle.open(bundle_copy))
    assert probes is not None
    tensors = probes.tensors.copy()
    tensors[3, 4, 4, 0] ^= 1
    rewrite_probes(bundle_copy, tensors)
    report = verify(bundle_copy, device="cpu")
    (breach,) = report.pixels
    assert (breach.max_difference, breach.pixels_differing, breach.decisions) == (1, 1, ())
    assert breach.describe() == "003-image: up to 1 levels on 1 of 64 pixels; no decision changes here"
    assert results(report)["fp32 engine"] == "ok"
    tolerant = verify(bundle_copy, device="cpu", pixel_tolerance=1)
    assert tolerant.passed
    assert "1 within 1 levels" in detail(tolerant, "pixels")
    change_spec(bundle_copy, exif_orientation=False)
    loose = verify(bundle_copy, device="cpu", pixel_tolerance=255)
    assert not loose.passed
    assert all(item.decisions for item in loose.pixels)
    with pytest.raises(UsageError, match="pixel_tolerance is -1, expected 0 to 255 levels"):
        verify(bundle_copy, pixel_tolerance=-1)


def test_a_network_that_looks_at_the_whole_batch_is_found(bundle_copy: Path) -> None:
    path = bundle_copy / "model" / "fp32.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["own" if name == "logits" else name for name in node.output]
    axes = helper.make_tensor("batch_axis", TensorProto.INT64, [1], [0])
    model.graph.initializer.append(axes)
    model.graph.node.append(helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["own", "mean"], ["logits"]))
    onnx.save(model, path)
    reseal(bundle_copy)
    rewrite_probes(bundle_copy)
    report = verify(bundle_copy, device="cpu")
    assert {name for name, result in results(report).items() if result == "failed"} == {"fp32 batches agree"}
    assert ", at batch size " in detail(report, "fp32 batches agree")


def test_a_variant_for_another_device_is_skipped_not_passed(bundle_copy: Path) -> None:
    (fp32,) = manifest_of(bundle_copy).variants
    shutil.copy(bundle_copy / fp32.file, bundle_copy / "model" / "fp16.onnx")
    other = msgspec.structs.replace(
        fp32, precision="fp16", file="model/fp16.onnx", targets=("tensorrt",), status="unproved"
    )
    reseal(bundle_copy)
    rewrite_probes(bundle_copy, variants=(fp32, other))
    for device in ("auto", "cpu"):
        report = verify(bundle_copy, device=device)
        assert report.passed
        assert results(report)["fp16 opens"] == "skipped"
        assert "is meant for tensorrt" in detail(report, "fp16 opens")
        assert [plan.precision for plan in report.plans] == ["fp32"]
    with pytest.raises(DeviceError, match="fp16 is meant for tensorrt"):
        verify(bundle_copy, device="auto", precision="fp16")


def test_options_that_cannot_be_meant(digits_bundle: Path) -> None:
    for device in ("tpu", "tensorrt", ""):
        with pytest.raises(UsageError, match=f"device '{device}' is unknown: choose one of auto, cpu, cuda"):
            verify(digits_bundle, device=device)
    assert CliRunner().invoke(main, ["verify", str(digits_bundle), "--device", "tpu"]).exit_code == 2
    with pytest.raises(BundleError, match="no variant of precision 'int9' in this bundle; it has fp32"):
        verify(digits_bundle, precision="int9")
    report = verify(digits_bundle, device="cpu", precision="fp32")
    assert report.passed and [plan.precision for plan in report.plans] == ["fp32"]


def test_the_command_names_the_worst_and_exits_with_1(bundle_copy: Path) -> None:
    change_weights(bundle_copy, 1.01)
    change_spec(bundle_copy, exif_orientation=False)
    done = CliRunner().invoke(main, ["verify", str(bundle_copy), "--device", "cpu"])
    assert done.exit_code == 1
    assert done.stderr == f"Error: {bundle_copy}: failed: pixels, fp32 engine\n"
    assert "other pixels, the worst first" in done.stdout
    assert "other answers, the worst first" in done.stdout
    assert done.stdout.splitlines()[-1] == "NOT verified"
    report = json.loads(CliRunner().invoke(main, ["verify", str(bundle_copy), "--json"]).stdout)
    assert f"and {len(report['engine']) - 10} more, all in --json" in done.stdout
    assert {item["kind"] for item in report["pixels"]} == EXIF
