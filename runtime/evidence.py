"""Probes: images in a bundle's `evidence/` with the answers they got when it was made, to be asked again anywhere."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .archive import shown
from .bundle import Bundle
from .encoding import decode
from .errors import BundleError
from .manifest import Manifest, RelativePath, Sha256

FOLDER: Final = "evidence/"
INDEX: Final = "evidence/probes.json"
TENSORS: Final = "evidence/tensors.npz"
LOGITS: Final = "evidence/logits.npz"
PICTURES: Final = "evidence/probes/"
TENSORS_NAME: Final = "tensors"
_NPY_HEADER: Final = 4096  # bytes, at most; the arrays here need 128
_MARGIN_RTOL: Final = 1e-4
_DAMAGED: Final = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,  # an encrypted member; NotImplementedError: a compression that is not built in
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


class Answer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one variant decides on a probe, alone in its batch, on the CPU of the machine that exported.

    Attributes:
        margin: between the two highest logits, over the largest absolute logit of all probes.
    """

    precision: str
    label: str
    margin: Annotated[float, Meta(ge=0.0)]


class Probe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image, as a file, with what became of it.

    Attributes:
        kind: "image", "drawing", or what is odd about the file, such as "cmyk-jpeg".
        file: the encoded image.
        tensor_sha256: of its pixels as `preprocess` gives them, uint8 (H, W, C) in C order.
        answers: one for each of the bundle's variants, in their order.
    """

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$")]
    kind: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$")]
    file: RelativePath
    tensor_sha256: Sha256
    answers: tuple[Answer, ...]


class ProbeIndex(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`evidence/probes.json`; the manifest's format version is its own.

    Attributes:
        origin: "real": validation images; "synthetic": drawn ones, which show nobody's data.
        decoder: the libraries that decoded them, as `decoder_version` names them.
    """

    origin: Literal["real", "synthetic"]
    decoder: str
    probes: Annotated[tuple[Probe, ...], Meta(min_length=1, max_length=1024)]


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """A bundle's probes, read and checked.

    Attributes:
        tensors: uint8 (N, H, W, C), in the order of `index.probes`.
        logits: by precision, float32 (N, num_classes).
    """

    index: ProbeIndex
    tensors: NDArray[np.uint8]
    logits: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.index.probes)


def load_probes(bundle: Bundle) -> Probes | None:
    """Reads a bundle's probes; None where this copy has none.

    Raises:
        BundleError: a file that the format does not allow, naming it: another shape or dtype, an array
            missing or too many, an unknown precision, a tensor, label or margin that contradicts another file.
    """
    if not bundle.has(INDEX):
        return None
    manifest = bundle.manifest
    where = str(bundle.path / INDEX)
    index = decode(bundle.read(INDEX), ProbeIndex, where=where)
    if problems := _contradictions(index, manifest):
        raise BundleError(f"{where}: " + "; ".join(problems))
    spec, count = manifest.input, len(index.probes)
    shape = (count, spec.height, spec.width, spec.channels)
    tensors = _arrays(bundle, TENSORS, (TENSORS_NAME,), np.dtype(np.uint8), shape)[TENSORS_NAME]
    for probe, tensor in zip(index.probes, tensors, strict=True):
        if tensor_sha256(tensor) != probe.tensor_sha256:
            raise BundleError(
                f"{bundle.path / TENSORS}: the tensor of {probe.name} is not the one that {INDEX} names"
            )
    names = tuple(variant.precision for variant in manifest.variants)
    logits = _arrays(bundle, LOGITS, names, np.dtype(np.float32), (count, len(manifest.labels)))
    for precision, rows in logits.items():
        if not np.isfinite(rows).all():
            raise BundleError(f"{bundle.path / LOGITS}: {precision} has NaN or infinite logits")
        _refuse_other_answers(bundle, index, precision=precision, logits=rows)
    return Probes(index, tensors, logits)


