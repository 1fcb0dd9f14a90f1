from pathlib import Path

import pytest

from shipnet.runtime.errors import OutputError
from shipnet.runtime.staging import staged_file, staged_folder, write_file


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as staged:
        (staged / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert contents(tmp_path) == ["deep", "deep/out", "deep/out/a"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with staged_folder(tmp_path / "out") as staged:
            (staged / name).write_text(name)
    assert contents(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_changes_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    with pytest.raises(error), staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("1")
        raise error
    with pytest.raises(error), staged_file(tmp_path / "file") as staged:
        staged.write_text("half")
        raise error
    assert contents(tmp_path) == ["out", "out/kept"]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "file", b"1")
    write_file(tmp_path / "new" / "file", b"22")
    assert (tmp_path / "new" / "file").read_bytes() == b"22"
    assert contents(tmp_path) == ["new", "new/file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(OutputError, match=r"file/out: cannot be written: .*choose another place")
    with refused, staged_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(OutputError, match=r"is a folder, expected a file's path"):
        write_file(tmp_path, b"")
    with pytest.raises(OutputError, match=r"cannot be written"):
        write_file(tmp_path / "file" / "below", b"")
