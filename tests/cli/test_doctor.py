"""What `unitoken doctor` calls wrong."""

import importlib.metadata

import pytest

from unitoken_jax.cli import doctor
from unitoken_jax.cli.doctor import Machine, cpu_fallback


@pytest.mark.parametrize(
    ("machine", "fix"),
    [
        (Machine("cpu", "", nvidia_devices=("/dev/nvidia0",)), 'pip install -U "jax[cuda12]"'),
        (Machine("cpu", "", nvidia_devices=("/dev/nvidia0",), gpu_plugins=("jax-cuda12-plugin",)), "driver"),
        (Machine("cpu", "", gpu_plugins=("jax-cuda12-plugin",)), "no GPU device is visible"),
        (Machine("cpu", "", tpu_signs=("TPU_NAME",)), 'pip install -U "jax[tpu]"'),
        (Machine("cpu", "", tpu_signs=("/dev/accel0",), tpu_plugin=True), "another process"),
    ],
)
def test_unintended_cpu_fallback_is_wrong_and_says_the_fix(machine, fix):
    finding = cpu_fallback(machine)
    assert finding.level == "wrong"
    assert fix in finding.fix


@pytest.mark.parametrize(
    "machine",
    [
        Machine("cpu", ""),
        Machine("cpu", "", tpu_plugin=True),
        Machine("gpu", "", nvidia_devices=("/dev/nvidia0",), gpu_plugins=("jax-cuda12-plugin",)),
        Machine("tpu", "", tpu_signs=("TPU_NAME",), tpu_plugin=True),
    ],
)
def test_what_runs_as_meant_is_fine(machine):
    assert cpu_fallback(machine) is None


def test_cpu_that_was_asked_for_is_only_noted():
    assert cpu_fallback(Machine("cpu", "cpu", nvidia_devices=("/dev/nvidia0",))).level == "note"


def test_requirements_missing_or_outside_their_range_are_wrong():
    assert doctor.check_requirement("numpy>=1").level == "ok"
    assert doctor.check_requirement("numpy>=999").level == "wrong"
    missing = doctor.check_requirement("surely-not-installed>=1")
    assert (missing.level, missing.fix) == ("wrong", 'pip install "surely-not-installed>=1"')


def test_missing_extras_are_notes(monkeypatch):
    needs = ['surely-not-installed>=1; extra == "parity"', 'numpy>=1; extra == "hub"', "pytest>=1"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: {"unitoken_jax": "0", "numpy": "2", "pytest": "9"}.get(name),
    )
    levels = {finding.text: finding.level for finding in doctor.versions()}
    assert levels["extra 'parity' lacks surely-not-installed (only if you need it)"] == "note"
    assert levels["extra 'hub'"] == levels["pytest 9"] == "ok"


def test_extras_of_a_requirement_count(monkeypatch):
    needs = ["numpy", 'surely-not-installed>=1; extra == "tpu"', 'other; extra == "gpu"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    assert doctor.implied_requirements("numpy[tpu]>=1") == ["surely-not-installed>=1"]
    assert doctor.implied_requirements("numpy>=1") == []


def test_exit_code_and_report(monkeypatch):
    lines = []
    monkeypatch.setattr(doctor, "versions", list)
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine("cpu", ""))
    assert doctor.run(lines.append) == 0
    assert "backend cpu" in lines[0]
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine("cpu", "", nvidia_devices=("/dev/nvidia0",)))
    assert doctor.run(lines.append) == 1
    assert any(line.startswith("WRONG jax runs on the CPU, though there is /dev/nvidia0") for line in lines)
    assert any('-> pip install -U "jax[cuda12]"' in line for line in lines)


def test_a_full_disk_is_noted(tmp_path):
    assert doctor.check_resource(0.5, 2, "disk").level == "note"
    assert doctor.resources(tmp_path)[0].text.endswith("GiB disk free")
