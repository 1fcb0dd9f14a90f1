"""Makes the kept bundle of the format version that this checkout writes: see README.md beside this file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shipnet.export import ExportConfig, export
from shipnet.runtime.manifest import FORMAT_VERSION
from shipnet.train import TrainConfig, fit

HERE = Path(__file__).parent
EPOCHS = 20
# 7-bit weights, so that int8 decides the same on every CPU; its budget is wide, as 180 images certify little.
CONFIG = ExportConfig(
    name="kept-digits",
    interop=False,
    variants=("fp16", "int8-cpu"),
    accept_uncertified=True,
    reduce_range=True,
    batch_sizes=(1, 2, 7),
)


def main() -> None:
    target = HERE / f"bundle-v{FORMAT_VERSION}"
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        private = folder / "private.pem"
        private.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        run = fit(TrainConfig(arch="conv_cnn", epochs=EPOCHS, device="cpu"), out=folder / "run")
        bundle = export(run, CONFIG, out=folder / "bundle", sign_key=private)
        missing = {"fp16", "int8-cpu"} - {variant.precision for variant in bundle.manifest.variants}
        if missing:
            raise SystemExit(f"{', '.join(sorted(missing))} left out: {bundle.manifest.left_out}")
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(bundle.path, target)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    target.with_suffix(".pem").write_bytes(public)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size:,} bytes, accuracy {run.record.accuracy:.2%}")


if __name__ == "__main__":
    main()
