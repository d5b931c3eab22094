"""Pages of runs whose files were changed by hand; what a page shows is text, never markup."""

import html.parser
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from faults.bad_input import nasty
from faults.bad_input.endings import DIGITS, cases, check_ending, fingerprint, folder
from faults.bad_input.test_tfds import changed
from hypothesis import strategies as st

TAG = nasty.TAG
FILES = ("results.json", "results.json", "results.json", "metrics.jsonl", "curves/task_02.npz", "samples/task_01.png")
COMMANDS = (
    ("report", "run"),
    ("report", "run", "--out=page.html"),
    ("report", "run", "other", "--out=page.html"),
    ("pitfalls", "run", "other", "third", "--out=page.html"),
    ("figures", "phases", "run"),
    ("figures", "ablation", "run", "other"),
    ("study", "--workdir=.", "--report-only"),
)


def scene(place: Path, finished: Path) -> None:
    """Three finished runs of several methods and seeds, as a study has them."""
    runs = []
    for seed, (name, method) in enumerate((("run", "gd"), ("other", "gr"), ("third", "er"))):
        shutil.copytree(finished, place / name)
        (place / name / "report.html").unlink()
        results = json.loads((place / name / "results.json").read_text())
        results["method"] = results["config"]["method"]["name"] = method
        (place / name / "results.json").write_text(json.dumps(results))
        runs.append({"method": method, "slug": method, "seed": seed, "folder": name})
    record = {"format": 1, "shared": {}, "runs": runs, "calls": []}
    (place / "study.json").write_text(json.dumps(record))


def spoil(draw: Callable[..., Any], file: Path) -> None:
    if file.suffix == ".json" and draw(st.integers(0, 4)):
        tree = json.loads(file.read_text())
        for _ in range(draw(st.integers(1, 3))):
            tree = changed(draw, tree)
        file.write_text(json.dumps(tree))
    else:
        file.write_bytes(draw(nasty.damaged(file.read_bytes())))


@cases(40, 300)
@hypothesis.given(data=st.data())
def test_pages_of_files_that_were_changed_are_made_or_refused(
    data: st.DataObject, finished: Path, command_lines: Any
) -> None:
    with folder() as place:
        scene(place, finished)
        command = data.draw(st.sampled_from(COMMANDS), label="command")
        names = [f"run/{name}" for name in FILES] + (["study.json", "study.json"] if command[0] == "study" else [])
        spoil(data.draw, place / data.draw(st.sampled_from(names), label="file"))
        before = fingerprint(place)
        ran = check_ending(f"files under {command[0]}", command_lines(place, *command))
        after = fingerprint(place)
        assert before.items() <= after.items()
        if not ran:
            assert {name for name in after if name.startswith(("run/", "page"))} == {
                name for name in before if name.startswith("run/")
            }


class Elements(html.parser.HTMLParser):
    """The elements of a page, and whether one of them is what a string of the input would make of itself."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts: list[Any] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append(tag)
        if tag == "script" or any(name.startswith("on") for name, _ in attrs):
            self.scripts.append((tag, attrs))


NAMES = (
    TAG,
    '"><img src=x onerror=alert(1)>',
    "</style></title>" + TAG,
    "{{ 7*7 }}",
    "$\\frac$ & 日本",
    "\u202e\x1b[31m",
)


@pytest.fixture(scope="module")
def of_tags(tmp_path_factory: pytest.TempPathFactory, command_lines: Any, tiny_words: Callable[..., str]) -> Path:
    """Real small runs, joint classifier and all, on data whose classes are called after tags."""
    place = tmp_path_factory.mktemp("tags")
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1)).astype(np.uint8)
    data = place / f"{TAG.replace('/', '')}.npz"
    np.savez(data, images=images, labels=np.arange(120) % 6, class_names=np.array(NAMES))
    runs = []
    for method, seed in (("gr", 0), ("gr", 1), ("finetune", 0), ("l2", 0)):
        words = tiny_words(
            method, "classifier.kind=joint", "classifier.hidden=8", "tasks.num_tasks=3", "tasks.first=2", f"seed={seed}",
            "evaluation.likelihood.images=4", "evaluation.num_samples=20",
            "evaluation.scores=('accuracy','fd_classifier','kld','bpd_fixed_small','bpd_fixed_large')",
        )  # fmt: skip
        where = f"runs/{method}-{seed}"
        flags = (f"--config.data.name=npz:{data}", f"--workdir={where}")
        ending = command_lines(place, "main", f"--config={DIGITS}:{words}", *flags)
        assert ending.code == 0, ending.err
        assert "Warning" not in ending.err, ending.err
        runs.append({"method": f"{method}{TAG}", "slug": method, "seed": seed, "folder": where})
    (place / "study.json").write_text(json.dumps({"format": 1, "shared": {}, "runs": runs, "calls": []}))
    folders = [run["folder"] for run in runs]
    for command in (
        ("study", "--workdir=.", "--report-only"),
        ("report", *folders, "--out=compare.html"),
        ("pitfalls", *folders[::2], folders[3], "--out=pitfalls.html"),
        ("figures", "phases", folders[0], "--out=phases.png"),
        ("figures", "logits", folders[0], "--num=8", "--out=logits.png"),
    ):
        ending = command_lines(place, *command)
        assert ending.code == 0, ending.err
        assert "Warning" not in ending.err, ending.err
    return place


@pytest.mark.parametrize("page", ["runs/gr-0/report.html", "study.html", "compare.html", "pitfalls.html"])
def test_a_page_shows_tags_in_names_as_text(of_tags: Path, page: str) -> None:
    text = (of_tags / page).read_text()
    elements = Elements(text)
    assert elements.scripts == []
    assert len(elements.tags) > 50
    assert "alert(1)" in text
    assert TAG not in text
    assert "onerror=alert(1)>" not in text.replace("&#34;&gt;&lt;img src=x onerror=alert(1)&gt;", "")
    assert "49" not in text or "{{ 7*7 }}" in text or "7*7" not in text


def test_the_names_of_the_classes_are_on_the_page_of_the_run(of_tags: Path) -> None:
    text = (of_tags / "runs/gr-0/report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
