"""Launch scripts, with stand-ins for gcloud, srun and scontrol that record their calls."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent / "launch"
RUN = ["--config=configs/sdxl.py", "--config.subject.class_noun=teddy bear", "--workdir=runs/x"]
WHERE = ["--name=duck", "--zone=us-west4-a"]
# Answers by the script in the folder: lines "pattern<TAB>status<TAB>text", each used once.
STAND_IN = """#!{python}
import json, pathlib, re, sys
here = pathlib.Path(__file__).parent
name = pathlib.Path(__file__).name
words = [name, *sys.argv[1:]]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
answers = here / "answers"
lines = answers.read_text().splitlines() if answers.exists() else []
for i, line in enumerate(lines):
    pattern, status, text = line.split("\\t")
    if re.search(pattern, " ".join(words)):
        answers.write_text("".join(x + "\\n" for x in lines[:i] + lines[i + 1:]))
        print(text, end="\\n" if text else "")
        sys.exit(int(status))
"""


@pytest.fixture
def stand_ins(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "srun", "scontrol"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


def launch(stand_ins, script, *words, answers=(), expect=0, **extra):
    lines = "".join("\t".join(map(str, answer)) + "\n" for answer in answers)
    (stand_ins / "answers").write_text(lines)
    calls = stand_ins / "calls.jsonl"
    calls.unlink(missing_ok=True)
    path = f"{stand_ins}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [LAUNCH / script, *words],
        env=os.environ | {"PATH": path, "POLL": "0", "TMPDIR": str(stand_ins)} | extra,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    made = calls.read_text().splitlines() if calls.exists() else []
    return done, [json.loads(line) for line in made]


def verbs(calls):
    """The sub-command of each call of gcloud: "create", "ssh all", …"""
    found = []
    for call in calls:
        verb = call[4] if call[0] == "gcloud" else call[1] if call[0] == "git" else call[0]
        group = "queued " if "queued-resources" in call else ""
        worker = next((w.split("=")[1] for w in call if w.startswith("--worker=")), "")
        found.append(f"{group}{verb} {worker}".strip())
    return found


def test_a_new_tpu_is_made_installed_run_and_followed(stand_ins):
    absent = ("describe", 1, "")
    _, calls = launch(
        stand_ins,
        "tpu_vm.sh",
        *WHERE,
        "--type=v5litepod-16",
        "--spot",
        "--",
        *RUN,
        answers=[absent],
    )
    assert verbs(calls) == [
        "describe", "create", "scp all", "ssh all", "ssh all", "ssh all", "ssh 0",
    ]  # fmt: skip
    create, copied, run, followed = calls[1], calls[2], calls[5], calls[6]
    assert {"--accelerator-type=v5litepod-16", "--spot", "--zone=us-west4-a"} <= set(create)
    assert "--version=v2-alpha-tpuv5-lite" in create
    assert copied[-3].startswith("duck:") or any(w.startswith("duck:") for w in copied)
    command = next(w for w in run if w.startswith("--command=")).removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", command], check=True)
    # The run gets the words as they were typed, the space in one of them too.
    words = shlex.split(
        command[command.index("-m dreambooth_jax.main") : command.index(">run.log")]
    )
    assert words == ["-m", "dreambooth_jax.main", "--coordinator=auto", *RUN]
    assert "run.log" in " ".join(followed)


def test_one_that_is_there_is_used_as_it_is(stand_ins):
    _, calls = launch(
        stand_ins, "tpu_vm.sh", *WHERE, "--", *RUN, answers=[("describe", 0, "READY")]
    )
    assert verbs(calls) == ["describe", "ssh all", "ssh 0"]


def test_after_a_preemption_it_is_made_again_and_the_same_run_goes_on(stand_ins):
    answers = [
        ("describe", 0, "READY"),
        ("--worker=0", 255, "connection lost"),
        ("describe", 0, "PREEMPTED"),
        ("describe", 0, "PREEMPTED"),
    ]
    done, calls = launch(
        stand_ins, "tpu_vm.sh", *WHERE, "--type=v4-32", "--spot", "--", *RUN, answers=answers
    )
    found = verbs(calls)
    assert found[:4] == ["describe", "ssh all", "ssh 0", "describe"]
    assert found[4:7] == ["describe", "delete", "create"]
    assert found[-2:] == ["ssh all", "ssh 0"]
    runs = [
        call
        for call in calls
        if "dreambooth_jax.main" in " ".join(call) and "all" in verbs([call])[0]
    ]
    assert len(runs) == 2 and runs[0] == runs[1]
    assert "making it again (1 of 100)" in done.stdout


def test_a_run_that_fails_on_a_healthy_tpu_is_not_repeated(stand_ins):
    answers = [("describe", 0, "READY"), ("--worker=0", 1, "boom"), ("describe", 0, "READY")]
    done, calls = launch(stand_ins, "tpu_vm.sh", *WHERE, "--", *RUN, answers=answers, expect=1)
    assert "the run ended with an error" in done.stderr
    assert "delete" not in verbs(calls)


def test_the_queue_is_waited_for(stand_ins):
    answers = [("describe", 1, ""), ("describe", 0, "WAITING"), ("describe", 0, "READY")]
    _, calls = launch(
        stand_ins, "tpu_vm.sh", *WHERE, "--type=v6e-8", "--queued", "--", *RUN, answers=answers
    )
    assert verbs(calls)[:4] == ["describe", "queued create", "describe", "describe"]
    assert "--runtime-version=v2-alpha-tpuv6e" in calls[1]


def test_delete_and_dry_run_touch_nothing_else(stand_ins):
    _, calls = launch(stand_ins, "tpu_vm.sh", *WHERE, "--delete")
    assert verbs(calls) == ["delete", "queued delete"]
    words = [*WHERE, "--type=v4-8", "--queued"]
    done, calls = launch(stand_ins, "tpu_vm.sh", *words, "--dry-run", "--", *RUN)
    assert calls == []
    printed = done.stdout.splitlines()
    for line in printed:  # each can be typed as it stands
        subprocess.run(["bash", "-n", "-c", line], check=True)
    dry = [shlex.split(line) for line in printed]
    answers = [("describe", 1, ""), ("describe", 0, "READY")]
    _, calls = launch(stand_ins, "tpu_vm.sh", *words, "--", *RUN, answers=answers)
    assert verbs(dry) == [*verbs(calls)[:3], "archive", *verbs(calls)[3:]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--zone=z", "--", *RUN], "--name and --zone are needed"),
        ([*WHERE], "nothing to run"),
        ([*WHERE, "--tpye=v4-8", "--", *RUN], "--tpye=v4-8: no such option"),
        ([*WHERE, "--photos=nowhere", "--", *RUN], "no such folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(stand_ins, words, said):
    done, calls = launch(stand_ins, "tpu_vm.sh", *words, expect=2)
    assert said in done.stderr
    assert calls == []


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (1, False)])
def test_slurm_puts_an_interrupted_run_back_into_the_queue(stand_ins, status, requeued):
    _, calls = launch(
        stand_ins, "slurm.sh", *RUN, answers=[("srun", status, "")], expect=status,
        SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=str(LAUNCH.parent),
    )  # fmt: skip
    assert calls[0][0] == "srun"
    assert (
        calls[0][-len(RUN) - 3 :]
        == ["-m", "dreambooth_jax.main", "--coordinator=auto", *RUN][-len(RUN) - 3 :]
    )
    assert (["scontrol", "requeue", "17"] in calls) == requeued
    header = (LAUNCH / "slurm.sh").read_text()
    assert "#SBATCH --signal=TERM@" in header and "#SBATCH --requeue" in header


def test_local_starts_n_processes_and_fails_when_one_does(tmp_path):
    """With a stand-in for python: who is called with what.

    Processes that end at the same moment are all seen to end, whichever the script looks at first.
    """
    recorder = tmp_path / "python"
    recorder.write_text(
        "#!/usr/bin/env bash\n[[ $1 == -c ]] && { echo 4242; exit 0; }\n"
        f'echo "$*" >> {tmp_path}/calls\n'
        'for word in "$@"; do [[ $word == --process_id=1 ]] && exit "${FAIL:-0}"; done\nexit 0\n'
    )
    recorder.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    for fail in ("0", *["3"] * 10):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            [LAUNCH / "local.sh", "2", *RUN],
            env=os.environ | {"PATH": path, "FAIL": fail, "GRACE": "3600"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == int(fail)
        assert ("process 1 ended with status 3; stopping the others" in done.stderr) == (
            fail == "3"
        )
        lines = sorted((tmp_path / "calls").read_text().splitlines())
        started = [re.search(r"--process_id=(\d)", line)[1] for line in lines]
        assert started == ["0", "1"] if fail == "0" else "1" in started
        assert all("--coordinator=localhost:4242 --num_processes=2" in line for line in lines)
        assert all(line.endswith(" ".join(RUN)) for line in lines)


def test_the_studio_is_started_beside_the_run_and_the_tunnel_printed(stand_ins):
    run = ["--config=sdxl", "--workdir=gs://bucket/my runs/duck"]
    ready = ("describe", 0, "READY")
    done, calls = launch(
        stand_ins, "tpu_vm.sh", *WHERE, "--studio", "--detach", "--", *run, answers=[ready]
    )
    assert verbs(calls) == ["describe", "ssh all", "ssh 0"]
    command = next(w for w in calls[-1] if w.startswith("--command=")).removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", command], check=True)
    words = shlex.split(
        command[command.index("-m dreambooth_jax.studio") : command.index(" >studio.log")]
    )
    assert words == ["-m", "dreambooth_jax.studio", "gs://bucket/my runs", "--port", "8765"]
    assert "JAX_PLATFORMS=cpu" in command
    tunnel = "ssh duck --zone=us-west4-a --worker=0 -- -L 8765:localhost:8765"
    assert done.stdout.splitlines()[-1] == f"gcloud compute tpus tpu-vm {tunnel}"


def test_a_tpu_that_does_not_start_is_no_run_on_the_cpu(stand_ins):
    """With "cpu" alone in reach, jax fails for "tpu,cpu" and falls back for "": README of jax."""
    _, calls = launch(
        stand_ins, "tpu_vm.sh", *WHERE, "--detach", "--", *RUN, answers=[("describe", 0, "READY")]
    )
    assert any("env JAX_PLATFORMS=tpu,cpu" in word for word in calls[-1])
    jobset = (LAUNCH / "gke_jobset.yaml").read_text()
    assert "JAX_PLATFORMS" in jobset and "value: tpu,cpu" in jobset


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_skypilot_task_starts_the_run_on_every_node(nodes, tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"resources", "setup", "run", "envs", "file_mounts", "workdir"} <= task.keys()
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\necho "$JAX_PLATFORMS $*" > {tmp_path}/called\n')
    python.chmod(0o755)
    env = {key: str(value) for key, value in task["envs"].items()}
    env |= {"SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_RANK": "1", "HOME": "/h/anna"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=env, check=True)
    platforms, *words = (tmp_path / "called").read_text().split()
    assert platforms == "cuda,cpu" and words[:2] == ["-m", "dreambooth_jax.main"]
    assert "--config.subject.images=/h/anna/photos" in words
    several = ["--coordinator=10.0.0.5:1234", "--num_processes=2", "--process_id=1"]
    assert words[-3:] == several if nodes == 2 else not {*several} & {*words}


def test_the_jobset_runs_the_same_command_on_every_host():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "dreambooth_jax.main"]
    assert "--coordinator=auto" in container["args"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: extra `test`")
def test_shellcheck_has_nothing_to_say():
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH.parent / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
