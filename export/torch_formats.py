"""The network for PyTorch's own loaders: frozen TorchScript, and `torch.export`'s `.pt2`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .onnx_graph import INPUT, MAX_BATCH

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def to_torchscript(network: nn.Module, images: NDArray[np.uint8]) -> bytes:
    """Traces and freezes a network.

    Args:
        network: uint8 (N, H, W, C) to float32 logits, in eval mode.
        images: uint8 (N, H, W, C), N >= 2, real images to trace with.

    Returns:
        What `torch.jit.load` reads, without the debug records, which hold local paths.
    """
    buffer = io.BytesIO()
    with _no_deprecation(), torch.no_grad():
        traced = torch.jit.trace(network, torch.from_numpy(images), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), buffer)
    return _without_debug_records(buffer.getvalue())


def to_pt2(network: nn.Module, images: NDArray[np.uint8]) -> bytes:
    """Exports a network with `torch.export`, its batch axis dynamic.

    Args:
        network: uint8 (N, H, W, C) to float32 logits, in eval mode.
        images: uint8 (N, H, W, C), for their shape alone.

    Returns:
        What `torch.export.load` reads, without stack traces, which hold local paths.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    example = torch.zeros((2, *images.shape[1:]), dtype=torch.uint8)  # is saved too: never anybody's images
    program = torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: batch}})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def open_torchscript(path: Path) -> Run:
    """A TorchScript file as a function from uint8 images to logits, on the CPU."""
    with _no_deprecation():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return as_function(module)


def open_pt2(path: Path) -> Run:
    """A `.pt2` file as a function from uint8 images to logits, on the CPU."""
    return as_function(torch.export.load(str(path)).module())


def as_function(module: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    """A PyTorch module as a function of arrays: uint8 (N, H, W, C) to float32 (N, num_classes)."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), _no_deprecation():
            logits: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    return run


def _without_debug_records(archive: bytes) -> bytes:
    """Rewrites a TorchScript archive with PyTorch's own reader and writer, less its `.debug_pkl` records."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    rewritten = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(rewritten)
    for name in reader.get_all_records():
        if name.endswith(".debug_pkl") or name in ("version", ".data/serialization_id"):
            continue  # the writer adds its own version and id
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return rewritten.getvalue()


@contextmanager
def _no_deprecation() -> Iterator[None]:
    """TorchScript is deprecated in favour of `torch.export`; the bundle carries both on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        yield
