"""The manifest: what a bundle says of itself, as frozen values that round-trip through JSON."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from .encoding import Count, Positive, decode
from .errors import BundleError
from .preprocess import PreprocessSpec
from .proofs import Budget, Parity

FORMAT_VERSION = 1

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
RelativePath = Annotated[str, Meta(min_length=1, max_length=255)]


class InputSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network's one input: uint8 pixels as `preprocess` gives them, 0 to 255."""

    name: str
    height: Positive
    width: Positive
    channels: Literal[1, 3]
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"


class OutputSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network's one output: unnormalised logits, float32 (N, num_classes)."""

    name: str
    num_classes: Annotated[int, Meta(ge=2)]
    dtype: Literal["float32"] = "float32"


class Normalization(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Mean and standard deviation per channel, in units of [0, 1]. For the record: they run inside the graph."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


Method = Literal["minmax", "entropy", "percentile"]


class Quantization(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an int8 variant was made.

    Attributes:
        method: that set the activations' ranges, chosen on the selection half.
        calibration_images: that the ranges were measured on.
        reduce_range: whether weights have 7 bits, for CPUs whose 8-bit products saturate.
        symmetric: whether activations are int8 around zero, as TensorRT wants them; otherwise uint8.
        fp32_nodes: the graph's nodes that went back to fp32 so that the budget holds, in that order.
    """

    method: Method
    calibration_images: Positive
    reduce_range: bool
    symmetric: bool
    fp32_nodes: tuple[str, ...]


Status = Literal["certified", "uncertified", "unproved"]
Target = Literal["cpu", "cuda", "tensorrt"]
Need = Literal["vnni"]


class Variant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One precision of the network: its file, where it is meant to run, and what it proved.

    Attributes:
        targets: devices that it is meant for.
        needs: features of the CPU without which it decides otherwise; "vnni": products of 8 bits that do
            not saturate.
        opset, ir_version: of the ONNX file.
        temperature: its logits are divided by it before the softmax.
        status: "certified": it met its budget on one of its targets, and the images could carry that claim.
            "uncertified": it did not break its budget, but the images are too few to certify it, and the
            export was told to accept that. "unproved": none of its targets was there to run it; the
            runtime lets it run where it answers the probes as it should.
        status_reasons: why it is not certified, a phrase each.
        replay_tolerance: the largest logit difference, over the logits' scale, that `verify` allows on a probe.
        parities: what it proved, one for each device that ran it.
        quantization: None unless it is an int8 variant.
    """

    precision: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$")]
    file: RelativePath
    targets: Annotated[tuple[Target, ...], Meta(min_length=1)]
    needs: tuple[Need, ...]
    opset: Positive
    ir_version: Positive
    temperature: Annotated[float, Meta(gt=0.0)]
    status: Status
    status_reasons: tuple[str, ...]
    replay_tolerance: Annotated[float, Meta(gt=0.0, le=1.0)]
    budget: Budget
    parities: Annotated[tuple[Parity, ...], Meta(min_length=1)]
    quantization: Quantization | None

    @property
    def parity(self) -> Parity:
        """What it proved on the first device."""
        return self.parities[0]


class LeftOut(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A variant that was asked for and is not in the bundle, and why, a phrase each."""

    precision: str
    reasons: tuple[str, ...]


class Interop(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network for PyTorch's own loaders. The runtime never opens these."""

    format: Literal["torchscript", "pt2", "safetensors"]
    file: RelativePath
    parity: Parity | None


class Provenance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the network comes from. Never a local path.

    Attributes:
        source: what the export started from: a training run of shipnet's, weights of one's own, or an ONNX file.
        source_sha256: of the run's weights, or of that file.
        arch: as in `shipnet.train`; "onnx" for a foreign graph.
        data: the data set's name: a built-in's, or the folder's own name.
        data_fingerprint: sha256 over every image's name, label and bytes.
        unreadable_images: damaged ones, which neither trained nor validated.
        doubts: what speaks against network, labels or preprocessing as they were given, a sentence each, and was
            accepted when the bundle was made.
        train_images: that the network learned from; None: unknown, it was not trained here.
        recipe: the training configuration, whole; None like `seed` and `epochs` where it was not trained here.
        split_seed: the seed of the split into selection and evidence half.
        versions: of every library that had a part in it.
        git_commit: of the code that trained, where it ran from a checkout.
    """

    source: Literal["run", "weights", "onnx"]
    source_sha256: Sha256
    arch: str
    parameters: Positive
    data: str
    data_fingerprint: Sha256
    train_images: Positive | None
    validation_images: Positive
    unreadable_images: Count
    doubts: tuple[str, ...]
    recipe: dict[str, Any] | None
    seed: int | None
    split_seed: int
    epochs: Count | None
    versions: dict[str, str]
    git_commit: str | None


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of the bundle, `/`-separated below its folder."""

    path: RelativePath
    size_bytes: Count
    sha256: Sha256


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a reader needs to know, and nothing that depends on where the bundle lies."""

    format_version: int
    name: Annotated[str, Meta(min_length=1)]
    created_utc: str
    labels: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=2)]
    input: InputSpec
    preprocess: PreprocessSpec
    normalization: Normalization | None
    output: OutputSpec
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1)]
    left_out: tuple[LeftOut, ...]
    interop: tuple[Interop, ...]
    provenance: Provenance
    files: tuple[FileEntry, ...]

    def variant(self, precision: str) -> Variant:
        """The variant of that precision.

        Raises:
            BundleError: the bundle has no such variant; the message lists those it has.
        """
        for variant in self.variants:
            if variant.precision == precision:
                return variant
        have = ", ".join(variant.precision for variant in self.variants)
        raise BundleError(f"{self.name}: no variant of precision {precision!r} in this bundle; it has {have}")


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Reads `manifest.json`.

    Raises:
        BundleError: as `decode`; also a format version newer than this shipnet reads, and
            values that contradict each other (labels, output, input, variants, file list).
    """
    try:
        version = json.loads(data).get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where}: not a manifest: {error}") from error
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"{where}: format_version is {version}, this shipnet reads up to {FORMAT_VERSION}: "
            "run  pip install --upgrade shipnet"
        )
    if type(version) is not int or version < 1:
        raise BundleError(
            f"{where}: format_version is {version!r}, expected a number from 1 to {FORMAT_VERSION}"
        )
    manifest = decode(data, Manifest, where=where)
    problems = _contradictions(manifest)
    if problems:
        raise BundleError(f"{where}: " + "; ".join(problems))
    return manifest


def _contradictions(manifest: Manifest) -> list[str]:
    """What a manifest says that cannot all be true."""
    problems = []
    spec, network, labels = manifest.preprocess, manifest.input, manifest.labels
    if len(set(labels)) != len(labels):
        problems.append("labels: a label stands twice")
    if manifest.output.num_classes != len(labels):
        problems.append(
            f"output.num_classes is {manifest.output.num_classes}, but there are {len(labels)} labels"
        )
    if (spec.height, spec.width, spec.channels) != (network.height, network.width, network.channels):
        problems.append("input and preprocess disagree on height, width or channels")
    for field in ("mean", "std") if manifest.normalization else ():
        if len(getattr(manifest.normalization, field)) != network.channels:
            problems.append(f"normalization.{field}: expected one value per channel ({network.channels})")
    precisions = [variant.precision for variant in manifest.variants]
    if len(set(precisions)) != len(precisions):
        problems.append("variants: a precision stands twice")
    if "fp32" not in precisions:
        problems.append("variants: fp32 is missing")
    problems += [
        f"variants: {item.precision} is both there and left out"
        for item in manifest.left_out
        if item.precision in precisions
    ]
    problems += _path_problems(manifest)
    return problems


def _path_problems(manifest: Manifest) -> list[str]:
    paths = [entry.path for entry in manifest.files]
    problems = [
        f"files: {path!r} is not a plain path inside the bundle" for path in paths if not is_inside(path)
    ]
    if len({path.casefold() for path in paths}) != len(paths):
        problems.append("files: a path stands twice")
    named = [("model/", variant.file) for variant in manifest.variants]
    named += [("interop/", item.file) for item in manifest.interop]
    for folder, file in named:
        if not file.startswith(folder):
            problems.append(f"{file!r}: expected below {folder}")
        if file not in paths:
            problems.append(f"{file!r} is named but missing from files")
    return problems


def is_inside(path: str) -> bool:
    """Whether a manifest's path stays inside the bundle on every operating system."""
    parts = path.split("/")
    return all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", part) for part in parts) and len(parts) <= 3
