"""launch/tpu_vm.sh: what it would run, and, with a stand-in for gcloud whose VM is a folder, what
that does.
"""

import json
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "tpu_vm.sh"
PLACE = ["--zone=us-west4-a", "--type=v5litepod-8"]
AWKWARD = [
    "--config=configs/digits.py:gd",
    "--config.note=a b; touch 'x' \"y\" $HOME `id` & *\\",
    "",
]

# The VM is $FAKE_VM: ssh runs there, scp copies there or back. Every call is noted in $FAKE_CALLS.
GCLOUD = """#!{python}
import json, os, shutil, subprocess, sys
vm, arguments = os.environ["FAKE_VM"], sys.argv[1:]
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps(["gcloud", *arguments]) + "\\n")
verb, rest = arguments[3], arguments[4:]
if verb == "describe":
    sys.exit(0 if os.path.exists(vm) else 1)
if verb == "create":
    os.makedirs(vm)
if verb == "ssh":
    (command,) = [a.removeprefix("--command=") for a in rest if a.startswith("--command=")]
    environment = {{"HOME": vm, "PATH": os.environ["FAKE_BIN"] + ":/usr/bin:/bin"}}
    sys.exit(subprocess.run(["bash", "-c", command], cwd=vm, env=environment).returncode)
if verb == "scp":
    source, target = [a for a in rest if not a.startswith("-")]
    if ":" in target:
        shutil.copy(source, os.path.join(vm, target.partition(":")[2]))
    else:
        source = os.path.join(vm, source.partition(":")[2])
        place = os.path.join(target, os.path.basename(source))
        (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, place)
if verb == "delete":
    shutil.rmtree(vm)
"""

# Stands in for the virtual environment's Python: notes its arguments in the workdir, then waits or
# ends as $HOME/orders says.
PYTHON = """#!{python}
import json, os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
workdir.mkdir(parents=True, exist_ok=True)
(workdir / "arguments.json").write_text(json.dumps([os.getcwd(), *sys.argv[1:]]))
print("this is the log")
orders = pathlib.Path.home() / "orders"
while not orders.exists() or json.loads(orders.read_text())["wait"]:
    time.sleep(0.05)
sys.exit(json.loads(orders.read_text())["status"])
"""

# What `curl ... | sh` gets, and what that installs: nothing is fetched from anywhere.
CURL = """#!/bin/sh
echo 'mkdir -p "$HOME/.local/bin" && cp {folder}/uv "$HOME/.local/bin/uv"'
"""
UV = """#!/bin/sh
if [ "$1" = venv ]; then mkdir -p "$4/bin" && cp {folder}/python "$4/bin/python"; fi
"""


def launch(*arguments, **options):
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, **options)


def dry_run(*arguments):
    ended = launch("--dry-run", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return [line for line in ended.stdout.splitlines() if not line.startswith("#")]


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable, folder=path.parents[1] / "installed"))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cloud(tmp_path):
    """Runs the script against a VM that exists already, bare but for `orders`."""
    vm = tmp_path / "vm"
    vm.mkdir()
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    executable(tmp_path / "bin" / "curl", CURL)
    executable(tmp_path / "installed" / "uv", UV)
    executable(tmp_path / "installed" / "python", PYTHON)

    class Cloud:
        home = vm
        here = tmp_path

        def order(self, wait=False, status=0):
            text = json.dumps({"wait": wait, "status": status})
            (vm / "orders.new").write_text(text)
            (vm / "orders.new").rename(vm / "orders")

        def launch(self, *arguments):
            environment = {
                **os.environ,
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "FAKE_VM": str(vm),
                "FAKE_BIN": str(tmp_path / "bin"),
                "FAKE_CALLS": str(tmp_path / "calls"),
                "TMPDIR": str(tmp_path),
            }
            return launch(*arguments, cwd=tmp_path, env=environment)

        def calls(self):
            return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

        def received(self, workdir="jdcl_jax/runs/jdcl-jax"):
            file = vm / workdir / "arguments.json"
            deadline = time.monotonic() + 20
            while not (file.exists() and file.read_text()):
                assert time.monotonic() < deadline, "the run never started"
                time.sleep(0.05)
            return json.loads(file.read_text())

        def end(self):
            deadline = time.monotonic() + 20
            while not (vm / "jdcl_jax-logs" / "jdcl-jax.status").exists():
                assert time.monotonic() < deadline, "the run never ended"
                time.sleep(0.05)

    cloud = Cloud()
    cloud.order()
    yield cloud
    if vm.exists():
        cloud.order()


