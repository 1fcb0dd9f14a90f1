"""Which device trains. Strict: what is asked for runs there, or nothing runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from shipnet.runtime.errors import DeviceError
from shipnet.runtime.machine import available_cores

LEAST_PIXELS_TO_SHARE: Final = 16_384  # in one batch
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChosenDevice:
    """A device and why it was taken.

    Attributes:
        device: for torch.
        description: the hardware in words.
    """

    device: torch.device
    description: str


def choose_device(asked: str) -> ChosenDevice:
    """Resolves "auto" (CUDA, then MPS, then the CPU) or checks the device that was asked for.

    Raises:
        DeviceError: it is not there; the message says what to do.
    """
    if asked == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return ChosenDevice(torch.device(kind), f"{_describe(torch.device(kind))} (auto)")
    device = torch.device(asked)
    if device.type == "cuda":
        _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device 'mps' needs macOS on Apple silicon and a torch built for it: use  --device cpu"
        )
    return ChosenDevice(device, _describe(device))


def threads_for(batch_pixels: int, *, most: int) -> int:
    """How many threads a step on the CPU uses: one where a batch is so small that threads wait for each other.

    At 64 images of 8x8 pixels one thread trains as fast as two on an idle machine, and 17 times as fast
    beside a busy neighbour.

    Args:
        batch_pixels: images times height times width of a batch.
        most: what the library was told to use at most, by OMP_NUM_THREADS or `torch.set_num_threads`.
    """
    return 1 if batch_pixels < LEAST_PIXELS_TO_SHARE else min(most, available_cores().usable)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Has torch compute on the CPU with that many threads, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Has torch refuse algorithms that may give other bits the next time, then does as before.

    cuBLAS reads CUBLAS_WORKSPACE_CONFIG when CUDA starts, so it is set in this process, and stays set.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if not wanted:
        yield
        return
    space = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logger.info("deterministic algorithms only; CUBLAS_WORKSPACE_CONFIG=%s in this process", space)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"torch {torch.__version__} is built for CUDA {built} but finds no GPU: check nvidia-smi"
            if built
            else f"torch {torch.__version__} is built without CUDA: install a CUDA build (https://pytorch.org)"
        )
        raise DeviceError(f"device {str(device)!r} is not available: {reason}, or use  --device cpu")
    if (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {str(device)!r}: this machine has {torch.cuda.device_count()} GPU(s), from cuda:0"
        )


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return str(device)
