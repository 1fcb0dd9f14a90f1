"""The command-line options of an export, for every command that makes a bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shipnet.runtime.errors import UsageError

from .config import DEFAULT_BUDGETS, FP32_MAX_RELATIVE_DIFFERENCE, PRECISIONS, ExportConfig, Limit

Command = Callable[..., Any]


def _budget_option(flag: str, what: str) -> Callable[[Command], Command]:
    field = flag.removeprefix("--").replace("-", "_")
    defaults = ", ".join(f"{name} {getattr(budget, field):g}" for name, budget in DEFAULT_BUDGETS.items())
    return click.option(
        flag,
        multiple=True,
        metavar="[PRECISION=]SHARE",
        help=f"{what}, for one precision or for all [default: {defaults}]",
    )


_OPTIONS = (
    click.option(
        "--variant",
        "variants",
        multiple=True,
        metavar="PRECISION",
        help=f"Beside fp32, one of: {', '.join(PRECISIONS)}; can be given more than once.",
    ),
    click.option(
        "--max-difference",
        "max_relative_difference",
        type=float,
        default=FP32_MAX_RELATIVE_DIFFERENCE,
        show_default=True,
        help="Of fp32: largest logit difference from PyTorch, over the largest absolute logit.",
    ),
    _budget_option("--max-flip-rate", "Share of images that may get another label than PyTorch gives"),
    _budget_option("--max-top1-drop", "Share by which accuracy may fall"),
    click.option(
        "--accept-uncertified",
        is_flag=True,
        help="Ship a variant, marked uncertified, that kept its budget on images too few to say so of others.",
    ),
    click.option(
        "--calibration-images",
        type=int,
        default=ExportConfig().calibration_images,
        show_default=True,
        help="Training images, at most, that set the ranges of int8.",
    ),
    click.option(
        "--reduce-range", is_flag=True, help="7-bit weights in int8-cpu: it then runs on CPUs without VNNI."
    ),
    click.option("--no-interop", is_flag=True, help="Leave TorchScript, .pt2 and safetensors out."),
    click.option(
        "--probes",
        type=click.Choice(["real", "synthetic"]),
        default="real",
        show_default=True,
        help="Images in evidence/ that verify replays. real: some validation images, of files up to 512 KiB the very "
        "bytes with all that they hold, such as where a photograph was taken. synthetic: drawn ones, which show "
        "nobody's data.",
    ),
)
_NAMES = (
    *("variants", "max_relative_difference", "max_flip_rate", "max_top1_drop", "accept_uncertified"),
    *("calibration_images", "reduce_range", "no_interop", "probes"),
)


def export_options(command: Command) -> Command:
    """Gives a click command the options of an export, and their values as one argument `export_config`.

    Example:
        >>> @click.command()
        ... @export_options
        ... def pipeline(export_config: ExportConfig) -> None: ...
    """

    @functools.wraps(command)
    def with_config(**values: Any) -> Any:
        own = {name: values.pop(name) for name in _NAMES}
        return command(export_config=_config(own), **values)

    decorated: Command = with_config
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


sign_key_option = click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM file with a private key, as  shipnet sign  takes it: the bundle is signed with it.",
)


def _config(own: dict[str, Any]) -> ExportConfig:
    if own["reduce_range"] and "int8-cpu" not in own["variants"]:
        raise UsageError("--reduce-range: is for int8-cpu: give --variant int8-cpu, or leave it out")
    made = ("fp32", *own["variants"])
    limits: dict[str, Any] = {
        field: tuple(_limits(f"--{field.replace('_', '-')}", own.pop(field), made))
        for field in ("max_flip_rate", "max_top1_drop")
    }
    return ExportConfig(interop=not own.pop("no_interop"), **own, **limits)


def _limits(flag: str, texts: tuple[str, ...], made: tuple[str, ...]) -> list[Limit]:
    """Budgets by precision; a share alone is for every precision that is made."""
    found: dict[str, float] = {}
    for text in texts:
        name, has_name, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError as error:
            raise UsageError(f"{flag} is {text!r}; expected a share such as 0.01 or int8-cpu=0.01") from error
        if has_name and name not in made:
            raise UsageError(
                f"{flag} is {text!r}, but no {name!r} is made, only {', '.join(made)}: "
                "give its --variant, or leave it out"
            )
        for precision in (name,) if has_name else made:
            if precision in found:
                raise UsageError(f"{flag}: {precision} is given two shares")
            found[precision] = share
    return list(found.items())
