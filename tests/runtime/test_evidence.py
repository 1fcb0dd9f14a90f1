"""Evidence that is not what the format allows is refused by name, also where somebody sealed it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shipnet.export.assemble import list_files, seal
from shipnet.export.probes import pack
from shipnet.runtime import Bundle, BundleError, preprocess
from shipnet.runtime.evidence import (
    INDEX,
    LOGITS,
    TENSORS,
    Probes,
    answers,
    load_probes,
    logit_scale,
    tensor_sha256,
)
from shipnet.runtime.manifest import decode_manifest

Arrays = dict[str, NDArray[Any]]


def reseal(bundle: Path) -> Bundle:
    manifest = decode_manifest((bundle / "manifest.json").read_bytes(), where="manifest")
    seal(bundle, msgspec.structs.replace(manifest, files=list_files(bundle)))
    return Bundle.open(bundle)


def loaded(bundle: Path) -> Probes:
    probes = load_probes(Bundle.open(bundle))
    assert probes is not None
    return probes


def arrays_of(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_what_is_read_is_what_the_files_are(digits_bundle: Path) -> None:
    probes = loaded(digits_bundle)
    manifest = Bundle.open(digits_bundle).manifest
    count = len(probes)
    assert count >= 32
    assert (probes.tensors.dtype, probes.tensors.shape) == (np.dtype(np.uint8), (count, 8, 8, 1))
    assert {name: (a.dtype, a.shape) for name, a in probes.logits.items()} == {
        "fp32": (np.float32, (count, 10))
    }
    for probe, tensor in zip(probes.index.probes, probes.tensors, strict=True):
        data = (digits_bundle / probe.file).read_bytes()
        assert np.array_equal(preprocess(data, manifest.preprocess), tensor)
        assert probe.tensor_sha256 == tensor_sha256(tensor)
    said = [probe.answers[0].label for probe in probes.index.probes]
    assert said == [manifest.labels[place] for place in probes.logits["fp32"].argmax(1)]


def test_a_copy_without_evidence_has_no_probes(bundle_copy: Path) -> None:
    shutil.rmtree(bundle_copy / "evidence")
    assert load_probes(Bundle.open(bundle_copy)) is None


def member(name: str, data: bytes) -> bytes:
    """A zip with one file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy(
    array: NDArray[Any], *, version: tuple[int, int] = (1, 0), claimed: tuple[int, ...] | None = None
) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    data = stream.getvalue()
    if claimed is not None:
        data = data.replace(str(array.shape).encode(), str(claimed).encode().ljust(len(str(array.shape))))
    return data


