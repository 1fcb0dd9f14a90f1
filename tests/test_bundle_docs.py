"""The written format beside the real one: the JSON Schema, and what docs/bundle.md says of fields and files."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from shipnet.export.onnx_graph import MAX_IR, MAX_OPSET
from shipnet.runtime import Bundle
from shipnet.runtime.evidence import ProbeIndex
from shipnet.runtime.manifest import FORMAT_VERSION, Manifest
from shipnet.runtime.preprocess import Interpolation, PreprocessSpec, preprocess

DOCS = Path(__file__).parent.parent / "docs"
SCHEMA = DOCS / "bundle.schema.json"


def generated() -> dict[str, Any]:
    """The schema of `manifest.json`, and below `$defs` that of `evidence/probes.json`."""
    (manifest, probes), definitions = msgspec.json.schema_components(
        [Manifest, ProbeIndex], ref_template="#/$defs/{name}"
    )
    assert (manifest, probes) == ({"$ref": "#/$defs/Manifest"}, {"$ref": "#/$defs/ProbeIndex"})
    properties = definitions["Manifest"]["properties"]
    properties["format_version"] = {"const": FORMAT_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of a shipnet bundle, format version {FORMAT_VERSION}",
        **manifest,
        "$defs": definitions,
    }


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_schema_is_current(update_goldens: bool) -> None:
    text = json.dumps(generated(), indent=2, sort_keys=True) + "\n"
    if update_goldens:
        SCHEMA.write_text(text, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == text, (
        "run  pytest --update-goldens tests/test_bundle_docs.py"
    )


def test_the_schema_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_real_manifest_and_its_probes_are_valid(schema: dict[str, Any], digits_bundle: Path) -> None:
    jsonschema.validate(json.loads((digits_bundle / "manifest.json").read_bytes()), schema)
    probes = {"$ref": "#/$defs/ProbeIndex", "$defs": schema["$defs"]}
    jsonschema.validate(json.loads((digits_bundle / "evidence" / "probes.json").read_bytes()), probes)


def _drop_labels(manifest: dict[str, Any]) -> None:
    del manifest["labels"]


def _add_field(manifest: dict[str, Any]) -> None:
    manifest["variants"][0]["surprise"] = 1


def _newer(manifest: dict[str, Any]) -> None:
    manifest["format_version"] = FORMAT_VERSION + 1


def _bad_hash(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["sha256"] = "ABC"


def _bad_status(manifest: dict[str, Any]) -> None:
    manifest["variants"][0]["status"] = "fine"


def _one_label(manifest: dict[str, Any]) -> None:
    manifest["labels"] = ["cat"]


@pytest.mark.parametrize("spoil", [_drop_labels, _add_field, _newer, _bad_hash, _bad_status, _one_label])
def test_a_wrong_manifest_is_not_valid(
    spoil: Callable[[dict[str, Any]], None], schema: dict[str, Any], digits_bundle: Path
) -> None:
    manifest = copy.deepcopy(json.loads((digits_bundle / "manifest.json").read_bytes()))
    spoil(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


def test_the_document_names_every_field_and_file(schema: dict[str, Any], digits_bundle: Path) -> None:
    text = (DOCS / "bundle.md").read_text(encoding="utf-8")
    fields = {
        name
        for definition in schema["$defs"].values()
        for name in definition.get("properties", {})
        if name not in schema["$defs"]["PreprocessSpec"]["properties"]
    } | set(schema["$defs"]["PreprocessSpec"]["properties"])
    missing = sorted(name for name in fields if f"`{name}`" not in text)
    assert not missing
    files = [entry.path for entry in Bundle.open(digits_bundle).manifest.files]
    for path in files:
        name = path if not path.startswith("evidence/probes/") else "evidence/probes/"
        assert name in text, path


def test_the_document_states_the_versions_that_export_keeps() -> None:
    text = (DOCS / "bundle.md").read_text(encoding="utf-8")
    assert f"opset {MAX_OPSET}" in text
    assert f"IR version {MAX_IR}" in text
    assert f"Format version {FORMAT_VERSION}" in text


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, lambda x: float(-0.5 < x <= 0.5)),
    "bilinear": (1.0, lambda x: max(1.0 - abs(x), 0.0)),
    "hamming": (1.0, lambda x: _sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: _sinc(x) * _sinc(x / 3) if abs(x) < 3 else 0.0),
}


def single(b0: float, b1: float, size: int) -> tuple[float, float]:
    """An interval's begin and its step, its ends and their difference rounded to float32."""
    begin, end = np.float32(b0), np.float32(b1)
    return float(begin), float(end - begin) / size


