"""The commands that write bundles anew: pack and sign."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--slim", is_flag=True, help="Leave interop/ and evidence/ out.")
def pack(bundle: Path, out: Path, slim: bool) -> None:
    """Write a bundle into one zip, which every command takes like the folder.

    Manifest and identity stay as they are, and so does a signature. The same bundle gives the same bytes wherever it is
    packed. A copy without evidence/ has no probes, so verify cannot replay them and runs on noise.
    """
    from . import render
    from .pack import pack as run

    packed = run(bundle, out, slim=slim)
    size = out.stat().st_size
    render.show(f"{packed.manifest.name} {packed.identity[:12]}: {size:,} bytes", str(packed.path))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key, PEM, not encrypted:  openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem",
)
def sign(bundle: Path, key: Path) -> None:
    """Sign a finished bundle, a folder or a zip, with a private key.

    The signature, manifest.sig, names the bundle's identity, and so every file of it. Users check it with
    shipnet verify --public-key. Nothing is sent anywhere.
    """
    from . import render
    from .pack import sign as run

    signed = run(bundle, key)
    render.show(f"signed {signed.manifest.name} {signed.identity[:12]}", str(signed.path))
