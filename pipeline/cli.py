"""The command `shipnet`: the stages' commands, each loaded when it is called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from . import __version__

# Command -> where it lives, in the order of the help. The modules are light: they load torch or onnxruntime when run.
COMMANDS: Final = {
    "pipeline": "shipnet.command:pipeline",
    "train": "shipnet.train.cli:train",
    "find-lr": "shipnet.train.explore_cli:find_lr",
    "show": "shipnet.train.explore_cli:show",
    "export": "shipnet.export.cli:export",
    "verify": "shipnet.runtime.cli:verify",
    "inspect": "shipnet.runtime.cli:inspect",
    "classify": "shipnet.runtime.cli:classify",
    "evaluate": "shipnet.runtime.cli:evaluate",
    "diff": "shipnet.runtime.cli:diff",
    "bench": "shipnet.runtime.cli:bench",
    "pack": "shipnet.runtime.bundle_cli:pack",
    "sign": "shipnet.runtime.bundle_cli:sign",
    "doctor": "shipnet.runtime.cli:doctor",
}
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now; None where there is none of that name."""
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; the one place where an error of ours becomes one line and an exit code."""
        from shipnet.runtime.errors import ShipnetError, UsageError

        try:
            return super().main(
                args=args,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=standalone_mode,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except ShipnetError as error:
            if not standalone_mode:
                raise
            click.echo(f"Error: {error}", err=True)
            sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED)
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_FAILED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shipnet")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def main(verbose: bool) -> None:
    """From a folder of images to a classifier that people run.

    Train a ResNet, prove its export, ship it, and classify without PyTorch.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("shipnet").setLevel(logging.DEBUG)
