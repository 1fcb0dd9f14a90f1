"""Classifies whatever lies in folders: one row per file, in sorted order, whether it is an image or not."""

from __future__ import annotations

import csv
import heapq
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from msgspec import Struct

from .classifier import Classifier, Failure, Prediction
from .errors import DataError, OutputError, UsageError
from .staging import staged_file


@dataclass(frozen=True, slots=True)
class Found:
    """The files below some paths.

    Attributes:
        files: each once, sorted as plain strings, named so that the paths given lead to them.
        hidden: files and folders passed over because their name starts with a dot.
    """

    files: tuple[str, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one file.

    Attributes:
        path: the file, as it was found.
        top: the most probable labels with their scores, best first; empty where there is an error.
        error: why there is no answer; empty where there is one.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str


class Counts(Struct, frozen=True, kw_only=True):
    """How many rows have an answer, and how many an error."""

    ok: int
    errors: int


def find_files(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """Lists every file of some folders and their sub-folders, images or not.

    Links to folders are followed, and each folder is listed once, under its own name rather than a link's. A hidden
    file or folder is passed over unless it is one of `paths`.

    Args:
        paths: folders and files.

    Raises:
        UsageError: a path does not exist.
        DataError: a folder cannot be listed, or there is no file at all.
    """
    tops = [os.fspath(path) for path in paths]
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    hidden = 0
    for top in tops:
        if not os.path.lexists(top):
            raise UsageError(f"{printable(top)}: no such file or folder")
        if not os.path.isdir(top):  # noqa: PTH112 - a path stays the string that was given
            files.append(top)
        else:
            hidden += _list_folder(top, files, seen)
    if not files:
        names = ", ".join(printable(top) for top in tops) or "no path given"
        raise DataError(f"{names}: no files found ({hidden} hidden): name a folder that holds images")
    if len(tops) > 1:  # a file may have been given next to its folder
        files = list({os.path.abspath(file): file for file in reversed(files)}.values())  # noqa: PTH100
    return Found(tuple(sorted(files)), hidden)


def classify_files(classifier: Classifier, files: Iterable[str], *, top_k: int = 1) -> Iterator[Row]:
    """Classifies files in order, holding a few at a time.

    Args:
        classifier: what runs, and in which batches.
        files: paths.
        top_k: how many labels a row holds.

    Returns:
        One row per file; a file that is no image gets one that says why.

    Raises:
        UsageError: `top_k` is not 1 to the number of labels.
    """
    answers = classifier.stream(files, top_k=top_k, errors="yield")
    return (_row(answer) for answer in answers)


def write_csv(
    rows: Iterable[Row],
    out: Path | None,
    *,
    top_k: int = 1,
    on_row: Callable[[], None] | None = None,
) -> Counts:
    r"""Writes rows as CSV: `path,status,label,score[,label_2,score_2...],error`.

    The status is "ok" or "error", the score has six decimals, and bytes of a file's name that are not UTF-8 are
    written as `\xNN`.

    Args:
        rows: as `classify_files` gives them.
        out: the file, which appears whole or not at all; None for stdout, row by row.
        top_k: how many labels a row holds.
        on_row: called after each row.

    Raises:
        OutputError: the file cannot be written.
    """
    if out is None:
        return _write(rows, sys.stdout, top_k, on_row, flush=True)
    with staged_file(out) as staged:
        try:
            with staged.open("w", encoding="utf-8", newline="") as stream:
                return _write(rows, stream, top_k, on_row, flush=False)
        except OSError as error:
            raise OutputError(
                f"{out}: cannot be written: {error.strerror or error}: free its place"
            ) from error


def printable(text: str) -> str:
    r"""Text that any UTF-8 file can hold: bytes of a file's name that are not UTF-8 become `\xNN`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _list_folder(top: str, files: list[str], seen: set[tuple[int, int]]) -> int:
    """Adds the files below a folder; returns how many names were hidden."""
    hidden = 0
    folders, links = [top], list[str]()
    while folders or links:  # links come last: a folder keeps its own name
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        hidden += 1
                    elif not entry.is_dir():
                        files.append(entry.path)
                    elif entry.is_symlink():
                        heapq.heappush(links, entry.path)
                    else:
                        folders.append(entry.path)
        except OSError as error:
            raise DataError(
                f"{printable(folder)}: cannot be listed: {error.strerror or error}: mend that, or name other folders"
            ) from error
    return hidden


def _row(answer: Prediction | Failure) -> Row:
    path = str(answer.source)
    if isinstance(answer, Prediction):
        return Row(path, answer.top, "")
    reason = str(answer.error).removeprefix(f"{path}: ")
    return Row(path, (), " ".join(reason.split()))


def _write(
    rows: Iterable[Row], stream: TextIO, top_k: int, on_row: Callable[[], None] | None, *, flush: bool
) -> Counts:
    writer = csv.writer(stream, lineterminator="\n")
    names = ["label", "score"]
    for place in range(2, top_k + 1):
        names += [f"label_{place}", f"score_{place}"]
    writer.writerow(["path", "status", *names, "error"])
    ok = errors = 0
    for row in rows:
        cells = [cell for label, score in row.top for cell in (label, f"{score:.6f}")]
        cells += [""] * (2 * top_k - len(cells))
        status = "error" if row.error else "ok"
        writer.writerow([printable(row.path), status, *cells, printable(row.error)])
        ok, errors = (ok, errors + 1) if row.error else (ok + 1, errors)
        if flush:
            stream.flush()
        if on_row is not None:
            on_row()
    return Counts(ok=ok, errors=errors)
