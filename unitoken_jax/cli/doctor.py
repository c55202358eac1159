"""`unitoken doctor`: is this machine ready, and if not, what to do. Exit code 0 where nothing is wrong."""

import dataclasses
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Callable
from typing import Literal

from unitoken_jax.storage.host_memory import free_host_bytes

# GiB of memory and of disk that the quickstart needs, about.
QUICKSTART_GIB = 6
DISK_GIB = 2
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. `note`: worth knowing; `wrong`: makes the exit code 1. `fix`: what to do."""

    level: Literal["ok", "note", "wrong"]
    text: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What shows whether jax uses the accelerator of a machine; `this_machine` gathers it.

    Args:
        backend: what jax runs on: "cpu", "gpu" or "tpu".
        platforms: what JAX_PLATFORMS says.
        nvidia_devices: device files of NVIDIA GPUs.
        tpu_signs: device files and environment variables that a TPU machine has.
        gpu_plugins: installed packages by which jax runs on GPUs.
        tpu_plugin: whether libtpu is installed.
    """

    backend: str
    platforms: str
    nvidia_devices: tuple[str, ...] = ()
    tpu_signs: tuple[str, ...] = ()
    gpu_plugins: tuple[str, ...] = ()
    tpu_plugin: bool = False


def run(report: Callable[[str], None] = print) -> int:
    """Prints the whole report; 1 if anything is wrong, else 0."""
    findings = [*versions(), *devices(), *resources(pathlib.Path.cwd())]
    for finding in findings:
        report(f"{_MARKS[finding.level]} {finding.text}")
        if finding.fix:
            report(f"      -> {finding.fix}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    report(
        f"{wrong} wrong: see the arrows above"
        if wrong
        else 'ready: `unitoken generate --prompt "a red circle" --out drawn.png` is a good first run'
    )
    return int(wrong > 0)


