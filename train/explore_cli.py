"""The commands to try before training: `shipnet find-lr` and `shipnet show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shipnet.runtime.errors import require

from .config import CacheConfig, TrainConfig
from .options import cache_options, training_options_but, training_options_only

if TYPE_CHECKING:
    from .lr_finder import Finding

EXIT_SOME_UNANSWERED: Final = 3
_EXAMPLES = 24  # of each kind
# What a sweep does not use: how long and along which curve a training goes on.
_NOT_SWEPT = (
    "epochs",
    "max_lr",
    "pct_start",
    "div_factor",
    "final_div_factor",
    "max_momentum",
    "ema_decay",
    "freeze_epochs",
    "compile",
    "keep",
    "patience",
    "deterministic",
)


@click.command("find-lr")
@training_options_but(*_NOT_SWEPT)
@cache_options
@click.option("--low", type=float, default=1e-6, show_default=True, help="First learning rate.")
@click.option("--high", type=float, default=10.0, show_default=True, help="Last learning rate.")
@click.option(
    "--steps",
    type=int,
    default=200,
    show_default=True,
    help="Training batches of the sweep; they come round again.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture [default: artifacts/NAME/find-lr.png]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the sweep as JSON.")
def find_lr(
    config: TrainConfig,
    cache: CacheConfig,
    low: float,
    high: float,
    steps: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Suggest a peak for the learning rate, from a sweep over training images.

    Trains with a rate that rises until the loss explodes, draws the curve, and reads a rate from it by three
    rules. `shipnet train --max-lr auto` takes the valley's.
    """
    for module in ("torch", "torchvision", "matplotlib"):
        require(module)
    from shipnet.runtime import render
    from shipnet.runtime.staging import staged_file

    from .lr_finder import PICTURE, Span, draw_sweep
    from .lr_finder import find_lr as find

    span = Span(low, high, steps)
    with render.stage_progress() as on_progress:
        finding = find(
            config, cache=cache, span=span, on_step=lambda done, total: on_progress("sweep", done, total)
        )
    target = out or Path("artifacts") / finding.data / PICTURE
    with staged_file(target) as staged:
        draw_sweep(finding, staged)
    if as_json:
        render.print_json(finding)
    else:
        _show_finding(finding, target)


def _show_finding(finding: Finding, picture: Path) -> None:
    from shipnet.runtime import render

    from .lr_finder import RULES

    rows = render.table(f"{finding.data}: {finding.arch}", "rule", "max_lr", numbers=("max_lr",))
    for name, words in RULES.items():
        rows.add_row(words, f"{getattr(finding.suggestions, name):.2g}")
    how = (
        "stopped where the loss exploded"
        if finding.diverged
        else "it never exploded, so its minimum says little"
    )
    render.show(
        rows,
        f"{len(finding.losses)} steps in batches of {finding.batch_size} on {finding.device}, "
        f"{finding.wall_s:.1f} s; {how}",
        f"try  shipnet train --max-lr {finding.suggestions.valley:.2g}",
        str(picture),
    )


# What decides how an image looks to the network; the rest of the options plays no part.
_SHOWN = frozenset(
    {
        "data",
        "data_root",
        "val_fraction",
        "split_seed",
        "image_size",
        "recipe",
        "arch",
        "pretrained",
        "weights",
        "crop_padding",
        "affine_degrees",
        "affine_scale",
        "flip",
        "trivial_augment",
        "seed",
    }
)


@click.command()
@training_options_only(*_SHOWN)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture [default: artifacts/NAME/show.png]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def show(ctx: click.Context, config: TrainConfig, out: Path | None, as_json: bool) -> None:
    """Look at data before training on it.

    Draws augmented training images, and validation images as the network sees them. Counts classes, sizes and
    modes, and names files that cannot be read, copies in more than one part of the data (which make accuracy look
    too good), and copies in more than one class. Exit code 3 says that files cannot be read.
    """
    for module in ("torch", "torchvision", "matplotlib"):
        require(module)
    from shipnet.runtime import render
    from shipnet.runtime.staging import staged_file

    from .data import load_data
    from .examples import draw_examples
    from .grid import draw_grid
    from .recipe import resolve
    from .survey import survey
    from .survey_view import describe

    dataset = load_data(config.data)
    with render.stage_progress() as on_progress:
        found, dataset = survey(
            dataset,
            root=Path(config.data.data),
            on_image=lambda done, total: on_progress("images", done, total),
        )
    augmented, valid = draw_examples(dataset, resolve(config, dataset), _EXAMPLES)
    target = out or Path("artifacts") / dataset.name / "show.png"
    blocks = {"training, augmented": augmented, "validation, as the network sees it": valid}
    with staged_file(target) as staged:
        draw_grid(blocks, staged, title=dataset.name)
    render.print_json(found) if as_json else render.show(*describe(found), str(target))
    if found.damaged:
        ctx.exit(EXIT_SOME_UNANSWERED)
