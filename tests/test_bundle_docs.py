"""The written format beside the real one: the JSON Schema, and what docs/bundle.md says of fields and files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from shipnet.export.onnx_graph import MAX_IR, MAX_OPSET
from shipnet.runtime import Bundle
from shipnet.runtime.evidence import ProbeIndex
from shipnet.runtime.manifest import FORMAT_VERSION, Manifest

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
