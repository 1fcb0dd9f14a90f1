"""From a configuration to a run: data, network, training, folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from shipnet.runtime.errors import TrainingError
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.staging import locked, refuse_busy, staged_file, staged_folder

from . import channel_stats, recipe
from .architectures import build
from .checkpoint import CheckpointFolder, warn_of_changes
from .config import BUILT_IN, CacheConfig, TrainConfig
from .data import load_data
from .devices import choose_device, deterministic, threads
from .evaluation import evaluate_run
from .events import LrFound, OnEvent, Started
from .feeds import open_feed
from .images import Dataset
from .job import Job, checkpoint_of, record_of
from .loop import evaluate, train
from .normalize import Deployable
from .photos import Photos, read_images
from .provenance import versions
from .report import write_report
from .run import (
    Run,
    RunError,
    RunRecord,
    encode_weights,
    load_run,
    refuse_strangers,
    write_run,
)
from .state import TrainingState
from .weights import load_weights

logger = logging.getLogger(__name__)


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: OnEvent | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    cache: CacheConfig | None = None,
) -> Run:
    """Trains a network and writes its run, whole or not at all.

    After every epoch a checkpoint is written into `OUT.partial`, which goes when the run is whole: a
    process that dies at any moment loses no more than the epoch it was in. The caller's random state is
    left as it was.

    Args:
        config: what to train on what, and how.
        out: the run's folder; None means `artifacts/NAME/run` with the data set's name. A run that
            stands there is replaced when the new one is complete.
        on_event: called with each `Event`, in this thread.
        dataset: what `load_data(config.data)` gave, where the caller has it already.
        resume: whether to go on from the last checkpoint, to the same weights as without the break. With
            none, training starts at the beginning; where the very run stands finished, it is returned.
        cache: where decoded photographs are kept; None: the defaults of `CacheConfig`.

    Returns:
        The run, as `load_run` would open it.

    Raises:
        UsageError, DataError, ImageError: data or options that cannot be meant.
        DeviceError: the device is not there.
        OutputError, RunError: `out` cannot be written, is being written by another, or holds something else;
            what is to be resumed is damaged, or was another training: the message names the fields that differ.
        WeightsError: weights to start from that cannot be had, or are another network's.
        TrainingError: the loss is no longer a number, or the device's memory is full.

    Example:
        >>> from shipnet.train import TrainConfig, fit
        >>> run = fit(TrainConfig(), out="artifacts/digits/run")
        >>> run.record.accuracy > 0.97
        True
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    if out is not None:
        refuse_busy(Path(out))  # before the images are read, which may take minutes
    dataset = dataset or load_data(config.data)
    place = Path(out) if out is not None else Path("artifacts") / dataset.name / "run"
    refuse_strangers(place)
    asked = recipe.resolve(_with_absolute_paths(config), dataset)
    with locked(place):
        checkpoints = CheckpointFolder(place)
        if (
            resume
            and checkpoints.read() is None
            and (finished := _finished(place, asked, dataset)) is not None
        ):
            return finished
        checkpoint = checkpoints.open(asked, dataset.fingerprint, resume=resume)
        notify = on_event or _ignore
        with checkpoints.kept_on_failure(asked), deterministic(asked.deterministic):
            dataset, photos = read_images(
                dataset, cache or CacheConfig(), strict=asked.data.strict, notify=notify
            )
            if checkpoint is not None:
                config, normalization = checkpoint.config, checkpoint.normalization
            else:
                config = _with_found_lr(asked, (dataset, photos), folder=checkpoints.path, notify=notify)
                normalization = choose_normalization(config, dataset, photos=photos)
            count = recipe.cpu_threads(config, dataset, most=torch.get_num_threads())
            job = Job(asked, config, dataset, photos, device, normalization, count, started, checkpoint)
            if checkpoint is not None:
                warn_of_changes(checkpoints.path, checkpoint, hardware=job.hardware, versions=versions())
            with threads(count), _own_random_state(device.device, config.seed):
                record, weights = _train(job, checkpoints, notify)
            with staged_folder(place) as folder:
                write_run(folder, record, weights)
                write_report(folder, record, dataset)
                checkpoints.hand_over(folder)
        checkpoints.clear()
    return Run(place, record)


