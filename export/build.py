"""From a network to a bundle: export every format, prove each on real images, seal what held."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

import torch

from shipnet.runtime import Bundle, BundleError, Classifier, ParityError
from shipnet.runtime.bundle import MANIFEST, SIGNATURE
from shipnet.runtime.encoding import encode
from shipnet.runtime.manifest import Interop, LeftOut, Variant
from shipnet.runtime.pack import signature_of
from shipnet.runtime.signing import Signer
from shipnet.runtime.staging import locked, refuse_busy, staged_folder, write_file
from shipnet.train import Dataset, Run, load_run
from shipnet.train.devices import threads, threads_for

from .assemble import make_manifest, seal, write_into
from .config import ExportConfig
from .model_card import model_card
from .parity_report import ParityReport
from .probes import write_probes
from .proof import locate, of_precision, prove_fp32, prove_variant
from .report import Findings, write_report
from .search import QuantizationReport
from .source import OnProgress, Source, from_run
from .torch_formats import to_pt2, to_torchscript
from .variants import Candidate, fp32_candidate, judge, make_variants

TORCHSCRIPT: Final = "interop/model.torchscript.pt"
PT2: Final = "interop/model.pt2"
WEIGHTS: Final = "interop/weights.safetensors"
EVIDENCE: Final = "evidence/parity.json"
SEARCHES: Final = "evidence/quantization.json"
REPORT: Final = "parity-report.json"


def export(
    run: Run | str | os.PathLike[str],
    config: ExportConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    dataset: Dataset | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Turns a training run into a sealed bundle, or refuses.

    ONNX is proved through the `Classifier` that users call, TorchScript and `.pt2` through PyTorch's
    loaders, each on every validation image against the trained network in PyTorch on the CPU.

    Args:
        run: a run's folder, or the run.
        config: options; None takes the defaults.
        out: where the bundle will stand; None means `bundle` beside the run's folder. A bundle
            there is replaced.
        on_progress: called with what is done (a word), how much of it, and how much there is.
        dataset: what `load_data` gave for the run's data, where the caller has it already.
        sign_key: a PEM file with the private key that signs the bundle; None: it is not signed.

    Returns:
        The bundle, opened again from where it stands. Beside it lies `export-report.html`, which shows what was
            found, with the images that got another label.

    Raises:
        ParityError: a format misses its budget; `parity-report.json` beside `out` shows where, and
            no bundle is written.
        DataError: the validation images are not those that the run was measured on.
        BundleError: something that is no bundle stands at `out`.
        OutputError: `out` cannot be written, or is being written by another.
        UsageError: the key cannot be read.

    Example:
        >>> bundle = export("artifacts/digits/run")
        >>> bundle.manifest.variants[0].parity.flips
        0
    """
    opened = run if isinstance(run, Run) else load_run(run)
    target = Path(out) if out is not None else opened.path.parent / "bundle"
    refuse_strangers(target)
    signer = Signer.load(sign_key) if sign_key is not None else None
    options, notify = config or ExportConfig(), on_progress or _no_progress
    source = from_run(opened, options, dataset=dataset, on_progress=notify)
    return export_source(source, options, out=target, on_progress=notify, signer=signer)


def export_source(
    source: Source,
    config: ExportConfig,
    *,
    out: Path,
    on_progress: OnProgress,
    signer: Signer | None = None,
) -> Bundle:
    """Exports, proves, seals and signs; `export` for whatever a `Source` was made of.

    Raises:
        ParityError, BundleError, OutputError: as `export`.
    """
    refuse_strangers(out)
    pixels = max(2, *config.batch_sizes) * source.spec.height * source.spec.width
    count = threads_for(pixels, most=torch.get_num_threads())
    with locked(out), threads(count), staged_folder(out) as folder:
        fp32 = fp32_candidate(source, config, on_progress)
        write_into(folder, fp32.file, fp32.model)
        interop = _write_interop(folder, source, config, on_progress)
        report = prove_fp32(folder, source, config, fp32=fp32, interop=interop, on_progress=on_progress)
        if any(entry.breaches for entry in report.formats):
            raise _refusal(source, fp32, report, where=out.parent / REPORT, on_progress=on_progress)
        variants = [judge(fp32, of_precision(report, "onnx"), config)]
        searches = []
        for made in make_variants(source, config, fp32, on_progress):
            if isinstance(made, Candidate):
                proved, verdict = _try(folder, source, config, candidate=made, on_progress=on_progress)
                report = ParityReport(formats=report.formats + proved.formats)
                variants.append(verdict)
                searches += [made.search] if made.search is not None else []
            else:
                variants.append(made)
        write_into(folder, EVIDENCE, encode(report))
        if searches:
            write_into(folder, SEARCHES, encode(QuantizationReport(searches=tuple(searches))))
        shipped = tuple(item for item in variants if isinstance(item, Variant))
        write_probes(folder, source, config, variants=shipped, on_progress=on_progress)
        left_out = tuple(item for item in variants if isinstance(item, LeftOut))
        manifest = partial(
            make_manifest,
            folder,
            source,
            variants=shipped,
            left_out=left_out,
            interop=_interop(interop, report),
        )
        write_into(folder, "README.md", model_card(manifest(), report.formats[0].classes).encode())
        seal(folder, manifest())
        if signer is not None:
            write_into(folder, SIGNATURE, signature_of(Bundle.open(folder), signer))
        _ask_once_more(folder, source, config)
    (out.parent / REPORT).unlink(missing_ok=True)  # of an earlier export that failed
    bundle = Bundle.open(out)
    found = Findings(
        report=report,
        variants=shipped,
        left_out=left_out,
        searches=tuple(searches),
        identity=bundle.identity,
        sizes=_sizes(bundle),
    )
    write_report(out.parent, source, found)
    return bundle


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of each variant's file, by precision."""
    sizes = {entry.path: entry.size_bytes for entry in bundle.manifest.files}
    return {variant.precision: sizes[variant.file] for variant in bundle.manifest.variants}


