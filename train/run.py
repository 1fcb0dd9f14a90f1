"""A training run on disk: the folder that training writes and everything later reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.errors import BundleError, ShipnetError
from shipnet.runtime.manifest import Sha256
from shipnet.runtime.preprocess import PreprocessSpec

from .config import Keep, TrainConfig
from .evaluation import RunEvaluation
from .events import EpochDone

if TYPE_CHECKING:
    from torch import Tensor

    from .normalize import Deployable

RECORD: Final = "run.json"
WEIGHTS: Final = "weights.safetensors"
HISTORY: Final = "history.csv"
CURVES: Final = "curves.png"
RUN_VERSION: Final = 1


class RunError(ShipnetError):
    """A folder that is no training run, or a damaged one."""


class Selection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was chosen on validation images, and on which.

    Attributes:
        keep: "best" where the epoch was chosen, "last" where only the end of training was.
        patience: so many epochs without a better one ended the training; None: it ran to its end.
        metric: of which a higher value is better.
        halves_seed: of `split_halves`; its first half chose, its second is evidence.
        images: in the half that chose.
        epoch: whose weights the run holds.
        accuracy, valid_loss: of that epoch on the half that chose.
    """

    keep: Keep
    patience: int | None
    metric: str = "accuracy"
    halves_seed: int
    images: int
    epoch: int
    accuracy: float
    valid_loss: float


class RunRecord(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`run.json`: everything about a run but its weights.

    Attributes:
        run_version: of this format.
        config: the configuration as it ran, every open choice made. Its data paths are of the
            machine that trained; they do not go into a bundle.
        data: the data set's name.
        labels: the classes' names, in the order of the logits.
        preprocess: how an image became the network's input.
        mean, std: per channel in units of [0, 1], as they normalised.
        data_fingerprint: sha256 over every image's name, label and bytes.
        epochs: that were trained.
        accuracy, valid_loss: of the weights, on `measured_images` validation images: all of them, or
            where something was chosen on some, the evidence half, which chose nothing.
        selection: what was chosen on validation images; None: nothing, and the weights are the last epoch's.
        unreadable: the names of damaged images, which neither trained nor validated.
        history: one value per epoch, measured on all validation images, or on the half that chose.
        temperature: what logits are divided by before the softmax; `evaluation` says what it was fitted on.
        evaluation: what was measured of the weights when training was over.
        resumed_after: the epochs after which training went on in a new process.
        warnings: what was odd about the data.
        git_commit: of the code, where it ran from a checkout; "-dirty" where that was changed.
        wall_s: of the training, data loading included.
        weights_sha256: of `weights.safetensors`.
    """

    run_version: Annotated[int, Meta(ge=RUN_VERSION, le=RUN_VERSION)] = RUN_VERSION
    created_utc: str
    config: TrainConfig
    arch: str
    parameters: int
    data: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data_fingerprint: Sha256
    train_images: int
    valid_images: int
    test_images: int
    unreadable: tuple[str, ...]
    epochs: int
    accuracy: float
    valid_loss: float
    measured_images: int
    selection: Selection | None
    history: tuple[EpochDone, ...]
    temperature: float
    evaluation: RunEvaluation
    warnings: tuple[str, ...]
    device: str
    versions: dict[str, str]
    git_commit: str | None
    resumed_after: tuple[int, ...]
    wall_s: float
    weights_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training run.

    Attributes:
        path: its folder.
        record: what `run.json` says.
    """

    path: Path
    record: RunRecord

    @property
    def weights_path(self) -> Path:
        """The network's weights, in safetensors form."""
        return self.path / WEIGHTS

    def network(self) -> Deployable:
        """The trained network, uint8 (N, H, W, C) -> float32 logits (N, K), on the CPU in evaluation mode.

        Raises:
            RunError: the weights are missing, damaged, or another network's.
        """
        from safetensors.torch import load

        from .architectures import build
        from .normalize import Deployable

        record = self.record
        data = _read(self.weights_path)
        if hashlib.sha256(data).hexdigest() != record.weights_sha256:
            raise RunError(
                f"{self.weights_path}: not the weights that {RECORD} names (its sha256 differs): train again"
            )
        net = build(
            record.arch,
            channels=record.preprocess.channels,
            num_classes=len(record.labels),
            image_size=record.preprocess.height,
        )
        try:
            net.load_state_dict(load(data))
        except RuntimeError as error:
            raise RunError(f"{self.weights_path}: not the weights of a {record.arch}: {error}") from error
        return Deployable(net, record.mean, record.std).eval()


def load_run(path: str | os.PathLike[str]) -> Run:
    """Opens the folder that `fit` wrote.

    Raises:
        RunError: it is no run, or `run.json` is damaged or of another version.

    Example:
        >>> from shipnet.train import load_run
        >>> network = load_run("artifacts/digits/run").network()
    """
    folder = Path(path)
    if not (folder / RECORD).is_file():
        inner = f"; did you mean {folder / 'run'}?" if (folder / "run" / RECORD).is_file() else ""
        state = f"holds no {RECORD}, so it is no training run" if folder.is_dir() else "no such folder"
        raise RunError(f"{folder}: {state}{inner}")
    try:
        record = decode(_read(folder / RECORD), RunRecord, where=str(folder / RECORD))
    except BundleError as error:
        raise RunError(f"{error}: damaged, or of another shipnet: train again") from error
    except ShipnetError as error:
        raise RunError(f"{folder / RECORD}: {error}") from error
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder}: {WEIGHTS} is missing: train again")
    return Run(folder, record)


def encode_weights(state: Mapping[str, Tensor]) -> bytes:
    """A state dict in safetensors form."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def write_run(folder: Path, record: RunRecord, weights: bytes) -> None:
    """Writes a run's files into a new folder."""
    from .curves import draw_curves

    (folder / WEIGHTS).write_bytes(weights)
    columns = EpochDone.__struct_fields__
    rows = [",".join(columns)]
    rows += [",".join(str(getattr(epoch, column)) for column in columns) for epoch in record.history]
    (folder / HISTORY).write_text("\n".join(rows) + "\n", encoding="utf-8")
    draw_curves(record.history, folder / CURVES, title=f"{record.data}: {record.arch}")
    (folder / RECORD).write_bytes(encode(record))


def refuse_strangers(out: Path) -> None:
    """Only a run, or an empty folder, may be replaced by a run.

    Raises:
        RunError: something else stands at `out`.
    """
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not (out / RECORD).is_file():
        raise RunError(
            f"{out}: something that is no training run stands there: choose another --out or remove it"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
