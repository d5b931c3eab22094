"""The words of all seven programs."""

import shutil
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import DIGITS, cases, check_ending, fingerprint, folder

NUMBER = st.one_of(
    st.sampled_from((0, 1, 2, 3, -1, 10**6 + 1, 10**12, 2**31, 2**63, 10**30)), nasty.names, nasty.floats
)
PLACES = (
    "run",
    "run/",
    "./run/../run",
    "absent",
    "",
    "run/config.json",
    "empty",
    "/dev/null",
    "/dev/null/x",
    "/proc/1/x",
    "loop",
    "dangling",
    "link",
    "/",
    "~nobody_of_that_name",
    "a" * 300,
    "a/" * 2000,
)
WORKDIRS = st.one_of(st.just("run"), st.just("run"), st.sampled_from(PLACES), nasty.names)
OUTS = st.one_of(
    st.sampled_from(
        (
            "x.png",
            "deep/er/x.png",
            "run/x.png",
            "run/results.png",
            "run/config.png",
            "run/results.json",
            "run/config.json",
            "run/samples/task_01.png",
            "run",
            "x",
            "x.PNG",
            "x.html",
            ".html",
            "/dev/null",
            "/dev/null/x.png",
            "/proc/x.png",
            "full.png",
            "full.html",
            "a" * 300 + ".png",
            "loop/x.png",
            "dangling.png",
            "run/report.html",
        )
    ),
    nasty.names,
    nasty.names.map("{}.png".format),
    nasty.names.map("{}.html".format),
)

FLAGS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "sample": dict.fromkeys(("task", "num", "seed", "label", "guidance", "towards", "scale"), NUMBER) | {"out": OUTS},
    "fisher": dict.fromkeys(("task", "images", "timesteps"), NUMBER) | {"out": OUTS},
    "figures": dict.fromkeys(("task", "num"), NUMBER) | {"out": OUTS},
    "report": {"out": OUTS},
    "pitfalls": {"out": OUTS},
    "study": {
        "jobs": NUMBER,
        "seeds": nasty.names,
        "config": st.one_of(st.sampled_from((DIGITS, "absent.py", "run", "run/config.json")), nasty.names),
        "methods": st.one_of(
            st.sampled_from(("gd", "gd(", "gd,gd", "er(x=1)", "gd(train.steps=-1)", "jdcl+ewc", "nosuch")), nasty.names
        ),
    },
}
SMALL = {"sample": ("--num=2",), "fisher": ("--images=3", "--timesteps=2"), "figures": ("--num=2",)}


def words(draw: Any, program: str) -> list[str]:
    arguments: list[str] = []
    if program in ("sample", "fisher", "study"):
        arguments += [f"--workdir={draw(WORKDIRS)}"] if draw(st.integers(0, 9)) else []
        arguments += SMALL.get(program, ())
    elif program == "figures":
        arguments += [draw(st.sampled_from(("phases", "logits", "continued", "ablation", "nosuch", "")))]
        arguments += draw(st.lists(WORKDIRS, min_size=0, max_size=2))
    else:
        arguments += draw(st.lists(WORKDIRS, min_size=0, max_size=3))
    for flag in draw(st.lists(st.sampled_from(sorted(FLAGS[program])), max_size=2, unique=True)):
        arguments.append(f"--{flag}={draw(FLAGS[program][flag])}")
    if draw(st.integers(0, 9)) == 0:
        arguments.append(draw(nasty.names))
    if program == "study":  # nothing is to be started
        arguments.append(draw(st.sampled_from(("--report-only", f"--config={DIGITS}:data.name=npz:absent.npz"))))
    return arguments


def scene(place: Path, finished: Path) -> None:
    """A finished run, and things that are none."""
    shutil.copytree(finished, place / "run", symlinks=True)
    (place / "empty").mkdir()
    (place / "full.png").mkdir()
    (place / "full.html").mkdir()
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("absent_target")
    (place / "dangling.png").symlink_to("absent/target.png")
    (place / "link").symlink_to("run")


def of_run(found: dict[str, str]) -> dict[str, str]:
    """What nothing may change of a run: everything but its page, and what was asked to be put beside it."""
    keep = ("results.json", "config.json", "metrics.jsonl", "samples", "checkpoints", "curves", "tensorboard")
    return {name: value for name, value in found.items() if Path(name).parts[1:2] and Path(name).parts[1] in keep}


@cases(10, 300)
@hypothesis.given(data=st.data())
def test_words_of_every_program_run_or_are_refused(data: st.DataObject, finished: Path, command_lines: Any) -> None:
    program = data.draw(st.sampled_from(sorted(FLAGS)), label="program")
    arguments = words(data.draw, program)
    hypothesis.assume(not any(word.startswith(("-h", "--h")) for word in arguments))
    with folder() as place:
        scene(place, finished)
        before = fingerprint(place)
        ran = check_ending(f"words of {program}", command_lines(place, program, *arguments))
        after = fingerprint(place)
        assert of_run(after) == of_run(before), arguments
        if not ran:
            assert after == before, arguments


@cases(6, 80)
@hypothesis.given(data=st.data())
def test_workdirs_of_main_are_refused_or_left_alone(data: st.DataObject, finished: Path, command_lines: Any) -> None:
    """With data that are absent: only the workdir's own troubles, and what is finished, come before them."""
    workdir = data.draw(WORKDIRS, label="workdir")
    config = data.draw(
        st.sampled_from((f"{DIGITS}:", DIGITS, "absent.py", "run/config.json", "run", "")), label="config"
    )
    with folder() as place:
        scene(place, finished)
        before = fingerprint(place)
        words = (f"--config={config}", "--config.data.name=npz:absent.npz", f"--workdir={workdir}")
        assert not check_ending("workdirs of main", command_lines(place, "main", *words))
        assert fingerprint(place) == before
