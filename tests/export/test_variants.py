"""Precisions in a bundle: made, proved, judged, or left out with the reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shipnet.export import ExportConfig
from shipnet.export.build import export_source
from shipnet.export.source import Source, from_run
from shipnet.export.variants import Candidate, fp32_candidate, make_variants
from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.machine import unmet_needs
from shipnet.runtime.manifest import LeftOut, Manifest, Variant
from shipnet.train import ImageSet, load_run, pixels

ALL = ("fp16", "int8-cpu", "int8-tensorrt")
CONFIG = ExportConfig(
    variants=ALL,
    accept_uncertified=True,
    interop=False,
    calibration_images=64,
    reduce_range=True,
    batch_sizes=(1, 2, 7),
)


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.fixture(scope="module")
def source(digits_run: Path) -> Source:
    return from_run(load_run(digits_run), CONFIG, dataset=None, on_progress=quiet)


@pytest.fixture(scope="module")
def fp32(source: Source) -> Candidate:
    return fp32_candidate(source, CONFIG, quiet)


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every precision, on images too few to certify one: 180 evidence images, budgets of 2 per cent and less."""
    return export_source(source, CONFIG, out=tmp_path_factory.mktemp("all") / "bundle", on_progress=quiet)


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


def test_every_precision_has_its_file_and_its_targets(bundle: Bundle) -> None:
    found = {item.precision: (item.targets, item.file) for item in bundle.manifest.variants}
    assert found == {
        "fp32": (("cpu", "cuda", "tensorrt"), "model/fp32.onnx"),
        "fp16": (("cuda", "tensorrt"), "model/fp16.onnx"),
        "int8-cpu": (("cpu",), "model/int8-cpu.onnx"),
        "int8-tensorrt": (("tensorrt",), "model/int8-tensorrt.onnx"),
    }
    sizes = {path.stem: path.stat().st_size for path in (bundle.path / "model").iterdir()}
    assert sizes["fp16"] < 0.7 * sizes["fp32"]
    assert bundle.manifest.left_out == ()


def test_what_no_target_ran_is_unproved_and_what_few_images_carry_is_uncertified(manifest: Manifest) -> None:
    assert {item.precision: item.status for item in manifest.variants} == {
        "fp32": "certified",
        "fp16": "unproved",
        "int8-cpu": "uncertified",
        "int8-tensorrt": "unproved",
    }
    reasons = manifest.variant("int8-cpu").status_reasons
    assert any("on cpu: the share of other labels is" in reason for reason in reasons)
    assert (
        "none of its targets (tensorrt) was there to prove it"
        in manifest.variant("int8-tensorrt").status_reasons
    )


def test_decisions_are_proved_on_the_evidence_half_alone(manifest: Manifest, source: Source) -> None:
    for name in ALL:
        variant = manifest.variant(name)
        assert variant.parity.images == variant.parity.decisions.images == len(source.evidence)
        assert variant.parity.decisions.flip_rate.value <= variant.budget.max_flip_rate
        assert variant.parity.invariance is not None
        assert variant.parity.invariance.flips == 0
        assert variant.parity.differences.median > 0.0  # it is not fp32 under another name


def test_each_has_a_temperature_of_its_own_logits(manifest: Manifest, bundle: Bundle, source: Source) -> None:
    from shipnet.export.search import runner
    from shipnet.train.temperature import fit_temperature

    images = pixels(source.valid, source.spec, source.selection)
    labels = source.valid.labels[source.selection]
    for name in ALL:
        logits = runner(bundle.read(f"model/{name}.onnx"))(images)
        fitted = fit_temperature(logits, labels)
        expected = source.temperature if fitted == 1.0 else fitted
        assert manifest.variant(name).temperature == pytest.approx(expected, rel=1e-3)


def test_how_int8_was_made_is_told(manifest: Manifest) -> None:
    cpu, tensorrt = (manifest.variant(name).quantization for name in ("int8-cpu", "int8-tensorrt"))
    assert cpu is not None and tensorrt is not None
    assert (cpu.symmetric, cpu.reduce_range, cpu.calibration_images) == (False, True, 64)
    assert (tensorrt.symmetric, tensorrt.reduce_range) == (True, False)
    assert manifest.variant("fp16").quantization is None
    assert manifest.variant("int8-cpu").needs == ()


def test_an_uncertified_variant_runs_where_it_is_asked_for_and_says_so(
    bundle: Bundle, source: Source
) -> None:
    with Classifier.load(bundle.path, device="cpu", precision="int8-cpu") as classifier:
        assert classifier.plan.status == "uncertified"
        assert "accepted at export" in classifier.plan.proof
        images = source.evidence_images(64)
        assert (classifier.logits(images).argmax(1) == source.reference(images).argmax(1)).mean() > 0.95
    with Classifier.load(bundle.path, device="cpu", precision="fastest") as classifier:
        assert classifier.plan.precision == "fp32"
        assert "int8-cpu is uncertified" in classifier.plan.precision_reason


