"""Accuracy on labelled folders, against counts made by hand."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from shipnet.cli import main
from shipnet.runtime import Classifier, render
from shipnet.runtime.calibration import calibration
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.errors import DataError, UsageError
from shipnet.runtime.evaluate import Evaluation, evaluate
from shipnet.runtime.evaluate_page import evaluate_page


@pytest.fixture(scope="module")
def classifier(digits_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(digits_bundle, device="cpu", batch_size=16) as loaded:
        yield loaded


@pytest.fixture
def folder(digit_files: Path, tmp_path: Path) -> Path:
    """The digits 0 to 4, with two images of 3 among those of 1."""
    for label in "01234":
        shutil.copytree(digit_files / label, tmp_path / "digits" / label)
    for image in sorted((digit_files / "3").iterdir())[:2]:
        shutil.copy(image, tmp_path / "digits" / "1" / f"planted-{image.name}")
    return tmp_path / "digits"


def test_counts_agree_with_single_predictions(classifier: Classifier, folder: Path) -> None:
    truths = {str(path): path.parent.name for path in folder.glob("*/*.png")}
    answers = {path: classifier(path) for path in truths}
    steps: list[tuple[int, int]] = []
    found = evaluate(classifier, folder, on_progress=lambda done, total: steps.append((done, total)))

    correct = sum(answers[path].label == truth for path, truth in truths.items())
    assert (found.accuracy.images, found.accuracy.correct) == (27, correct)
    assert found.accuracy.low < found.accuracy.accuracy < found.accuracy.high
    assert steps == [(done, 27) for done in range(1, 28)]
    for truth, row in zip(classifier.labels, found.matrix, strict=True):
        for label, count in zip(classifier.labels, row, strict=True):
            assert count == sum(truths[path] == truth and answers[path].label == label for path in truths)

    one = found.classes[1]
    assert (one.label, one.images) == ("1", 7)
    assert one.predicted == sum(answer.label == "1" for answer in answers.values())
    assert one.recall == one.correct / 7
    assert one.precision == one.correct / one.predicted
    claimed = np.array([answer.score for answer in answers.values()])
    right = np.array([answers[path].label == truth for path, truth in truths.items()])
    assert found.calibration.ece == pytest.approx(calibration(claimed, right).ece)
    assert found.calibration.images == 27
    assert found.missing_classes == ("5", "6", "7", "8", "9")
    assert found.classes[9].recall is None
    assert found.unreadable == ()
    assert found.plan == classifier.plan


def test_the_surest_mistakes_come_first(classifier: Classifier, folder: Path) -> None:
    answers = {str(path): classifier(path) for path in folder.glob("*/*.png")}
    wrong = [answer.score for path, answer in answers.items() if answer.label != Path(path).parent.name]
    found = evaluate(classifier, folder)
    assert [mistake.score for mistake in found.worst] == pytest.approx(sorted(wrong, reverse=True))
    assert any("planted" in mistake.path and mistake.truth == "1" for mistake in found.worst)
    (first,) = evaluate(classifier, folder, worst=1).worst
    assert first == found.worst[0]


def test_files_without_an_answer_are_listed_and_do_not_count(classifier: Classifier, folder: Path) -> None:
    (folder / "0" / "notes.txt").write_text("no image")
    (folder / "0" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (folder / "README").write_text("beside the class folders")
    (folder / ".ipynb_checkpoints").mkdir()
    found = evaluate(classifier, folder)
    assert found.accuracy.images == 27
    assert found.ignored == 2
    assert [Path(file.path).name for file in found.unreadable] == ["caf\\xe9.png", "notes.txt"]
    assert found.unreadable[0].error == "is empty (0 bytes): replace the file"
    assert decode(encode(found), Evaluation, where="report") == found


def test_folders_below_a_class_folder_belong_to_it(classifier: Classifier, folder: Path) -> None:
    (folder / "2" / "more").mkdir()
    shutil.copy(next((folder / "3").iterdir()), folder / "2" / "more" / "a.png")
    assert evaluate(classifier, folder).classes[2].images == 6


def test_the_report_survives_json(classifier: Classifier, folder: Path) -> None:
    found = evaluate(classifier, folder)
    again = msgspec.json.decode(msgspec.json.encode(found), type=Evaluation)
    assert again == found
    assert np.array_equal(again.matrix, found.matrix)


def test_folders_that_are_no_label_are_named(classifier: Classifier, folder: Path) -> None:
    shutil.copytree(folder / "0", folder / "zero")
    shutil.copytree(folder / "0", folder / "nought")
    with pytest.raises(
        DataError, match=r"its folders nought, zero are no labels of this bundle: expected 0, 1, 2, .*9"
    ):
        evaluate(classifier, folder)


def test_what_cannot_be_evaluated(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such file or folder"):
        evaluate(classifier, tmp_path / "nowhere")
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(
        DataError, match="has no class folder with files: expected folders like 0, 1, 2, 3, 4"
    ):
        evaluate(classifier, tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of its 1 files can be read, the first is no image"):
        evaluate(classifier, tmp_path)


def test_the_page_shows_all_of_it_and_loads_nothing(
    classifier: Classifier, folder: Path, digit_files: Path
) -> None:
    (folder / "4" / "broken.png").write_bytes(b"no image")
    found = evaluate(classifier, folder)
    assert found.worst, "two images of 3 lie among those of 1"
    text = evaluate_page(found, classifier.bundle.manifest.preprocess)
    for part in ("Confusion", "Classes", "Surest mistakes", "Can the scores be believed?", "What ran"):
        assert f"<h2>{part}</h2>" in text
    assert f"{found.accuracy.accuracy:.2%}" in text
    assert f"{found.calibration.ece:.4f}" in text
    assert text.count("<img ") == len(found.worst)
    assert "planted-" in text
    assert "broken.png" in text
    assert "There are no images of: 5, 6, 7, 8, 9." in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_a_page_of_images_that_are_gone(classifier: Classifier, folder: Path) -> None:
    found = evaluate(classifier, folder)
    shutil.rmtree(folder)
    text = evaluate_page(found, classifier.bundle.manifest.preprocess)
    assert text.count("(gone)") == len(found.worst) > 0


def test_the_command_writes_the_page(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "evaluation.html"
    done = CliRunner().invoke(
        main, ["evaluate", str(digits_bundle), str(folder), "--device", "cpu", "--html", str(page)]
    )
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_names_like_markup_are_printed_as_they_are(
    classifier: Classifier, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(classifier, folder)
    labels = msgspec.structs.replace(found.classes[0], label="[red]")
    mistake = msgspec.structs.replace(found.worst[0], path="[bold]a.png", label="[/]")
    render.evaluation(msgspec.structs.replace(found, classes=(labels,), worst=(mistake,)))
    printed = capsys.readouterr().out
    assert "[red]" in printed
    assert "[bold]a.png" in printed
    assert "[/]" in printed
