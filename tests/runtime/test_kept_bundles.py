"""A bundle of every released format version stays readable, and decides as it did when it was made."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shipnet.cli import main
from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.bundle import SIGNATURE
from shipnet.runtime.encoding import encode
from shipnet.runtime.evidence import Probes, load_probes, logit_scale
from shipnet.runtime.manifest import FORMAT_VERSION, Variant, decode_manifest
from shipnet.runtime.pack import pack
from shipnet.runtime.verify import verify

DATA = Path(__file__).parent.parent / "data"
ROOT = DATA.parent.parent
LARGEST_BYTES = 600_000
KEPT = [DATA / f"bundle-v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


def read(path: Path) -> tuple[Bundle, Probes]:
    bundle = Bundle.open(path)
    probes = load_probes(bundle)
    assert probes is not None
    return bundle, probes


def on_cpu(bundle: Bundle) -> list[Variant]:
    return [variant for variant in bundle.manifest.variants if "cpu" in variant.targets]


def test_there_is_one_of_every_version_and_no_other(kept: Path) -> None:
    assert sorted(path for path in DATA.glob("bundle-v*") if path.is_dir()) == KEPT
    assert Bundle.open(kept).manifest.format_version == int(kept.name.removeprefix("bundle-v"))


def test_it_is_whole_and_signed(kept: Path) -> None:
    bundle = Bundle.open(kept, public_key=kept.with_suffix(".pem"))
    assert bundle.signature is not None and bundle.signature.checked_by
    assert {variant.precision for variant in bundle.manifest.variants} == {"fp32", "fp16", "int8-cpu"}
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) < LARGEST_BYTES


def test_its_manifest_is_written_again_to_the_byte(kept: Path) -> None:
    data = (kept / "manifest.json").read_bytes()
    assert encode(decode_manifest(data, where="manifest.json")) == data


def test_it_verifies(kept: Path) -> None:
    report = verify(kept, device="cpu", public_key=kept.with_suffix(".pem"))
    assert report.passed, [check for check in report.checks if check.failed]
    results = {check.name: check.result for check in report.checks}
    assert results["signature"] == results["pixels"] == results["fp32 engine"] == "ok"
    assert results["int8-cpu engine"] == "ok"
    assert report.probes >= 32


def test_its_logits_are_those_that_were_stored(kept: Path) -> None:
    bundle, probes = read(kept)
    assert {"fp32", "int8-cpu"} == {variant.precision for variant in on_cpu(bundle)}
    for variant in on_cpu(bundle):
        with Classifier.load(kept, device="cpu", precision=variant.precision) as classifier:
            found = np.concatenate([classifier.logits(tensor[np.newaxis]) for tensor in probes.tensors])
        expected = probes.logits[variant.precision]
        assert np.abs(found - expected).max() <= variant.replay_tolerance * logit_scale(expected)


@pytest.mark.parametrize("precision", ["fp32", "int8-cpu"])
def test_classify_gives_the_recorded_labels(kept: Path, precision: str) -> None:
    bundle, probes = read(kept)
    options = ("--device", "cpu", "--precision", precision)
    done = CliRunner().invoke(main, ["classify", str(kept), str(kept / "evidence" / "probes"), *options])
    assert done.exit_code == 0, done.stderr
    found = {Path(row["path"]).name: row["label"] for row in csv.DictReader(io.StringIO(done.stdout))}
    assert len(found) == len(probes)
    clear = 2 * bundle.manifest.variant(precision).replay_tolerance
    compared = 0
    for probe in probes.index.probes:
        (answer,) = (item for item in probe.answers if item.precision == precision)
        if answer.margin > clear:
            compared += 1
            assert found[Path(probe.file).name] == answer.label, probe.name
    assert compared >= 20


def test_it_can_be_packed_and_the_signature_holds(kept: Path, tmp_path: Path) -> None:
    packed = pack(kept, tmp_path / "slim.zip", slim=True)
    assert packed.identity == Bundle.open(kept).identity
    assert verify(packed.path, device="cpu", public_key=kept.with_suffix(".pem")).passed


def test_it_needs_none_of_the_libraries_that_made_it(kept: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'sklearn', 'safetensors', 'model_signing'):\n"
        "    sys.modules[name] = None\n"
        "from shipnet.runtime.verify import verify\n"
        f"report = verify({str(kept)!r}, device='cpu')\n"
        "print(report.passed, report.probes >= 32)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr


def test_git_keeps_every_byte(kept: Path) -> None:
    """No line ending is changed, and nothing is ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    files = [path.relative_to(ROOT).as_posix() for path in kept.rglob("*") if path.is_file()]
    assert f"{kept.relative_to(ROOT).as_posix()}/{SIGNATURE}" in files
    ignored = subprocess.run(
        ["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ignored.returncode, ignored.stdout) == (1, "")
    command = ["git", "check-attr", "text", "--", *files]
    attributes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.rpartition(": ")[2] for line in attributes.splitlines()} == {"unset"}
