"""A packed bundle is a zip of which every byte is determined; every other zip is refused, and the message says why."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipnet.runtime import BundleError, OutputError
from shipnet.runtime.archive import Archive, shown, write_archive
from shipnet.runtime.manifest import is_inside
from shipnet.runtime.storage import Folder, hash_file, storage_at

FILES = {"manifest.json": b"{}\n", "model/fp32.onnx": bytes(range(256)) * 9, "evidence/probes/0.png": b""}
PART = st.text("abzABZ019_.-", min_size=1, max_size=12).filter(lambda part: part[0] not in ".-")
NAME = st.lists(PART, min_size=1, max_size=3).map("/".join)
per_example = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def packed(path: Path, files: dict[str, bytes] | None = None) -> Path:
    files = FILES if files is None else files
    write_archive(path, files, files.__getitem__)
    return path


def plain(name: str) -> zipfile.ZipInfo:
    """An entry as `write_archive` writes it, so that one thing at a time can differ."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def written(path: Path, *entries: tuple[zipfile.ZipInfo, bytes], comment: bytes = b"") -> Path:
    """What Python's own writer makes."""
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in entries:
            archive.writestr(info, data)
        archive.comment = comment
    return path


@per_example
@given(files=st.dictionaries(NAME, st.binary(max_size=200), max_size=8))
def test_what_is_written_is_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = Archive.open(packed(tmp_path / "x.zip", files)) if files else None
    if archive is None:
        with pytest.raises(BundleError, match="is no bundle"):
            storage_at(packed(tmp_path / "x.zip", files))
        return
    assert archive.listing() == (set(files), [])
    for name, data in files.items():
        assert archive.has(name) and archive.size(name) == len(data) and archive.read(name) == data
    with zipfile.ZipFile(archive.path) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == files


def test_the_same_files_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    first = packed(tmp_path / "a.zip").read_bytes()
    backwards = dict(reversed(FILES.items()))
    assert packed(tmp_path / "b.zip", backwards).read_bytes() == first


def test_pythons_own_writer_gives_the_same_zip_when_it_is_told_the_same(tmp_path: Path) -> None:
    """So the bytes are those of a plain zip, not of a format of our own."""
    entries = [(plain(name), FILES[name]) for name in sorted(FILES)]
    other = written(tmp_path / "python.zip", *entries)
    assert other.read_bytes() == packed(tmp_path / "ours.zip").read_bytes()
    assert Archive.open(other).read("manifest.json") == b"{}\n"


@pytest.mark.parametrize("name", sorted(FILES))
def test_folder_and_zip_give_the_same(tmp_path: Path, name: str) -> None:
    for file, data in FILES.items():
        (tmp_path / "folder" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / file).write_bytes(data)
    folder, archive = storage_at(tmp_path / "folder"), storage_at(packed(tmp_path / "x.zip"))
    assert isinstance(folder, Folder) and isinstance(archive, Archive)
    assert folder.listing() == archive.listing()
    for ask in (
        lambda s: s.has(name),
        lambda s: s.size(name),
        lambda s: s.read(name),
        lambda s: s.sha256(name),
    ):
        assert ask(folder) == ask(archive)
    assert archive.sha256(name) == hash_file(tmp_path / "folder" / name)
    assert not folder.has("none") and not archive.has("none")
    for storage in (folder, archive):
        with pytest.raises(OSError, match=r"[Nn]o such file"):
            storage.read("none")


