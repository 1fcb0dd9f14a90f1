"""`python -m shipnet`."""

from .cli import main

main(prog_name="shipnet")