def refuse_strangers(target: Path) -> None:
    """Only a bundle may be replaced by a bundle, and by one export at a time.

    Raises:
        BundleError: something else stands there.
        OutputError: another export is writing it, or the place cannot be written.
    """
    if (
        target.exists()
        and not (target / MANIFEST).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise BundleError(
            f"{target}: something that is no bundle stands there: choose another --out or remove it"
        )
    refuse_busy(target)


def _try(
    folder: Path, source: Source, config: ExportConfig, *, candidate: Candidate, on_progress: OnProgress
) -> tuple[ParityReport, Variant | LeftOut]:
    """Proves a further precision; its file stays in the bundle where it held."""
    write_into(folder, candidate.file, candidate.model)
    report = prove_variant(folder, source, config, candidate=candidate, on_progress=on_progress)
    verdict = judge(candidate, of_precision(report, candidate.precision), config)
    if isinstance(verdict, LeftOut):
        (folder / candidate.file).unlink()
    return report, verdict


def _write_interop(
    folder: Path, source: Source, config: ExportConfig, on_progress: OnProgress
) -> dict[str, str]:
    """What PyTorch's own loaders open: the files, by format."""
    if not config.interop or source.network is None:
        return {}
    images = source.evidence_images(max(2, *config.batch_sizes))
    files = {}
    for name, path, to_format in (("torchscript", TORCHSCRIPT, to_torchscript), ("pt2", PT2, to_pt2)):
        on_progress(name, 0, 1)
        write_into(folder, path, to_format(source.network, images))
        files[name] = path
        on_progress(name, 1, 1)
    if source.weights is not None:
        write_into(folder, WEIGHTS, source.weights)
        files["safetensors"] = WEIGHTS
    return files


def _interop(files: dict[str, str], report: ParityReport) -> tuple[Interop, ...]:
    parities = {entry.format: entry.parity for entry in report.formats}
    return tuple(
        Interop(format=name, file=file, parity=parities.get(name))  # type: ignore[arg-type]
        for name, file in files.items()
    )


def _ask_once_more(folder: Path, source: Source, config: ExportConfig) -> None:
    """Opens the sealed bundle as a user does: it must decide as what was proved."""
    images = source.evidence_images(max(2, *config.batch_sizes))
    with Classifier.load(folder, device="cpu") as classifier:
        found = classifier.logits(images)
    if (found.argmax(1) != source.reference(images).argmax(1)).any():
        raise ParityError("the sealed bundle decides otherwise than the one that was proved: export again")


def _refusal(
    source: Source, fp32: Candidate, report: ParityReport, *, where: Path, on_progress: OnProgress
) -> ParityError:
    """Writes what was found, and says the gist of it."""
    write_file(where, encode(report))
    report = locate(source, fp32, report, on_progress=on_progress)
    write_file(where, encode(report))
    write_report(where.parent, source, Findings(report=report))
    found = "; ".join(
        f"{entry.format}: {', '.join(entry.breaches)}" for entry in report.formats if entry.breaches
    )
    layer = "" if report.first_difference is None else f"; {report.first_difference}"
    return ParityError(
        f"the exported network is not the trained one, no bundle was written: {found}{layer}: see {where}",
        report,
    )


def _no_progress(what: str, done: int, total: int) -> None:
    del what, done, total