def test_the_script_is_well_formed():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


def test_a_dry_run_needs_no_gcloud_and_prints_the_commands_in_order(tmp_path):
    ended = subprocess.run(
        [
            "/bin/bash",
            str(SCRIPT),
            "--dry-run",
            *PLACE,
            "--project",
            "mine",
            "--name",
            "vm1",
            "--",
            "--config=configs/digits.py",
        ],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    commands = [line for line in ended.stdout.splitlines() if not line.startswith("#")]
    verbs = [re.sub(r"gcloud compute tpus tpu-vm (\w+) .*", r"\1", line) for line in commands]
    assert [verb.split()[0] for verb in verbs] == [
        "describe",
        "create",
        "tar",
        "scp",
        "ssh",
        "ssh",
        "ssh",
    ]
    assert shlex.split(commands[1]) == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "vm1"),
        *("--zone=us-west4-a", "--project=mine"),
        *("--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"),
    ]
    for line in commands[4:]:
        assert "--worker=all" in shlex.split(line)
    assert "[tpu]" in commands[5]
    assert "--python 3.12" in commands[5]
    assert "-m jdcl_jax.main --config=configs/digits.py --workdir=runs/vm1" in commands[6]
    assert "jdcl_jax-logs/vm1.log" in ended.stdout
    assert "jdcl_jax/runs/vm1" in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v2-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_runtime_version_follows_the_type_unless_given(kind, version):
    base = ["--zone", "z", "--type", kind]
    assert f"--version={version}" in dry_run(*base, "--", "--config=c.py")[1]
    assert "--version=other" in dry_run(*base, "--version=other", "--", "--config=c.py")[1]


