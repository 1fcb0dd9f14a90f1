"""Every file gets its row, whatever it is called and wherever it lies."""

from __future__ import annotations

import csv
import os
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipnet.runtime import Classifier
from shipnet.runtime.errors import DataError, OutputError, UsageError
from shipnet.runtime.folder import Counts, Row, classify_files, find_files, printable, write_csv


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


class TestFindFiles:
    @pytest.fixture(autouse=True)
    def inside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_sorts_plainly_and_keeps_the_paths_as_given(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/b/10.png", "in/b/2.png", "in/b.txt", "in/B.png", "in/a/x/y.png", "in/ä.png")
        names = ("in/B.png", "in/a/x/y.png", "in/b.txt", "in/b/10.png", "in/b/2.png", "in/ä.png")
        assert find_files(["in"]).files == names
        assert find_files([tmp_path / "in"]).files == tuple(str(tmp_path / name) for name in names)

    def test_hidden_names_are_counted_and_passed_over(self, tmp_path: Path) -> None:
        touch(
            tmp_path, "in/a.png", "in/.DS_Store", "in/.ipynb_checkpoints/b.png", "in/.ipynb_checkpoints/c.png"
        )
        found = find_files(["in"])
        assert (found.files, found.hidden) == (("in/a.png",), 2)

    def test_a_hidden_name_that_was_given_is_meant(self, tmp_path: Path) -> None:
        touch(tmp_path, ".in/a.png", ".b.png")
        assert find_files([".in", ".b.png"]).files == (".b.png", ".in/a.png")

    def test_what_is_given_twice_counts_once(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.png", "in/b/c.png")
        expected = ("in/a.png", "in/b/c.png")
        assert find_files(["in", "in"]).files == expected
        assert find_files(["in", "in/b", tmp_path / "in", "in/a.png"]).files == expected
        assert find_files(["in/a.png", "in/../in/a.png"]).files == ("in/a.png",)

    def test_links_to_folders_are_followed_once_and_loops_end(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/z/a.png", "elsewhere/b.png")
        (tmp_path / "in/a-link").symlink_to(tmp_path / "in/z", target_is_directory=True)
        (tmp_path / "in/z/up").symlink_to(tmp_path / "in", target_is_directory=True)
        (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        assert find_files(["in"]).files == ("in/more/b.png", "in/z/a.png")

    def test_links_to_files_stand_for_themselves(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.png")
        (tmp_path / "in/b.png").symlink_to("a.png")
        (tmp_path / "in/broken.png").symlink_to("nowhere.png")
        assert find_files(["in"]).files == ("in/a.png", "in/b.png", "in/broken.png")

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(UsageError, match="nowhere: no such file or folder"):
            find_files(["nowhere"])

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/.hidden")
        with pytest.raises(
            DataError, match=r"in: no files found \(1 hidden\): name a folder that holds images"
        ):
            find_files(["in"])
        with pytest.raises(DataError, match="no path given: no files found"):
            find_files([])

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder")
    def test_a_folder_that_cannot_be_listed(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.png", "in/locked/b.png")
        (tmp_path / "in/locked").chmod(0)
        with pytest.raises(DataError, match="in/locked: cannot be listed: Permission denied"):
            find_files(["in"])


OK = Row("a.png", (("cat", 0.98765432), ("dog", 0.0123)), "")
BAD = Row("b, c.txt", (), 'is no "image"')


class TestWriteCsv:
    def test_rows(self, tmp_path: Path) -> None:
        calls = []
        out = tmp_path / "new" / "out.csv"
        counts = write_csv([OK, BAD], out, top_k=2, on_row=lambda: calls.append(1))
        assert counts == Counts(ok=1, errors=1)
        assert len(calls) == 2
        assert out.read_text() == (
            "path,status,label,score,label_2,score_2,error\n"
            "a.png,ok,cat,0.987654,dog,0.012300,\n"
            '"b, c.txt",error,,,,,"is no ""image"""\n'
        )

    def test_stdout_row_by_row(self, capsys: pytest.CaptureFixture[str]) -> None:
        def rows() -> Iterator[Row]:
            yield Row("a.png", (("cat", 1.0),), "")
            assert capsys.readouterr().out == "path,status,label,score,error\na.png,ok,cat,1.000000,\n"
            yield BAD

        assert write_csv(rows(), None) == Counts(ok=1, errors=1)
        assert capsys.readouterr().out == '"b, c.txt",error,,,"is no ""image"""\n'

    def test_a_run_that_ends_early_leaves_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "out.csv").write_text("old")

        def rows() -> Iterator[Row]:
            yield OK
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_csv(rows(), tmp_path / "out.csv", top_k=2)
        assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
        assert (tmp_path / "out.csv").read_text() == "old"

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"out.csv: cannot be written"):
            write_csv([OK], tmp_path / "file" / "out.csv", top_k=2)

    def test_a_disk_that_is_full(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")  # not on Windows
        limits, handler = (
            resource.getrlimit(resource.RLIMIT_FSIZE),
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(
                OutputError, match=r"out.csv: cannot be written: File too large: free its place"
            ):
                write_csv([OK] * 10_000, tmp_path / "out.csv", top_k=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert list(tmp_path.iterdir()) == []

    def test_memory_does_not_grow_with_the_rows(self, tmp_path: Path) -> None:
        peaks = []
        for count in (1_000, 100_000):
            tracemalloc.start()
            write_csv(
                (Row(f"{index}.png", (("cat", 0.5),), "") for index in range(count)), tmp_path / "out.csv"
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 2 * peaks[0]

    def test_names_that_are_not_utf_8(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        assert printable(name) == "caf\\xe9.png"
        assert printable("café\n.png") == "café\n.png"
        write_csv([Row(name, (("cat", 0.5),), "")], tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[
            1
        ] == "caf\\xe9.png,ok,cat,0.500000,"


class TestClassifyFiles:
    @pytest.fixture(scope="module")
    @staticmethod
    def classifier(digits_bundle: Path) -> Iterator[Classifier]:
        with Classifier.load(digits_bundle, device="cpu", batch_size=4) as loaded:
            yield loaded

    def test_one_row_per_file_in_sorted_order(
        self, classifier: Classifier, digit_files: Path, tmp_path: Path
    ) -> None:
        images = sorted(digit_files.glob("*/*.png"))
        touch(tmp_path, "0-empty.png")
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / os.fsdecode(b"1-\xff.png")).write_bytes(images[0].read_bytes())
        (tmp_path / "broken.png").symlink_to("nowhere")
        found = find_files([tmp_path, digit_files])
        rows = list(classify_files(classifier, found.files, top_k=3))
        assert [row.path for row in rows] == list(found.files)
        errors = {Path(row.path).name: row.error for row in rows if row.error}
        assert errors.pop("notes.txt").startswith("is no image in a format that is read here (JPEG")
        assert errors == {"0-empty.png": "is empty (0 bytes): replace the file", "broken.png": "no such file"}
        expected = classifier.predict(images, top_k=3)
        answers = {row.path: row.top for row in rows}
        assert [answers[str(path)] for path in images] == [prediction.top for prediction in expected]
        write_csv(rows, tmp_path / "out" / "rows.csv", top_k=3)
        with (tmp_path / "out" / "rows.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(found.files)
        assert {row["status"] for row in table} == {"ok", "error"}

    def test_arguments_are_refused_before_any_work(self, classifier: Classifier) -> None:
        with pytest.raises(UsageError, match="top_k is 11, expected 1 to 10"):
            classify_files(classifier, ["a.png"], top_k=11)
