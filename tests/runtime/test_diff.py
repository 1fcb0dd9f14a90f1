"""Where two bundles decide differently, against counts made by hand with the classifiers themselves."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shipnet.cli import main
from shipnet.export.assemble import list_files, seal
from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.accuracy import paired_difference, wilson_interval
from shipnet.runtime.diff import Diff, diff, write_csv
from shipnet.runtime.diff_page import diff_page
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.errors import DataError, UsageError


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def resealed(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a bundle whose manifest says something else, sealed as an export seals."""
    shutil.copytree(source, target)
    seal(target, msgspec.structs.replace(Bundle.open(source).manifest, **changes))
    return target


@pytest.fixture(scope="module")
def rival(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose weights are a little off, so that it decides differently on some images."""
    target = tmp_path_factory.mktemp("rival") / "bundle"
    shutil.copytree(digits_bundle, target)
    model = onnx.load(target / "model" / "fp32.onnx")
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noise = generator.standard_normal(values.shape).astype(values.dtype) * values.std() * 0.7
            tensor.CopyFrom(onnx.numpy_helper.from_array(values + noise, tensor.name))
    onnx.save(model, target / "model" / "fp32.onnx")
    manifest = Bundle.open(digits_bundle).manifest
    seal(target, msgspec.structs.replace(manifest, files=list_files(target)))
    return target


@pytest.fixture(scope="module")
def pair(digits_bundle: Path, rival: Path) -> tuple[Classifier, Classifier]:
    return Classifier.load(digits_bundle, device="cpu"), Classifier.load(rival, device="cpu")


@pytest.fixture(scope="module")
def found(pair: tuple[Classifier, Classifier], digit_files: Path) -> Diff:
    return diff(*pair, digit_files)


def test_the_counts_are_those_of_the_classifiers(
    found: Diff, pair: tuple[Classifier, Classifier], digit_files: Path
) -> None:
    files = sorted(digit_files.rglob("*.png"))
    a, b = (side.predict(files, top_k=2) for side in pair)
    truths = [file.parent.name for file in files]
    differ = [index for index in range(len(files)) if a[index].label != b[index].label]
    assert 0 < len(differ) < len(files)
    assert found.images == len(files)
    assert {item.path for item in found.differences} == {str(files[index]) for index in differ}
    assert (found.flip_rate.low, found.flip_rate.high) == wilson_interval(len(differ), len(files))
    assert {(change.a, change.b): change.images for change in found.changes} == Counter(
        (a[index].label, b[index].label) for index in differ
    )
    shown = {item.path: item for item in found.differences}
    for index in differ:
        item = shown[str(files[index])]
        for said, expected in ((item.a, a[index]), (item.b, b[index])):
            assert (said.label, said.score) == (expected.label, pytest.approx(expected.score, abs=1e-12))
            assert said.margin == pytest.approx(expected.top[0][1] - expected.top[1][1], abs=1e-12)
        right = (truths[index] == a[index].label, truths[index] == b[index].label)
        assert (item.truth, item.verdict) == (
            truths[index],
            {(True, False): "lost", (False, True): "gained", (False, False): "other"}[right],
        )


def test_who_is_right_is_counted_by_the_folders(
    found: Diff, pair: tuple[Classifier, Classifier], digit_files: Path
) -> None:
    files = sorted(digit_files.rglob("*.png"))
    right = [
        [answer.label == file.parent.name for answer, file in zip(side.predict(files), files, strict=True)]
        for side in pair
    ]
    lost = sum(one and not other for one, other in zip(*right, strict=True))
    gained = sum(other and not one for one, other in zip(*right, strict=True))
    assert found.correctness is not None
    assert (found.correctness.a.correct, found.correctness.b.correct) == tuple(map(sum, right))
    assert (found.correctness.lost, found.correctness.gained) == (lost, gained)
    assert found.correctness.drop == paired_difference(lost, gained, len(files))
    assert len(found.differences) == lost + gained + found.correctness.other


def test_the_surest_disagreement_comes_first(found: Diff) -> None:
    clashes = [item.clash for item in found.differences]
    assert clashes == sorted(clashes, reverse=True)
    assert clashes[0] > clashes[-1] >= 0


def test_a_bundle_agrees_with_itself(digits_bundle: Path, digit_files: Path) -> None:
    with Classifier.load(digits_bundle) as a, Classifier.load(digits_bundle, batch_size=7) as b:
        same = diff(a, b, digit_files)
    assert same.differences == same.changes == same.preprocess == same.unreadable == ()
    assert same.flip_rate.value == same.flip_rate.low == 0.0 < same.flip_rate.high
    assert same.excess(0.0) is None


def test_a_report_round_trips(found: Diff) -> None:
    assert decode(encode(found), Diff, where="diff") == found


def test_each_side_reads_files_by_its_own_spec(
    digits_bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    """The same network with another filter: the file is large, so that the filter matters."""
    spec = Bundle.open(digits_bundle).manifest.preprocess
    other = msgspec.structs.replace(spec, interpolation="nearest")
    blunt = resealed(digits_bundle, tmp_path / "blunt", preprocess=other)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, file in enumerate(sorted(digit_files.rglob("*.png"))[::5]):
        pixels = np.kron(np.asarray(Image.open(file)), np.ones((9, 9), np.uint8))
        noise = np.random.default_rng(index).integers(0, 256, pixels.shape, dtype=np.uint8)
        Image.fromarray(np.where(noise > 150, noise, pixels)).save(folder / f"{index}.png")
    with Classifier.load(digits_bundle) as a, Classifier.load(blunt) as b:
        result = diff(a, b, folder)
        files = sorted(folder.iterdir())
        expected = [
            str(file)
            for file, one, other in zip(files, a.predict(files), b.predict(files), strict=True)
            if one.label != other.label
        ]
        page = diff_page(result, spec, other)
    assert expected
    assert sorted(item.path for item in result.differences) == expected
    ((rule),) = result.preprocess
    assert (rule.field, rule.a, rule.b) == ("interpolation", '"bilinear"', '"nearest"')
    assert result.correctness is None
    assert all(item.truth is item.verdict is None for item in result.differences)
    assert page.count(">a sees</span>") == len(expected)


def test_labels_are_compared_by_name(digits_bundle: Path, digit_files: Path, tmp_path: Path) -> None:
    """A bundle whose label list is another: reordered names would be reported as decisions, not as indices."""
    labels = Bundle.open(digits_bundle).manifest.labels
    renamed = resealed(digits_bundle, tmp_path / "renamed", labels=("zero", *labels[1:]))
    with Classifier.load(digits_bundle) as a, Classifier.load(renamed) as b:
        result = diff(a, b, digit_files)
        zeros = sum(answer.label == "0" for answer in a.predict(sorted(digit_files.rglob("*.png"))))
    assert (result.labels_only_a, result.labels_only_b) == (("0",), ("zero",))
    ((change),) = result.changes
    assert (change.a, change.b, change.images) == ("0", "zero", zeros)
    done = invoke("diff", digits_bundle, renamed, "--data", digit_files)
    assert "labels that only a has: 0" in done.stdout
    assert "labels that only b has: zero" in done.stdout


def test_bundles_without_a_common_label_are_refused(
    digits_bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    labels = tuple(f"class {index}" for index in range(10))
    stranger = resealed(digits_bundle, tmp_path / "stranger", labels=labels)
    sides = (Classifier.load(digits_bundle), Classifier.load(stranger))
    with pytest.raises(UsageError, match="have no label in common"):
        diff(*sides, digit_files)
    assert invoke("diff", digits_bundle, stranger, "--data", digit_files).exit_code == 2


def test_a_folder_that_is_no_label_has_no_truth(
    pair: tuple[Classifier, Classifier], digit_files: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(digit_files, tmp_path / "in"))
    (folder / "3").rename(folder / "three")
    shutil.copy(next((folder / "4").iterdir()), folder / "beside.png")
    result = diff(*pair, folder)
    assert result.images == 51
    assert result.unlabelled_folders == ("three",)
    assert result.correctness is not None
    assert result.correctness.a.images == 45
    for item in result.differences:
        assert (item.truth is None) == (Path(item.path).parent.name in ("three", "in"))


def test_what_only_one_side_can_read_is_named(digits_bundle: Path, digit_files: Path, tmp_path: Path) -> None:
    """A broken colour profile is an error for the side that applies profiles, and nothing to the other."""
    spec = Bundle.open(digits_bundle).manifest.preprocess
    strict = resealed(
        digits_bundle,
        tmp_path / "strict",
        preprocess=msgspec.structs.replace(spec, color_profile="srgb"),
    )
    folder = Path(shutil.copytree(digit_files, tmp_path / "in"))
    (folder / "0" / "notes.txt").write_text("not an image")
    source = next((folder / "1").glob("*.png"))
    Image.open(source).save(folder / "1" / "profile.png", icc_profile=b"broken")
    with Classifier.load(digits_bundle) as a, Classifier.load(strict) as b:
        result = diff(a, b, folder)
    assert result.images == 50
    notes, profile = result.unreadable
    assert Path(notes.path).name == "notes.txt"
    assert notes.a == notes.b == notes.reason
    assert Path(profile.path).name == "profile.png"
    assert profile.a is None
    assert profile.reason.startswith("b: has an ICC profile that cannot be applied")
    done = invoke("diff", digits_bundle, strict, "--data", folder, "--out", tmp_path / "diff.csv")
    assert done.exit_code == 3
    assert "not readable: 2" in done.stdout
    rows = list(csv.DictReader(io.StringIO((tmp_path / "diff.csv").read_text())))
    assert [row["status"] for row in rows[-2:]] == ["error", "error"]
    assert rows[-1]["error"] == profile.reason


def test_a_folder_without_images_is_refused(pair: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match="none of its 1 files can be read by both, the first is no image"):
        diff(*pair, tmp_path)


def test_progress_counts_every_file(pair: tuple[Classifier, Classifier], digit_files: Path) -> None:
    seen: list[tuple[int, int]] = []
    diff(*pair, digit_files, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 50) for index in range(1, 51)]


def test_memory_holds_two_batches(
    pair: tuple[Classifier, Classifier], digit_files: Path, tmp_path: Path
) -> None:
    """No more files are open or decoded ahead than two batches: a reader that looks at the progress can tell."""
    for index in range(300):
        shutil.copy(next((digit_files / "0").iterdir()), tmp_path / f"{index:03}.png")
    last = tmp_path / "299.png"

    def replace_the_last(done: int, total: int) -> None:
        if done == 1:
            last.write_bytes(b"changed while the first were answered")

    result = diff(*pair, tmp_path, on_progress=replace_the_last)
    assert [Path(file.path).name for file in result.unreadable] == ["299.png"]


@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("0.3", 1), ("0", 1)])
def test_a_limit_makes_the_exit_code(
    limit: str, code: int, found: Diff, digits_bundle: Path, rival: Path, digit_files: Path
) -> None:
    assert found.flip_rate.value > 0.0
    assert found.flip_rate.high > 0.3
    done = invoke("diff", digits_bundle, rival, "--data", digit_files, "--max-flip-rate", limit)
    assert done.exit_code == code, done.output
    assert ("images get another label" in done.stderr) == bool(code)
    assert invoke("diff", digits_bundle, rival, "--data", digit_files).exit_code == 0


def test_a_limit_above_zero_holds_the_interval(found: Diff) -> None:
    between = (found.flip_rate.value + found.flip_rate.high) / 2
    assert "too few images to tell that from" in str(found.excess(between))
    assert found.excess(found.flip_rate.high) is None
    assert f"allowed {found.flip_rate.value / 2:.3%}" in str(found.excess(found.flip_rate.value / 2))


def test_the_command_prints_what_the_library_finds(
    found: Diff, digits_bundle: Path, rival: Path, digit_files: Path, tmp_path: Path
) -> None:
    out, html = tmp_path / "diff.csv", tmp_path / "diff.html"
    done = invoke(
        *("diff", digits_bundle, rival, "--data", digit_files, "--device", "cpu"),
        *("--json", "--out", out, "--html", html),
    )
    assert done.exit_code == 0
    assert html.read_text().startswith("<!DOCTYPE html>")
    report = json.loads(done.stdout)
    assert report == json.loads(encode(found))
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["path"] for row in rows] == [item.path for item in found.differences]
    assert [row["label_b"] for row in rows] == [item.b.label for item in found.differences]
    assert [float(row["margin_a"]) for row in rows] == pytest.approx(
        [item.a.margin for item in found.differences], abs=1e-6
    )
    shown = invoke("diff", digits_bundle, rival, "--data", digit_files)
    first = found.differences[0]
    assert f"{len(found.differences)} of 50 images get another label" in shown.stdout
    assert Path(first.path).name in shown.stdout
    assert shown.stderr.count("CPUExecutionProvider") == 2


class Pictures(HTMLParser):
    """The sources of a page's pictures, and everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value:
                (self.pictures if value.startswith("data:image/") else self.loaded).append(value)


def test_the_page_shows_every_difference_and_loads_nothing(
    found: Diff, pair: tuple[Classifier, Classifier]
) -> None:
    spec = pair[0].bundle.manifest.preprocess
    page = diff_page(found, spec, spec)
    parser = Pictures()
    parser.feed(page)
    assert len(parser.pictures) == len(found.differences)
    assert parser.loaded == []
    assert found.correctness is not None
    for title, count in (("Lost", found.correctness.lost), ("Gained", found.correctness.gained)):
        assert (f"<h2>{title}: {count:,} image" in page) == bool(count)
    for item in found.differences:
        assert Path(item.path).name in page


def test_names_are_text_in_the_page_and_on_the_terminal(
    digits_bundle: Path, rival: Path, digit_files: Path, found: Diff, tmp_path: Path
) -> None:
    """A file's name may look like markup, or hold bytes that are not UTF-8; its picture is still found."""
    source = found.differences[0].path
    names = [b"<b>[bold]&.png", b"caf\xe9.png"]
    for name in names:
        shutil.copy(source, os.fsencode(tmp_path) + b"/" + name)
    html = tmp_path.parent / f"{tmp_path.name}.html"
    done = invoke("diff", digits_bundle, rival, "--data", tmp_path, "--html", html)
    assert done.exit_code == 0, done.output
    assert "[bold]" in done.stdout
    page = html.read_text()
    assert "&lt;b&gt;[bold]&amp;.png" in page
    assert "caf\\xe9.png" in page
    assert "(gone)" not in page


def test_a_picture_that_is_gone_is_said(
    pair: tuple[Classifier, Classifier], found: Diff, tmp_path: Path
) -> None:
    shutil.copy(found.differences[0].path, tmp_path / "x.png")
    result = diff(*pair, tmp_path)
    (tmp_path / "x.png").unlink()
    spec = pair[0].bundle.manifest.preprocess
    assert "x.png (gone)" in diff_page(result, spec, spec)


def test_a_csv_that_cannot_be_written_is_one_line(found: Diff, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exception, match="cannot be written"):
        write_csv(found, tmp_path / "file" / "diff.csv")