def _train(job: Job, checkpoints: CheckpointFolder, notify: OnEvent) -> tuple[RunRecord, bytes]:
    config, device = job.config, job.device.device
    feed = open_feed(job.dataset, config, device, photos=job.photos)
    start: list[str] = []
    model = new_network(config, job.dataset, job.normalization, tell=start.append).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    state = TrainingState.begin(model, config)
    if job.checkpoint is not None:
        checkpoints.restore(job.checkpoint, state)
    notify(
        Started(
            arch=str(config.arch),
            parameters=state.parameters,
            device=job.hardware,
            data=job.dataset.name,
            train_images=len(job.dataset.train),
            valid_images=len(job.dataset.valid),
            epochs=int(config.epochs or 0),
            steps=feed.steps,
            start=tuple(start),
        )
    )
    for epoch in state.history:
        notify(epoch)
    selection, evidence = job.halves
    try:
        train(
            state,
            feed,
            config,
            notify=notify,
            selection=selection,
            save=lambda state: checkpoints.write(checkpoint_of(job, state), state.tensors()),
        )
        kept = state.kept
        measured = (
            (kept.valid_loss, kept.accuracy) if evidence is None else evaluate(model, feed.valid(evidence))
        )
        evaluation = evaluate_run(model, job.dataset, batches=feed.valid(), chooses=config.chooses)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{job.device.description}: its memory is full at batches of {config.batch_size}: lower --batch-size"
        ) from error
    weights = encode_weights(model.net.state_dict())
    return record_of(job, state, measured=measured, evaluation=evaluation, weights=weights), weights


def new_network(
    config: TrainConfig,
    dataset: Dataset,
    normalization: Normalization,
    *,
    tell: Callable[[str], None] = logger.info,
) -> Deployable:
    """The network as training begins: fresh, or with the weights that it starts from.

    Args:
        config: as `recipe.resolve` gives it.
        dataset: decides input and classes.
        normalization: goes in front of the network.
        tell: called with each sentence about weights that were loaded.

    Raises:
        WeightsError: they cannot be had or read, or are another network's.
    """
    net = build(
        str(config.arch),
        channels=dataset.spec.channels,
        num_classes=len(dataset.labels),
        image_size=dataset.spec.height,
    )
    if config.starts_from_weights:
        for sentence in load_weights(net, config, dataset.labels):
            tell(sentence)
    return Deployable(net, normalization.mean, normalization.std)


def _with_found_lr(
    config: TrainConfig, images: tuple[Dataset, Photos | None], *, folder: Path, notify: OnEvent
) -> TrainConfig:
    """The configuration, "auto" replaced by the rate that a sweep suggests; its picture goes into the folder.

    Where the sweep says nothing, as on a few dozen photographs, by the recipe's.
    """
    from .lr_curve import FlatCurveError
    from .lr_finder import PICTURE, draw_sweep, find_lr

    if config.max_lr != "auto":
        return config
    try:
        finding = find_lr(config, images=images)
    except FlatCurveError as error:
        usual = recipe.resolve(msgspec.structs.replace(config, max_lr=None), images[0])
        logger.warning("max_lr is the recipe's, %g: %s", usual.max_lr, error)
        return usual
    with staged_file(folder / PICTURE) as staged:
        draw_sweep(finding, staged)
    found = LrFound(finding.suggestions.valley, len(finding.losses), finding.wall_s)
    logger.info("max_lr %g: the valley of a sweep over %d batches", found.max_lr, found.steps)
    notify(found)
    return msgspec.structs.replace(config, max_lr=found.max_lr)


def choose_normalization(
    config: TrainConfig, dataset: Dataset, *, photos: Photos | None = None
) -> Normalization:
    """The statistics that were given, or those of the training images."""
    if config.mean is not None and config.std is not None:
        return Normalization(mean=config.mean, std=config.std)
    return channel_stats.measure(dataset, config.seed, photos=photos)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """So that the run's data are found again from another working directory."""
    data = config.data
    root = data.data_root or os.environ.get("SHIPNET_DATA")
    if data.data in BUILT_IN:
        data = msgspec.structs.replace(data, data_root=str(Path(root).absolute()) if root else None)
    else:
        data = msgspec.structs.replace(data, data=str(Path(data.data).absolute()))
    weights = config.weights and str(Path(config.weights).absolute())
    return msgspec.structs.replace(config, data=data, weights=weights)


def _finished(place: Path, config: TrainConfig, dataset: Dataset) -> Run | None:
    """The run that stands at `place`, where it is the very one that is asked for."""
    try:
        run = load_run(place)
    except RunError:
        return None
    found = run.record.config
    if config.max_lr == "auto":
        found = msgspec.structs.replace(found, max_lr="auto")
    same = found == config and run.record.data_fingerprint == dataset.fingerprint
    if same:
        logger.warning("%s: is finished, nothing to resume", place)
    return run if same else None


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's generators, and gives the caller's state back in the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _ignore(event: object) -> None:
    del event
