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
    """What an exported network may differ from the trained one before it is refused.

    Attributes:
        max_relative_difference: the largest absolute logit difference over the logits' scale.
        max_flip_rate: the share of images whose top-1 label may change.
    """

    max_relative_difference: Annotated[float, Meta(ge=0.0)]
    max_flip_rate: Fraction


class BatchParity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far logits at one batch size are from PyTorch's, on real images.

    Attributes:
        max_difference, mean_difference: of absolute logit differences.
        max_relative_difference: `max_difference` over the largest absolute logit of the reference.
        not_finite: logits that are NaN or infinite.
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


class Parity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one exported file proved against the trained network in PyTorch.

    Attributes:
        batches: logits at each batch size that was tried.
        images: validation images compared for their decision.
        flips: how many of them got another top-1 label.
        accuracy: of the exported file on the evidence half of the validation images.
        reference_accuracy: of the trained network on the same images.
    """

    batches: tuple[BatchParity, ...]
    images: Positive
    flips: Count
    top1_agreement: Fraction
    accuracy: Accuracy
    reference_accuracy: Accuracy


class Variant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One precision of the network: its file, where it is meant to run, and what it proved."""

    precision: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$")]
    file: RelativePath
    targets: tuple[Literal["cpu", "cuda", "tensorrt"], ...]
    opset: Positive
    ir_version: Positive
    budget: Budget
    parity: Parity


class Interop(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network for PyTorch's own loaders. The runtime never opens these."""

    format: Literal["torchscript", "pt2", "safetensors"]
    file: RelativePath
    parity: Parity | None


class Provenance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the network comes from. Never a local path.

    Attributes:
        data: the data set's name: a built-in's, or the folder's own name.
        data_fingerprint: sha256 over every image's name, label and bytes.
        unreadable_images: damaged ones, which neither trained nor validated.
        recipe: the training configuration, whole.
        split_seed: the seed of the split into selection and evidence half.
        versions: of every library that had a part in it.
        git_commit: of the code that trained, where it ran from a checkout.
    """

    arch: str
    parameters: Positive
    data: str
    data_fingerprint: Sha256
    train_images: Positive
    validation_images: Positive
    unreadable_images: Count
    recipe: dict[str, Any]
    seed: int
    split_seed: int
    epochs: Count
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
    normalization: Normalization
    output: OutputSpec
    temperature: Annotated[float, Meta(gt=0.0)]
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1)]
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
    for field in ("mean", "std"):
        if len(getattr(manifest.normalization, field)) != network.channels:
            problems.append(f"normalization.{field}: expected one value per channel ({network.channels})")
    precisions = [variant.precision for variant in manifest.variants]
    if len(set(precisions)) != len(precisions):
        problems.append("variants: a precision stands twice")
    if "fp32" not in precisions:
        problems.append("variants: fp32 is missing")
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
