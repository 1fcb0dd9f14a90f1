"""Weights of one's own, for an architecture of shipnet's, become a `Source`."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shipnet.runtime import Bundle
from shipnet.runtime.errors import UsageError
from shipnet.runtime.signing import Signer
from shipnet.train import Deployable
from shipnet.train.architectures import build
from shipnet.train.config import SMALL_NETS, check_name
from shipnet.train.finetune import head_name
from shipnet.train.run import encode_weights
from shipnet.train.weights import (
    WeightsError,
    check_state,
    read_state,
    refuse_other_tensors,
    torchvision_entry,
    torchvision_file,
)

from .build import export_source, refuse_strangers
from .config import ExportConfig
from .foreign import Network, OnNote, Told, default_out, source_of
from .foreign_config import ForeignConfig
from .foreign_preprocess import IMAGENET, SMALL_SIDE, Input, Preset, choose_preprocess, torchvision_preset
from .onnx_graph import to_onnx
from .source import OnProgress, Source
from .torch_formats import as_function

# Keys below which training loops keep the state dict, and prefixes that wrappers put before its names.
_KEYS: Final = ("state_dict", "model_state_dict", "model", "net")
_AVERAGES: Final = ("model_ema", "state_dict_ema", "ema", "ema_state_dict")
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.")
_TORCHVISION: Final = re.compile(r"torchvision:(?P<entry>\w+)|(?P<enum>\w+_Weights\.\w+)")


def export_weights(
    weights: str | os.PathLike[str],
    foreign: ForeignConfig,
    *,
    config: ExportConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    on_note: OnNote | None = None,
    on_progress: OnProgress | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Turns weights that were not trained here into a sealed bundle, with the proofs of `export`.

    Args:
        weights: a safetensors file, what `torch.save(model.state_dict())` wrote, or an entry of torchvision's, as
            "torchvision:IMAGENET1K_V2" or "ResNet50_Weights.IMAGENET1K_V2".
        foreign: labels, validation images and preprocessing; `arch` must be there.
        config: options; its `data` and `data_root` have no meaning here.
        out: where the bundle will stand; None: `artifacts/NAME/bundle`, NAME as in `config`, or the file's own.
        on_note: called with what was found or chosen, a sentence each; None: they are logged.
        on_progress: as in `export`.
        sign_key: as in `export`.

    Raises:
        WeightsError: they cannot be had or read safely, or are another network's.
        DataError: labels or images do not go with the network.
        UsageError: options that contradict each other.
        ParityError, BundleError, OutputError: as `export`.

    Example:
        >>> from shipnet.export import ForeignConfig, export_weights, read_labels
        >>> foreign = ForeignConfig(labels=read_labels("labels.txt"), val="photos/val", arch="resnet50")
        >>> bundle = export_weights("mine.safetensors", foreign)
    """
    options, told = config or ExportConfig(), Told.of(on_note, on_progress)
    if (arch := foreign.arch) is None:
        raise UsageError("arch: weights alone do not say which network they are for: give it")
    file = _find(os.fspath(weights), arch)
    name = options.name or file.name
    target = Path(out) if out is not None else default_out(name)
    refuse_strangers(target)
    signer = Signer.load(sign_key) if sign_key is not None else None
    source = _source(file, foreign, arch=arch, name=name, told=told)
    return export_source(source, options, out=target, on_progress=told.progress, signer=signer)


@dataclass(frozen=True, slots=True)
class _File:
    """Weights that were found.

    Attributes:
        name: of the bundle, unless it is given one.
        preset: torchvision's, where the file is one of its own.
    """

    path: Path
    sha256: str
    name: str
    preset: Preset | None


def _find(weights: str, arch: str) -> _File:
    matched = _TORCHVISION.fullmatch(weights)
    if matched:
        entry = _torchvision(matched, arch)
        path, name = torchvision_file(entry), arch
    else:
        path, entry = Path(weights), None
        _refuse_no_file(path)
        name = path.stem
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = torchvision_entry(arch, digest)
    if entry is not None and known is not entry:
        raise WeightsError(
            f"{path}: is not the file that torchvision published as {entry} (its sha256 begins {digest[:8]}): "
            "remove it, and it is downloaded again, or give it as --weights FILE"
        )
    return _File(path, digest, name, torchvision_preset(known) if known else None)


def _refuse_no_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; for a run of shipnet's:  shipnet export {path}")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected safetensors, or what torch.save wrote")
    if path.suffix.lower() == ".onnx":
        raise UsageError(f"{path}: is an ONNX file: give it with --onnx instead of --weights")