# How to make an entry that no packed bundle holds, and what is said of it.
STRANGE: dict[str, tuple[Callable[[zipfile.ZipInfo], None], str]] = {
    "deflated": (lambda i: setattr(i, "compress_type", zipfile.ZIP_DEFLATED), "a is compressed"),
    "bzip2": (lambda i: setattr(i, "compress_type", zipfile.ZIP_BZIP2), "a is compressed"),
    "lzma": (lambda i: setattr(i, "compress_type", zipfile.ZIP_LZMA), "a is compressed"),
    "link": (lambda i: setattr(i, "external_attr", (stat.S_IFLNK | 0o777) << 16), "a is a link"),
    "device": (lambda i: setattr(i, "external_attr", (stat.S_IFCHR | 0o666) << 16), "a is no plain file"),
    "extra": (lambda i: setattr(i, "extra", b"\x55\x54\x01\x00\x00"), "a has extra fields"),
    "comment": (lambda i: setattr(i, "comment", b"hello"), "a has a comment"),
    "date": (
        lambda i: setattr(i, "date_time", (2026, 1, 2, 3, 4, 6)),
        "its headers are not as they were written",
    ),
    "executable": (
        lambda i: setattr(i, "external_attr", (stat.S_IFREG | 0o755) << 16),
        "its headers are not as they were written",
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_an_entry_that_no_packed_bundle_holds_is_named(tmp_path: Path, kind: str) -> None:
    change, message = STRANGE[kind]
    info = plain("a")
    change(info)
    path = written(tmp_path / "x.zip", (info, b"target"), (plain("manifest.json"), b"{}"))
    with pytest.raises(
        BundleError, match=f"is no zip that  shipnet pack  wrote: {message}.*: fetch an unchanged"
    ):
        Archive.open(path)


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "/etc/passwd",
        "a/../../b",
        "C:/a",
        "a\\b",
        ".gitignore",
        "a/b/c/d",
        "./a",
        "a//b",
        "ä.png",
        "a\nb",
    ],
)
def test_a_path_that_leaves_or_hides_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "x.zip", (plain("manifest.json"), b"{}"), (plain(name), b""))
    with pytest.raises(BundleError, match="is not a plain path inside") as caught:
        Archive.open(path)
    assert shown(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@per_example
@given(name=st.text(max_size=20).filter(lambda name: not is_inside(name)))
def test_no_odd_name_gets_through(tmp_path: Path, name: str) -> None:
    try:
        path = written(tmp_path / "x.zip", (plain("manifest.json"), b"{}"), (plain(name), b""))
    except UnicodeEncodeError:
        return  # half of a surrogate pair: no zip can hold it
    with pytest.raises(BundleError) as caught:
        storage_at(path)
    assert str(caught.value).isprintable()


def test_a_folder_in_the_zip_is_named(tmp_path: Path) -> None:
    folder = zipfile.ZipInfo("model/")
    folder.external_attr = (stat.S_IFDIR | 0o755) << 16
    with pytest.raises(BundleError, match=r"model/ is a folder"):
        Archive.open(written(tmp_path / "x.zip", (plain("a"), b""), (folder, b"")))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Which of the two is read differs from tool to tool."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = written(tmp_path / "x.zip", (plain("a"), b"good"), (plain("a"), b"evil"))
    with pytest.raises(BundleError, match="a stands 2 times"):
        Archive.open(path)


def test_everything_strange_is_named_at_once(tmp_path: Path) -> None:
    link, squeezed = plain("a"), plain("../b")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    squeezed.compress_type = zipfile.ZIP_DEFLATED
    path = written(tmp_path / "x.zip", (link, b"/etc/passwd"), (squeezed, bytes(1 << 20)))
    with pytest.raises(
        BundleError, match=r"a is a link; \.\./b is not a plain path inside and is compressed: fetch"
    ):
        Archive.open(path)


def test_a_folder_that_was_zipped_by_other_means_is_told_from_a_packed_one(tmp_path: Path) -> None:
    """A hundred entries make no message of a hundred lines."""
    entries = []
    for number in range(100):
        info = plain(f"evidence/probes/{number}.png")
        info.compress_type = zipfile.ZIP_DEFLATED
        entries.append((info, b"1" * 100))
    with pytest.raises(
        BundleError, match=r"0\.png is compressed; .*; and 90 more: .*with  shipnet pack"
    ) as caught:
        Archive.open(written(tmp_path / "x.zip", *entries))
    assert str(caught.value).count("is compressed") == 10


def test_an_encrypted_entry_is_named(tmp_path: Path) -> None:
    data = bytearray(packed(tmp_path / "x.zip").read_bytes())
    (tmp_path / "x.zip").write_bytes(with_flag(data, 1))
    with pytest.raises(BundleError, match=r"evidence/probes/0\.png is encrypted"):
        Archive.open(tmp_path / "x.zip")


def with_flag(data: bytearray, flag: int) -> bytearray:
    """Sets a bit in the flags of the first entry, in both of its headers."""
    (directory,) = struct.unpack_from("<I", data, len(data) - 6)
    for place in (6, directory + 8):
        struct.pack_into("<H", data, place, flag)
    return data


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    """By compression, and by files that share their bytes, as the best known bomb does it."""
    info = plain("a")
    info.compress_type = zipfile.ZIP_DEFLATED
    path = written(tmp_path / "x.zip", (info, bytes(1 << 24)))
    assert path.stat().st_size < 1 << 15
    with pytest.raises(BundleError, match="a is compressed"):
        Archive.open(path)
    data = bytearray(packed(tmp_path / "y.zip", {"a": b"1" * 50, "b": b"2" * 50}).read_bytes())
    (directory,) = struct.unpack_from("<I", data, len(data) - 6)
    struct.pack_into("<I", data, directory + 47 + 42, 0)  # b's header is said to be a's
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(BundleError, match="its headers are not as they were written"):
        Archive.open(tmp_path / "y.zip")


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    data = bytearray(packed(tmp_path / "x.zip", {"a": b"12345"}).read_bytes())
    (directory,) = struct.unpack_from("<I", data, len(data) - 6)
    struct.pack_into("<I", data, directory + 24, 1 << 31)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(BundleError, match=r"a is said to be of 2147483648 bytes and of 5"):
        Archive.open(tmp_path / "x.zip")


def test_more_files_than_a_zip_holds_are_refused(tmp_path: Path) -> None:
    names = [str(number) for number in range(0xFFFF)]
    with pytest.raises(
        OutputError, match=r"x\.zip: more than a zip holds \(4 GiB, 65,534 files\): pass the folder"
    ):
        write_archive(tmp_path / "staged", names, lambda name: b"", where=tmp_path / "x.zip")
    write_archive(tmp_path / "x.zip", names[1:], lambda name: b"")
    assert len(Archive.open(tmp_path / "x.zip").listing()[0]) == 0xFFFE


def test_zip64_is_refused(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w") as archive,
        archive.open("a", "w", force_zip64=True) as file,
    ):
        file.write(b"1")
    with pytest.raises(BundleError, match=r"headers are not as they were written|uses zip64"):
        Archive.open(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"#!/bin/sh\n" + data, "is no bundle: expected a bundle's folder, or the zip"),
        (lambda data: data + b"x", "headers are not as they were written|cannot be read as a zip"),
        (lambda data: data + bytes(1 << 17), "cut short or damaged"),
        (lambda data: data[:-1], "cut short or damaged, it cannot be read as a zip: .*: fetch it again"),
        (lambda data: data[: len(data) // 2], "cut short or damaged"),
        (lambda data: data[:4], "cut short or damaged"),
        (lambda data: b"", "is no bundle: expected a bundle's folder, or the zip"),
        (lambda data: data + data, "headers are not as they were written|cannot be read as a zip"),
    ],
)
def test_bytes_before_behind_or_missing_are_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = packed(tmp_path / "x.zip")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=message):
        storage_at(path)


