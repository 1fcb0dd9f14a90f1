"""The commands to try before training: `shipnet find-lr` and `shipnet show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipnet.runtime.errors import require

from .config import TrainConfig
from .options import training_options_but

if TYPE_CHECKING:
    from .lr_finder import Finding

# What a sweep does not use: how long and along which curve a training goes on.
_NOT_SWEPT = (
    "epochs",
    "max_lr",
    "pct_start",
    "div_factor",
    "final_div_factor",
    "base_momentum",
    "ema_decay",
    "freeze_epochs",
    "compile",
)


@click.command("find-lr")
@training_options_but(*_NOT_SWEPT)
@click.option("--low", type=float, default=1e-7, show_default=True, help="First learning rate.")
@click.option("--high", type=float, default=10.0, show_default=True, help="Last learning rate.")
@click.option("--steps", type=int, default=100, show_default=True, help="Training batches of the sweep.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture [default: artifacts/NAME/find-lr.png]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the sweep as JSON.")
def find_lr(
    config: TrainConfig, low: float, high: float, steps: int, out: Path | None, as_json: bool
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
        finding = find(config, span=span, on_step=lambda done, total: on_progress("sweep", done, total))
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
    how = "stopped where the loss exploded" if finding.diverged else "the loss never exploded"
    render.show(
        rows,
        f"{len(finding.losses)} steps in batches of {finding.batch_size} on {finding.device}, "
        f"{finding.wall_s:.1f} s; {how}",
        f"try  shipnet train --max-lr {finding.suggestions.valley:.2g}",
        str(picture),
    )