def twice(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(2):
            archive.writestr("tensors.npy", npy(arrays["tensors"]))
    return stream.getvalue()


def encrypted(arrays: Arrays) -> bytes:
    data = bytearray(member("tensors.npy", npy(arrays["tensors"])))
    (directory,) = struct.unpack_from("<I", data, len(data) - 6)
    for place in (6, directory + 8):
        data[place] |= 1
    return bytes(data)


class Opens:
    """What a pickle does when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def tensors(arrays: Arrays) -> NDArray[Any]:
    return arrays["tensors"]


WRONG_TENSORS: dict[str, tuple[Callable[[Arrays], bytes], str]] = {
    "no array": (lambda a: pack({}), r"holds nothing, expected tensors\.npy"),
    "another name": (lambda a: pack({"other": tensors(a)}), r"holds other\.npy, expected tensors\.npy"),
    "one too many": (
        lambda a: pack({**a, "more": tensors(a)}),
        r"holds tensors\.npy, more\.npy, expected tensors\.npy",
    ),
    "a name that breaks lines": (
        lambda a: member("a\n.npy", b""),
        r"holds 'a\\n\.npy', expected tensors\.npy",
    ),
    "another type": (
        lambda a: pack({"tensors": tensors(a).astype(np.int8)}),  # type: ignore[dict-item]
        r"tensors is int8 \(\d+, 8, 8, 1\), expected uint8 \(\d+, 8, 8, 1\)",
    ),
    "another shape": (
        lambda a: pack({"tensors": tensors(a)[:, :, :, 0]}),
        r"tensors is uint8 \(\d+, 8, 8\), expected uint8 \(\d+, 8, 8, 1\)",
    ),
    "one probe fewer": (
        lambda a: pack({"tensors": tensors(a)[:-1]}),
        r"tensors is uint8 \(\d+, 8, 8, 1\), expected",
    ),
    "a bomb": (
        lambda a: pack({"tensors": np.zeros(1 << 26, np.uint8)}),
        r"tensors: is larger than uint8 \(\d+, 8, 8, 1\)",
    ),
    "a header that claims more": (
        lambda a: member("tensors.npy", npy(tensors(a).ravel(), claimed=(1 << 44,))),
        r"tensors is uint8 \(17592186044416,\), expected uint8",
    ),
    "cut short": (
        lambda a: member("tensors.npy", npy(tensors(a))[:-5]),
        r"tensors: holds [\d,]+ bytes, expected [\d,]+",
    ),
    "bytes behind it": (
        lambda a: member("tensors.npy", npy(tensors(a)) + b"hidden"),
        r"tensors: holds [\d,]+ bytes, expected [\d,]+",
    ),
    "no npy": (lambda a: member("tensors.npy", b"hello"), "cannot be read: ValueError"),
    "a newer npy": (
        lambda a: member("tensors.npy", npy(tensors(a), version=(2, 0))),
        r"tensors\.npy is of another version than 1\.0",
    ),
    "a pickle": (
        lambda a: member("tensors.npy", npy(np.array([Opens()], object))),
        r"tensors is object \(1,\), expected uint8",
    ),
    "a bare pickle": (lambda a: pickle.dumps(Opens()), "cannot be read: BadZipFile"),
    "twice": (twice, r"holds tensors\.npy, tensors\.npy, expected tensors\.npy"),
    "encrypted": (encrypted, "cannot be read: RuntimeError: .*encrypted"),
    "no zip": (lambda a: b"noise", "cannot be read: BadZipFile: File is not a zip file"),
    "empty": (lambda a: b"", "cannot be read: BadZipFile"),
    "other pixels": (
        lambda a: pack({"tensors": tensors(a) ^ np.uint8(1)}),
        r"the tensor of 000-image is not the one that evidence/probes\.json names",
    ),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_tensors_that_the_format_does_not_allow_are_named(bundle_copy: Path, kind: str) -> None:
    make, message = WRONG_TENSORS[kind]
    (bundle_copy / TENSORS).write_bytes(make(arrays_of(bundle_copy / TENSORS)))
    bundle = reseal(bundle_copy)
    with pytest.raises(BundleError, match=message) as caught:
        load_probes(bundle)
    assert str(bundle_copy / TENSORS) in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_order_of_axes_in_memory_does_not_matter(bundle_copy: Path) -> None:
    before = loaded(bundle_copy).tensors
    (bundle_copy / TENSORS).write_bytes(member("tensors.npy", npy(np.asfortranarray(before))))
    reseal(bundle_copy)
    assert np.array_equal(loaded(bundle_copy).tensors, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["fp32"].__setitem__((3, 2), np.nan), "fp32 has NaN or infinite logits"),
        (lambda a: a["fp32"].__setitem__((3, 2), np.inf), "fp32 has NaN or infinite logits"),
        (lambda a: a.update(fp16=a["fp32"]), r"holds fp32\.npy, fp16\.npy, expected fp32\.npy"),
        (lambda a: a.update(fp16=a.pop("fp32")), r"holds fp16\.npy, expected fp32\.npy"),
        (lambda a: a.update(fp32=a["fp32"].astype(np.float64)), r"fp32 is float64 .*, expected float32"),
        (
            lambda a: a.update(fp32=a["fp32"][:, :-1]),
            r"fp32 is float32 \(\d+, 9\), expected float32 \(\d+, 10\)",
        ),
        (
            lambda a: a.update(fp32=-a["fp32"]),
            r"000-image: fp32 is said to decide '\d' by \S+, but by evidence/logits\.npz it decides '\d' by",
        ),
        (
            lambda a: a["fp32"].__setitem__(slice(0, 1), a["fp32"][:1] * 0.9),
            "000-image: fp32 is said to decide",
        ),
    ],
)
def test_logits_that_the_format_does_not_allow_are_named(
    bundle_copy: Path, change: Callable[[Arrays], None], message: str
) -> None:
    arrays = arrays_of(bundle_copy / LOGITS)
    change(arrays)
    (bundle_copy / LOGITS).write_bytes(pack(arrays))
    bundle = reseal(bundle_copy)
    with pytest.raises(BundleError, match=message):
        load_probes(bundle)


def first(index: dict[str, Any]) -> dict[str, Any]:
    return index["probes"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(surprise=1), "unknown field `surprise`"),
        (lambda i: i.pop("origin"), "missing required field `origin`"),
        (lambda i: i.update(origin="guessed"), "Invalid enum value 'guessed'"),
        (lambda i: i.update(probes=[]), r"length >= 1.*probes"),
        (lambda i: first(i).update(surprise=1), r"unknown field `surprise`.*probes\[0\]"),
        (lambda i: first(i).update(name="../x"), r"matching regex.*probes\[0\]\.name"),
        (lambda i: i["probes"][1].update(name=first(i)["name"]), "probes: a name stands twice"),
        (
            lambda i: first(i).update(file="../../../etc/passwd"),
            r"000-image: '\.\./\.\./\.\./etc/passwd' is no file of this bundle below evidence/probes/",
        ),
        (
            lambda i: first(i).update(file="model/fp32.onnx"),
            "'model/fp32.onnx' is no file of this bundle below",
        ),
        (lambda i: first(i).update(answers=[]), "000-image: answers of no variant, expected fp32"),
        (
            lambda i: first(i)["answers"][0].update(precision="fp16"),
            "000-image: answers of fp16, expected fp32",
        ),
        (
            lambda i: first(i)["answers"].append(first(i)["answers"][0]),
            "answers of fp32, fp32, expected fp32",
        ),
        (
            lambda i: first(i)["answers"][0].update(label="none"),
            "000-image: fp32 is said to decide 'none' by",
        ),
        (
            lambda i: first(i)["answers"][0].update(margin=0.99),
            r"000-image: fp32 is said to decide '\d' by 0\.99",
        ),
        (lambda i: first(i)["answers"][0].update(margin=-1.0), r"`float` >= 0\.0.*margin"),
        (lambda i: first(i).update(tensor_sha256="0" * 64), "the tensor of 000-image is not the one"),
        (lambda i: i["probes"].pop(), r"expected uint8 \(\d+, 8, 8, 1\)"),
    ],
)
def test_an_index_that_the_format_does_not_allow_is_named(
    bundle_copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    index = json.loads((bundle_copy / INDEX).read_text())
    change(index)
    (bundle_copy / INDEX).write_text(json.dumps(index))
    bundle = reseal(bundle_copy)
    with pytest.raises(BundleError, match=message):
        load_probes(bundle)


def test_an_index_that_is_no_json_is_named(bundle_copy: Path) -> None:
    for text in ("", "{", "[" * 100_000, '{"origin": "real", "origin": "real"}', '{"origin": NaN}'):
        (bundle_copy / INDEX).write_text(text)
        bundle = reseal(bundle_copy)
        with pytest.raises(BundleError, match=r"evidence/probes\.json: "):
            load_probes(bundle)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_bytes_are_refused_or_say_the_same(bundle_copy: Path, data: st.DataObject) -> None:
    """No error but ours comes out of the readers of zip and npy, wherever a byte differs."""
    name = data.draw(st.sampled_from([TENSORS, LOGITS]))
    original = (bundle_copy / name).read_bytes()
    before = loaded(bundle_copy)
    place = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[place] ^= data.draw(st.integers(1, 255))
    (bundle_copy / name).write_bytes(changed)
    try:
        found = load_probes(reseal(bundle_copy))
    except BundleError as error:
        assert name in str(error)
    else:
        assert found is not None
        assert np.array_equal(found.tensors, before.tensors)
        assert np.allclose(found.logits["fp32"], before.logits["fp32"])
    finally:
        (bundle_copy / name).write_bytes(original)
        reseal(bundle_copy)


def test_answers_of_equal_logits_and_of_zeros() -> None:
    logits = np.array([[1.0, 1.0, 0.0], [0.0, -2.0, 2.0]], np.float32)
    first, second = answers("fp32", logits, ("a", "b", "c"))
    assert (first.label, first.margin) == ("a", 0.0)
    assert (second.label, second.margin) == ("c", 1.0)
    (only,) = answers("fp32", np.zeros((1, 2), np.float32), ("a", "b"))
    assert (only.label, only.margin) == ("a", 0.0)
    assert logit_scale(np.zeros((1, 2), np.float32)) > 0
