"""The commands `shipnet find-lr` and `shipnet show`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shipnet.cli import main
from shipnet.train import load_run
from shipnet.train.lr_curve import Suggestions
from shipnet.train.recipe import SMALL_NET_LR

MakeFolder = Callable[..., Path]
QUICK = ("--arch", "conv_cnn", "--device", "cpu")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_find_lr_prints_every_rule_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("find-lr", *QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "artifacts/digits/find-lr.png"
    with Image.open(lines[-1]) as image:
        assert image.format == "PNG"
    for rule in ("valley", "steepest descent", "a tenth of the minimum's"):
        assert any(line.startswith(rule) for line in lines)
    assert re.search(r"^\d+ steps in batches of 64 on cpu", done.stdout, re.MULTILINE)


def test_find_lr_as_json(tmp_path: Path) -> None:
    done = invoke("find-lr", *QUICK, "--steps", "40", "--out", str(tmp_path / "sweep.png"), "--json")
    found = json.loads(done.stdout)
    assert set(found["suggestions"]) == set(Suggestions.__struct_fields__)
    assert len(found["losses"]) == 40
    assert (tmp_path / "sweep.png").is_file()


def test_find_lr_has_no_option_that_does_nothing() -> None:
    done = invoke("find-lr", "--epochs", "3")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_a_range_upside_down_is_a_usage_error() -> None:
    done = invoke("find-lr", *QUICK, "--low", "1", "--high", "0.1")
    assert done.exit_code == 2
    assert "low is 1, expected less than high" in done.stderr


def test_auto_trains_with_the_valley_and_says_so(tmp_path: Path) -> None:
    arguments = ("train", *QUICK, "--epochs", "1", "--max-lr", "auto", "--out", str(tmp_path / "run"))
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(invoke("find-lr", *QUICK, "--out", str(tmp_path / "x.png"), "--json").stdout)
    max_lr = load_run(tmp_path / "run").record.config.max_lr
    assert max_lr == found["suggestions"]["valley"]
    assert (
        f"max_lr {max_lr:.3g}: the valley of a sweep over {len(found['losses'])} training batches"
        in done.stderr
    )
    assert (tmp_path / "run" / "find-lr.png").is_file()


def test_auto_on_images_that_teach_nothing_takes_the_recipes_rate_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing falls by more than chance there, and a rate read from it would be anything."""
    random = np.random.default_rng(0)
    for number in range(400):
        folder = tmp_path / "noise" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.png")
    where = ("--data", str(tmp_path / "noise"), "--out", str(tmp_path / "run"))
    done = invoke("train", *where, *QUICK, "--epochs", "1", "--batch-size", "2", "--max-lr", "auto")
    assert done.exit_code == 0, done.output
    assert load_run(tmp_path / "run").record.config.max_lr == SMALL_NET_LR
    assert "max_lr is the recipe's, 0.03: the loss never fell" in caplog.text


def test_a_rate_is_a_number_or_auto() -> None:
    done = invoke("train", "--max-lr", "fast")
    assert done.exit_code == 2
    assert "'fast' is not a valid float" in done.stderr


@pytest.fixture
def planted(make_folder: MakeFolder, tmp_path: Path) -> Path:
    """Photographs with a copy on both sides, a copy in both classes, and a file cut in half."""
    for part, count in (("train", 10), ("val", 4)):
        make_folder({"cat": count, "dog": count}, at=f"data/{part}", size=(80, 60), mode="RGB")
    root = tmp_path / "data"
    cats = sorted((root / "train" / "cat").iterdir())
    shutil.copy(cats[0], root / "val" / "cat" / "leak.png")
    shutil.copy(cats[1], root / "train" / "dog" / "conflict.png")
    (root / "val" / "dog" / "half.png").write_bytes(cats[2].read_bytes()[:300])
    return root


def test_show_names_what_is_wrong_and_still_draws(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "show.png"
    done = invoke("show", "--data", str(planted), "--image-size", "64", "--out", str(out))
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert any(line.startswith("val/dog/half.png") for line in lines)
    leak = next(line for line in lines if "val/cat/leak.png" in line and not line.startswith("warning"))
    assert "train, valid" in leak
    conflict = next(line for line in lines if "train/dog/conflict.png" in line)
    assert "cat, dog" in conflict
    assert any(line.split() == ["80", "x", "60", "│", "RGB", "│", "30"] for line in lines)
    assert lines[-1] == str(out)
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_show_as_json(planted: Path, tmp_path: Path) -> None:
    done = invoke("show", "--data", str(planted), "--out", str(tmp_path / "show.png"), "--json")
    found = json.loads(done.stdout)
    assert [row["train"] for row in found["classes"]] == [10, 11]
    assert [file["name"] for file in found["damaged"]] == ["val/dog/half.png"]
    assert len(found["copies"]) == 2


def test_show_on_sound_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("show")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "artifacts/digits/show.png"
    assert "1,797 images can be read, 0 cannot; copies of another image: 0" in done.stdout


def test_show_has_no_option_that_does_nothing() -> None:
    for option in ("--batch-size", "--max-lr", "--device"):
        assert invoke("show", option, "3").exit_code == 2


def test_a_class_named_like_markup_is_printed_as_it_is(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder({"[red]": 6, "[bold]x": 6})
    done = invoke("show", "--data", str(folder), "--out", str(tmp_path / "show.png"))
    assert done.exit_code == 0, done.output
    assert "[red] " in done.stdout
    assert "[bold]x" in done.stdout
