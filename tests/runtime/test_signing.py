"""A signature holds for one key and one bundle, and whatever else is tried is refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from shipnet.cli import main
from shipnet.export import ExportConfig, export
from shipnet.export.assemble import list_files, seal
from shipnet.runtime import Bundle, BundleError, Classifier, OutputError, SignatureError, UsageError
from shipnet.runtime.manifest import decode_manifest
from shipnet.runtime.pack import sign
from shipnet.runtime.signing import Signer
from shipnet.runtime.verify import verify

SIGNATURE = "manifest.sig"


class Pair(NamedTuple):
    private: Path
    public: Path


def write_pair(folder: Path, key: Any, *, password: bytes | None = None) -> Pair:
    folder.mkdir(parents=True)
    cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pair = Pair(folder / "private.pem", folder / "public.pem")
    pair.private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, cipher))
    pair.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return pair


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("keys") / "ours", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("keys") / "theirs", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def signed_bundle(digits_bundle: Path, ours: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it only."""
    folder = Path(shutil.copytree(digits_bundle, tmp_path_factory.mktemp("signed") / "bundle"))
    sign(folder, ours.private)
    return folder


@pytest.fixture
def signed_copy(signed_bundle: Path, tmp_path: Path) -> Path:
    """A signed bundle of one's own to damage."""
    return Path(shutil.copytree(signed_bundle, tmp_path / "bundle"))


def reseal(bundle: Path, **changes: Any) -> None:
    """Seals what lies in the folder, as a forger would who has no key."""
    manifest = decode_manifest((bundle / "manifest.json").read_bytes(), where="manifest")
    files = tuple(entry for entry in list_files(bundle) if entry.path != SIGNATURE)
    seal(bundle, msgspec.structs.replace(manifest, files=files, **changes))


def test_a_signature_is_checked_where_it_is_asked_for(signed_bundle: Path, ours: Pair) -> None:
    fingerprint = hashlib.sha256(ours.public.read_bytes()).hexdigest()
    plain, checked = Bundle.open(signed_bundle), Bundle.open(signed_bundle, public_key=ours.public)
    assert plain.signature is not None and plain.signature.checked_by is None
    assert checked.signature is not None and checked.signature.checked_by == fingerprint
    assert plain.identity == checked.identity
    with Classifier.load(signed_bundle, device="cpu", public_key=ours.public) as classifier:
        assert classifier.labels == tuple("0123456789")
    report = verify(signed_bundle, device="cpu", public_key=str(ours.public))
    (check,) = (check for check in report.checks if check.name == "signature")
    assert (check.result, check.detail) == ("ok", f"by the key of sha256 {fingerprint}")
    (check,) = (check for check in verify(signed_bundle, device="cpu").checks if check.name == "signature")
    assert (check.result, check.detail) == ("skipped", "signed, not checked: give --public-key")


def test_signing_changes_nothing_else(signed_bundle: Path, digits_bundle: Path) -> None:
    before = {path.relative_to(digits_bundle) for path in digits_bundle.rglob("*")}
    assert {path.relative_to(signed_bundle) for path in signed_bundle.rglob("*")} == before | {
        Path(SIGNATURE)
    }
    assert Bundle.open(signed_bundle).identity == Bundle.open(digits_bundle).identity
    assert sorted(path.name for path in signed_bundle.parent.iterdir()) == ["bundle"], "litter"


def test_another_key_is_named(signed_bundle: Path, ours: Pair, theirs: Pair) -> None:
    ours_id, theirs_id = (hashlib.sha256(pair.public.read_bytes()).hexdigest() for pair in (ours, theirs))
    message = rf"is signed by another key \(sha256 {ours_id}\) than .*public\.pem \(sha256 {theirs_id}\)"
    for load in (Bundle.open, Classifier.load, verify):
        with pytest.raises(SignatureError, match=message):
            load(signed_bundle, public_key=theirs.public)  # type: ignore[operator]


def test_a_missing_signature_is_named(digits_bundle: Path, ours: Pair) -> None:
    with pytest.raises(
        SignatureError, match=r"is not signed, and a signature by .*public\.pem was asked for"
    ):
        Bundle.open(digits_bundle, public_key=ours.public)


