"""Every launch file ends in the same command line, with flags that `nvret_jax.main` takes.

Nothing is launched: gcloud, srun and python are small stand-ins that print their arguments.
"""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("local.sh", "tpu_vm.sh", "slurm.sbatch")
# Variables of this machine that would change what a script says.
OWN = "CONFIG WORKDIR PROCESSES CPU_DEVICES PORT PYTHON TPU_NAME ZONE PROJECT NFS SPOT".split()


def call(*command, env=None, path=None, cwd=ROOT):
    """Runs a command and returns what came of it."""
    clean = {k: v for k, v in os.environ.items() if k not in OWN and not k.startswith("SLURM")}
    clean |= env or {}
    if path is not None:
        clean["PATH"] = f"{path}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        ["bash", *map(str, command)], env=clean, cwd=cwd, capture_output=True, text=True, timeout=60
    )


def said(*command, **options):
    """The lines a command prints, which must succeed."""
    done = call(*command, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def stand_in(folder, name, body):
    """A program called `name` for the front of PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def main_flags(line):
    """The arguments of nvret_jax.main in a printed command."""
    words = shlex.split(line)
    at = words.index("nvret_jax.main")
    assert words[at - 1] == "-m"
    assert words[at - 2].endswith("python")
    return words[at + 1 :]


def block(name, *keys):
    """A piece of shell out of a YAML file."""
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((LAUNCH / name).read_text())
    for key in keys:
        found = found[key]
    return found


def gke_shell():
    return block(
        "gke_jobset.yaml", "spec", "replicatedJobs", 0, "template", "spec", "template", "spec",
        "containers", 0, "args", 0,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name):
    assert call("-n", LAUNCH / name).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_the_variables(name):
    text = "\n".join(said(LAUNCH / name, "--help"))
    assert "--dry-run" in text
    assert "CONFIG" in text
    assert "WORKDIR" in text


def test_local_is_one_plain_command():
    (line,) = said(LAUNCH / "local.sh", "--config=configs/quickstart.py:smoke", "--dry-run")
    assert main_flags(line) == [
        "--config=configs/quickstart.py:smoke",
        "--workdir=runs/quickstart-smoke",
    ]
    (line,) = said(LAUNCH / "local.sh", "--dry-run", env={"CONFIG": "configs/evaluate.py"})
    assert main_flags(line) == ["--config=configs/evaluate.py", "--workdir=runs/evaluate"]


def test_local_processes_form_one_run():
    lines = said(
        LAUNCH / "local.sh", "--processes=3", "--cpu-devices=2", "--dry-run", "--",
        "--config.name=a b",
    )  # fmt: skip
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert shlex.split(line)[:3] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=2"]
        assert main_flags(line) == [
            "--config=configs/quickstart.py",
            "--workdir=runs/quickstart",
            "--config.distributed.coordinator=127.0.0.1:12321",
            "--config.distributed.num_processes=3",
            f"--config.distributed.process_id={number}",
            "--config.name=a b",
        ]
    lines = said(LAUNCH / "local.sh", "--processes=2", "--dry-run")
    assert [shlex.split(line)[1] for line in lines] == [
        "CUDA_VISIBLE_DEVICES=0",
        "CUDA_VISIBLE_DEVICES=1",
    ]


def test_local_runs_what_the_dry_run_prints(tmp_path):
    python = stand_in(tmp_path / "bin", "python", 'echo "python $*"')
    dry = said(LAUNCH / "local.sh", "--processes=2", "--dry-run", env={"PYTHON": str(python)})
    real = said(LAUNCH / "local.sh", "--processes=2", env={"PYTHON": str(python)})
    assert sorted(map(main_flags, real)) == sorted(map(main_flags, dry))


def test_local_one_failure_ends_all(tmp_path):
    python = stand_in(
        tmp_path / "bin", "python", 'case "$*" in *process_id=1*) exit 7 ;; esac; exec sleep 50'
    )
    done = call(LAUNCH / "local.sh", "--processes=2", env={"PYTHON": str(python)})
    assert done.returncode == 7


# A run that notes that it started, and needs a moment to save when it is asked to end.
SAVES = """
at="$LOG.${*: -1}"
trap 'sleep 0.5; echo saved >> "$at"; exit 143' TERM
echo started > "$at"
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize(("sent", "status"), [("TERM", 143), ("INT", 130)])
def test_local_lets_all_processes_save(tmp_path, sent, status):
    python = stand_in(tmp_path / "bin", "python", SAVES)
    logs = [tmp_path / f"log.--config.distributed.process_id={i}" for i in range(2)]
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), "--processes=2"],
        env=os.environ | {"PYTHON": str(python), "LOG": str(tmp_path / "log")},
    )
    wait_for(lambda: all(log.exists() and log.read_text() for log in logs))
    process.send_signal(getattr(signal, f"SIG{sent}"))
    assert process.wait(30) == status
    assert [log.read_text() for log in logs] == ["started\nsaved\n"] * 2


