"""The command-line options of a training run, for every command that trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from shipnet.runtime.errors import UsageError

from .config import ARCHITECTURES, BUILT_IN, RECIPES, CacheConfig, DataConfig, TrainConfig

Command = Callable[..., Any]


class _RateType(click.ParamType):  # type: ignore[type-arg]
    """A number, or "auto"."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Called by click."""
        return value if value == "auto" else click.FLOAT.convert(value, param, ctx)


_DATA_FIELDS = {
    "data": "data",
    "data_root": "data_root",
    "val_fraction": "val_fraction",
    "image_size": "image_size",
}
_DATA_FIELDS |= {"split_seed": "seed", "strict_data": "strict"}
_TRAIN_FIELDS = tuple(
    field for field in TrainConfig.__struct_fields__ if field not in ("data", "weights_sha256")
)

_OPTIONS = (
    click.option(
        "--data",
        default="digits",
        show_default=True,
        help=f"Folder of images, or one of: {', '.join(BUILT_IN)}.",
    ),
    click.option(
        "--data-root", help="Where a built-in data set's files lie [default: SHIPNET_DATA, else downloaded]"
    ),
    click.option(
        "--val-fraction",
        type=float,
        default=0.2,
        show_default=True,
        help="Share of each class that validates, where the data is not divided.",
    ),
    click.option(
        "--strict-data", is_flag=True, help="Stop at a damaged image; otherwise it is left out and counted."
    ),
    click.option("--split-seed", type=int, default=0, show_default=True, help="Of that division."),
    click.option(
        "--image-size", type=int, help="Side of the network's input in pixels [default: from the data]"
    ),
    click.option(
        "--recipe",
        help=f"Sets what the options below leave open: {', '.join(RECIPES)} [default: finetune from weights, photo "
        "for a ResNet on photographs, else notebook]",
    ),
    click.option(
        "--arch",
        help=f"One of: {', '.join(ARCHITECTURES)} [default: mnist_resnet for small images, else resnet18]",
    ),
    click.option(
        "--pretrained",
        is_flag=True,
        help="Start from torchvision's weights for the ResNet [default: fresh weights]",
    ),
    click.option(
        "--weights",
        help="Start from a file of weights (safetensors, or what torch.save wrote) or the folder of a run.",
    ),
    click.option("--epochs", type=int, help="Passes over the training images."),
    click.option(
        "--max-lr",
        type=_RateType(),
        help="Peak of the one-cycle learning rate; auto: found on the training images, as find-lr does.",
    ),
    click.option("--batch-size", type=int, help="Images per step."),
    click.option("--weight-decay", type=float, help="Decoupled, on the weights of layers alone."),
    click.option("--label-smoothing", type=float, help="Share of a label that is spread over all classes."),
    click.option("--pct-start", type=float, help="Share of the steps in which the learning rate rises."),
    click.option("--div-factor", type=float, help="Peak of the learning rate over its start."),
    click.option("--final-div-factor", type=float, help="Start of the learning rate over its end."),
    click.option("--base-momentum", type=float, help="AdamW's first beta at the learning rate's peak."),
    click.option("--max-momentum", type=float, help="AdamW's first beta at both ends."),
    click.option("--beta2", type=float, help="AdamW's second beta."),
    click.option(
        "--ema-decay",
        type=float,
        help="Measure and keep a moving average of the weights, of this decay a step; 0: no average.",
    ),
    click.option(
        "--crop-padding", type=float, help="Small images: crop out of a zero border of this share of a side."
    ),
    click.option("--affine-degrees", type=float, help="Small images: turn by up to so many degrees."),
    click.option("--affine-scale", type=float, help="Small images: scale by up to 1 plus or minus this."),
    click.option(
        "--flip/--no-flip", default=None, help="Mirror at random [default: photographs and cifar10]"
    ),
    click.option(
        "--trivial-augment/--no-trivial-augment",
        default=None,
        help="Photographs: one random operation of TrivialAugmentWide on each.",
    ),
    click.option(
        "--freeze-epochs", type=int, help="From weights: so many of the epochs train the head alone."
    ),
    click.option(
        "--lr-div",
        type=float,
        help="The first stage's learning rate is the head's over this, geometric steps between.",
    ),
    click.option(
        "--balance",
        is_flag=True,
        help="Show every class equally often: draw images with replacement, rare classes' more often.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of initial weights, order, augmentation."
    ),
    click.option("--compile", is_flag=True, help="Run training steps through torch.compile."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
    click.option(
        "--mean",
        help="Per channel in [0, 1], such as 0.485,0.456,0.406 [default: the weights', else the data's]",
    ),
    click.option("--std", help="Per channel, in the same unit [default: as for --mean]"),
    click.option(
        "--keep",
        type=click.Choice(["last", "best"]),
        default="last",
        show_default=True,
        help="Epoch whose weights are kept; the best is chosen on half of the validation images.",
    ),
    click.option(
        "--patience", type=int, help="Stop after so many epochs without a better one [default: never]"
    ),
    click.option(
        "--deterministic", is_flag=True, help="The same weights twice on one machine; slower on a GPU."
    ),
    click.option(
        "--workers",
        type=int,
        help="Processes that prepare photographs [default: 1; for a GPU one per core, up to 8]",
    ),
)


def cache_options(command: Command) -> Command:
    """Gives a click command the options of the photographs' cache, and their values as one argument `cache`."""

    @functools.wraps(command)
    def with_cache(cache: str | None, cache_limit: float, **values: Any) -> Any:
        return command(cache=CacheConfig(folder=cache, limit_gb=cache_limit), **values)

    folder = click.option(
        "--cache",
        help="Folder for decoded photographs, or none [default: shipnet in the user's cache folder]",
    )
    limit = click.option(
        "--cache-limit",
        type=float,
        default=20.0,
        show_default=True,
        help="Its size in GB; the oldest data go first.",
    )
    decorated: Command = folder(limit(with_cache))
    return decorated


def training_options(command: Command) -> Command:
    """Gives a click command the training options, and their values as one argument `config`.

    Example:
        >>> @click.command()
        ... @training_options
        ... def train(config: TrainConfig) -> None: ...
    """
    return training_options_but()(command)


def training_options_but(*names: str) -> Callable[[Command], Command]:
    """As `training_options`, without those that play no part in a command."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_config(**values: Any) -> Any:
            fields = [name for name in (*_DATA_FIELDS, *_TRAIN_FIELDS) if name not in names]
            own = {name: values.pop(name) for name in fields}
            for field in {"mean", "std"} & set(own):
                own[field] = _numbers(field, own[field])
            data = {field: own.pop(option) for option, field in _DATA_FIELDS.items() if option in own}
            return command(config=TrainConfig(data=DataConfig(**data), **own), **values)

        decorated: Command = with_config
        for option in reversed(_OPTIONS):
            if _option_name(option) not in names:
                decorated = option(decorated)
        return decorated

    return decorate


def training_options_only(*names: str) -> Callable[[Command], Command]:
    """As `training_options`, but only those of that name."""
    every = (*_DATA_FIELDS, *_TRAIN_FIELDS)
    return training_options_but(*(name for name in every if name not in names))


def _option_name(option: Callable[[Command], Command]) -> str:
    """The parameter that a click option fills."""
    (parameter,) = option(lambda: None).__click_params__  # type: ignore[attr-defined]
    return str(parameter.name)


def _numbers(field: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{field} is {text!r}; expected a number per channel, separated by commas"
        ) from error