def test_a_signature_of_another_bundle_is_named(signed_copy: Path, ours: Pair) -> None:
    other = Path(shutil.copytree(signed_copy, signed_copy.parent / "other"))
    reseal(other, name="other")
    sign(other, ours.private)
    shutil.copy(other / SIGNATURE, signed_copy / SIGNATURE)
    Bundle.open(other, public_key=ours.public)
    with pytest.raises(
        SignatureError, match=r"carries a signature by .*public\.pem, but for another manifest: "
    ):
        Bundle.open(signed_copy, public_key=ours.public)


def test_a_manifest_that_was_sealed_again_is_caught_by_the_signature_alone(
    signed_copy: Path, ours: Pair
) -> None:
    """Two labels exchanged, and everything sealed as it should be."""
    labels = ("1", "0", *"23456789")
    reseal(signed_copy, labels=labels)
    assert Bundle.open(signed_copy).manifest.labels == labels, "without the key it looks whole"
    with pytest.raises(SignatureError, match="but for another manifest"):
        Bundle.open(signed_copy, public_key=ours.public)
    with pytest.raises(SignatureError, match="but for another manifest"):
        Classifier.load(signed_copy, device="cpu", public_key=ours.public)


def test_a_model_that_was_exchanged_is_found_with_the_signature_untouched(
    signed_copy: Path, ours: Pair
) -> None:
    data = bytearray((signed_copy / "model" / "fp32.onnx").read_bytes())
    data[-1] ^= 1
    (signed_copy / "model" / "fp32.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model/fp32\.onnx was changed"):
        Bundle.open(signed_copy, public_key=ours.public)


@pytest.mark.parametrize(
    "name", [".gitignore", ".gitattributes", ".git/config", "model/extra.onnx", "manifest.sig2"]
)
def test_an_added_file_is_named(signed_copy: Path, ours: Pair, name: str) -> None:
    """OpenSSF's library leaves out what git owns; the manifest does not."""
    (signed_copy / name).parent.mkdir(exist_ok=True)
    (signed_copy / name).write_text("*")
    with pytest.raises(BundleError, match=f"extra file {re.escape(name)}"):
        Bundle.open(signed_copy, public_key=ours.public)


