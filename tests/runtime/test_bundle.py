"""A bundle that differs from what was sealed in any way is refused, and the message says in what."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipnet.runtime import Bundle, BundleError
from shipnet.runtime.encoding import encode
from shipnet.runtime.manifest import FORMAT_VERSION, decode_manifest, is_inside


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and seals it again, as a forger would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    reseal(bundle)


def reseal(bundle: Path) -> None:
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    (bundle / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def test_a_bundle_opens_and_its_manifest_round_trips(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    data = (digits_bundle / "manifest.json").read_bytes()
    assert bundle.identity == hashlib.sha256(data).hexdigest()
    assert encode(decode_manifest(data, where="here")) == data
    assert bundle.manifest.labels == tuple("0123456789")
    assert bundle.size_bytes == sum(
        path.stat().st_size
        for path in digits_bundle.rglob("*")
        if path.is_file()
        and path.parent / path.name
        not in (digits_bundle / "manifest.json", digits_bundle / "manifest.sha256")
    )


def test_the_seal_is_what_sha256sum_checks(digits_bundle: Path) -> None:
    identity = Bundle.open(digits_bundle).identity
    assert (digits_bundle / "manifest.sha256").read_text() == f"{identity}  manifest.json\n"


def test_one_changed_byte_in_any_file_is_found(digits_bundle: Path, tmp_path: Path) -> None:
    files = [path.relative_to(digits_bundle) for path in digits_bundle.rglob("*") if path.is_file()]
    assert len(files) >= 7
    for index, relative in enumerate(files):
        copy = Path(shutil.copytree(digits_bundle, tmp_path / str(index)))
        data = bytearray((copy / relative).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / relative).write_bytes(data)
        expected = "manifest.json" if relative.name.startswith("manifest") else str(relative)
        with pytest.raises(BundleError, match=expected.replace(".", r"\.")):
            Bundle.open(copy)


def test_each_file_that_was_removed_is_named(bundle_copy: Path) -> None:
    for path in [path for path in bundle_copy.rglob("*") if path.is_file()]:
        relative = path.relative_to(bundle_copy).as_posix()
        aside = path.rename(bundle_copy.parent / "aside")
        with pytest.raises(BundleError, match=re.escape(relative)):
            Bundle.open(bundle_copy)
        aside.rename(path)
    assert Bundle.open(bundle_copy)


@pytest.mark.parametrize("folder", [".", "model", "interop", "evidence", "evidence/probes", "new", ".git"])
def test_each_file_that_was_added_is_named(bundle_copy: Path, folder: str) -> None:
    (bundle_copy / folder).mkdir(exist_ok=True)
    for name in (".gitignore", "Thumbs.db", "manifest.json.bak"):
        path = bundle_copy / folder / name
        path.write_text("")
        with pytest.raises(
            BundleError, match=f"extra file {re.escape(path.relative_to(bundle_copy).as_posix())}"
        ):
            Bundle.open(bundle_copy)
        path.unlink()


def test_everything_wrong_is_named_at_once(bundle_copy: Path) -> None:
    (bundle_copy / "README.md").unlink()
    (bundle_copy / ".gitignore").write_text("*")
    (bundle_copy / "model" / "fp32.onnx").write_bytes(b"short")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_copy)
    for part in ("missing file README.md", "extra file .gitignore", "model/fp32.onnx has 5 bytes, expected"):
        assert part in str(caught.value)


@pytest.mark.parametrize("folder", ["interop", "evidence"])
def test_a_copy_without_an_optional_folder_is_whole(bundle_copy: Path, folder: str) -> None:
    shutil.rmtree(bundle_copy / folder)
    assert Bundle.open(bundle_copy).manifest.variant("fp32")


def test_a_half_optional_folder_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "interop" / "model.pt2").unlink()
    with pytest.raises(BundleError, match=r"missing file interop/model\.pt2"):
        Bundle.open(bundle_copy)


def test_a_link_is_refused(bundle_copy: Path) -> None:
    model = bundle_copy / "model" / "fp32.onnx"
    outside = bundle_copy.parent / "elsewhere.onnx"
    model.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(BundleError, match=r"model/fp32\.onnx is a link"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format_version=FORMAT_VERSION + 1),
            "this shipnet reads up to 1: run  pip install --upgrade",
        ),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update(format_version=0), "format_version is 0"),
        (lambda m: m.update(surprise=1), "unknown field `surprise`"),
        (lambda m: m.pop("labels"), "missing required field `labels`"),
        (lambda m: m["preprocess"].update(sharpen=True), r"unknown field `sharpen`.*preprocess"),
        (lambda m: m["labels"].append("10"), "output.num_classes is 10, but there are 11 labels"),
        (lambda m: m["labels"].__setitem__(1, "0"), "a label stands twice"),
        (lambda m: m["input"].update(height=9), "input and preprocess disagree"),
        (
            lambda m: m["normalization"].update(mean=[0.1, 0.2]),
            r"normalization\.mean: expected one value per channel",
        ),
        (lambda m: m["variants"][0].update(temperature=0.0), r"`float` > 0\.0.*temperature"),
        (lambda m: m["variants"][0].update(precision="fp16"), "fp32 is missing"),
        (lambda m: m["variants"][0].update(file="../fp32.onnx"), "is named but missing from files"),
        (
            lambda m: m["files"][0].update(path="../../etc/passwd"),
            "'../../etc/passwd' is not a plain path inside",
        ),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "'/etc/passwd' is not a plain path inside"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "was changed"),
    ],
)
def test_what_the_format_does_not_allow_is_named(
    bundle_copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(bundle_copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_copy)


def test_a_key_twice_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text().replace('"name":', '"name": "other", "name":', 1))
    reseal(bundle_copy)
    with pytest.raises(BundleError, match="the key 'name' stands twice"):
        Bundle.open(bundle_copy)


def test_not_a_number_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text(re.sub(r'"temperature": [0-9.]+', '"temperature": NaN', path.read_text()))
    reseal(bundle_copy)
    with pytest.raises(BundleError, match="NaN is not JSON"):
        Bundle.open(bundle_copy)


def test_a_place_that_is_no_bundle_is_named(digits_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is no bundle: expected a bundle's folder, or the zip"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match=r"is no bundle, it has no manifest\.json: did you mean .*bundle\?"):
        Bundle.open(digits_bundle.parent)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match=r"cannot read manifest\.sha256"):
        Bundle.open(tmp_path)
    reseal(tmp_path)
    with pytest.raises(BundleError, match="not a manifest"):
        Bundle.open(tmp_path)


def test_a_file_that_changes_while_in_use_is_found(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / "model" / "fp32.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed while the bundle was in use"):
        bundle.read("model/fp32.onnx")
    with pytest.raises(BundleError, match="has no file 'model/none'"):
        bundle.read("model/none")


@pytest.mark.parametrize("path", ["a", "model/fp32.onnx", "evidence/probes/0.png", "a-b_c.d"])
def test_plain_paths_are_allowed(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a//b", "../a", "a/..", "a/./b", "C:/a", "a\\b", ".git/a", "a/b/c/d", "a\n"]
)
def test_paths_that_leave_or_hide_are_refused(path: str) -> None:
    assert not is_inside(path)
