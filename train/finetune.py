"""A network as a body in stages and a head, of which the body can be frozen."""

from __future__ import annotations

import re

from torch import nn


def stages(net: nn.Module) -> dict[str, nn.ModuleList]:
    """The parts of a network of `shipnet.train.architectures` that have parameters, first to last.

    A ResNet has a stem, four layers and the head `fc`; a small network four stages and its `head`.

    Example:
        >>> from shipnet.train.architectures import build
        >>> list(stages(build("mnist_resnet", channels=1, num_classes=10, image_size=28)))
        ['stage1', 'stage2', 'stage3', 'stage4', 'head']
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in net.named_children():
        if any(True for _ in module.parameters()):
            found.setdefault(_stage_of(name, resnet=hasattr(net, "fc")), nn.ModuleList()).append(module)
    return found


def head_name(net: nn.Module) -> str:
    """The last of the stages, and the name of the module that it consists of."""
    return list(stages(net))[-1]


def set_training(net: nn.Module, *, frozen: bool) -> None:
    """Puts a network into training mode, all of it or its head alone.

    A frozen body has no gradients, and its batch norms normalise by the statistics they were loaded
    with; later they train and keep statistics as in any training.
    """
    net.train()
    *body, head = stages(net).values()
    for stage in body:
        stage.train(not frozen).requires_grad_(not frozen)
    head.requires_grad_()


def _stage_of(name: str, *, resnet: bool) -> str:
    if resnet:
        return "stem" if name in ("conv1", "bn1") else name
    return re.sub(r"^(conv|block)", "stage", name)
