"""An unfinished run on disk, from which training goes on after a crash.

It stands beside the run's folder, `run.partial/` for `run/`, and holds the last epoch's tensors in one safetensors
file and `checkpoint.json`, which names that file and its hash. Both are written aside, synced and renamed, the JSON
last, and the file before is removed after that: whenever the process dies, one whole checkpoint can be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.errors import BundleError, OutputError, ShipnetError
from shipnet.runtime.manifest import Normalization, Sha256
from shipnet.runtime.staging import write_file

from .config import TrainConfig
from .events import EpochDone
from .loop import DivergedError
from .run import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from .state import TrainingState

logger = logging.getLogger(__name__)

CHECKPOINT: Final = "checkpoint.json"
CHECKPOINT_VERSION: Final = 1
SUFFIX: Final = ".partial"
ADDED: Final = ("find-lr.png",)  # files of the run that are there before it is trained
_OURS: Final = ("epoch-", ".")  # tensors, and files that were never finished
# Fields that change how fast a training runs and nothing of its result. Where the data lie is among them:
# a hash tells whether they are the same.
FREE_FIELDS: Final = frozenset({"workers", "weights", "data.data", "data.data_root", "data.strict"})


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`checkpoint.json`: where a training stands after an epoch.

    Attributes:
        asked: the configuration as `recipe.resolve` gave it.
        config: the same with the learning rate that was found, where one was looked for.
        data_fingerprint: of the images.
        hardware: what computed, in words.
        versions: of every library that has a part in the weights.
        history: one value per finished epoch.
        resumed_after: the epochs after which training went on in a new process.
        elapsed_s: seconds that all processes spent until here.
        tensors_sha256: of the file of tensors beside this one; `CheckpointFolder.write` fills it in.
    """

    checkpoint_version: Annotated[int, Meta(ge=CHECKPOINT_VERSION, le=CHECKPOINT_VERSION)] = (
        CHECKPOINT_VERSION
    )
    asked: TrainConfig
    config: TrainConfig
    data_fingerprint: Sha256
    normalization: Normalization
    hardware: str
    versions: dict[str, str]
    history: Annotated[tuple[EpochDone, ...], Meta(min_length=1)]
    resumed_after: tuple[int, ...]
    elapsed_s: float
    tensors_sha256: Sha256 = "0" * 64

    @property
    def epoch(self) -> int:
        """The last finished epoch."""
        return self.history[-1].epoch

    @property
    def tensors_name(self) -> str:
        """Of the file of tensors."""
        return f"epoch-{self.epoch}.safetensors"