def one_pass(pixels: NDArray[np.uint8], b0: float, b1: float, size: int, name: str) -> NDArray[np.uint8]:
    """The document's pass along axis 0, written from its words."""
    count = len(pixels)
    if size == count and (b0, b1) == (0, count):
        return pixels
    reach, kernel = FILTERS[name]
    b0, scale = single(b0, b1, size)
    stretch = max(scale, 1.0)
    rows = []
    for i in range(size):
        centre = b0 + (i + 0.5) * scale
        first = max(int(centre - reach * stretch + 0.5), 0)
        last = min(int(centre + reach * stretch + 0.5), count)
        weights = [kernel((j + first - centre + 0.5) / stretch) for j in range(last - first)]
        total = sum(weights)
        fixed = [math.copysign(math.floor(abs(w / total) * 2**22 + 0.5), w) for w in weights]
        row = 2**21 + np.tensordot(np.array(fixed, np.int64), pixels[first:last].astype(np.int64), 1)
        rows.append(np.clip(row >> 22, 0, 255))
    return np.stack(rows).astype(np.uint8)


def documented(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Crop box and resize by docs/bundle.md, of uint8 (H, W, C)."""
    h, w = pixels.shape[:2]
    left, top, right, bottom = 0.0, 0.0, float(w), float(h)
    if spec.resize_size is not None:
        s = min(w, h)
        scaled_w, scaled_h = int(spec.resize_size * w / s), int(spec.resize_size * h / s)
        x, y = round((scaled_w - spec.width) / 2), round((scaled_h - spec.height) / 2)
        left, top = x * w / scaled_w, y * h / scaled_h
        right = min((x + spec.width) * w / scaled_w, w)
        bottom = min((y + spec.height) * h / scaled_h, h)
    if spec.interpolation == "nearest":
        (top, down), (left, across) = single(top, bottom, spec.height), single(left, right, spec.width)
        rows = [int(top + (i + 0.5) * down) for i in range(spec.height)]
        columns = [int(left + (i + 0.5) * across) for i in range(spec.width)]
        return pixels[rows][:, columns]
    reach = FILTERS[spec.interpolation][0] * max((bottom - top) / spec.height, 1.0)
    first = max(math.floor(top - reach), 0)
    narrow = one_pass(pixels.swapaxes(0, 1), left, right, spec.width, spec.interpolation).swapaxes(0, 1)
    return one_pass(narrow[first:], top - first, bottom - first, spec.height, spec.interpolation)


@pytest.mark.parametrize("interpolation", ["nearest", *FILTERS])
@pytest.mark.parametrize("size", [(61, 47), (20, 90), (24, 16), (9, 7)])
@pytest.mark.parametrize("resize_size", [None, 26])
def test_a_port_written_from_the_document_gives_the_same_pixels(
    interpolation: Interpolation, size: tuple[int, int], resize_size: int | None
) -> None:
    spec = PreprocessSpec(
        height=16,
        width=24,
        channels=3,
        interpolation=interpolation,
        resize="fit" if resize_size is None else "shorter_side_crop",
        resize_size=resize_size,
    )
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    np.testing.assert_array_equal(documented(pixels, spec), preprocess(pixels, spec))
