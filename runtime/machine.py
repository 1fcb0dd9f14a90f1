"""What this machine has and how much of it this process may use."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from msgspec import Struct

from .manifest import Need

PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_NVIDIA_SMI_TIMEOUT_S: Final = 5.0
_X86: Final = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})
_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# The instructions that decide how fast int8 runs on a CPU, and whether sums of its products saturate.
_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


class Cores(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many CPU cores there are, and how many this process may keep busy.

    Attributes:
        logical: of the machine.
        affinity: that the scheduler may put this process on.
        cgroup_quota: CPU time per time that its control groups grant, in cores; None for no limit.
        usable: whole cores, at least 1: what thread pools are sized by.
    """

    logical: int
    affinity: int
    cgroup_quota: float | None
    usable: int


class Gpu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One NVIDIA GPU, as nvidia-smi tells it."""

    name: str
    memory_bytes: int
    driver: str


class Hardware(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine that a measurement was taken on.

    Attributes:
        cpu: the model's name.
        cpu_flags: of the instructions that decide the speed of int8, those it has.
        memory_bytes: that this process may use: the machine's, or less where a control group says so;
            None where the system does not tell.
        system: operating system, its version and the architecture.
        python: implementation and version.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: Cores
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    system: str
    python: str


def available_cores(*, proc: Path = PROC, cgroups: Path = _CGROUPS) -> Cores:
    """Counts the cores that this process may use: affinity and the quota of its control groups.

    Libraries that count the machine's cores instead start too many threads inside a container and are throttled.

    Args:
        proc: where the proc file system lies.
        cgroups: where the control groups lie, version 1 or 2.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files (`cpu.max`) and
    https://docs.kernel.org/scheduler/sched-bwc.html (`cpu.cfs_quota_us`, -1 for no limit).
    """
    logical = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    quotas = [
        quota
        for folder in _own_groups("cpu", proc, cgroups)
        if (quota := _quota_v2(folder) or _quota_v1(folder)) is not None
    ]
    quota = min(quotas, default=None)
    usable = affinity if quota is None else min(affinity, math.floor(quota))
    return Cores(logical=logical, affinity=affinity, cgroup_quota=quota, usable=max(1, usable))


def hardware(*, proc: Path = PROC, cgroups: Path = _CGROUPS) -> Hardware:
    """Describes this machine, for reports.

    Args:
        proc: where the proc file system lies.
        cgroups: where the control groups lie, version 1 or 2.
    """
    cpu = _first_processor(proc)
    return Hardware(
        cpu=cpu.get("model name") or platform.processor() or platform.machine() or "unknown",
        cpu_flags=cpu_flags(proc=proc),
        cores=available_cores(proc=proc, cgroups=cgroups),
        memory_bytes=_memory_bytes(proc, cgroups),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def cpu_flags(*, proc: Path = PROC) -> tuple[str, ...]:
    """Of the instructions that decide how int8 runs, those that this CPU has; none where the system does not tell.

    Args:
        proc: where the proc file system lies.
    """
    cpu = _first_processor(proc)
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return tuple(flag for flag in _FLAGS if flag in flags)


def unmet_needs(
    needs: Sequence[Need], *, proc: Path = PROC, architecture: str | None = None
) -> tuple[str, ...]:
    """What this CPU lacks of what a variant needs, a phrase each, with what to do.

    On x86 without VNNI the sum of two products of uint8 and int8 saturates at 16 bits, so that the network decides
    otherwise than the one that was proved. No ARM processor's instructions do that.

    Args:
        needs: of a `Variant`.
        proc: where the proc file system lies.
        architecture: of the CPU; None asks the system.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I need
    to try U8U8?"
    """
    if "vnni" not in needs or (architecture or platform.machine()).lower() not in _X86:
        return ()
    flags = cpu_flags(proc=proc)
    if _VNNI.intersection(flags):
        return ()
    return (
        f"this CPU tells of none of {', '.join(sorted(_VNNI))}: sums of its 8-bit products saturate, "
        "so that it would decide otherwise than what was proved: run precision fp32, or export with  "
        "shipnet export --reduce-range",
    )


def _own_groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of the control groups that limit this process, its own and all above.

    A container sees its groups under the host's names but mounted at the root, so names that do not exist
    are passed over on the way up.

    Source: cgroups(7), "/proc/pid/cgroup": hierarchy-ID:controller-list:cgroup-path, version 2 as 0::path.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mounts = (cgroups, cgroups / "unified")
        elif controller in controllers.split(","):
            mounts = (cgroups / controllers, cgroups / controller)
        else:
            continue
        relative = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for group in (relative, *relative.parents):
                if ".." not in group.parts:
                    yield mount / group


def _quota_v2(folder: Path) -> float | None:
    match _read(folder / "cpu.max").split():
        case [quota, period] if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _memory_bytes(proc: Path, cgroups: Path) -> int | None:
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _own_groups("memory", proc, cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name).strip()
            if limit.isdigit():
                sizes.append(int(limit))
    return min(sizes, default=None)


def _first_processor(proc: Path) -> dict[str, str]:
    """The first paragraph of cpuinfo."""
    paragraph = _read(proc / "cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in paragraph.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs; none where there is no driver or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(done.stdout) if done.returncode == 0 else ()


def parse_gpus(table: str) -> tuple[Gpu, ...]:
    """Reads nvidia-smi's CSV of name, memory in MiB and driver; a GPU that hides its memory has 0 bytes."""
    rows = [[field.strip() for field in line.rsplit(",", 2)] for line in table.splitlines()]
    return tuple(
        Gpu(name=row[0], memory_bytes=int(row[1]) << 20 if row[1].isdigit() else 0, driver=row[2])
        for row in rows
        if len(row) == 3
    )


def _read(path: Path) -> str:
    """A small file's text; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
