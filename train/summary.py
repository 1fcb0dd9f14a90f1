"""A network's layers as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from . import recipe
from .architectures import build
from .config import TrainConfig
from .data import load_data
from .finetune import set_training


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a module that has no modules inside.

    Attributes:
        name: its path in the network, dotted.
        kind: its class.
        shape: of its output, without the batch axis.
        parameters: how many numbers it holds; 0 where an earlier row counted them.
        trainable: whether training changes them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    trainable: bool


def list_layers(net: nn.Module, input_shape: tuple[int, int, int]) -> list[Layer]:
    """Runs zeros of `input_shape`, (C, H, W), through a network and lists its layers as they are called."""
    layers: list[Layer] = []
    seen: set[int] = set()

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        fresh = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in fresh)
        count = sum(parameter.numel() for parameter in fresh)
        trainable = any(parameter.requires_grad for parameter in fresh)
        layers.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), count, trainable))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
        for name, module in net.named_modules()
        if not any(module.children())
    ]
    was_training = net.training
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, *input_shape))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return layers


def layer_table(config: TrainConfig) -> Table:
    """The layers of the network that a configuration would train, with totals.

    Raises:
        ShipnetError: as `fit`.
    """
    dataset = load_data(config.data)
    config = recipe.resolve(config, dataset)
    arch, frozen_epochs = str(config.arch), recipe.settings(config).freeze_epochs
    spec = dataset.spec
    net = build(arch, channels=spec.channels, num_classes=len(dataset.labels), image_size=spec.height)
    set_training(net, frozen=frozen_epochs > 0)
    layers = list_layers(net, (spec.channels, spec.height, spec.width))
    total = sum(layer.parameters for layer in layers)
    trainable = sum(layer.parameters for layer in layers if layer.trainable)
    title = f"{arch} on {dataset.name}"
    if frozen_epochs:
        title += f": its body is frozen for {frozen_epochs} epoch(s), then all of it trains"
    table = Table(title=title, title_justify="left", show_footer=True, show_edge=False)
    table.add_column("layer", footer="total", overflow="fold")
    table.add_column("type")
    table.add_column("output shape", footer=f"from {_shape((spec.channels, spec.height, spec.width))}")
    table.add_column("parameters", footer=f"{total:,}", justify="right")
    table.add_column("trainable", footer=f"{trainable:,}", justify="right")
    for layer in layers:
        count = f"{layer.parameters:,}" if layer.parameters else ""
        table.add_row(layer.name, layer.kind, _shape(layer.shape), count, _yes(layer))
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _yes(layer: Layer) -> str:
    if not layer.parameters:
        return ""
    return "yes" if layer.trainable else "no"