def test_local_kills_what_does_not_end_in_time(tmp_path):
    python = stand_in(
        tmp_path / "bin", "python", 'trap "" TERM; echo up > "$LOG"; while :; do sleep 0.1; done'
    )
    log = tmp_path / "log"
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), "--processes=2"],
        env=os.environ | {"PYTHON": str(python), "LOG": str(log), "GRACE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: log.exists() and log.read_text())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 137
    assert "1 s after it was asked to" in errors


def wait_for(event):
    """Waits until something holds; AssertionError after half a minute."""
    until = time.monotonic() + 30
    while not event():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--frobnicate"], "--frobnicate"), (["--processes=two"], "--processes=two")],
)
def test_local_refuses(arguments, word):
    done = call(LAUNCH / "local.sh", *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("action", ["create", "setup", "run", "logs", "stop", "status", "delete"])
def test_tpu_vm_needs_gcloud_only_for_the_real_thing(action, tmp_path):
    dry = said(LAUNCH / "tpu_vm.sh", action, "--dry-run", env={"TPU_NAME": "mine"})
    assert all("mine" in line for line in dry if line.startswith("gcloud"))
    stand_in(tmp_path / "bin", "gcloud", 'printf \'%s\\n\' "$@" > "$LOG"')
    stand_in(tmp_path / "bin", "git", "exit 0")
    log = tmp_path / "log"
    env = {"TPU_NAME": "mine", "LOG": str(log)}
    real = said(LAUNCH / "tpu_vm.sh", action, env=env, path=tmp_path / "bin")
    assert real == dry
    assert log.read_text().splitlines() == shlex.split(dry[-1])[1:]


def test_tpu_vm_runs_on_every_host():
    lines = said(
        LAUNCH / "tpu_vm.sh", "run", "--config=configs/quickstart.py:smoke",
        "--workdir=/mnt/nvret/a", "--dry-run", "--", "--config.name=a b",
    )  # fmt: skip
    words = shlex.split(lines[0])
    assert "--worker=all" in words
    # The run is in a session and a shell of its own, which writes to a file.
    remote = shlex.split(words[-1].removeprefix("--command="))
    at = remote.index("-c")
    assert remote[at - 3 : at] == ["nohup", "setsid", "bash"]
    assert remote[at + 2 : at + 4] == [">", "run.log"]
    assert main_flags(remote[at + 1].partition("; ")[2].partition("; ")[0]) == [
        "--config=configs/quickstart.py:smoke",
        "--workdir=/mnt/nvret/a",
        "--config.name=a b",
    ]


def test_tpu_vm_spot_and_nfs():
    assert "--spot" in said(LAUNCH / "tpu_vm.sh", "create", "--spot", "--dry-run")[-1]
    assert "--spot" not in said(LAUNCH / "tpu_vm.sh", "create", "--dry-run")[-1]
    env = {"NFS": "10.0.0.2:/share"}
    assert "mount -t nfs 10.0.0.2:/share" in said(
        LAUNCH / "tpu_vm.sh", "setup", "--dry-run", env=env
    )[-1]  # fmt: skip
    assert "--workdir=/mnt/nvret/run" in said(LAUNCH / "tpu_vm.sh", "run", "--dry-run", env=env)[0]


def test_tpu_vm_run_outlives_the_connection(tmp_path):
    """The command of `run`, as it is on a host: started, followed, stopped; its status kept."""
    home = tmp_path / "home"
    (home / "nvret_jax" / ".venv" / "bin").mkdir(parents=True)
    body = "trap 'echo saved; exit 143' TERM; echo up; while :; do sleep 0.1; done"
    stand_in(home / "nvret_jax" / ".venv" / "bin", "python", body)

    def on_host(action):
        line = said(LAUNCH / "tpu_vm.sh", action, "--dry-run")[0 if action == "run" else -1]
        remote = shlex.split(line)[-1].removeprefix("--command=")
        return subprocess.run(
            ["bash", "-c", remote], cwd=home, capture_output=True, text=True, timeout=30
        )

    assert on_host("run").returncode == 0  # comes back at once
    log = home / "nvret_jax" / "run.log"
    wait_for(lambda: log.exists() and log.read_text() == "up\n")
    assert on_host("status").stdout == "running\n"
    assert on_host("run").returncode == 2  # one at a time
    assert on_host("stop").returncode == 0
    lines = on_host("logs").stdout.splitlines()
    assert [x for x in lines if x != "Terminated"] == ["up", "saved", "ended with status 143"]
    assert on_host("status").stdout == "ended with status 143\n"


def test_tpu_vm_refuses_an_unknown_action():
    done = call(LAUNCH / "tpu_vm.sh", "destroy")
    assert done.returncode == 2
    assert "destroy" in done.stderr


def test_slurm_joins_the_tasks(tmp_path):
    env = {"CONFIG": "configs/evaluate.py", "WORKDIR": "/shared/a"}
    (dry,) = said(LAUNCH / "slurm.sbatch", "--dry-run", "--config.seed=1", env=env)
    assert main_flags(dry) == [
        "--config=configs/evaluate.py",
        "--workdir=/shared/a",
        "--config.distributed.mode=on",
        "--config.seed=1",
    ]
    # Slurm runs a copy of the script somewhere else.
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "script")
    stand_in(tmp_path / "bin", "srun", 'echo "$PWD"; echo srun "$@"')
    env["SLURM_SUBMIT_DIR"] = str(ROOT)
    real = said(copy, "--config.seed=1", env=env, path=tmp_path / "bin", cwd=tmp_path)
    assert real == [str(ROOT), dry]