def tensor_sha256(tensor: NDArray[np.uint8]) -> str:
    """Sha256, in hex, of a tensor's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()


def logit_scale(logits: NDArray[np.float32]) -> float:
    """The largest absolute logit, and the smallest positive float where all are zero."""
    return max(float(np.abs(logits).max()), float(np.finfo(np.float32).tiny))


def answers(precision: str, logits: NDArray[np.float32], labels: tuple[str, ...]) -> tuple[Answer, ...]:
    """What finite logits, float32 (N, num_classes), decide; of equal logits the first wins."""
    highest = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
    margins = (highest[:, 1] - highest[:, 0]) / logit_scale(logits)
    return tuple(
        Answer(precision=precision, label=labels[int(row.argmax())], margin=float(margin))
        for row, margin in zip(logits, margins, strict=True)
    )


def _contradictions(index: ProbeIndex, manifest: Manifest) -> list[str]:
    """What an index says that the manifest does not allow, a phrase each."""
    problems = []
    names = [probe.name for probe in index.probes]
    if len(set(names)) != len(names):
        problems.append("probes: a name stands twice")
    listed = {entry.path for entry in manifest.files}
    precisions = [variant.precision for variant in manifest.variants]
    for probe in index.probes:
        if not probe.file.startswith(PICTURES) or probe.file not in listed:
            problems.append(f"{probe.name}: {probe.file!r} is no file of this bundle below {PICTURES}")
        answered = [answer.precision for answer in probe.answers]
        if answered != precisions:
            problems.append(
                f"{probe.name}: answers of {', '.join(answered) or 'no variant'}, expected {', '.join(precisions)}"
            )
    return problems


def _refuse_other_answers(
    bundle: Bundle, index: ProbeIndex, *, precision: str, logits: NDArray[np.float32]
) -> None:
    """The index says in words what the logits say in numbers."""
    for probe, expected in zip(index.probes, answers(precision, logits, bundle.manifest.labels), strict=True):
        (said,) = (answer for answer in probe.answers if answer.precision == precision)
        close = math.isclose(said.margin, expected.margin, rel_tol=_MARGIN_RTOL, abs_tol=_MARGIN_RTOL)
        if said.label != expected.label or not close:
            raise BundleError(
                f"{bundle.path / INDEX}: {probe.name}: {precision} is said to decide {said.label!r} by "
                f"{said.margin:.2g}, but by {LOGITS} it decides {expected.label!r} by {expected.margin:.2g}"
            )


def _arrays(
    bundle: Bundle, path: str, names: tuple[str, ...], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file: these names, this dtype, this shape, and nothing else."""
    where, data = bundle.path / path, bundle.read(path)
    expected = [f"{name}.npy" for name in names]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stand = [member.filename for member in archive.infolist()]
            if sorted(stand) != sorted(expected):
                found = ", ".join(map(shown, stand)) or "nothing"
                raise BundleError(f"{where}: holds {found}, expected {', '.join(expected)}")
            return {
                name: _array(archive, f"{name}.npy", dtype, shape, where=f"{where}: {name}") for name in names
            }
    except _DAMAGED as error:
        raise BundleError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error


def _array(
    archive: zipfile.ZipFile, member: str, dtype: np.dtype[Any], shape: tuple[int, ...], *, where: str
) -> NDArray[Any]:
    """One array; no more is unpacked than it may hold, and nothing is believed of its header that is not expected."""
    size = math.prod(shape) * dtype.itemsize
    with archive.open(member) as file:
        start = io.BytesIO(file.read(_NPY_HEADER + size))
        if len(start.getbuffer()) == _NPY_HEADER + size and file.read(1):
            raise BundleError(f"{where}: is larger than {dtype} {shape}")
    if np.lib.format.read_magic(start) != (1, 0):
        raise ValueError(f"{member} is of another version than 1.0")
    found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(start)
    if found_dtype != dtype or found_shape != shape:
        raise BundleError(f"{where} is {found_dtype} {found_shape}, expected {dtype} {shape}")
    values = start.read()
    if len(values) != size:
        raise BundleError(f"{where}: holds {len(values):,} bytes, expected {size:,}")
    return np.frombuffer(bytearray(values), dtype).reshape(shape, order="F" if fortran else "C")
