"""Pictures that stand inside a page."""

from __future__ import annotations

import base64
import io
import os
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOSSLESS_UP_TO: Final = 64  # pixels: smaller images stay as they are, larger ones become JPEG
_LONGEST = 160  # pixels
_BEFORE = 320  # pixels: twice what is shown, so that the next reduction is a good one
_QUALITY = 88  # of JPEG, 1 to 95


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture, uint8 (H, W, 1 or 3), inside an attribute: PNG where it is small, else a small JPEG."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    small = max(picture.size) <= LOSSLESS_UP_TO
    kind = "png" if small else "jpeg"
    if not small:
        picture.thumbnail((_LONGEST, _LONGEST))
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=_QUALITY)  # PNG has none, and takes no notice
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def reduced(image: Image.Image) -> NDArray[np.uint8]:
    """An image of any size as `data_uri` takes it; it is made smaller in place."""
    image.thumbnail((_BEFORE, _BEFORE))
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def openable(path: str) -> str:
    r"""The file of a printed name, in which bytes that are not UTF-8 stand as `\xNN`."""
    if os.path.lexists(path):
        return path
    return os.fsdecode(
        re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    )
