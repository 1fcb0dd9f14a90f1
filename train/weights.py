"""Weights that training starts from: torchvision's, a file, or a run of our own."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shipnet.runtime.errors import ShipnetError, UsageError

from .architectures import FULL_STEM_FROM
from .config import SMALL_NETS, TrainConfig
from .finetune import head_name
from .run import load_run

Statistics = tuple[float, ...] | None
_SHOWN = 4  # tensors that differ, before "and N more"
_CODE = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")  # in torch's refusal of a pickle


class WeightsError(ShipnetError):
    """Weights that cannot be had, cannot be read, or are not those of the network."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights come from, and what is known of them before they are read.

    Attributes:
        name: for people; no path.
        path: of the file; None: torchvision's cache.
        sha256: of the file; None where torchvision keeps it.
        arch: the architecture, where it is known.
        labels: the classes' names, where they are known.
        mean, std: as their training normalised, where that is known.
    """

    name: str
    path: Path | None = None
    sha256: str | None = None
    arch: str | None = None
    labels: tuple[str, ...] | None = None
    mean: Statistics = None
    std: Statistics = None


def find_weights(config: TrainConfig) -> Origin:
    """Looks for the weights that a configuration names, without reading or downloading them.

    Raises:
        UsageError: torchvision has none for the architecture.
        WeightsError: no such file, or another one than the configuration's sha256 names.
        RunError: a folder that is no run.
    """
    if config.weights is None:
        return _torchvision_origin(config.arch or "resnet18")
    path = Path(config.weights)
    if path.is_dir():
        run = load_run(path)
        record = run.record
        origin = Origin(
            name=f"the run {record.data}, {record.arch}",
            path=run.weights_path,
            sha256=record.weights_sha256,
            arch=record.arch,
            labels=record.labels,
            mean=record.mean,
            std=record.std,
        )
    elif path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        mean, std = _known_statistics(config.arch, digest)
        origin = Origin(name=path.name, path=path, sha256=digest, mean=mean, std=std)
    else:
        raise WeightsError(
            f"weights {config.weights!r}: no such file; expected weights or the folder of a run"
        )
    if config.weights_sha256 not in (None, origin.sha256):
        raise WeightsError(
            f"{path}: its sha256 is {str(origin.sha256)[:12]}, but the configuration names "
            f"{str(config.weights_sha256)[:12]}: give the file that it was made with"
        )
    return origin


def load_weights(net: nn.Module, config: TrainConfig, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Gives a network the weights that a configuration names; the head stays fresh where the classes differ.

    Args:
        net: of `config.arch`, with fresh weights.
        config: as `recipe.resolve` gives it.
        labels: the classes' names.

    Returns:
        What was done, a sentence each.

    Raises:
        WeightsError: they cannot be had or read, or are another network's.
    """
    origin = find_weights(config)
    arch = str(config.arch)
    state = read_weights(origin.path or torchvision_file(_default_weights(arch)))
    own, head = net.state_dict(), head_name(net) + "."
    done = [f"starts from the weights of {origin.name}"]
    if _sum_over_rgb(state, own):
        done.append("the images are grey: the stem's weights for red, green and blue are summed")
    other_classes = origin.labels is not None and origin.labels != labels
    if other_classes or not _same_classes(state, own, head):
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        state |= {name: tensor for name, tensor in own.items() if name.startswith(head)}
        done.append(f"the head is fresh: it is for {len(labels)} other classes")
    for name, tensor in own.items():
        if name.endswith(".num_batches_tracked"):  # files of old versions of torch have none
            state.setdefault(name, torch.zeros_like(tensor))
    refuse_other_tensors(state, own, where=origin.name, arch=arch)
    net.load_state_dict(state)
    return tuple(done)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or from what `torch.save` wrote; no code in it is run.

    Raises:
        WeightsError: neither of them, or something else than names and tensors of finite numbers.
    """
    return check_state(read_state(path), where=path)


def read_state(path: Path) -> object:
    """What a safetensors file holds, or what `torch.save` wrote, whatever that is; no code in it is run.

    Raises:
        WeightsError: neither of them, or one that cannot be read without running code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused in the next moment
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        if code := _CODE.search(str(error)):
            reason = f"beside tensors it holds {code[1]}, which is code, and code in a file is never run"
        raise WeightsError(
            f"{path}: no weights that can be read safely: {reason}: save model.state_dict() as safetensors"
        ) from error


def check_state(state: object, *, where: Path) -> dict[str, Tensor]:
    """A state dict, of finite numbers.

    Raises:
        WeightsError: it is something else.
    """
    if (
        not isinstance(state, dict)
        or not all(isinstance(value, Tensor) for value in state.values())
        or not state
    ):
        raise WeightsError(
            f"{where}: holds {_describe(state)}, not a state dict of names and tensors: save model.state_dict()"
        )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{where}: {name} holds numbers that are not finite")
    return dict(state)


