"""The command-line options of an export of a network that was not trained here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import click

from shipnet.runtime.errors import UsageError
from shipnet.train.config import ARCHITECTURES

from .foreign_config import INTERPOLATIONS, RESIZES, ForeignConfig, read_labels

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Foreign:
    """What to export instead of a run: weights of an architecture, or an ONNX graph."""

    config: ForeignConfig
    weights: str | None
    onnx: Path | None


_OPTIONS = (
    click.option(
        "--weights",
        help="Instead of RUN: safetensors, a state dict, or torchvision:NAME such as torchvision:IMAGENET1K_V2.",
    ),
    click.option("--arch", help=f"Of --weights, one of: {', '.join(ARCHITECTURES)}"),
    click.option("--onnx", type=click.Path(path_type=Path), help="Instead of RUN: an ONNX file of any exporter."),
    click.option("--labels", help="Of --weights or --onnx: a text file, one a line in the order of the outputs, or a "
                 "JSON list."),
    click.option("--val", help="Of --weights or --onnx: folder of validation images, a sub-folder per label."),
    click.option("--calibration", help="Likewise, to set int8 ranges by [default: the half of --val that may select]"),
    click.option("--strict-data", is_flag=True, help="Stop at a damaged image; otherwise it is left out and counted."),
    click.option("--image-size", type=int, help="Side of the network's input [default: the graph's, else 224]"),
    click.option("--resize", type=click.Choice(RESIZES), help="[default: shorter_side_crop]"),
    click.option("--resize-size", type=int, help="The shorter side before the crop [default: image size x 256/224]"),
    click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="[default: bilinear]"),
    click.option("--mean", help="Per channel in units of [0, 1]; 1/255 is a number, too [default: ImageNet's]"),
    click.option("--std", help="Per channel, in the same unit; a graph that takes 0..255 has 1/255."),
    click.option("--channels", type=click.Choice(["1", "3"]), help="Of an --onnx input that leaves it open."),
    click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of an --onnx input that leaves it open."),
    click.option("--accept-accuracy", is_flag=True, help="Ship a network that does no better than guessing."),
)  # fmt: skip
_ASKS = ("weights", "onnx")
_FILES = ("labels", "val")
_CHANNELS: dict[str, Literal[1, 3]] = {"1": 1, "3": 3}
_NAMES = (
    *(*_ASKS, *_FILES, "arch", "calibration", "strict_data", "accept_accuracy"),
    *("image_size", "resize", "resize_size", "interpolation", "mean", "std", "channels", "layout"),
)


def foreign_options(command: Command) -> Command:
    """Adds the options, and gives the command what they say as `foreign`; None: a run is exported."""

    @functools.wraps(command)
    def with_foreign(**values: Any) -> Any:
        own = {name: values.pop(name) for name in _NAMES}
        return command(foreign=_foreign(own, run=values.get("run")), **values)

    decorated: Command = with_foreign
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _foreign(own: dict[str, Any], *, run: Path | None) -> Foreign | None:
    chosen = [
        name
        for name, value in (("RUN", run), ("--weights", own["weights"]), ("--onnx", own["onnx"]))
        if value is not None
    ]
    if len(chosen) != 1:
        found = f"found {' and '.join(chosen)}" if chosen else "found none"
        raise UsageError(
            f"expected one of RUN, --weights and --onnx, {found}: give the network that is to be exported"
        )
    if run is not None:
        given = [_option(name) for name, value in own.items() if value not in (None, False)]
        if given:
            raise UsageError(
                f"{', '.join(given)} {'are' if len(given) > 1 else 'is'} for --weights and --onnx; a run knows it all"
            )
        return None
    missing = [_option(name) for name in _FILES if own[name] is None]
    if own["weights"] is not None and own["arch"] is None:
        missing.insert(0, "--arch")
    if missing:
        raise UsageError(f"{chosen[0]} needs {', '.join(missing)}, too")
    for name in ("mean", "std"):
        own[name] = _numbers(name, own[name])
    fields = {name: own[name] for name in _NAMES if name not in (*_ASKS, "labels", "strict_data", "channels")}
    config = ForeignConfig(
        labels=read_labels(own["labels"]),
        strict=own["strict_data"],
        channels=_CHANNELS.get(own["channels"] or ""),
        **fields,
    )
    return Foreign(config, own["weights"], own["onnx"])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _numbers(field: str, text: str | None) -> tuple[float, ...] | None:
    """Decimals or fractions."""
    try:
        return None if text is None else tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"{field} is {text!r}; expected numbers such as 0.485 or 1/255, separated by commas"
        ) from error
