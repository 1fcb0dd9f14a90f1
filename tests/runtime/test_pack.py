"""A packed bundle is the bundle: same identity, same answers, from every command; and slim where that is asked for."""

from __future__ import annotations

import json
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shipnet.cli import main
from shipnet.runtime import Bundle, BundleError, Classifier, OutputError, SignatureError
from shipnet.runtime.archive import write_archive
from shipnet.runtime.pack import pack, sign
from shipnet.runtime.staging import locked
from shipnet.runtime.verify import verify

Keys = tuple[Path, Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A private key and its public one."""
    folder, key = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "private.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem", folder / "public.pem"


@pytest.fixture(scope="module")
def whole(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(digits_bundle, tmp_path_factory.mktemp("whole") / "whole.zip").path


@pytest.fixture(scope="module")
def slim(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(digits_bundle, tmp_path_factory.mktemp("slim") / "slim.zip", slim=True).path


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_a_packed_bundle_is_the_same_bundle(digits_bundle: Path, whole: Path) -> None:
    folder, packed = Bundle.open(digits_bundle), Bundle.open(whole)
    assert (packed.identity, packed.manifest) == (folder.identity, folder.manifest)
    files = {
        path.relative_to(digits_bundle).as_posix() for path in digits_bundle.rglob("*") if path.is_file()
    }
    assert names(whole) == files
    for entry in folder.manifest.files:
        assert packed.read(entry.path) == (digits_bundle / entry.path).read_bytes()
    assert stat.S_IMODE(whole.stat().st_mode) == 0o644


def test_a_slim_one_has_no_interop_and_no_evidence(digits_bundle: Path, slim: Path) -> None:
    assert names(slim) == {"README.md", "manifest.json", "manifest.sha256", "model/fp32.onnx"}
    bundle = Bundle.open(slim)
    assert bundle.identity == Bundle.open(digits_bundle).identity
    assert not bundle.has("evidence/probes.json")
    with pytest.raises(BundleError, match=r"cannot read evidence/probes\.json: no such file in the zip"):
        bundle.read("evidence/probes.json")


def test_the_same_bundle_gives_the_same_bytes(digits_bundle: Path, whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits_bundle, tmp_path / "elsewhere", copy_function=shutil.copyfile))
    for path in copy.rglob("*"):
        path.chmod(0o700)
    time.sleep(0.01)
    assert pack(copy, tmp_path / "again.zip").path.read_bytes() == whole.read_bytes()
    assert pack(whole, tmp_path / "from-zip.zip").path.read_bytes() == whole.read_bytes()


def test_a_zip_unpacks_to_the_bundle(digits_bundle: Path, whole: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(tmp_path / "out")
    assert Bundle.open(tmp_path / "out").identity == Bundle.open(digits_bundle).identity


def test_answers_are_the_same_to_the_bit(digits_bundle: Path, whole: Path, slim: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    found = []
    for path in (digits_bundle, whole, slim):
        with Classifier.load(path, device="cpu") as classifier:
            found.append(classifier.logits(images))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_verify_replays_from_the_zip_and_says_what_a_slim_one_cannot(whole: Path, slim: Path) -> None:
    report = verify(whole, device="cpu")
    assert report.passed and report.probes >= 32
    assert {check.result for check in report.checks} == {"ok"}
    report = verify(slim, device="cpu")
    assert report.passed and report.probes == 0
    by_name = {check.name: check for check in report.checks}
    assert by_name["pixels"].result == by_name["fp32 engine"].result == "skipped"
    assert by_name["files"].detail.startswith("2 of ")
    assert by_name["files"].detail.endswith("as sealed; this copy was made without interop/ and evidence/")


def test_every_command_takes_the_zip(slim: Path, digit_files: Path, digits_bundle: Path) -> None:
    def run(*arguments: str | Path) -> str:
        done = CliRunner().invoke(main, [str(item) for item in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    options = ("--device", "cpu")
    assert run("classify", slim, digit_files, *options) == run(
        "classify", digits_bundle, digit_files, *options
    )
    for command in ("evaluate", "inspect"):
        arguments = (digit_files, *options) if command == "evaluate" else ()
        first, second = (
            json.loads(run(command, bundle, *arguments, "--json")) for bundle in (slim, digits_bundle)
        )
        assert first.get("accuracy") == second.get("accuracy") and first.get("labels") == second.get("labels")
    assert run("inspect", slim)
    assert "verified" in run("verify", slim, *options)
    assert run("bench", slim, *options, "--batch-size", 1, "--min-runs", 2, "--min-seconds", 0)
    assert run("diff", slim, digits_bundle, "--data", digit_files, *options)


def test_packing_again_replaces_the_zip(digits_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.zip"
    pack(digits_bundle, out)
    assert pack(digits_bundle, out, slim=True).path == out
    assert not Bundle.open(out).has("interop/model.pt2")
    pack(out, out)
    assert [path.name for path in out.parent.iterdir()] == ["x.zip"], "litter"


def test_a_slim_one_cannot_be_made_whole_again(slim: Path, tmp_path: Path) -> None:
    assert pack(slim, tmp_path / "x.zip").path.read_bytes() == slim.read_bytes()


def test_a_place_that_is_not_ours_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("kept", "kept")
    (tmp_path / "link.zip").symlink_to(bundle_copy / "inside.zip")
    wrong = {
        tmp_path / "notes.txt": r"notes\.txt: something that is no packed bundle stands there",
        tmp_path / "other.zip": r"other\.zip: something that is no packed bundle stands there",
        bundle_copy: "lies in the bundle, which nothing may be added to",
        bundle_copy / "x.zip": r"x\.zip: lies in the bundle, which nothing may be added to",
        bundle_copy / "model" / "fp32.onnx": "lies in the bundle",
        tmp_path / "link.zip": "lies in the bundle",
        tmp_path: "is a folder, expected a file's path",
        tmp_path / "notes.txt" / "x.zip": "cannot be written",
    }
    before = sorted(tmp_path.rglob("*"))
    for place, message in wrong.items():
        with pytest.raises(OutputError, match=message):
            pack(bundle_copy, place)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_no_bundle_and_a_changed_one_are_not_packed(bundle_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder or file"):
        pack(tmp_path / "none", tmp_path / "x.zip")
    (bundle_copy / "README.md").write_text("")
    with pytest.raises(BundleError, match=r"README\.md has 0 bytes"):
        pack(bundle_copy, tmp_path / "x.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_one_packs_at_a_time(digits_bundle: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "x.zip"),
        pytest.raises(OutputError, match=r"x\.zip: is being written by another \(process"),
    ):
        pack(digits_bundle, tmp_path / "x.zip")
    pack(digits_bundle, tmp_path / "x.zip")


def test_a_full_disk_keeps_the_zip_that_was_there(
    digits_bundle: Path, small_disk: Callable[[int], Path], keys: Keys
) -> None:
    slim_kib = (
        pack(digits_bundle, digits_bundle.parent / "measure.zip", slim=True).path.stat().st_size // 1024
    )
    (digits_bundle.parent / "measure.zip").unlink()
    disk = small_disk(slim_kib + 40)
    out = pack(digits_bundle, disk / "x.zip", slim=True).path
    before = out.read_bytes()
    message = r"x\.zip: cannot be written: No space left on device: choose another place or free this one"
    with pytest.raises(OutputError, match=message):
        pack(digits_bundle, out)
    with pytest.raises(OutputError, match=message):
        sign(out, keys[0])
    assert [path.name for path in disk.iterdir()] == ["x.zip"], "litter"
    assert out.read_bytes() == before
    done = CliRunner().invoke(main, ["pack", str(digits_bundle), str(out)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {out}: cannot be written: No space left")


def test_a_signature_goes_along_and_a_zip_can_be_signed(
    bundle_copy: Path, tmp_path: Path, keys: Keys
) -> None:
    private, public = keys
    unsigned = pack(bundle_copy, tmp_path / "unsigned.zip", slim=True).path
    with pytest.raises(SignatureError, match=r"unsigned\.zip: is not signed"):
        Bundle.open(unsigned, public_key=public)
    sign(bundle_copy, private)
    packed = pack(bundle_copy, tmp_path / "signed.zip", slim=True).path
    Bundle.open(packed, public_key=public)
    bundle = sign(unsigned, private)
    assert bundle.signature is not None and names(unsigned) == names(packed)
    with Classifier.load(unsigned, device="cpu", public_key=public) as classifier:
        assert classifier.plan.identity == bundle.identity
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "litter"


def test_the_command_prints_identity_size_and_place(digits_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.zip"
    done = CliRunner().invoke(main, ["pack", str(digits_bundle), "--slim", str(out)])
    identity = Bundle.open(digits_bundle).identity[:12]
    assert done.exit_code == 0
    assert done.stdout == f"digits {identity}: {out.stat().st_size:,} bytes\n{out}\n"
    assert CliRunner().invoke(main, ["pack", str(digits_bundle), str(tmp_path)]).exit_code == 2
    done = CliRunner().invoke(main, ["pack", str(tmp_path / "none"), str(out)])
    assert (done.exit_code, done.stderr) == (1, f"Error: {tmp_path / 'none'}: no such folder or file\n")


def test_a_file_of_a_zip_that_differs_is_named(whole: Path, tmp_path: Path) -> None:
    """Its bytes changed, and the zip's own checksums with them: only the manifest knows."""
    with zipfile.ZipFile(whole) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["model/fp32.onnx"] = files["model/fp32.onnx"][:-1] + b"\x00"
    files["evidence/extra.png"] = b""
    del files["README.md"]
    write_archive(tmp_path / "x.zip", files, files.__getitem__)
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "x.zip")
    for part in ("model/fp32.onnx was changed", "extra file evidence/extra.png", "missing file README.md"):
        assert part in str(caught.value)
