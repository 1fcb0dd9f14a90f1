"""What changes while a network trains: all that a checkpoint must hold, and which epoch is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .config import Keep, TrainConfig
from .events import EpochDone
from .normalize import Deployable
from .optimizer import make_average, make_optimizer
from .recipe import settings

_MODEL, _AVERAGE, _OPTIMIZER, _BEST, _RANDOM = "model.", "average.", "optimizer.", "best.", "random."


@dataclass(slots=True)
class TrainingState:
    """A training between two epochs: weights, their average, optimiser, history. The rates follow from the step.

    Attributes:
        average: of the weights, where the recipe keeps one.
        keep: whether the last epoch's weights are the result or the best epoch's.
        history: one measurement per finished epoch.
        best_weights: of the best epoch so far, where it is that which is kept.
    """

    model: Deployable
    optimizer: Optimizer
    average: AveragedModel | None
    keep: Keep
    history: tuple[EpochDone, ...] = ()
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, model: Deployable, config: TrainConfig) -> TrainingState:
        """Before the first epoch; `config` as `recipe.resolve` gives it."""
        recipe = settings(config)
        return cls(model, make_optimizer(model, recipe), make_average(model, recipe), config.keep)

    @property
    def parameters(self) -> int:
        """Numbers in the network that training changes, frozen ones included."""
        return sum(parameter.numel() for parameter in self.model.net.parameters())

    @property
    def result(self) -> Deployable:
        """The network that is measured and kept."""
        return cast(Deployable, self.average.module) if self.average else self.model

    @property
    def best(self) -> EpochDone:
        """The epoch of the highest accuracy; of equal ones that of the lowest loss, then the first."""
        return max(self.history, key=lambda epoch: (epoch.accuracy, -epoch.valid_loss, -epoch.epoch))

    @property
    def kept(self) -> EpochDone:
        """The epoch whose weights are the result."""
        return self.best if self.keep == "best" else self.history[-1]

    def add(self, epoch: EpochDone) -> None:
        """Takes an epoch's measurement, and a copy of its weights where they are the best so far."""
        self.history += (epoch,)
        if self.keep == "best" and self.best is epoch:
            state = self.result.net.state_dict()
            self.best_weights = {name: tensor.detach().clone() for name, tensor in state.items()}

    def is_spent(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return patience is not None and self.history[-1].epoch - self.best.epoch >= patience

    def load_kept(self) -> None:
        """Gives the model the weights of the epoch that is kept."""
        self.model.net.load_state_dict(self.best_weights or self.result.net.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """Weights, moments and random states by name, on the CPU."""
        found = {_MODEL + name: tensor for name, tensor in self.model.net.state_dict().items()}
        found |= {_BEST + name: tensor for name, tensor in self.best_weights.items()}
        if self.average is not None:
            found |= {_AVERAGE + name: tensor for name, tensor in self.average.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            found |= {f"{_OPTIMIZER}{number}.{name}": value for name, value in values.items()}
        found[_RANDOM + "cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            found[_RANDOM + "cuda"] = torch.cuda.get_rng_state(self._device)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], history: tuple[EpochDone, ...]) -> None:
        """Puts everything back as `tensors` found it after the last epoch of `history`.

        Raises:
            KeyError, RuntimeError, ValueError: they are of another network or optimiser.
        """
        self.model.net.load_state_dict(_below(_MODEL, tensors))
        if self.average is not None:
            self.average.load_state_dict(_below(_AVERAGE, tensors))
        self.best_weights = {name: value.to(self._device) for name, value in _below(_BEST, tensors).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(_OPTIMIZER, tensors).items():
            number, _, field_name = name.partition(".")
            moments.setdefault(int(number), {})[field_name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        torch.set_rng_state(tensors[_RANDOM + "cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"], self._device)
        self.history = history

    @property
    def _device(self) -> torch.device:
        return self.model.pixel_mean.device


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