def statistics_for(values: Statistics, channels: int) -> Statistics:
    """Means or standard deviations of weights for images of `channels`; grey takes the mean over RGB.

    None where there are none, or none that fit.
    """
    if values is None or len(values) == channels:
        return values
    return (round(sum(values) / len(values), 6),) if channels == 1 else None


def _torchvision_origin(arch: str) -> Origin:
    weights = _default_weights(arch)
    preset = weights.transforms()
    return Origin(
        name=f"{arch}, torchvision's {weights.name}",
        arch=arch,
        labels=tuple(weights.meta["categories"]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _default_weights(arch: str) -> Any:
    from torchvision.models import get_model_weights

    if arch in SMALL_NETS:
        raise UsageError(
            f"pretrained: torchvision has no weights for {arch}: choose a ResNet, or give --weights FILE"
        )
    return get_model_weights(arch).DEFAULT


def torchvision_entry(arch: str | None, digest: str) -> Any:
    """The entry of torchvision's for an architecture that a file is, by its sha256; None where it is none.

    Torchvision's files end their names in the start of their sha256.
    """
    from torchvision.models import get_model_weights

    for weights in get_model_weights(arch) if arch and arch not in SMALL_NETS else ():
        if digest.startswith(Path(weights.url).stem.rpartition("-")[2]):
            return weights
    return None


def _known_statistics(arch: str | None, digest: str) -> tuple[Statistics, Statistics]:
    weights = torchvision_entry(arch, digest)
    if weights is None:
        return None, None
    return tuple(weights.transforms().mean), tuple(weights.transforms().std)


def torchvision_file(weights: Any) -> Path:
    """The file of an entry of torchvision's, from its cache, else downloaded into it and checked.

    Raises:
        WeightsError: it is not there and cannot be downloaded.
    """
    cached: Path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            expected = cached.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(weights.url, str(cached), expected, progress=False)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"{weights.url} cannot be downloaded: {error}: lay the file at {cached} by hand, or give weights of "
                "your own with --weights FILE"
            ) from error
    return cached


def _sum_over_rgb(state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Makes an RGB stem a grey one: a grey image has three equal channels, whose responses add up."""
    stem = next(iter(own))
    theirs, ours = state.get(stem), own[stem]
    if theirs is None or theirs.ndim != 4 or (theirs.shape[1], ours.shape[1]) != (3, 1):
        return False
    state[stem] = theirs.sum(1, keepdim=True)
    return True


def _same_classes(state: dict[str, Tensor], own: dict[str, Tensor], head: str) -> bool:
    """Whether the head can be kept: False where it differs in the number of classes alone, or is left out."""
    theirs = {name: tensor.shape for name, tensor in state.items() if name.startswith(head)}
    ours = {name: tensor.shape for name, tensor in own.items() if name.startswith(head)}
    if not theirs:
        return False
    same_but_classes = theirs.keys() <= ours.keys() and all(
        shape[1:] == ours[name][1:] for name, shape in theirs.items()
    )
    return not same_but_classes or all(shape == ours[name] for name, shape in theirs.items())


def refuse_other_tensors(state: dict[str, Tensor], own: dict[str, Tensor], *, where: str, arch: str) -> None:
    """Names what differs between a file's tensors and a network's.

    Raises:
        WeightsError: something does.
    """
    found = [f"{name} is missing" for name in own if name not in state]
    found += [f"{name} is none of its tensors" for name in state if name not in own]
    found += [
        f"{name} is {_shape(state[name].shape)}, expected {_shape(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if not found:
        return
    stem = next(iter(own))
    sides = [tuple(tensors[stem].shape[2:]) if stem in tensors else () for tensors in (state, own)]
    if sides == [(7, 7), (3, 3)]:
        advice = f"images below {FULL_STEM_FROM} pixels take a 3x3 stem: give --image-size {FULL_STEM_FROM} or more"
    elif sides == [(3, 3), (7, 7)]:
        advice = f"they have the 3x3 stem of images below {FULL_STEM_FROM} pixels: give such an --image-size"
    else:
        advice = "give the --arch that they were trained with"
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise WeightsError(
        f"{where}: not the weights of this {arch}: {'; '.join(found[:_SHOWN])}{more}: {advice}"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _describe(state: object) -> str:
    if isinstance(state, dict):
        kinds = (f"{name!r} ({type(value).__name__})" for name, value in list(state.items())[:_SHOWN])
        return f"a dict with {', '.join(kinds)}" if state else "an empty dict"
    return f"a {type(state).__name__}"