def test_bytes_between_the_entries_are_found(tmp_path: Path) -> None:
    """Python's reader takes such a zip, since the directory's offsets are right."""
    path = tmp_path / "x.zip"
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(plain("a"), b"1")
        archive.fp.write(b"hidden")  # type: ignore[union-attr]
        archive.start_dir = archive.fp.tell()  # type: ignore[union-attr]
        archive.writestr(plain("b"), b"2")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(BundleError, match="bytes were added, moved or changed"):
        Archive.open(path)


@per_example
@given(data=st.data())
def test_any_other_bytes_are_refused_or_are_a_files_own(tmp_path: Path, data: st.DataObject) -> None:
    """One byte changed, one put in or some cut off: an error of ours, or the change is in what a file holds."""
    original = packed(tmp_path / "x.zip").read_bytes()
    place = data.draw(st.integers(0, len(original) - 1), label="place")
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != original[place]), label="byte")
    kind = data.draw(st.sampled_from(["change", "insert", "cut"]), label="kind")
    changed = {
        "change": original[:place] + bytes([byte]) + original[place + 1 :],
        "insert": original[:place] + bytes([byte]) + original[place:],
        "cut": original[:place],
    }[kind]
    (tmp_path / "x.zip").write_bytes(changed)
    try:
        archive = storage_at(tmp_path / "x.zip")
    except BundleError as error:
        assert str(tmp_path / "x.zip") in str(error)
        return
    assert kind == "change", "a zip of another length was taken"
    unreadable = 0
    for name, content in FILES.items():
        for ask in (archive.read, archive.sha256):
            try:
                found = ask(name)
            except OSError as error:
                assert "differs from what the zip's directory says" in str(error)
                unreadable += 1
            else:
                assert found in (content, hash_file_of(content))
    assert unreadable == 2


def hash_file_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_a_zip_that_is_cut_while_in_use_is_found(tmp_path: Path) -> None:
    archive = Archive.open(packed(tmp_path / "x.zip"))
    with archive.path.open("r+b") as file:
        file.truncate(200)
    for ask in (archive.read, archive.sha256):
        with pytest.raises(OSError, match="differs from what the zip's directory says of it"):
            ask("model/fp32.onnx")


def test_nothing_and_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder or file"):
        storage_at(tmp_path / "none")
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        storage_at(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match=r"no such folder or file|cannot be read"):
        storage_at(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="pipe: is neither a folder nor a plain file"):
        storage_at(tmp_path / "pipe")  # and does not wait for a writer


def test_a_folder_names_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder-link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe\n")
    present, problems = Folder(tmp_path).listing()
    assert present == {"a"}
    assert sorted(problems) == [
        r"'pipe\n' is neither file nor folder",
        "folder-link is a link",
        "link is a link",
    ]


def test_other_tools_read_what_is_packed(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.zip")
    done = subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(path), str(tmp_path / "out")], check=False, timeout=60
    )
    assert done.returncode == 0
    assert (tmp_path / "out" / "model" / "fp32.onnx").read_bytes() == FILES["model/fp32.onnx"]
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
