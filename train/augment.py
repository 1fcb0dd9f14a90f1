"""Random changes to training images, drawn from a seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from shipnet.runtime.preprocess import ImageSource, PreprocessSpec, load_image

from .recipe import Recipe

# The least share of a photograph's area that a crop shows. ImageNet's 0.08 is too little for data this small.
# Source: fast.ai's RandomResizedCrop, min_scale 0.35, as used in Practical Deep Learning.
CROP_AREA = (0.35, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_TRIVIAL = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)


class BatchAugment:
    """Random crops out of zero-padded images, turning, scaling and mirroring, for whole batches at once.

    The padded images are held once; a crop is a gather from a strided view, so no image is
    touched on its own.
    """

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        """Takes uint8 (N, H, W, C)."""
        height, width = images.shape[1:3]
        self.pad_y, self.pad_x = round(height * recipe.crop_padding), round(width * recipe.crop_padding)
        padded = functional.pad(images, (0, 0, self.pad_x, self.pad_x, self.pad_y, self.pad_y))
        windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (N, offsets y, offsets x, C, H, W)
        self.windows = windows.permute(0, 1, 2, 4, 5, 3)
        self.degrees, self.scale = recipe.affine_degrees, recipe.affine_scale
        self.flip = recipe.flip

    def __call__(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The images at `indices`, int64 (B,) -> uint8 (B, H, W, C). Randomness comes from a CPU generator."""
        count, device = len(indices), self.windows.device
        y = torch.randint(2 * self.pad_y + 1, (count,), generator=generator).to(device)
        x = torch.randint(2 * self.pad_x + 1, (count,), generator=generator).to(device)
        batch = self.windows[indices, y, x]
        if self.degrees or self.scale:
            batch = random_affine(batch, generator, degrees=self.degrees, scale=self.scale)
        if self.flip:
            mirrored = torch.rand(count, generator=generator).to(device) < 0.5
            batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(2), batch)
        return batch


def random_affine(images: Tensor, generator: torch.Generator, *, degrees: float, scale: float) -> Tensor:
    """Turns and scales every image of a batch by amounts of its own, about its middle.

    torchvision's `RandomAffine` draws one transformation for a whole batch.

    Args:
        images: uint8 (B, H, W, C); what comes in from outside is 0.
        generator: on the CPU; decides.
        degrees: the angles are uniform up to so much, both ways.
        scale: the factors are uniform in 1 plus or minus this.

    Returns:
        uint8 (B, H, W, C), bilinear between pixels.
    """
    count, height, width, _ = images.shape
    angle, size = torch.rand(2, count, generator=generator).mul(2).sub(1)
    angle, size = angle * math.radians(degrees), 1 + size * scale
    cos, sin, zero = angle.cos() / size, angle.sin() / size, torch.zeros(count)
    # Rows of output -> input coordinates, both in halves of a side.
    to_source = torch.stack((cos, -sin * height / width, zero, sin * width / height, cos, zero), dim=1)
    pixels = images.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(
        to_source.view(-1, 2, 3).to(images.device), list(pixels.shape), align_corners=False
    )
    moved = functional.grid_sample(pixels, grid, align_corners=False)
    return moved.round_().to(torch.uint8).permute(0, 2, 3, 1)


def augment_photo(
    source: ImageSource, spec: PreprocessSpec, *, flip: bool, trivial: bool = False, seed: int
) -> NDArray[np.uint8]:
    """A random part of a photograph at the network's size.

    Opened as `preprocess` opens it; the crop is the box of one resize, so only what is seen is computed.

    Args:
        source: as in `preprocess`.
        spec: the validation's rule, of which size, channels and filter hold here too.
        flip: whether half of the results are mirrored.
        trivial: whether one random operation of random strength (turning, shearing, shifting, colours,
            contrast, ...) changes the part.
        seed: decides everything.

    Source: S. Müller, F. Hutter, TrivialAugment, arXiv:2103.10158, for `trivial`.

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
        box = (left, top, left + width, top + height)
        image = image.resize((spec.width, spec.height), resample, box=box)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if trivial:
            image = _TRIVIAL(image)
    return np.asarray(image, np.uint8).reshape(spec.height, spec.width, spec.channels)
