"""From pixels to logits: the module that trains, evaluates and is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Deployable(nn.Module):
    """A network with the cast, the transpose and the normalisation in front of it.

    Training, evaluation and export run this one module, so they cannot differ.

    Attributes:
        net: float32 (N, C, H, W), normalised -> float32 logits (N, K).
        pixel_mean, pixel_std: float32 (1, C, 1, 1) buffers, in units of pixel values (0 to 255).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes `mean` and `std` per channel in units of [0, 1]."""
        super().__init__()
        self.net = net
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            scaled = torch.tensor(values, dtype=torch.float64).mul(255).float()
            self.register_buffer(name, scaled.view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Uint8 (N, H, W, C) -> float32 logits (N, K).

        The cast is the input's only consumer, which lets TensorRT take uint8 inputs. The copy to NCHW
        keeps strides out of the exported graph: without it average pooling becomes a Gather.
        """
        x = images.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits: Tensor = self.net((x - self.pixel_mean) / self.pixel_std)
        return logits
