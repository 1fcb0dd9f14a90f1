"""The page has every part, loads nothing, and takes no name for markup."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from shipnet.runtime.thumbnails import data_uri
from shipnet.train import Run, TrainConfig, load_run
from shipnet.train.examples import Examples
from shipnet.train.report import REPORT, report_html
from shipnet.train.run import RunRecord

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Checks that tags close in order, and keeps headings, sources and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        self.text.append(data)


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load_run(digits_run)


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return (run.path / REPORT).read_text(encoding="utf-8")


def redraw(record: RunRecord, *, side: int = 8) -> str:
    images = np.zeros((len(record.evaluation.top_losses), side, side, 3), np.uint8)
    return report_html(record, images, Examples(images[:2], record.labels[:2]))


def test_every_part_is_there(page: str, run: Run) -> None:
    outline = Outline(page)
    assert outline.headings == [
        "digits",
        "Training",
        "Confusion",
        "Classes",
        "Highest losses",
        "Can the scores be believed?",
        "What the network was trained on",
        "How it was made",
    ]
    record, text = run.record, " ".join(outline.text)
    for words in (
        f"{record.accuracy:.2%}",
        f"{record.evaluation.calibrated.ece:.4f}",
        f"{record.temperature:.4g}",
        record.evaluation.top_losses[0].truth,
        f"{record.history[2].valid_loss:.4f}",
        record.device,
        record.versions["torch"],
        record.data_fingerprint[:16],
    ):
        assert words in text
    assert page.count("<img") == 16 + 24
    assert page.count("<svg") == 3 + 1 + 2
    assert "<b>Learning rate</b>" in page
    assert "<h3>In numbers</h3>" in page


def test_it_loads_nothing_and_names_no_local_path(page: str, run: Run) -> None:
    assert "://" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    sources = [value for name, value in Outline(page).attributes if name in ("src", "href")]
    assert len(sources) == 40
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert str(run.path.parent) not in page
    moved = msgspec.structs.replace(
        run.record,
        config=TrainConfig(weights="/home/somebody/secret/net.safetensors", max_lr=0.1),
    )
    assert "somebody" not in redraw(moved)
    assert "net.safetensors" in redraw(moved)


def test_damaged_images_are_counted_and_named_without_their_place(run: Run) -> None:
    names = tuple(f"train/cat/{number}.png" for number in range(7))
    record = msgspec.structs.replace(
        run.record,
        unreadable=names,
        warnings=("left out: /home/somebody/train/cat/0.png: is empty", "train: left out 2 other file(s)"),
    )
    page = redraw(record)
    assert "somebody" not in page
    assert "train: left out 2 other file(s)" in page
    assert "left out: 7 (train/cat/0.png, train/cat/1.png, train/cat/2.png, " in page
    assert "train/cat/5.png" not in page
    assert "About the data" not in redraw(run.record)


def test_names_are_text(run: Run) -> None:
    evil = '<b>&"</b>'
    record = run.record
    found = record.evaluation
    classes = tuple(
        msgspec.structs.replace(item, label=evil if item.label == "3" else item.label)
        for item in found.classes
    )
    confusion = tuple(
        msgspec.structs.replace(
            item,
            truth=evil if item.truth == "3" else item.truth,
            label=evil if item.label == "3" else item.label,
        )
        for item in found.confusion
    )
    worst = tuple(msgspec.structs.replace(item, name=f"{evil}.png", truth=evil) for item in found.top_losses)
    record = msgspec.structs.replace(
        record,
        data=evil,
        labels=(evil, *record.labels[1:]),
        warnings=(f"left out: {evil}",),
        evaluation=msgspec.structs.replace(found, classes=classes, confusion=confusion, top_losses=worst),
    )
    page = redraw(record)
    outline = Outline(page)
    assert evil not in page
    assert outline.headings[0] == evil
    assert any(text == f"left out: {evil}" for text in outline.text)
    assert ("title", f"{evil}.png") in outline.attributes


def test_a_test_split_and_a_perfect_network(run: Run) -> None:
    found = run.record.evaluation
    right = tuple(item for item in found.confusion if item.truth == item.label)
    record = msgspec.structs.replace(
        run.record,
        evaluation=msgspec.structs.replace(
            found, test=found.evidence, confusion=right, temperature=1.0, calibrated=found.uncalibrated
        ),
    )
    text = " ".join(Outline(redraw(record)).text)
    assert "Test accuracy" in text
    assert "Test accuracy" not in " ".join(Outline(redraw(run.record)).text)
    assert "No image was given another class than its own." in text
    assert "gave no ground to change them" in text


def test_pictures_are_inside_and_whole() -> None:
    rng = np.random.default_rng(0)
    for side, channels, kind in ((8, 1, "PNG"), (64, 3, "PNG"), (224, 3, "JPEG")):
        image = rng.integers(0, 256, (side, side, channels), np.uint8)
        uri = data_uri(image)
        match = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", uri)
        assert match is not None
        with Image.open(io.BytesIO(base64.b64decode(match[2]))) as picture:
            assert (picture.format, max(picture.size)) == (kind, min(side, 160))
            if kind == "PNG":
                assert (np.asarray(picture).reshape(image.shape) == image).all()
