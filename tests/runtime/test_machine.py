"""Cores and memory, read from files laid out as Linux lays them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shipnet.runtime.machine import Gpu, Hardware, available_cores, hardware, parse_gpus


class Linux:
    """A proc and a control group file system in a folder."""

    def __init__(self, root: Path, membership: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "self" / "cgroup", membership)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, text: str) -> None:
        self.write(self.cgroups / path, text)

    @property
    def quota(self) -> float | None:
        return available_cores(proc=self.proc, cgroups=self.cgroups).cgroup_quota


def test_version_2_takes_the_tightest_group_on_the_way_up(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "0::/kube/pod/app\n")
    linux.group("kube/pod/app/cpu.max", "max 100000\n")
    linux.group("kube/pod/cpu.max", "150000 100000\n")
    linux.group("kube/cpu.max", "400000 100000\n")
    assert linux.quota == 1.5


def test_version_2_inside_a_container_sees_its_group_at_the_root(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "0::/system.slice/docker-0123.scope\n")  # the host's name of it
    linux.group("cpu.max", "50000 100000\n")
    cores = available_cores(proc=linux.proc, cgroups=linux.cgroups)
    assert (cores.cgroup_quota, cores.usable) == (0.5, 1)


def test_version_2_beside_version_1(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "5:cpu:/\n0::/app\n")
    linux.group("unified/app/cpu.max", "300000 100000\n")
    assert linux.quota == 3.0


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, folder: str) -> None:
    linux = Linux(tmp_path, f"7:memory:/other\n4:{folder}:/app\n")
    linux.group(f"{folder}/app/cpu.cfs_quota_us", "250000\n")
    linux.group(f"{folder}/app/cpu.cfs_period_us", "100000\n")
    assert linux.quota == 2.5


def test_a_quota_of_minus_one_is_none(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "4:cpu:/\n")
    linux.group("cpu/cpu.cfs_quota_us", "-1\n")
    linux.group("cpu/cpu.cfs_period_us", "100000\n")
    assert linux.quota is None


def test_a_group_outside_the_namespace_is_not_followed(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "0::/../sibling\n")
    linux.group("cpu.max", "200000 100000\n")
    linux.write(tmp_path / "sibling" / "cpu.max", "100000 100000\n")
    assert linux.quota == 2.0


def test_without_any_of_it_the_affinity_counts(tmp_path: Path) -> None:
    cores = available_cores(proc=tmp_path, cgroups=tmp_path)
    assert cores.cgroup_quota is None
    assert cores.usable == cores.affinity >= 1
    assert cores.logical == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_obeyed() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from shipnet.runtime.machine import available_cores; print(available_cores().usable)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


def test_memory_is_what_the_group_grants(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "0::/app\n")
    linux.group("app/memory.max", "max\n")
    linux.group("memory.max", "1048576\n")
    assert hardware(proc=linux.proc, cgroups=linux.cgroups).memory_bytes == 1_048_576


def test_the_processor_is_named(tmp_path: Path) -> None:
    linux = Linux(tmp_path, "")
    linux.write(
        linux.proc / "cpuinfo",
        "processor\t: 0\nmodel name\t: Cortex-A9000: fast\nFeatures\t: fp asimddp i8mm\n\nprocessor\t: 1\n",
    )
    found = hardware(proc=linux.proc, cgroups=linux.cgroups)
    assert (found.cpu, found.cpu_flags) == ("Cortex-A9000: fast", ("asimddp", "i8mm"))


def test_gpus_are_read_from_the_table() -> None:
    table = "NVIDIA H100 80GB HBM3, 81559, 580.95.05\nNVIDIA GB10, [N/A], 580.95.05\n"
    assert parse_gpus(table) == (
        Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81_559 << 20, driver="580.95.05"),
        Gpu(name="NVIDIA GB10", memory_bytes=0, driver="580.95.05"),
    )
    assert parse_gpus("No devices were found\n") == ()


def test_this_machine_survives_json() -> None:
    found = hardware()
    assert found.cpu
    assert msgspec.json.decode(msgspec.json.encode(found), type=Hardware) == found