def changed(signature: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    plain = json.loads(signature)
    change(plain)
    return json.dumps(plain).encode()


def other_payload(plain: dict[str, Any]) -> None:
    """What is signed names other files than the signature was made over."""
    statement = base64.b64decode(plain["dsseEnvelope"]["payload"]).replace(b'"files"', b'"Files"')
    plain["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()


def other_sig(plain: dict[str, Any]) -> None:
    sig = bytearray(base64.b64decode(plain["dsseEnvelope"]["signatures"][0]["sig"]))
    sig[-1] ^= 1
    plain["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(sig).decode()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "its signature cannot be read"),
    "noise": (lambda data: bytes(range(256)), "its signature cannot be read"),
    "cut": (lambda data: data[: len(data) // 2], "its signature cannot be read"),
    "nested": (lambda data: b"[" * 50_000, "its signature cannot be read"),
    "list": (lambda data: b"[]", "its signature cannot be read"),
    "payload": (lambda data: changed(data, other_payload), "it was changed after it was made"),
    "sig": (lambda data: changed(data, other_sig), "it was changed after it was made"),
    "no hint": (
        lambda data: changed(data, lambda p: p["verificationMaterial"]["publicKey"].update(hint="")),
        "its signature cannot be read, or names no key: fetch an unchanged copy",
    ),
    "no signatures": (
        lambda data: changed(data, lambda p: p["dsseEnvelope"].update(signatures=[])),
        "it was changed after it was made",
    ),
    "hint": (
        lambda data: changed(
            data, lambda p: p["verificationMaterial"]["publicKey"].update(hint="ab\n\x1b[31m")
        ),
        r"is signed by another key \(sha256 ab\\n\\x1b\[31m\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_signature_is_refused(signed_copy: Path, ours: Pair, kind: str) -> None:
    damage, message = DAMAGE[kind]
    (signed_copy / SIGNATURE).write_bytes(damage((signed_copy / SIGNATURE).read_bytes()))
    with pytest.raises(SignatureError, match=message) as caught:
        Bundle.open(signed_copy, public_key=ours.public)
    assert str(caught.value).isprintable()


def test_threads_check_at_once_and_nothing_is_printed(
    signed_bundle: Path, ours: Pair, theirs: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout = sys.stdout

    def check(number: int) -> bool:
        try:
            Bundle.open(signed_bundle, public_key=(ours if number % 2 else theirs).public)
        except SignatureError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(check, range(32))) == [False, True] * 16
    assert sys.stdout is stdout
    assert capsys.readouterr() == ("", "")


def test_a_hint_proves_nothing(signed_copy: Path, ours: Pair, theirs: Pair) -> None:
    """Another's signature that says it is ours."""
    sign(signed_copy, theirs.private)
    hint = hashlib.sha256(ours.public.read_bytes()).hexdigest()
    lie = changed(
        (signed_copy / SIGNATURE).read_bytes(),
        lambda p: p["verificationMaterial"]["publicKey"].update(hint=hint),
    )
    (signed_copy / SIGNATURE).write_bytes(lie)
    with pytest.raises(SignatureError, match="its signature does not hold for"):
        Bundle.open(signed_copy, public_key=ours.public)


def test_every_byte_of_a_signature_counts_or_changes_nothing(signed_copy: Path, ours: Pair) -> None:
    """One changed byte, at forty places: refused by name, or the signature still says the same."""
    original = (signed_copy / SIGNATURE).read_bytes()
    refused = 0
    for place in range(3, len(original), len(original) // 40):
        data = bytearray(original)
        data[place] ^= 1
        (signed_copy / SIGNATURE).write_bytes(data)
        try:
            Bundle.open(signed_copy, public_key=ours.public)
        except SignatureError:
            refused += 1
    assert refused > 25


def test_a_signature_is_read_up_to_a_size(signed_copy: Path) -> None:
    (signed_copy / SIGNATURE).write_bytes(bytes(1 << 17))
    with pytest.raises(BundleError, match=r"manifest\.sig: has 131,072 bytes, expected at most 65,536"):
        Bundle.open(signed_copy)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_the_three_curves_sign(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    pair = write_pair(tmp_path / "keys", ec.generate_private_key(curve))
    assert Signer.load(pair.private).sign({"a": b"1"}, name="x").startswith(b'{"mediaType"')


def test_other_keys_are_refused_with_what_they_are(tmp_path: Path, signed_bundle: Path) -> None:
    other_curve = write_pair(tmp_path / "k1", ec.generate_private_key(ec.SECP256K1()))
    wrong = {
        other_curve: "holds a key on the curve secp256k1, expected an elliptic curve key on P-256",
        write_pair(
            tmp_path / "rsa", rsa.generate_private_key(65537, 2048)
        ): r"holds RSAP\w+, expected an elliptic",
        write_pair(
            tmp_path / "ed", ed25519.Ed25519PrivateKey.generate()
        ): r"holds Ed25519P\w+, expected an elliptic",
    }
    for pair, message in wrong.items():
        with pytest.raises(UsageError, match=rf"private\.pem: {message}.*: make a key with  openssl ecparam"):
            Signer.load(pair.private)
        with pytest.raises(UsageError, match=rf"public\.pem: {message}.*: give the public key of the pair"):
            Bundle.open(signed_bundle, public_key=pair.public)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path, ours: Pair, signed_bundle: Path) -> None:
    locked = write_pair(tmp_path / "locked", ec.generate_private_key(ec.SECP256R1()), password=b"secret")
    with pytest.raises(UsageError, match=r"the key is encrypted: take its password off with  openssl ec -in"):
        Signer.load(locked.private)
    with pytest.raises(UsageError, match=r"public\.pem: is no private key in PEM form: make one with"):
        Signer.load(ours.public)
    with pytest.raises(UsageError, match=r"private\.pem: is no public key in PEM form: write one with"):
        Bundle.open(signed_bundle, public_key=ours.private)
    for load in (Signer.load, lambda path: Bundle.open(signed_bundle, public_key=path)):
        with pytest.raises(UsageError, match="none: the key cannot be read: No such file"):
            load(tmp_path / "none")
        with pytest.raises(UsageError, match="the key cannot be read: Is a directory"):
            load(tmp_path)


def test_signing_again_replaces_the_signature(signed_copy: Path, theirs: Pair) -> None:
    assert sign(signed_copy, theirs.private).signature is not None
    Bundle.open(signed_copy, public_key=theirs.public)


def test_a_changed_bundle_is_not_signed(signed_copy: Path, ours: Pair) -> None:
    (signed_copy / "README.md").write_text("other")
    before = (signed_copy / SIGNATURE).read_bytes()
    with pytest.raises(BundleError, match=r"README\.md has 5 bytes, expected"):
        sign(signed_copy, ours.private)
    assert (signed_copy / SIGNATURE).read_bytes() == before
    with pytest.raises(BundleError, match="no such folder or file"):
        sign(signed_copy.parent / "none", ours.private)
    assert [path.name for path in signed_copy.parent.iterdir()] == ["bundle"]


def test_export_signs(digits_run: Path, ours: Pair, tmp_path: Path) -> None:
    quick = ExportConfig(interop=False)
    bundle = export(digits_run, quick, out=tmp_path / "bundle", sign_key=ours.private)
    assert bundle.signature is not None
    Bundle.open(bundle.path, public_key=ours.public)
    with pytest.raises(UsageError, match="the key cannot be read"):
        export(digits_run, out=tmp_path / "other", sign_key=tmp_path / "none")
    assert not (tmp_path / "other").exists()


def test_openssfs_own_command_reads_the_signature(signed_bundle: Path, ours: Pair, theirs: Pair) -> None:
    def check(pair: Pair) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed_bundle)]
        command += ["--signature", str(signed_bundle / SIGNATURE), "--public_key", str(pair.public)]
        command += ["--ignore_unsigned_files"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = check(ours)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
    assert check(theirs).returncode != 0


def test_the_commands(signed_copy: Path, ours: Pair, theirs: Pair) -> None:
    (signed_copy / SIGNATURE).unlink()
    done = CliRunner().invoke(main, ["sign", str(signed_copy), "--key", str(ours.private)])
    identity = Bundle.open(signed_copy).identity[:12]
    assert (done.exit_code, done.stdout) == (0, f"signed digits {identity}\n{signed_copy}\n")
    good = ["verify", str(signed_copy), "--device", "cpu", "--json", "--public-key"]
    done = CliRunner().invoke(main, [*good, str(ours.public)])
    assert done.exit_code == 0, "what the library prints went into the JSON"
    assert [
        check["result"] for check in json.loads(done.stdout)["checks"] if check["name"] == "signature"
    ] == ["ok"]
    done = CliRunner().invoke(main, [*good, str(theirs.public)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {signed_copy}: is signed by another key (sha256 ")
    assert CliRunner().invoke(main, ["sign", str(signed_copy)]).exit_code == 2


def test_a_full_temporary_folder_is_named(
    signed_copy: Path, ours: Pair, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(4)
    program = (
        "from shipnet.runtime import Bundle, ShipnetError; from shipnet.runtime.pack import sign\n"
        f"for act in (lambda: sign({str(signed_copy)!r}, {str(ours.private)!r}),\n"
        f"            lambda: Bundle.open({str(signed_copy)!r}, public_key={str(ours.public)!r})):\n"
        "    try: act()\n"
        "    except ShipnetError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(disk)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert re.match(r"OutputError cannot sign: no temporary folder can be written: .*No space left", first)
    assert re.match(r"SignatureError .*its signature cannot be checked: .*No space left", second)
    assert list(disk.iterdir()) == []


def test_a_bundle_that_cannot_be_written_keeps_its_signature(
    signed_bundle: Path, ours: Pair, small_disk: Callable[[int], Path]
) -> None:
    size = sum(path.stat().st_size + 4096 for path in signed_bundle.rglob("*"))
    disk = small_disk(size // 1024 + 64)
    copy = Path(shutil.copytree(signed_bundle, disk / "bundle"))
    before = (copy / SIGNATURE).read_bytes()
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device"):
        sign(copy, ours.private)
    assert (copy / SIGNATURE).read_bytes() == before
    assert sorted(path.name for path in disk.iterdir()) == ["bundle", "filler"]


@pytest.mark.parametrize("module", ["model_signing", "OpenSSL", "cryptography"])
def test_without_the_extra_the_command_that_installs_it_is_named(
    signed_bundle: Path, ours: Pair, module: str
) -> None:
    """And without a key nothing of it is needed."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from shipnet.runtime import Bundle, MissingExtraError; from shipnet.runtime.pack import sign\n"
        f"print(Bundle.open({str(signed_bundle)!r}).signature)\n"
        f"for act in (lambda: sign({str(signed_bundle)!r}, {str(ours.private)!r}),\n"
        f"            lambda: Bundle.open({str(signed_bundle)!r}, public_key={str(ours.public)!r})):\n"
        "    try: act()\n"
        "    except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    message = f"{module} is not installed: run  pip install 'shipnet[sign]'"
    assert done.stdout.splitlines() == ["Signature(checked_by=None)", message, message]