class CheckpointFolder:
    """The place of a run's checkpoints."""

    def __init__(self, run: Path) -> None:
        """Takes the folder where the finished run will stand."""
        self.run = run
        self.path = run.with_name(run.name + SUFFIX)

    def open(self, config: TrainConfig, fingerprint: str, *, resume: bool) -> Checkpoint | None:
        """Makes the folder, and finds the checkpoint to go on from; None: training starts at the beginning.

        Args:
            config: as `recipe.resolve` gives it.
            fingerprint: of the images.
            resume: whether to go on; otherwise what is there is removed, with a warning.

        Raises:
            OutputError: it cannot be made.
            RunError: something else stands there; the checkpoint is damaged, or of another training.
        """
        self._refuse_strangers()
        if not resume and (self.path / CHECKPOINT).exists():
            logger.warning(
                "%s: replacing an unfinished run, which --resume would have gone on with", self.path
            )
            self.clear()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.run}: cannot be written: {error.strerror or error}: choose another --out"
            ) from error
        checkpoint = self.read()
        if checkpoint is not None:
            refuse_differences(self.path, checkpoint, config, fingerprint)
            logger.warning("%s: going on after epoch %d of %d", self.path, checkpoint.epoch, config.epochs)
        elif resume:
            logger.warning("%s: no checkpoint to resume, starting at the first epoch", self.path)
        return checkpoint

    @contextmanager
    def kept_on_failure(self, config: TrainConfig) -> Iterator[None]:
        """When the block raises, Ctrl-C among others, says how to go on, or removes a folder without checkpoint."""
        try:
            yield
        except BaseException as error:
            checkpoint = self.read()
            if checkpoint is None:
                self.clear()
            elif not isinstance(error, DivergedError):
                logger.warning(
                    "stopped after epoch %d of %d, kept in %s: the same command with --resume goes on",
                    checkpoint.epoch,
                    config.epochs,
                    self.path,
                )
            raise

    def read(self) -> Checkpoint | None:
        """The last checkpoint; None where there is none.

        Raises:
            RunError: it is damaged, or of another shipnet.
        """
        path = self.path / CHECKPOINT
        try:
            return decode(path.read_bytes(), Checkpoint, where=str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ShipnetError) as error:
            where = "" if isinstance(error, BundleError) else f"{path}: "
            raise RunError(
                f"{where}{error}: damaged, or of another shipnet: train without --resume"
            ) from error

    def read_tensors(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """What `TrainingState.tensors` gave.

        Raises:
            RunError: the file is missing, or is not the one that the checkpoint names.
        """
        from safetensors.torch import load

        path = self.path / checkpoint.tensors_name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{path}: cannot be read: {error.strerror or error}: train without --resume"
            ) from error
        if hashlib.sha256(data).hexdigest() != checkpoint.tensors_sha256:
            raise RunError(
                f"{path}: not the file that {CHECKPOINT} names (its sha256 differs): train without --resume"
            )
        tensors: dict[str, Tensor] = load(data)
        return tensors

    def restore(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        """Puts a training where the checkpoint says it stands.

        Raises:
            RunError: its tensors are missing, damaged or another network's.
        """
        tensors = self.read_tensors(checkpoint)
        try:
            state.restore(tensors, checkpoint.history)
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(f"{self.path}: not of this network: {error}: train without --resume") from error

    def write(self, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
        """Writes a checkpoint, then removes the one before.

        Args:
            checkpoint: without the hash of its tensors.
            tensors: on the CPU.

        Raises:
            OutputError: it cannot be written; the one before is still there.
        """
        from safetensors.torch import save

        data, name = save(tensors), checkpoint.tensors_name
        digest = hashlib.sha256(data).hexdigest()
        write_file(self.path / name, data)
        write_file(self.path / CHECKPOINT, encode(msgspec.structs.replace(checkpoint, tensors_sha256=digest)))
        _sync_folder(self.path)
        for path in self.path.iterdir():
            if path.name.startswith(_OURS) and path.name != name:
                path.unlink(missing_ok=True)

    def hand_over(self, run: Path) -> None:
        """Copies what belongs to the run into its folder."""
        for path in self.path.iterdir():
            if path.name in ADDED:
                shutil.copyfile(path, run / path.name)

    def clear(self) -> None:
        """Removes the checkpoints, when the run is whole or training starts anew."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _refuse_strangers(self) -> None:
        if not self.path.exists():
            return
        ours = self.path.is_dir() and all(
            path.name in (CHECKPOINT, *ADDED) or path.name.startswith(_OURS) for path in self.path.iterdir()
        )
        if not ours:
            raise RunError(
                f"{self.path}: something that is no unfinished run stands there: choose another --out or remove it"
            )


def refuse_differences(path: Path, checkpoint: Checkpoint, config: TrainConfig, fingerprint: str) -> None:
    """A training goes on as it began, or not at all.

    Args:
        path: of the checkpoint, for the message.
        checkpoint: where training stands.
        config: what is asked for now, as `recipe.resolve` gives it.
        fingerprint: of the images that are there now.

    Raises:
        RunError: naming every field that differs, with both values.
    """
    before, now = _flat(checkpoint.asked), _flat(config)
    found = [
        f"{name} is {now[name]!r}, was {before[name]!r}"
        for name in now
        if name not in FREE_FIELDS and now[name] != before[name]
    ]
    if fingerprint != checkpoint.data_fingerprint:
        found.append(
            f"the images of data {now['data.data']!r} differ from those of {before['data.data']!r} "
            f"(data_fingerprint is {fingerprint[:12]}, was {checkpoint.data_fingerprint[:12]})"
        )
    if found:
        raise RunError(
            f"{path}: cannot be resumed: {'; '.join(found)}: give the same options, or train without --resume"
        )


def warn_of_changes(path: Path, checkpoint: Checkpoint, *, hardware: str, versions: dict[str, str]) -> None:
    """Says so where training goes on by other means than it began: then the weights end up others, to the bit.

    Args:
        path: of the checkpoint, for the message.
        checkpoint: what computed until now.
        hardware: what computes now, in words.
        versions: of the libraries that are here now.
    """
    before, now = {"hardware": checkpoint.hardware, **checkpoint.versions}, {"hardware": hardware, **versions}
    found = [
        f"{name} is {now.get(name, 'gone')}, was {before.get(name, 'not there')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if found:
        logger.warning(
            "%s: resumed by other means, so not to the same bits as a training without the break: %s",
            path,
            "; ".join(found),
        )


def _flat(config: TrainConfig) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config)
    data = plain.pop("data")
    return plain | {f"data.{name}": value for name, value in data.items()}


def _sync_folder(path: Path) -> None:
    """Has the renames survive a power cut. Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
