"""Pages of runs whose files were changed by hand; what a page shows is text, never markup."""

import html.parser
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import cases, check_ending, fingerprint, folder
from faults.bad_input.test_tfds import changed

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


@cases(4, 160)
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


PAGES = {
    "run/report.html": ("report", "run"),
    "study.html": ("study", "--workdir=.", "--report-only"),
    "compare.html": ("report", "run", "other", "third", "--out=compare.html"),
    "pitfalls.html": ("pitfalls", "run", "other", "third", "--out=pitfalls.html"),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_tags_in_names_as_text(page: str, finished: Path, command_lines: Any, tmp_path: Path) -> None:
    scene(tmp_path, finished)
    record = json.loads((tmp_path / "study.json").read_text())
    for run in record["runs"]:
        run["method"] += TAG
    (tmp_path / "study.json").write_text(json.dumps(record))
    ending = command_lines(tmp_path, *PAGES[page])
    assert ending.code == 0, ending.err
    assert "Warning" not in ending.err
    text = (tmp_path / page).read_text()
    elements = Elements(text)
    assert elements.scripts == []
    assert len(elements.tags) > 30
    assert "alert(1)" in text
    assert TAG not in text
    assert "<img src=x" not in text


def test_the_names_of_the_classes_are_on_the_page_as_they_are(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert Elements(text).scripts == []
    assert "onerror=alert(1)&gt;" in text
    assert "49" not in [word.strip(",.") for word in text.split()]
