"""The options of an export become one value, or one line that says what is wrong."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from shipnet.export.config import DEFAULT_BUDGETS, ExportConfig
from shipnet.export.options import export_options
from shipnet.runtime import UsageError


def parsed(*options: str) -> ExportConfig:
    """What a command with the options is given; its own option beside them stays its own."""

    @click.command()
    @click.option("--own", default="mine")
    @export_options
    def command(own: str, export_config: ExportConfig) -> ExportConfig:
        assert own == "mine"
        return export_config

    found: ExportConfig = command.main(list(options), standalone_mode=False)
    return found


def test_without_options_it_is_the_default() -> None:
    assert parsed() == ExportConfig()


def test_every_option_reaches_its_field() -> None:
    found = parsed(
        *("--variant", "fp16", "--variant", "int8-cpu", "--max-difference", "0.001", "--accept-uncertified"),
        *("--max-flip-rate", "int8-cpu=0.03", "--max-top1-drop", "fp16=0.25", "--calibration-images", "64"),
        *("--reduce-range", "--no-interop", "--probes", "synthetic"),
    )
    assert found == ExportConfig(
        variants=("fp16", "int8-cpu"),
        max_relative_difference=0.001,
        accept_uncertified=True,
        max_flip_rate=(("int8-cpu", 0.03),),
        max_top1_drop=(("fp16", 0.25),),
        calibration_images=64,
        reduce_range=True,
        interop=False,
        probes="synthetic",
    )


def test_a_share_is_of_its_precision_and_leaves_the_others() -> None:
    found = parsed("--variant", "int8-cpu", "--variant", "fp16", "--max-flip-rate", "int8-cpu=0.03")
    assert found.budget("int8-cpu").max_flip_rate == 0.03
    assert found.budget("int8-cpu").max_top1_drop == DEFAULT_BUDGETS["int8-cpu"].max_top1_drop
    assert found.budget("fp16") == DEFAULT_BUDGETS["fp16"]


def test_a_share_alone_is_of_every_precision_that_is_made() -> None:
    found = parsed("--variant", "int8-cpu", "--max-top1-drop", "0.002")
    assert found.max_top1_drop == (("fp32", 0.002), ("int8-cpu", 0.002))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "int4"], r"variants is 'int4'.*expected|variants.*'int4'"),
        (["--variant", "fp16", "--variant", "fp16"], "variants: one stands twice: fp16, fp16"),
        (
            ["--max-flip-rate", "few"],
            "--max-flip-rate is 'few'; expected a share such as 0.01 or int8-cpu=0.01",
        ),
        (["--max-flip-rate", "fp32="], "--max-flip-rate is 'fp32='; expected a share"),
        (["--max-flip-rate", "int8-cpu=0.1"], "but no 'int8-cpu' is made, only fp32: give its --variant"),
        (
            ["--max-flip-rate", "0.1", "--max-flip-rate", "fp32=0.2"],
            "--max-flip-rate: fp32 is given two shares",
        ),
        (["--max-top1-drop", "1.5"], "max_top1_drop"),
        (["--max-top1-drop", "nan"], "max_top1_drop"),
        (["--calibration-images", "0"], "calibration_images"),
        (["--reduce-range"], "--reduce-range: is for int8-cpu: give --variant int8-cpu, or leave it out"),
        (["--reduce-range", "--variant", "int8-tensorrt"], "--reduce-range: is for int8-cpu"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(*options)


def test_the_commands_offer_them_with_their_defaults() -> None:
    from shipnet.cli import main

    for command in ("export", "pipeline"):
        done = CliRunner().invoke(main, [command, "--help"])
        text = " ".join(done.stdout.split())
        assert done.exit_code == 0
        for flag in (
            "--variant",
            "--max-flip-rate",
            "--max-top1-drop",
            "--accept-uncertified",
            "--reduce-range",
        ):
            assert flag in text, command
        assert "fp32 0, fp16 0.005, int8-cpu 0.02, int8-tensorrt 0.02" in text


def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: object) -> None:
    from shipnet.cli import main

    done = CliRunner().invoke(main, ["export", str(tmp_path), "--variant", "int4"])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert "int4" in done.stderr
    assert "Traceback" not in done.output
