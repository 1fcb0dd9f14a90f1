"""The runtime's commands as a user meets them: what they print, what they exit with."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shipnet.cli import main


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 1, 2, 3), result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_classify_gives_every_file_a_row(digits_bundle: Path, digit_files: Path) -> None:
    done = invoke("classify", digits_bundle, digit_files, "--device", "cpu", "--top-k", 3)
    assert done.exit_code == 0
    found = rows(done.stdout)
    assert list(found[0]) == [
        *("path", "status", "label", "score", "label_2", "score_2", "label_3", "score_3", "error")
    ]
    assert [row["path"] for row in found] == sorted(str(path) for path in digit_files.rglob("*.png"))
    assert {row["status"] for row in found} == {"ok"}
    assert "50 classified" in done.stderr


def test_classify_answers_what_it_can_and_exits_with_3(
    digits_bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(digit_files, tmp_path / "in"))
    (folder / "3" / "notes.txt").write_text("not an image")
    (folder / "3" / "empty.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"")
    out = tmp_path / "rows.csv"
    done = invoke("classify", digits_bundle, folder, "--out", out)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert "50 classified, 2 with an error (their rows say why), 1 hidden" in done.stderr
    failed = {
        Path(row["path"]).name: row["error"] for row in rows(out.read_text()) if row["status"] == "error"
    }
    assert failed.keys() == {"notes.txt", "empty.png"}
    assert all(failed.values())


def test_evaluate_counts(digits_bundle: Path, digit_files: Path) -> None:
    done = invoke("evaluate", digits_bundle, digit_files)
    assert done.exit_code == 0
    assert "95 % interval" in done.stdout
    report = json.loads(invoke("evaluate", digits_bundle, digit_files, "--json").stdout)
    assert report["accuracy"]["images"] == 50
    assert sum(pair["images"] for pair in report["confusion"]) == 50
    assert f"accuracy {report['accuracy']['accuracy']:.2%}" in done.stdout


def test_evaluate_refuses_folders_that_are_no_labels(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "eleven").mkdir()
    (tmp_path / "eleven" / "a.png").write_bytes(b"x")
    done = invoke("evaluate", digits_bundle, tmp_path)
    assert done.exit_code == 1
    assert "eleven are no labels of this bundle: expected 0, 1, 2" in done.stderr


def test_verify_passes_and_prints_json(digits_bundle: Path) -> None:
    done = invoke("verify", digits_bundle, "--device", "cpu")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "verified"
    report = json.loads(invoke("verify", digits_bundle, "--json").stdout)
    assert {check["result"] for check in report["checks"]} == {"ok"}
    assert [check["name"] for check in report["checks"]] == [
        *("files", "pixels", "fp32 opens", "fp32 runs", "fp32 engine", "fp32 batches agree")
    ]


def test_a_changed_bundle_opens_nowhere(bundle_copy: Path, digit_files: Path) -> None:
    model = bundle_copy / "model" / "fp32.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    for command in (
        ("verify", bundle_copy),
        ("inspect", bundle_copy),
        ("classify", bundle_copy, digit_files),
        ("evaluate", bundle_copy, digit_files),
        ("bench", bundle_copy),
    ):
        done = invoke(*command)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "model/fp32.onnx was changed (its sha256 differs)" in done.stderr


def test_inspect_shows_labels_and_evidence(digits_bundle: Path) -> None:
    done = invoke("inspect", digits_bundle)
    assert done.exit_code == 0
    for part in ("0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "model/fp32.onnx", "0 of 359", "uint8 NHWC, 8 x 8 x 1"):
        assert part in done.stdout
    manifest = (digits_bundle / "manifest.json").read_text()
    assert invoke("inspect", digits_bundle, "--json").stdout == manifest


def test_bench_prints_a_table_and_writes_json(digits_bundle: Path, tmp_path: Path) -> None:
    quick = ("--min-runs", 5, "--min-seconds", 0, "--batch-size", 1, "--batch-size", 4)
    done = invoke("bench", digits_bundle, *quick, "--out", tmp_path / "bench.json")
    assert done.exit_code == 0
    for part in ("median ms", "p90 ms", "p95 ms", "p99 ms", "images/s", "onnxruntime"):
        assert part in done.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["batch_size"] for row in report["batches"]] == [1, 4]
    assert all(len(row["samples_ns"]) == row["runs"] >= 5 for row in report["batches"])
    assert json.loads(invoke("bench", digits_bundle, *quick, "--json").stdout)["plan"] == report["plan"]


def test_doctor_finds_a_working_cpu() -> None:
    done = invoke("doctor", "--json")
    report = json.loads(done.stdout)
    engines = {engine["name"]: engine["works"] for engine in report["engines"]}
    assert engines["CPUExecutionProvider"]
    assert (done.exit_code == 1) == bool(report["problems"])
    shown = invoke("doctor")
    assert "CPUExecutionProvider" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("classify", "BUNDLE", "nowhere"), 2, "nowhere: no such file or folder"),
        (("classify", "BUNDLE", "EMPTY"), 1, "no files found"),
        (("classify", "BUNDLE"), 2, "Missing argument"),
        (("classify", "nowhere", "EMPTY"), 1, "no files found"),
        (("classify", "BUNDLE", "FILES", "--top-k", "11"), 2, "top_k is 11, expected 1 to 10"),
        (("classify", "BUNDLE", "FILES", "--top-k", "0"), 2, "0 is not in the range"),
        (("classify", "BUNDLE", "FILES", "--device", "tpu"), 2, "device 'tpu' is unknown"),
        (("classify", "BUNDLE", "FILES", "--precision", "fp8"), 1, "no variant of precision 'fp8'"),
        (("verify", "EMPTY"), 1, "is no bundle, it has no manifest.json"),
        (("verify", "nowhere"), 1, "nowhere: no such folder"),
        (("evaluate", "BUNDLE", "nowhere"), 2, "nowhere"),
        (("bench", "BUNDLE", "--min-seconds", "-1"), 2, "min_seconds is -1"),
        (("bench", "BUNDLE", "--min-runs", "5", "--min-seconds", "0", "--out", "EMPTY"), 2, "EMPTY"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
    ],
)
def test_bad_input_gives_one_clear_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    digits_bundle: Path,
    digit_files: Path,
    tmp_path: Path,
) -> None:
    places = {"BUNDLE": str(digits_bundle), "FILES": str(digit_files), "EMPTY": str(tmp_path)}
    done = invoke(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == code
    assert places.get(message, message) in done.stderr
    assert done.stdout == ""


def test_a_folder_that_cannot_be_written_loses_nothing(
    digits_bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    done = invoke("classify", digits_bundle, digit_files, "--out", tmp_path / "file" / "rows.csv")
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"
