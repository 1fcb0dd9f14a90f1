"""What runs is decided once: the fastest certified precision, a CPU that would decide otherwise, what is unproved."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shipnet.export import ExportConfig, export
from shipnet.runtime import Bundle, Classifier, DeviceError, UsageError
from shipnet.runtime.machine import unmet_needs
from shipnet.runtime.plan import resolve

WIDE = tuple((name, 0.2) for name in ("fp16", "int8-cpu", "int8-tensorrt"))


@pytest.fixture(scope="module")
def bundle(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All precisions; int8-cpu is certified under a wide budget."""
    config = ExportConfig(
        variants=("fp16", "int8-cpu", "int8-tensorrt"),
        interop=False,
        max_flip_rate=WIDE,
        max_top1_drop=WIDE,
        calibration_images=64,
        reduce_range=True,
        batch_sizes=(1, 2, 7),
    )
    return export(digits_run, config, out=tmp_path_factory.mktemp("all") / "bundle").path


def cpuinfo(folder: Path, flags: str) -> Path:
    folder.mkdir()
    (folder / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    return folder


def test_the_fastest_says_what_it_measured(bundle: Path) -> None:
    with Classifier.load(bundle, device="cpu", precision="fastest") as classifier:
        plan = classifier.plan
        assert classifier.logits(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
    assert plan.precision in ("fp32", "int8-cpu")
    found = re.match(r"fastest: fp32 (\S+) ms, int8-cpu (\S+) ms for 8 images; ", plan.precision_reason)
    assert found
    fp32, int8 = float(found[1]), float(found[2])
    assert (plan.precision == "int8-cpu") == (int8 < 0.95 * fp32) or int8 == pytest.approx(
        0.95 * fp32, rel=0.01
    )
    assert plan.file == f"model/{plan.precision}.onnx"
    assert plan.temperature == Bundle.open(bundle).manifest.variant(plan.precision).temperature


def test_what_is_not_certified_is_no_runner(bundle: Path) -> None:
    with Classifier.load(bundle, device="cpu", precision="fastest") as classifier:
        reason = classifier.plan.precision_reason
    assert "fp16 is unproved; int8-tensorrt is unproved" in reason
    assert "fp16 0" not in reason


def test_a_small_batch_races_with_itself(bundle: Path) -> None:
    plan, backend = resolve(Bundle.open(bundle), device="cpu", precision="fastest", batch_size=3)
    backend.close()
    assert "ms for 3 images" in plan.precision_reason
    assert plan.batch_size == 3


def test_with_fp32_alone_there_is_no_race(digits_bundle: Path) -> None:
    plan, backend = resolve(Bundle.open(digits_bundle), device="cpu", precision="fastest")
    backend.close()
    assert (plan.precision, plan.precision_reason) == ("fp32", "fastest: no other may run here")
    plan, backend = resolve(Bundle.open(digits_bundle), device="cpu")
    backend.close()
    assert plan.precision_reason == "asked for"


def test_unproved_variants_answer_probes_or_do_not_run(bundle: Path, tmp_path: Path) -> None:
    """On the CPU neither is meant to run at all."""
    for name, targets in (("fp16", "cuda, tensorrt"), ("int8-tensorrt", "tensorrt")):
        with pytest.raises(DeviceError, match=f"{name} is meant for {targets}, not for cpu: choose another"):
            resolve(Bundle.open(bundle), device="cpu", precision=name)
        with pytest.raises(DeviceError, match=f"{name} is meant for {targets}, and none opens here"):
            resolve(Bundle.open(bundle), precision=name)


def test_unknown_devices_and_numbers_below_one_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(UsageError, match="device 'gpu' is unknown: choose one of auto, cpu, cuda"):
        resolve(opened, device="gpu", precision="fastest")
    with pytest.raises(UsageError, match="threads is 0, expected at least 1"):
        resolve(opened, threads=0)
    with pytest.raises(UsageError, match="batch_size is 0, expected at least 1"):
        resolve(opened, batch_size=0)


@pytest.fixture(scope="module")
def needy(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8-cpu variant with 8-bit weights."""
    if unmet_needs(("vnni",)):
        pytest.skip("this CPU has no VNNI: int8-cpu with 8-bit weights is not made here")
    config = ExportConfig(
        variants=("int8-cpu",),
        interop=False,
        max_flip_rate=WIDE[1:2],
        max_top1_drop=WIDE[1:2],
        calibration_images=64,
        batch_sizes=(1, 2, 7),
    )
    return export(digits_run, config, out=tmp_path_factory.mktemp("needy") / "bundle").path


def test_a_cpu_whose_products_saturate_is_refused(needy: Path, tmp_path: Path) -> None:
    old, new = cpuinfo(tmp_path / "old", "avx2 avx512f"), cpuinfo(tmp_path / "new", "avx2 avx_vnni")
    opened = Bundle.open(needy)
    assert opened.manifest.variant("int8-cpu").needs == ("vnni",)
    plan, backend = resolve(opened, device="cpu", precision="int8-cpu", proc=new)
    backend.close()
    assert plan.status == "certified"
    with pytest.raises(
        DeviceError,
        match=r"int8-cpu: this CPU tells of none of .*avx512_vnni.*: sums of its 8-bit products saturate",
    ):
        resolve(opened, device="cpu", precision="int8-cpu", proc=old)
    plan, backend = resolve(opened, device="cpu", precision="fastest", proc=old)
    backend.close()
    assert plan.precision == "fp32"
    assert plan.precision_reason.startswith(
        "fastest: no other may run here; int8-cpu: this CPU tells of none of"
    )


def test_seven_bit_weights_need_no_vnni(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.variant("int8-cpu").needs == ()
    plan, backend = resolve(
        opened, device="cpu", precision="int8-cpu", proc=cpuinfo(tmp_path / "old", "avx2")
    )
    backend.close()
    assert plan.precision == "int8-cpu"


def test_a_copy_without_evidence_runs_what_is_certified(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    shutil.rmtree(copy / "evidence")
    plan, backend = resolve(Bundle.open(copy), device="cpu", precision="fastest")
    backend.close()
    assert plan.proof == "certified"


@pytest.mark.parametrize(
    ("flags", "architecture", "met"),
    [
        ("avx2 avx512f", "x86_64", False),
        ("avx2 avx512f avx512_vnni", "x86_64", True),
        ("avx2 avx_vnni", "AMD64", True),
        ("amx_int8", "x86_64", True),
        ("", "x86_64", False),
        ("asimddp", "aarch64", True),
        ("", "arm64", True),
    ],
)
def test_what_a_cpu_must_have(flags: str, architecture: str, met: bool, tmp_path: Path) -> None:
    proc = cpuinfo(tmp_path / "proc", flags)
    assert (unmet_needs(("vnni",), proc=proc, architecture=architecture) == ()) == met
    assert unmet_needs((), proc=proc, architecture=architecture) == ()
