"""Training steps through `torch.compile`, or an error that says what is missing."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from shipnet.runtime.errors import DeviceError

from .normalize import Deployable


def compiled(model: Deployable) -> nn.Module:
    """A compiled form of a network: it computes with the weights of `model`, which stays as it is.

    The first steps take a minute or so longer. A tiny function is compiled at once, so that a machine that cannot
    compile says so before training.

    Raises:
        DeviceError: this machine cannot compile; the message says what it lacks.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    device = model.pixel_mean.device
    try:
        torch.compile(_probe)(torch.zeros(8, device=device))
    except (TorchDynamoException, InductorError, InvalidCxxCompiler, CppCompileError, RuntimeError) as error:
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler, such as g++"
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"torch.compile does not work on {device}: {reason}: install {needed}, or leave out --compile"
        ) from error
    return cast(nn.Module, torch.compile(model, dynamic=False))


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