def test_the_command_makes_them_and_says_what_became_of_each(digits_run: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from shipnet.cli import main

    options = [
        "--variant",
        "int8-cpu",
        "--variant",
        "fp16",
        "--reduce-range",
        "--accept-uncertified",
        "--no-interop",
    ]
    options += ["--max-flip-rate", "int8-cpu=0.03", "--calibration-images", "64"]
    done = CliRunner().invoke(main, ["export", str(digits_run), "--out", str(tmp_path / "bundle"), *options])
    assert done.exit_code == 0, done.output
    assert "int8-cpu: uncertified, accuracy" in done.stdout
    assert "fp16: unproved, accuracy" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").manifest.variant("int8-cpu").budget.max_flip_rate == 0.03


def made(source: Source, fp32: Candidate, **changes: object) -> dict[str, Candidate | LeftOut]:
    config = msgspec.structs.replace(CONFIG, **changes)
    return {item.precision: item for item in make_variants(source, config, fp32, quiet)}


def test_uncertified_is_left_out_where_that_is_not_accepted(source: Source, tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, variants=("int8-cpu",), accept_uncertified=False)
    found = export_source(source, config, out=tmp_path / "bundle", on_progress=quiet)
    (left,) = found.manifest.left_out
    assert left.precision == "int8-cpu"
    assert any("which cannot tell it from" in reason for reason in left.reasons)
    assert [path.name for path in (found.path / "model").iterdir()] == ["fp32.onnx"]


def test_a_wide_budget_is_certified_and_a_broken_one_is_left_out(source: Source, tmp_path: Path) -> None:
    wide = (("int8-cpu", 0.1),)
    config = msgspec.structs.replace(
        CONFIG, variants=("int8-cpu",), accept_uncertified=False, max_flip_rate=wide, max_top1_drop=wide
    )
    found = export_source(source, config, out=tmp_path / "wide", on_progress=quiet)
    assert found.manifest.variant("int8-cpu").status == "certified"
    assert found.manifest.variant("int8-cpu").budget.max_flip_rate == 0.1


def test_no_variant_is_made_unasked(source: Source, fp32: Candidate) -> None:
    assert made(source, fp32, variants=()) == {}


def test_calibration_images_that_cannot_be_read_stop_int8_alone(
    source: Source, fp32: Candidate, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG no more")
    images = ImageSet(("damaged.png",), np.zeros(1, np.int64), (damaged,))
    found = made(dataclasses.replace(source, calibration=images), fp32)
    assert isinstance(found["fp16"], Candidate)
    for name in ("int8-cpu", "int8-tensorrt"):
        left = found[name]
        assert isinstance(left, LeftOut)
        assert "there is no calibration image: 1 cannot be read, such as damaged.png" in left.reasons[0]


def without_layers(fp32: Candidate) -> Candidate:
    """Its prefix, flattened to ten numbers: nothing in it has weights."""
    proto = onnx.load_from_string(fp32.model)
    graph = proto.graph
    cast = graph.node[0]
    del graph.node[1:]
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), "shape"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "start"))
    graph.initializer.append(numpy_helper.from_array(np.array([10], np.int64), "end"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph.node.append(onnx.helper.make_node("Reshape", [cast.output[0], "shape"], ["flat"]))
    graph.node.append(
        onnx.helper.make_node("Slice", ["flat", "start", "end", "axis"], [graph.output[0].name])
    )
    return dataclasses.replace(fp32, model=proto.SerializeToString())


def test_a_graph_without_layers_has_no_int8(source: Source, fp32: Candidate) -> None:
    found = made(source, without_layers(fp32), variants=("int8-cpu", "int8-tensorrt"))
    for left in found.values():
        assert isinstance(left, LeftOut)
        assert left.reasons == ("the graph has no layer that can run in 8 bits",)


def test_an_operator_that_tensorrt_lacks_is_named_and_cuda_stays(source: Source, fp32: Candidate) -> None:
    """A Det of one number is that number."""
    proto = onnx.load_from_string(fp32.model)
    graph = proto.graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    last.output[0] = "before"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 10, 1, 1], np.int64), "square"))
    graph.node.append(onnx.helper.make_node("Reshape", ["before", "square"], ["squares"]))
    graph.node.append(onnx.helper.make_node("Det", ["squares"], [graph.output[0].name]))
    found = made(
        source, dataclasses.replace(fp32, model=proto.SerializeToString()), variants=("fp16", "int8-tensorrt")
    )
    assert found["int8-tensorrt"] == LeftOut(
        precision="int8-tensorrt", reasons=("TensorRT has no operator Det",)
    )
    assert isinstance(found["fp16"], Candidate)
    assert found["fp16"].targets == ("cuda",)


def test_a_graph_that_cannot_be_prepared_leaves_all_out(source: Source, fp32: Candidate) -> None:
    proto = onnx.load_from_string(fp32.model)
    proto.opset_import[0].version = 12
    found = made(source, dataclasses.replace(fp32, model=proto.SerializeToString()))
    assert set(found) == set(ALL)
    for left in found.values():
        assert isinstance(left, LeftOut)
        assert "the graph has opset 12" in left.reasons[0]


def test_eight_bit_weights_need_vnni(source: Source, fp32: Candidate) -> None:
    (found,) = made(source, fp32, variants=("int8-cpu",), reduce_range=False).values()
    if unmet_needs(("vnni",)):
        assert isinstance(found, LeftOut)
        assert "it cannot be proved here: this CPU tells of none of" in found.reasons[0]
    else:
        assert isinstance(found, Candidate)
        assert found.needs == ("vnni",)
        assert found.search is not None
        assert found.search.precision == "int8-cpu"


def test_the_same_export_again_gives_the_same_graphs(source: Source, fp32: Candidate) -> None:
    first, second = (made(source, fp32) for _ in range(2))
    for name in ALL:
        one, two = first[name], second[name]
        assert isinstance(one, Candidate) and isinstance(two, Candidate)
        assert one.model == two.model
        assert one.temperature == two.temperature


def test_fp32_alone_needs_no_variant(digits_bundle: Path) -> None:
    (only,) = Bundle.open(digits_bundle).manifest.variants
    assert isinstance(only, Variant)
    assert only.quantization is None
