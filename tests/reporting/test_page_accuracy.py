"""The page of a run that classifies and replays: accuracy after each phase, confusion, and what was drawn."""

from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest

from jdcl_jax.reporting import accuracy
from jdcl_jax.reporting.page import class_names, write_report
from jdcl_jax.reporting.runs import load_run

EVIL = '<script>alert("x")</script>'
HEADING = "The network's own classifier"
ACCURACY, CONFUSED = "accuracy on each task after each phase", "confusion matrix"  # names of pictures
REPLAY = ("task", "class", "model", "its samples", "of this class", "quota", "taken", "copies")  # heads of its table

# No two numbers alike, so that a swap shows.
PHASES = [
    {"task": 1, "phase": "local", "accuracy": [0.95, None, None]},
    {"task": 2, "phase": "local", "accuracy": [0.15, 0.85, None]},
    {
        "task": 2,
        "phase": "draw",
        "samples": {"old": 4100, "local": 2300},
        "replay": [
            {"class": 0, "source": "old", "quota": 1001, "drawn": 1702, "accepted": 1001, "topped_up": 0},
            {"class": 1, "source": "old", "quota": 1002, "drawn": 303, "accepted": 303, "topped_up": 699},
            {"class": 2, "source": "local", "quota": 1003, "drawn": 0, "accepted": 0, "topped_up": 0},
        ],
        "warnings": ["class 2 (two) never appeared in 2,300 samples of the local model"],
    },
    {"task": 2, "phase": "global", "accuracy": [0.75, 0.65, None]},
    {
        "task": 3,
        "phase": "draw",
        "samples": {"old": 5200},
        "replay": [{"class": 3, "source": "old", "quota": 50, "drawn": 40, "accepted": 30, "topped_up": 20}],
    },
    {"task": 3, "phase": "global", "accuracy": [0.55, 0.45, 0.35]},
]
CONFUSION = [np.diag([9, 8, 0, 0, 0, 0, 0]).tolist(), np.diag([9, 8, 7, 6, 0, 0, 0]).tolist(), None]


class Page(HTMLParser):
    """The rows of a page's tables, its pictures by their names, its warnings and its headings."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: dict[str, str] = {}
        self.warnings: list[str] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.pictures[given["alt"] or ""] = given["src"] or ""
        elif tag == "h2":
            self.headings.append("")
        elif tag == "div" and given.get("class") == "warning":
            self.warnings.append("")
        self._open = "warning" if tag == "div" and given.get("class") == "warning" else tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._open == "h2":
            self.headings[-1] += data
        elif self._open == "warning":
            self.warnings[-1] += data

    def table(self, *heads: str) -> list[list[str]]:
        """The rows below the one with these heads, as far as they are as long."""
        first = self.rows.index(list(heads))
        last = next((i for i in range(first + 1, len(self.rows)) if len(self.rows[i]) != len(heads)), len(self.rows))
        return self.rows[first + 1 : last]


@pytest.fixture
def report(make_run) -> Callable[..., Page]:
    """`report("a", phases=[])`: the page of a run without scores and costs, whose pictures would take long."""

    def write(name: str, **changes) -> Page:
        folder = make_run(name, **{"scores": {}, "cost": [], "assigned": None, **changes})
        (folder / "metrics.jsonl").unlink()
        text = write_report(folder).read_text(encoding="utf-8")
        assert EVIL not in text
        return Page(text)

    return write


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What the pictures were asked to show, by the name of the function."""
    asked: dict[str, tuple] = {}

    def watched(name: str) -> Callable:
        original = getattr(accuracy, name)

        def draw(*arguments):
            asked[name] = arguments
            return original(*arguments)

        return draw

    for name in ("phases_figure", "confusion_figure"):
        monkeypatch.setattr(accuracy, name, watched(name))
    return asked


# -- the network's own classifier


def test_both_pictures_of_a_classifier_stand_on_the_page(report, drawn) -> None:
    page = report("a", phases=PHASES, confusion=CONFUSION)
    assert HEADING in page.headings
    pictures = [page.pictures[name] for name in (ACCURACY, CONFUSED)]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in pictures)
    assert len(set(pictures)) == 2
    rows, _ = drawn["phases_figure"]
    assert rows == [PHASES[i] for i in (0, 1, 3, 5)]


def test_the_confusion_is_that_of_the_last_task_known_with_the_names_of_its_classes(report, drawn) -> None:
    report("a", phases=PHASES, confusion=CONFUSION)
    matrix, names, title = drawn["confusion_figure"]
    np.testing.assert_array_equal(matrix, np.diag([9, 8, 7, 6, 0, 0, 0]))
    assert title == "answers after task 2"
    assert names == ["zero", "one", "two", "three", "four", "five", "6"]  # the class of no task has its number


def test_names_belong_to_the_numbers_of_the_classes_whatever_their_order(make_run) -> None:
    tasks = [
        {"task": 1, "classes": [4, 1], "names": ["four", "one"]},
        {"task": 2, "classes": [0], "names": ["zero"]},
    ]
    run = load_run(make_run("a", tasks=tasks, scores={}))
    assert class_names(run, 5) == ["zero", "one", "2", "3", "four"]


@pytest.mark.parametrize(
    ("changes", "pictures"),
    [
        ({"phases": PHASES, "confusion": None}, {ACCURACY}),
        ({"phases": [], "confusion": CONFUSION}, {CONFUSED}),
        ({"phases": PHASES, "confusion": [None, None, None]}, {ACCURACY}),
        ({"phases": [], "confusion": [None, None, None]}, set()),
        ({}, set()),
    ],
)
def test_what_was_not_measured_has_no_picture(changes, pictures, report) -> None:
    page = report("a", **changes)
    assert page.pictures.keys() & {ACCURACY, CONFUSED} == pictures
    assert (HEADING in page.headings) is bool(pictures)


# -- replay


def test_of_each_class_the_page_says_what_was_drawn_taken_and_copied(report) -> None:
    assert report("a", phases=PHASES).table(*REPLAY) == [
        ["2", "0", "old", "4,100", "1,702", "1,001", "1,001", "0"],
        ["2", "1", "old", "4,100", "303", "1,002", "303", "699"],
        ["2", "2", "local", "2,300", "0", "1,003", "0", "0"],
        ["3", "3", "old", "5,200", "40", "50", "30", "20"],
    ]


def test_a_warning_of_a_draw_names_its_task(report) -> None:
    page = report("a", phases=PHASES)
    assert page.warnings == [f"Task 2: {PHASES[2]['warnings'][0]}"]


def test_a_run_without_replay_has_no_such_section(report) -> None:
    page = report("a", phases=[PHASES[0], PHASES[1]], confusion=CONFUSION)
    assert "Replay" not in page.headings
    assert list(REPLAY) not in page.rows
    assert "Replay" in report("b", phases=PHASES).headings


# -- names


def test_whatever_the_user_named_is_escaped(report, results) -> None:
    tasks = results()["tasks"]
    tasks[1]["names"] = [EVIL, "$a$_b & c"]
    row = {**PHASES[2], "warnings": [f"class 2 ({EVIL}) never appeared"]}
    row["replay"] = [{**row["replay"][0], "source": EVIL}]
    row["samples"] = {EVIL: 77}
    page = report("a", tasks=tasks, phases=[PHASES[0], row], confusion=CONFUSION)
    assert "script" not in page.tags
    assert page.warnings == [f"Task 2: class 2 ({EVIL}) never appeared"]
    assert page.table(*REPLAY)[0][2:4] == [EVIL, "77"]
    assert CONFUSED in page.pictures  # whose names are no formulas either
