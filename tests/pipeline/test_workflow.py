"""The whole way by one command: what is finished is kept, what is unchanged is not done again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from shipnet.cli import main
from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.benchmark import BenchReport
from shipnet.runtime.encoding import decode
from shipnet.train import TrainConfig, load_run
from shipnet.train.events import EpochDone
from shipnet.workflow import RECORD, PipelineConfig, run_pipeline

QUICK = ("--arch", "conv_cnn", "--epochs", "2", "--device", "cpu")
CONFIG = PipelineConfig(train=TrainConfig(arch="conv_cnn", epochs=2, device="cpu"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pipeline. Tests may add to it, and leave it finished."""
    folder = tmp_path_factory.mktemp("pipeline") / "out"
    done = invoke("pipeline", *QUICK, "--out", str(folder))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(folder / "bundle")
    assert re.search(r"^try {7}shipnet classify .*bundle .*samples$", done.stdout, re.MULTILINE)
    for word in ("accuracy", "parity    0 of 359 decisions differ", "latency", "size"):
        assert word in done.stdout
    return folder


def test_it_leaves_everything_a_user_needs(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        *("run", "bundle", "samples", "export-report.html", "bench.json", "verify.json", RECORD)
    }
    bundle = Bundle.open(out / "bundle")
    assert bundle.manifest.provenance.epochs == load_run(out / "run").record.epochs == 2
    report = decode((out / "bench.json").read_bytes(), BenchReport, where="bench.json")
    assert report.plan.identity == bundle.identity
    assert [row.batch_size for row in report.batches] == [1, 8, 32]
    samples = sorted((out / "samples").iterdir())
    assert [path.name[0] for path in samples] == list("0123456789")
    with Classifier.load(out / "bundle") as classifier:
        assert len(classifier.predict(samples)) == 10


def run(out: Path, config: PipelineConfig = CONFIG, *, force: bool = False) -> tuple[str, ...]:
    """The stages that were skipped."""
    return run_pipeline(config, out, force=force).skipped


def test_what_is_unchanged_is_skipped(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(out) == ("train", "export", "verify", "bench")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_another_option_repeats_what_depends_on_it(out: Path) -> None:
    bench = msgspec.structs.replace(CONFIG.bench, min_runs=5, min_seconds=0.0)
    assert run(out, msgspec.structs.replace(CONFIG, bench=bench)) == ("train", "export", "verify")
    export = msgspec.structs.replace(CONFIG.export, interop=False)
    assert run(out, msgspec.structs.replace(CONFIG, bench=bench, export=export)) == ("train",)
    assert not (out / "bundle" / "interop").exists()
    assert run(out) == ("train",)


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        ("bundle/model/fp32.onnx", ("train",)),
        ("bench.json", ("train", "export", "verify")),
        ("verify.json", ("train", "export", "bench")),
    ],
)
def test_a_result_that_changed_is_made_again(out: Path, damaged: str, kept: tuple[str, ...]) -> None:
    (out / damaged).write_bytes(b"damaged")
    assert run(out) == kept
    assert Bundle.open(out / "bundle")


def test_force_repeats_everything(out: Path) -> None:
    assert run(out, force=True) == ()


def test_what_is_finished_stays_when_a_later_stage_fails(out: Path) -> None:
    export = msgspec.structs.replace(CONFIG.export, max_relative_difference=1e-12)
    identity = Bundle.open(out / "bundle").identity
    with pytest.raises(Exception, match="no bundle was written"):
        run(out, msgspec.structs.replace(CONFIG, export=export))
    assert load_run(out / "run")
    assert Bundle.open(out / "bundle").identity == identity
    assert json.loads((out / RECORD).read_text())["stages"].keys() == {"train", "verify", "bench"}
    assert run(out) == ("train",)
    assert not (out / "parity-report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "nowhere"), 2, "nowhere"),
        (("--arch", "resnet19"), 2, "resnet19"),
        (("--device", "tpu"), 2, "tpu"),
        (("--epochs", "0"), 2, "epochs"),
        (("--image-size", "4"), 2, "image_size is 4"),
        (("--no-such-option",), 2, "No such option"),
    ],
)
def test_wrong_usage_leaves_nothing(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = invoke("pipeline", *arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = invoke("pipeline", *QUICK, "--out", str(tmp_path / "file" / "out"))
    assert done.exit_code == 1
    assert re.fullmatch(
        r"Error: \S+: cannot be written: Not a directory: .*\n", done.stderr.splitlines(True)[-1]
    )


def test_ctrl_c_ends_it_with_one_line_and_no_half_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shipnet", "pipeline", "--epochs", "500", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[:1] == ["2"]:  # the second epoch is done
            break
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "Aborted!"
    assert out == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {RECORD, "run.partial"}


def test_a_training_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def stop(stage: str, event: object) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(CONFIG, tmp_path / "out", on_stage=stop)
    done = invoke("pipeline", *QUICK, "--resume", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert load_run(tmp_path / "out" / "run").record.resumed_after == (1,)
    assert not (tmp_path / "out" / "run.partial").exists()