@pytest.mark.parametrize(("sent", "requeued"), [("USR1", ["requeue", "77"]), ("TERM", [])])
def test_slurm_saves_and_comes_back_when_its_time_is_up(tmp_path, sent, requeued):
    stand_in(
        tmp_path / "bin", "srun",
        'trap "echo saved > $LOG; exit 143" TERM; echo up > "$LOG"; while :; do sleep 0.1; done',
    )  # fmt: skip
    stand_in(tmp_path / "bin", "scontrol", 'echo "$@"')
    log = tmp_path / "log"
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch")],
        env=os.environ
        | {
            "LOG": str(log),
            "SLURM_JOB_ID": "77",
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: log.exists() and log.read_text() == "up\n")
    process.send_signal(getattr(signal, f"SIG{sent}"))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert log.read_text() == "saved\n"
    assert output.split() == requeued
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    assert "#SBATCH --signal=B:USR1@180" in lines
    assert "#SBATCH --requeue" in lines


def test_slurm_asks_for_one_task_a_gpu():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    wanted = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH")
    )
    assert wanted["gres"] == f"gpu:{wanted['ntasks-per-node']}"
    assert "gpus-per-task" not in wanted


def test_jobset_numbers_agree():
    job = block("gke_jobset.yaml", "spec", "replicatedJobs", 0)
    inner = job["template"]["spec"]
    pod = inner["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    count = inner["parallelism"]
    assert inner["completions"] == count == int(env["NUM_PROCESSES"])
    assert inner["completionMode"] == "Indexed"
    assert (inner["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert block("gke_jobset.yaml", "spec", "network", "enableDNSHostnames") is True
    assert block("gke_jobset.yaml", "spec", "failurePolicy", "restartStrategy") == "Recreate"
    claims = {volume["name"] for volume in pod["volumes"]}
    assert claims >= {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}


def test_jobset_pod(tmp_path):
    stand_in(tmp_path, "python", 'echo python "$@"')
    env = {
        "CONFIG": "configs/quickstart.py",
        "WORKDIR": "/runs/first",
        "NUM_PROCESSES": "2",
        "JOBSET_NAME": block("gke_jobset.yaml", "metadata", "name"),
        "JOB_COMPLETION_INDEX": "1",
    }
    (line,) = said("-c", gke_shell(), env=env, path=tmp_path)
    name = block("gke_jobset.yaml", "spec", "replicatedJobs", 0, "name")
    assert main_flags(line) == [
        "--config=configs/quickstart.py",
        "--workdir=/runs/first",
        f"--config.distributed.coordinator=nvret-{name}-0-0.nvret:12321",
        "--config.distributed.num_processes=2",
        "--config.distributed.process_id=1",
        "--config.distributed.join_seconds=900",
    ]


def test_jobset_pod_fails_with_its_process(tmp_path):
    stand_in(tmp_path, "python", "exit 2")
    names = ("CONFIG", "WORKDIR", "NUM_PROCESSES", "JOBSET_NAME", "JOB_COMPLETION_INDEX")
    assert call("-c", gke_shell(), env=dict.fromkeys(names, "1"), path=tmp_path).returncode == 2


def test_jobset_pod_lets_its_process_save(tmp_path):
    stand_in(
        tmp_path / "bin", "python",
        'trap "sleep 0.5; echo saved >> $LOG; exit 143" TERM; echo up > "$LOG"; '
        "while :; do sleep 0.1; done",
    )  # fmt: skip
    names = ("CONFIG", "WORKDIR", "NUM_PROCESSES", "JOBSET_NAME", "JOB_COMPLETION_INDEX")
    log = tmp_path / "log"
    process = subprocess.Popen(
        ["bash", "-c", gke_shell()],
        env=os.environ
        | dict.fromkeys(names, "1")
        | {"LOG": str(log), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )
    wait_for(lambda: log.exists() and log.read_text() == "up\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert log.read_text() == "up\nsaved\n"
    pod = block("gke_jobset.yaml", "spec", "replicatedJobs", 0, "template", "spec")
    assert pod["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_jobset_does_not_retry_bad_input():
    rule = block("gke_jobset.yaml", "spec", "failurePolicy", "rules", 0)
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    inner = block("gke_jobset.yaml", "spec", "replicatedJobs", 0, "template", "spec")
    codes = inner["podFailurePolicy"]["rules"][0]["onExitCodes"]
    (container,) = inner["template"]["spec"]["containers"]
    assert codes == {"containerName": container["name"], "operator": "In", "values": [2]}


def test_sky_node(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    stand_in(tmp_path / "bin", "python", 'echo python "$@"')
    env = block("sky.yaml", "envs") | {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    (line,) = said("-c", block("sky.yaml", "run"), env=env, path=tmp_path / "bin", cwd=tmp_path)
    assert main_flags(line) == [
        "--config=configs/quickstart.py",
        "--workdir=runs/sky",
        "--config.distributed.coordinator=10.0.0.1:12321",
        "--config.distributed.num_processes=2",
        "--config.distributed.process_id=1",
    ]


def test_main_takes_the_flags():
    """The overrides that the files above use are real ones."""
    line = said(LAUNCH / "local.sh", "--processes=2", "--dry-run")[-1]
    script = (
        "import sys; from nvret_jax.commands import load, parser\n"
        "from nvret_jax.config import overrides\n"
        "asked = parser.parse('train', load('train'), sys.argv[1:])\n"
        "d = overrides.from_arguments(asked.config).distributed\n"
        "print(d.mode, d.coordinator, d.num_processes, d.process_id)"
    )
    flags = [*main_flags(line), "--config.distributed.mode=on"]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["on", "127.0.0.1:12321", "2", "1"], done.stderr
