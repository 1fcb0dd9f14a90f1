"""Random changes to training images, drawn from a seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from shipnet.runtime.preprocess import ImageSource, PreprocessSpec, load_image

# Zero-padding on each side, as a share of it: 3 pixels on MNIST's 28.
PADDING = 3 / 28
# The least share of a photograph's area that a crop shows. ImageNet's 0.08 is too little for data this small.
# Source: fast.ai's RandomResizedCrop, min_scale 0.35, as used in Practical Deep Learning.
CROP_AREA = (0.35, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


class BatchAugment:
    """Random crops out of zero-padded images, and mirroring, for whole batches at once.

    The padded images are held once; a crop is a gather from a strided view, so no image is
    touched on its own.
    """

    def __init__(self, images: Tensor, *, flip: bool) -> None:
        """Takes uint8 (N, H, W, C)."""
        height, width = images.shape[1:3]
        self.pad_y, self.pad_x = round(height * PADDING), round(width * PADDING)
        padded = nn.functional.pad(images, (0, 0, self.pad_x, self.pad_x, self.pad_y, self.pad_y))
        windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (N, offsets y, offsets x, C, H, W)
        self.windows = windows.permute(0, 1, 2, 4, 5, 3)
        self.flip = flip

    def __call__(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The images at `indices`, int64 (B,) -> uint8 (B, H, W, C). Randomness comes from a CPU generator."""
        count, device = len(indices), self.windows.device
        y = torch.randint(2 * self.pad_y + 1, (count,), generator=generator).to(device)
        x = torch.randint(2 * self.pad_x + 1, (count,), generator=generator).to(device)
        batch = self.windows[indices, y, x]
        if self.flip:
            mirrored = torch.rand(count, generator=generator).to(device) < 0.5
            batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(2), batch)
        return batch


def augment_photo(source: ImageSource, spec: PreprocessSpec, *, flip: bool, seed: int) -> NDArray[np.uint8]:
    """A random part of a photograph at the network's size.

    Opened as `preprocess` opens it; the crop is the box of one resize, so only what is seen is computed.

    Args:
        source: as in `preprocess`.
        spec: the validation's rule, of which size, channels and filter hold here too.
        flip: whether half of the results are mirrored.
        seed: decides crop and flip.

    Returns:
        uint8 (H, W, C).

    Raises:
        ImageError: no image, naming it.
    """
    image = load_image(source, spec)
    with torch.random.fork_rng(devices=[]):  # get_params draws from the global generator
        torch.manual_seed(seed)
        top, left, height, width = v2.RandomResizedCrop.get_params(image, list(CROP_AREA), list(CROP_RATIO))
        mirrored = flip and torch.rand(()).item() < 0.5
    resample = Image.Resampling[spec.interpolation.upper()]
    image = image.resize((spec.width, spec.height), resample, box=(left, top, left + width, top + height))
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, np.uint8).reshape(spec.height, spec.width, spec.channels)