@pytest.mark.parametrize("kind", ["v5litepod-16", "v4-16", "v6e-256"])
def test_every_host_of_a_larger_slice_runs_the_command_with_multihost(kind):
    lines = dry_run("--zone=z", f"--type={kind}", "--delete", "--", "--config=c.py")
    (start,) = [line for line in lines if "jdcl_jax.main --config" in line]
    assert "-m jdcl_jax.main --config=c.py --workdir=runs/jdcl-jax --multihost" in start
    assert "--worker=all" in shlex.split(start)
    assert all("--worker=0" in shlex.split(line) for line in lines if "--recurse" in line)
    assert "--multihost" not in "".join(dry_run(*PLACE, "--", "--config=c.py"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PLACE, "--colour=red", "--", "x"], "unknown option --colour=red"),
        ([*PLACE, "--config=configs/digits.py"], "unknown option --config"),
        ([*PLACE, "configs/digits.py"], "unknown option configs/digits.py"),
        ([*PLACE], "nothing to run"),
        ([*PLACE, "--"], "nothing to run"),
        (["--type=v4-8", "--", "x"], "--zone is missing"),
        (["--zone=z", "--", "x"], "--type is missing"),
        (["--zone"], "--zone needs a value"),
        (["--zone=", "--", "x"], "--zone needs a value"),
        (["--zone", "--type", "v4-8", "--", "x"], "--zone needs a value"),
        ([*PLACE, "--name=Bad_Name", "--", "x"], "--name Bad_Name"),
        ([*PLACE, "--name=a;b", "--", "x"], "--name a;b"),
        (["--zone=z", "--type=h100-8", "--", "x"], "--type h100-8 is unknown"),
        (["--zone=z", "--type=v4", "--", "x"], "--type v4 is unknown"),
    ],
)
def test_a_wrong_option_gets_one_line_and_exit_code_2(arguments, message):
    ended = launch("--dry-run", *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_without_gcloud_a_real_run_gets_one_line(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(f"/bin/{tool}")
    ended = launch(*PLACE, "--", "x", env={"PATH": str(tools)})
    assert ended.returncode == 2
    assert "gcloud is not installed" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_awkward_arguments_arrive_unchanged_in_the_copied_repository(cloud):
    ended = cloud.launch(*PLACE, "--", *AWKWARD)
    assert ended.returncode == 0, ended.stderr
    where, *arguments = cloud.received()
    assert where == str(cloud.home / "jdcl_jax")
    assert arguments == ["-m", "jdcl_jax.main", *AWKWARD, "--workdir=runs/jdcl-jax"]
    assert (cloud.home / "jdcl_jax" / "launch" / "tpu_vm.sh").read_bytes() == SCRIPT.read_bytes()
    assert not (cloud.home / "jdcl_jax" / ".git").exists()
    cloud.end()
    assert (cloud.home / "jdcl_jax-logs" / "jdcl-jax.log").read_text() == "this is the log\n"


def test_a_dry_run_prints_exactly_what_a_real_run_calls(cloud, monkeypatch):
    """The printed lines are read back by a shell, as a person who pastes them would have it."""
    monkeypatch.setenv("TMPDIR", str(cloud.here))
    printed = [shlex.split(line) for line in dry_run(*PLACE, "--delete", "--", *AWKWARD)]
    printed = [words for words in printed if words[0] == "gcloud"]
    ended = cloud.launch(*PLACE, "--delete", "--", *AWKWARD)
    assert ended.returncode == 0, ended.stderr
    created = [words for words in printed if words[4] == "create"]
    assert len(created) == 1
    assert cloud.calls() == [words for words in printed if words[4] != "create"]


def test_a_missing_vm_is_created_first(cloud):
    (cloud.home / "orders").unlink()
    cloud.home.rmdir()
    ended = cloud.launch(*PLACE, "--", "--config=c.py")
    assert ended.returncode == 0, ended.stderr
    verbs = [call[4] for call in cloud.calls()]
    assert verbs == ["describe", "create", "scp", "ssh", "ssh", "ssh"]
    cloud.order()
    cloud.end()


def test_delete_waits_copies_the_results_back_and_passes_the_exit_status_on(cloud):
    cloud.order(status=7)
    ended = cloud.launch(*PLACE, "--delete", "--", "--config=c.py", "--workdir=out/my run")
    assert ended.returncode == 7
    assert "this is the log" in ended.stdout
    fetched = cloud.here / "runs" / "jdcl-jax"
    assert (fetched / "jdcl-jax.log").read_text() == "this is the log\n"
    assert json.loads((fetched / "my run" / "arguments.json").read_text())[-1] == "--workdir=out/my run"
    assert not cloud.home.exists()


def test_a_second_start_stops_while_the_run_goes_on_and_installs_nothing_twice(cloud):
    cloud.order(wait=True)
    assert cloud.launch(*PLACE, "--", "--config=c.py").returncode == 0
    cloud.received()
    python = cloud.home / "jdcl_jax-venv" / "bin" / "python"
    installed = python.stat().st_mtime_ns
    again = cloud.launch(*PLACE, "--", "--config=other.py")
    assert again.returncode == 3
    assert "a run is going on already on jdcl-jax" in again.stderr
    assert "--config=c.py" in cloud.received()
    cloud.order()
    cloud.end()
    assert cloud.launch(*PLACE, "--", "--config=third.py").returncode == 0
    cloud.end()
    assert "--config=third.py" in cloud.received()
    assert python.stat().st_mtime_ns == installed
