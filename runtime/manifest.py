"""The manifest: what a bundle says of itself, as frozen values that round-trip through JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from .errors import BundleError
from .preprocess import PreprocessSpec

FORMAT_VERSION = 1

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
RelativePath = Annotated[str, Meta(min_length=1, max_length=255)]
Value = TypeVar("Value", bound=Struct)


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


class Budget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an exported network may differ from the validated one before it is refused.

    Attributes:
        max_relative_difference: the largest absolute logit difference over the logits' scale; None: not
            held, because the precision changes logits by its nature.
        max_flip_rate: the share of images whose top-1 label may change. Zero holds the very images that
            were compared; above zero it is a claim on images like them, so the interval's upper end must hold it.
        max_top1_drop: the share of images by which accuracy may fall, held in the same way.
    """

    max_relative_difference: Annotated[float, Meta(ge=0.0)] | None
    max_flip_rate: Fraction
    max_top1_drop: Fraction


class BatchParity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far logits at one batch size are from PyTorch's, on real images.

    Attributes:
        max_difference, mean_difference: of absolute logit differences.
        max_relative_difference: `max_difference` over the largest absolute logit of the reference.
        not_finite: logits that are NaN or infinite; their difference counts as the largest float32.
        flips: images whose top-1 label differs.
    """

    batch_size: Positive
    images: Positive
    max_difference: float
    mean_difference: float
    max_relative_difference: float
    not_finite: Count
    flips: Count


class Accuracy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Top-1 accuracy with a 95 % Wilson score interval."""

    images: Positive
    correct: Count
    accuracy: Fraction
    low: Fraction
    high: Fraction


class Interval(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Decisions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an exported file decides on images of the evidence half, beside the validated network.

    Attributes:
        images: of the evidence half.
        lost: right before, wrong now.
        gained: wrong before, right now.
        other: wrong before and now, with another label.
        flip_rate: the share of all three, with a Wilson interval.
        top1_drop: the accuracy lost, `(lost - gained) / images`, with Tango's interval for paired shares.
        largest_flip_margin: of the flipped images the largest distance between the validated network's
            two highest logits, over the logits' scale; 0 without flips.
    """

    images: Positive
    lost: Count
    gained: Count
    other: Count
    flip_rate: Interval
    top1_drop: Interval
    largest_flip_margin: float


class Differences(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantiles, over the images compared, of an image's largest absolute logit difference.

    Attributes:
        scale: the largest absolute logit of the validated network.
        not_finite: logits that are NaN or infinite; an image with one counts as the largest float32.
    """

    median: float
    p90: float
    p99: float
    max: float
    scale: float
    not_finite: Count


class Invariance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether an image's logits depend on what else is in its batch, and on its place there.

    Attributes:
        batch_sizes: that were tried, each with every image at every place.
        images: how many.
        max_relative_difference: to the image alone, over the logits' scale.
        flips: images that got another label at some place.
    """

    batch_sizes: tuple[int, ...]
    images: Positive
    max_relative_difference: float
    flips: Count


class Parity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one exported file proved on one device against the validated network.

    Attributes:
        device: on which the file ran.
        batches: logits at each batch size that was tried.
        images: validation images compared for their decision.
        flips: how many of them got another top-1 label.
        accuracy: of the exported file on the evidence half of the validation images.
        reference_accuracy: of the validated network on the same images.
        decisions: on the evidence half, in detail.
        differences: over all images compared.
        invariance: None where the file was run by PyTorch's loaders.
    """

    device: str
    batches: tuple[BatchParity, ...]
    images: Positive
    flips: Count
    top1_agreement: Fraction
    accuracy: Accuracy
    reference_accuracy: Accuracy
    decisions: Decisions
    differences: Differences
    invariance: Invariance | None


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


def encode(value: Struct) -> bytes:
    """A value as indented JSON that ends with a newline.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot say.
    """
    builtins = msgspec.to_builtins(value)
    _refuse_not_finite(builtins, "$")
    return msgspec.json.format(msgspec.json.encode(builtins), indent=2) + b"\n"


def decode(data: bytes, kind: type[Value], *, where: str) -> Value:
    """Reads a value from JSON, refusing what its type does not allow.

    Args:
        data: UTF-8 JSON.
        kind: the Struct to read; unknown and missing fields are refused by name.
        where: the file's name, for messages.

    Raises:
        BundleError: not JSON, a key twice, a field unknown, missing or of another type.
    """
    try:
        plain = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        return msgspec.convert(plain, kind)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        raise BundleError(f"{where}: {error}") from error


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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _refuse_not_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot say")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_not_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_not_finite(item, f"{where}[{index}]")
