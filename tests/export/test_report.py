"""The export's page shows what was proved, and the images that got another label."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from shipnet.cli import main
from shipnet.export import ExportConfig, export
from shipnet.export.build import EVIDENCE, SEARCHES, export_source
from shipnet.export.parity_report import ParityReport
from shipnet.export.report import EXPORT_REPORT
from shipnet.export.search import QuantizationReport
from shipnet.export.source import from_run
from shipnet.runtime import Bundle, ParityError
from shipnet.runtime.encoding import decode
from shipnet.runtime.thumbnails import data_uri
from shipnet.train import load_data, load_run, pixels


@dataclass
class Page(HTMLParser):
    """The parts of a page that a reader sees, and every address in it."""

    text: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append((values["alt"], values["src"]))


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def coarse(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an int8 variant that may decide otherwise: 7-bit weights, and one image's ranges."""
    config = ExportConfig(
        variants=("int8-cpu", "fp16"),
        accept_uncertified=True,
        max_flip_rate=(("int8-cpu", 1.0),),
        max_top1_drop=(("int8-cpu", 1.0),),
        calibration_images=1,
        reduce_range=True,
        interop=False,
    )
    return export(digits_run, config, out=tmp_path_factory.mktemp("coarse") / "bundle")


def test_the_page_shows_every_image_that_got_another_label(coarse: Bundle, digits_run: Path) -> None:
    report = decode(coarse.read(EVIDENCE), ParityReport, where=EVIDENCE)
    entry = next(item for item in report.formats if item.format == "int8-cpu")
    assert entry.flips, "ranges of one image cannot decide as the trained network"
    data = load_data(load_run(digits_run).record.config.data)
    expected = [
        (
            data.valid.names[item.index],
            data_uri(pixels(data.valid, data.spec, np.array([item.index]))[0]),
        )
        for item in entry.flips
    ]
    page = read(coarse.path.parent / EXPORT_REPORT)
    assert page.images == expected
    text = " ".join(page.text)
    assert f"int8-cpu: {entry.parity.flips} of {entry.parity.images} images get another label" in text
    assert coarse.identity[:12] in text


def test_the_page_loads_nothing(coarse: Bundle) -> None:
    assert all(address.startswith("data:") for address in read(coarse.path.parent / EXPORT_REPORT).addresses)


def test_the_page_names_what_is_not_certified(coarse: Bundle) -> None:
    text = " ".join(read(coarse.path.parent / EXPORT_REPORT).text)
    reasons = [reason for variant in coarse.manifest.variants for reason in variant.status_reasons]
    assert reasons
    assert all(reason in text for reason in reasons)


def test_the_search_lies_in_the_evidence(coarse: Bundle) -> None:
    found = decode(coarse.read(SEARCHES), QuantizationReport, where=SEARCHES)
    (search,) = found.searches
    assert search.precision == "int8-cpu"
    assert search.calibration_images == 1
    assert {item.method for item in search.methods} == {"minmax", "percentile", "entropy"}
    best = min(search.methods, key=lambda item: (item.flips, item.difference))
    assert search.method == best.method


def test_the_card_says_what_each_class_and_precision_reached(coarse: Bundle) -> None:
    card = coarse.read("README.md").decode()
    report = decode(coarse.read(EVIDENCE), ParityReport, where=EVIDENCE)
    for item in report.formats[0].classes:
        assert item.recall is not None
        assert re.search(rf"^\| {item.label} \| {item.images} \| {item.recall:.1%} \(", card, re.MULTILINE)
    for variant in coarse.manifest.variants:
        assert f"| {variant.precision} | {variant.status} |" in card
        assert all(reason in card for reason in variant.status_reasons)


def test_a_failed_export_leaves_a_page_that_says_why(digits_run: Path, tmp_path: Path) -> None:
    config = ExportConfig(interop=False)
    source = from_run(load_run(digits_run), config, dataset=None, on_progress=lambda *_: None)

    def other_bias(images: np.ndarray, metadata: dict[str, str]) -> bytes:  # type: ignore[type-arg]
        model = onnx.load_from_string(source.to_onnx(images, metadata))
        weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
        changed = numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name)
        weight.CopyFrom(changed)
        return bytes(model.SerializeToString())

    with pytest.raises(ParityError, match="is not the trained one"):
        export_source(
            dataclasses.replace(source, to_onnx=other_bias),
            config,
            out=tmp_path / "bundle",
            on_progress=lambda *_: None,
        )
    text = " ".join(read(tmp_path / EXPORT_REPORT).text)
    assert "the export failed, there is no bundle" in text
    assert "the first layer that differs" in text
    assert not (tmp_path / "bundle").exists()


def test_the_command_says_what_is_left_out_and_why(digits_run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(digits_run), "--out", str(tmp_path / "bundle"), "--no-interop"]
    arguments += ["--variant", "int8-cpu", "--max-flip-rate", "int8-cpu=0.001", "--reduce-range"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "int8-cpu: left out" in done.stdout
    (left,) = Bundle.open(tmp_path / "bundle").manifest.left_out
    assert all(f"  {reason}" in done.stdout for reason in left.reasons)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "bundle")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle")], catch_exceptions=False)
    assert all(reason in shown.stdout for reason in left.reasons)
    assert msgspec.json.decode(
        CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle"), "--json"]).stdout
    )["left_out"]