def _torchvision(matched: re.Match[str], arch: str) -> Any:
    """The entry of torchvision's for the architecture."""
    from torchvision.models import get_model_weights

    if arch in SMALL_NETS:
        raise UsageError(f"weights {matched[0]!r}: torchvision has none for {arch}: choose a ResNet")
    entries = {entry.name: entry for entry in get_model_weights(arch)}
    names = {**entries, "DEFAULT": get_model_weights(arch).DEFAULT}
    wanted = matched["entry"] or matched["enum"].partition(".")[2]
    owner = type(names["DEFAULT"]).__name__
    if matched["enum"] and not matched[0].startswith(f"{owner}."):
        raise UsageError(
            f"weights {matched[0]!r}: torchvision's for {arch} are {owner}: give the other --arch"
        )
    check_name("weights", wanted, tuple(names))
    return names[wanted]


def _source(file: _File, foreign: ForeignConfig, *, arch: str, name: str, told: Told) -> Source:
    if foreign.layout is not None:
        raise UsageError("layout: is for ONNX graphs; weights have none: leave it out")
    state = _unwrap(read_state(file.path), file.path, note=told.note)
    photographs = arch not in SMALL_NETS and (foreign.image_size or SMALL_SIDE) >= SMALL_SIDE
    channels = _channels(state, foreign, file.path)
    spec, normalization, sentence = choose_preprocess(
        foreign, Input(channels=channels, photographs=photographs), file.preset or IMAGENET
    )
    told.note(sentence)
    assert normalization is not None  # pixels of weights are always normalised
    net = build(arch, channels=channels, num_classes=len(foreign.labels), image_size=spec.height)
    _load(net, state, where=file.path.name, arch=arch, classes=len(foreign.labels))
    network = Deployable(net, normalization.mean, normalization.std).eval()
    found = Network(
        kind="weights",
        where=file.path.name,
        sha256=file.sha256,
        arch=arch,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        spec=spec,
        normalization=normalization,
        reference=as_function(network),
        network=network,
        to_onnx=lambda images, metadata: to_onnx(network, images, metadata=metadata),
        weights=encode_weights(net.state_dict()),
    )
    return source_of(found, foreign, name=name, told=told)


def _unwrap(content: object, path: Path, *, note: OnNote) -> dict[str, Tensor]:
    """The state dict inside what training loops and wrappers put around it."""
    if isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        inside = [key for key in (*_KEYS, *_AVERAGES) if isinstance(content.get(key), dict)]
        if len(inside) > 1:
            raise WeightsError(
                f"{path}: holds several networks ({', '.join(inside)}): save the state dict of the one that was "
                f"validated alone, such as  torch.save(torch.load({path.name!r})[{inside[0]!r}], 'weights.pth')"
            )
        if inside and inside[0] in _KEYS:
            others = [str(key) for key in content if key != inside[0]]
            note(f"{path.name}: takes {inside[0]!r}" + (f", not {', '.join(others)}" if others else ""))
            content = content[inside[0]]
    state = check_state(content, where=path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            note(f"{path.name}: takes {prefix!r} off the names of its tensors")
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    other = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()
                    if tensor.is_floating_point() and tensor.dtype != torch.float32})  # fmt: skip
    if other:
        note(f"{path.name}: holds {', '.join(other)} weights, which are validated and shipped as float32")
    return state


def _channels(state: dict[str, Tensor], foreign: ForeignConfig, path: Path) -> int:
    """Of the first convolution; what was asked for must agree."""
    stem = next((tensor for tensor in state.values() if tensor.ndim == 4), None)
    found = foreign.channels or 3 if stem is None else stem.shape[1]
    if foreign.channels not in (None, found):
        raise UsageError(
            f"channels is {foreign.channels}, but {path.name} begins with a convolution over {found}: leave it out"
        )
    if found not in (1, 3):
        raise WeightsError(f"{path.name}: begins with a convolution over {found} channels; expected 1 or 3")
    return found


def _load(net: nn.Module, state: dict[str, Tensor], *, where: str, arch: str, classes: int) -> None:
    """Gives a network its weights, all of them, or names what differs."""
    own, head = net.state_dict(), head_name(net) + "."
    for name, tensor in own.items():
        if name.endswith(
            ".num_batches_tracked"
        ):  # inference uses none; files of old versions of torch have none
            state.setdefault(name, torch.zeros_like(tensor))
        theirs = state.get(name)
        if (
            name.startswith(head)
            and theirs is not None
            and theirs.shape[1:] == tensor.shape[1:]
            and theirs.shape[:1] != tensor.shape[:1]
        ):
            raise WeightsError(
                f"{where}: {name} is for {theirs.shape[0]} classes, but there are {classes} labels: "
                f"give a label for each of the {theirs.shape[0]} outputs, in their order"
            )
    refuse_other_tensors(state, own, where=where, arch=arch)
    net.load_state_dict(state)