def versions() -> list[Finding]:
    """Python, this package, its requirements (missing or outside their range) and its extras."""
    findings = [
        Finding("ok", f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    ]
    try:
        requirements = importlib.metadata.requires("unitoken_jax") or []
        findings.append(Finding("ok", f"unitoken_jax {importlib.metadata.version('unitoken_jax')}"))
    except importlib.metadata.PackageNotFoundError:
        return [
            *findings,
            Finding("wrong", "unitoken_jax is not installed", "pip install -e . in its folder"),
        ]
    extras: dict[str, list[str]] = {}
    for text in requirements:
        requirement, _, marker = text.partition(";")
        if match := _EXTRA.search(marker):
            extras.setdefault(match[1], []).extend([requirement, *implied_requirements(requirement)])
        else:
            findings.append(check_requirement(requirement))
    for extra, needs in extras.items():
        missing = sorted({_name(requirement) for requirement in needs if _installed(requirement) is None})
        if missing:
            findings.append(
                Finding("note", f"extra '{extra}' lacks {', '.join(missing)} (only if you need it)")
            )
        else:
            findings.append(Finding("ok", f"extra '{extra}'"))
    return findings


def _name(requirement: str) -> str:
    """The package that a requirement such as "jax[tpu]>=0.10" is of."""
    return re.split(r"[\s\[<>=!~]", requirement.strip(), maxsplit=1)[0]


def implied_requirements(requirement: str) -> list[str]:
    """The packages that a requirement's extras bring, such as those of "jax[tpu]"."""
    extras_match = re.search(r"\[([^]]+)\]", requirement)
    if not extras_match or _installed(requirement) is None:
        return []
    lines = [text.partition(";") for text in importlib.metadata.requires(_name(requirement)) or []]
    extras = {name.strip() for name in extras_match[1].split(",")}
    return [text for text, _, marker in lines if (extra := _EXTRA.search(marker)) and extra[1] in extras]


def _installed(requirement: str) -> str | None:
    """The installed version of a requirement's package; None where it is missing."""
    try:
        return importlib.metadata.version(_name(requirement))
    except importlib.metadata.PackageNotFoundError:
        return None


def check_requirement(requirement: str) -> Finding:
    """Whether a requirement of the package is met."""
    from packaging.requirements import Requirement

    version, parsed = _installed(requirement), Requirement(requirement)
    if version is None:
        return Finding("wrong", f"{parsed.name} is missing", f'pip install "{requirement.strip()}"')
    if not parsed.specifier.contains(version, prereleases=True):
        text = f"{parsed.name} {version} is outside the tested range {parsed.specifier}"
        return Finding("wrong", text, f'pip install "{requirement.strip()}"')
    return Finding("ok", f"{parsed.name} {version}")


def this_machine() -> Machine:
    """What this machine shows. Starts jax's backend."""
    import jax

    names = {
        (distribution.metadata["Name"] or "").lower() for distribution in importlib.metadata.distributions()
    }
    tpu = [name for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES") if os.environ.get(name)]
    return Machine(
        backend=jax.default_backend(),
        platforms=os.environ.get("JAX_PLATFORMS", ""),
        nvidia_devices=tuple(sorted(glob.glob("/dev/nvidia[0-9]*"))),
        tpu_signs=tuple(sorted(glob.glob("/dev/accel[0-9]*")) + tpu),
        gpu_plugins=tuple(sorted(name for name in names if re.fullmatch(r"jax-(cuda|rocm)\d+-plugin", name))),
        tpu_plugin="libtpu" in names,
    )


def cpu_fallback(machine: Machine) -> Finding | None:
    """What is wrong where jax runs on the CPU of a machine that has, or was set up for, an accelerator.

    libtpu alone is no sign of a TPU: `unitoken plan` uses its compiler on machines that have none.
    """
    if machine.backend != "cpu":
        return None
    has_tpu = bool(machine.tpu_signs)
    signs = (*machine.nvidia_devices, *machine.tpu_signs, *machine.gpu_plugins)
    if not signs:
        return None
    text = f"jax runs on the CPU, though there is {', '.join(signs)}"
    if "cpu" in machine.platforms.split(","):
        return Finding("note", f"{text} (JAX_PLATFORMS={machine.platforms} asks for that)")
    if machine.platforms:
        fix = f"unset JAX_PLATFORMS, which is {machine.platforms!r}"
    elif has_tpu and not machine.tpu_plugin:
        fix = 'pip install -U "jax[tpu]"'
    elif has_tpu:
        fix = "another process may hold the TPU: end it, or see what `JAX_PLATFORMS=tpu unitoken doctor` says"
    elif not machine.gpu_plugins:
        fix = 'pip install -U "jax[cuda12]"'
    elif not machine.nvidia_devices:
        fix = (
            "no GPU device is visible: check nvidia-smi, or the container's --gpus; or set JAX_PLATFORMS=cpu"
        )
    else:
        fix = (
            "the plugin did not start: compare `nvidia-smi`'s driver version with what its CUDA version needs"
        )
    return Finding("wrong", text, fix)


def devices() -> list[Finding]:
    """The devices jax sees, whether they compute, and an unintended CPU fallback."""
    if importlib.util.find_spec("jax") is None:
        return []  # reported among the versions
    import jax
    import jax.numpy as jnp

    try:
        machine = this_machine()
        kinds = [device.device_kind for device in jax.devices()]
        total = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8))))
    except Exception as error:  # any failure to start or compute is what the user came to hear about
        return [
            Finding(
                "wrong",
                f"jax cannot compute here: {error}",
                "see the message; reinstall jax for this machine",
            )
        ]
    shown = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))
    findings = [
        Finding(
            "ok",
            f"backend {machine.backend}: {shown}; process {jax.process_index()} of {jax.process_count()}",
        )
    ]
    if total != 512:
        findings.append(
            Finding("wrong", f"a matrix product gave {total}, not 512", "check the driver and hardware")
        )
    fallback = cpu_fallback(machine)
    return [*findings, fallback] if fallback else findings


def resources(folder: pathlib.Path) -> list[Finding]:
    """Free disk where the user stands, cores, and free memory."""
    disk = shutil.disk_usage(folder).free / 2**30
    findings = [check_resource(disk, DISK_GIB, "disk")]
    memory = free_host_bytes()
    if memory is not None:
        findings.append(check_resource(memory / 2**30, QUICKSTART_GIB, "memory"))
    return [*findings, Finding("ok", f"{os.cpu_count()} CPU cores")]


def check_resource(free: float, needed: float, resource: str) -> Finding:
    """Whether as much is free, in GiB, as the quickstart needs."""
    if free < needed:
        return Finding("note", f"{free:.1f} GiB {resource} free; the quickstart needs about {needed} GiB")
    return Finding("ok", f"{free:.1f} GiB {resource} free")
