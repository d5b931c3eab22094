import base64
import re
from html.parser import HTMLParser

import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.page import sample_caption, write_report

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The tags and the visible text of a page, as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data.strip())

    def sources(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]


def report(workdir) -> Page:
    return Page(write_report(workdir).read_text(encoding="utf-8"))


def test_the_page_is_one_file_without_scripts_or_links(make_run):
    page = report(make_run("a"))
    assert not {"script", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/") for source in page.sources())
    links = [attrs["href"] for tag, attrs in page.tags if tag == "link"]
    assert all(href is not None and href.startswith("data:") for href in links)


def test_the_page_says_what_was_run_and_what_came_out(make_run):
    words = report(make_run("a")).words
    for text in [
        "gd on digits, seed 0", "handwritten digits", "EMA", "zero, one", "finished",
        "4.400", "-2.250", "1.20 TFLOP", "28,800", "0.10.2", "72, 143, 213",
        "after task 1", "after task 3",
    ]:  # fmt: skip
        assert text in words, text
    # One formula holds for both scores, the other differs.
    assert "average: mean_j R[T,j]" in words
    assert "bwt (fd_classifier): bwt of lower" in words
    assert "bwt (recall): bwt of higher" in words


def test_the_cost_says_that_classifying_takes_a_part_of_a_denoising_pass(make_run):
    words = " ".join(report(make_run("a", forward_flops=8e6, classifying_flops=2e6)).words)
    assert "8.00 MFLOP; to classify it 2.00 MFLOP, 25 % of that" in " ".join(words.split())
    assert not any("to classify it" in text for text in report(make_run("b", classifying_flops=None)).words)


def test_the_sample_grids_are_inside_in_the_order_of_the_tasks(make_run):
    folder = make_run("a")
    for old, new in [("task_01", "task_1"), ("task_02", "task_2"), ("task_03", "task_10")]:
        (folder / "samples" / f"{old}.png").rename(folder / "samples" / f"{new}.png")
    pngs = [
        base64.b64decode(source.partition(",")[2])
        for source in report(folder).sources()
        if source.startswith("data:image/png")
    ]
    names = ["task_1.png", "task_2.png", "task_10.png"]
    assert pngs == [(folder / "samples" / name).read_bytes() for name in names]


def test_whatever_the_user_named_is_escaped(make_run, results):
    tree = results()
    tree["tasks"][0]["names"] = [EVIL, "a&b"]
    tree["scores"][EVIL] = tree["scores"].pop("recall") | {"description": EVIL}
    changes = dict.fromkeys(("method", "dataset", "provenance", "command", "reduced"), EVIL)
    folder = make_run("a", **tree | changes | {"config": {EVIL: EVIL}, "versions": {EVIL: EVIL}})
    page = report(folder)
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL.lower() not in (folder / "report.html").read_text(encoding="utf-8").lower()
    assert f"{EVIL}, a&b" in page.words


def test_an_unfinished_run_has_a_page_that_says_so(make_run, results):
    tree = results(status="running", finished=None, totals={}, assigned=None)
    for score in tree["scores"].values():
        score["matrix"][2] = [None, None, None]
        score["union"][2] = None
        score["summary"] = {}
    words = report(make_run("a", **tree)).words
    assert "running" in words
    assert any("not finished" in text for text in words)


def test_a_run_before_its_first_score_has_a_page(make_run):
    folder = make_run("a", status="running", scores={}, cost=[], assigned=None)
    (folder / "metrics.jsonl").unlink()
    for picture in (folder / "samples").iterdir():
        picture.write_bytes(b"half")
    words = report(folder).words
    assert {"No scores yet.", "No loss is logged.", "No cost is recorded."} <= set(words)


def test_half_a_line_in_the_metrics_is_passed_over(make_run):
    folder = make_run("a")
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 12, "lo')
    assert any("svg" in source for source in report(folder).sources())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_broken_results_file_is_named(make_run, text):
    folder = make_run("broken-one")
    (folder / "results.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(folder))):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": []},
        {"scores": {"fd": {"lower_is_better": True, "matrix": [[1]], "union": [1]}}},
        {"scores": {"fd": {"lower_is_better": True}}},
        {"scores": []},
        {"cost": [{"seconds": 1}]},
        {"method": None},
        {"format": 2},
    ],
)
def test_results_of_another_form_are_named(make_run, change):
    folder = make_run("odd-one", **change)
    with pytest.raises(UserError, match=re.escape(str(folder))):
        write_report(folder)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=re.escape(str(folder))):
            write_report(folder)


def test_captions_count_tasks_as_people_do():
    assert sample_caption("task_03") == "after task 3"
    assert sample_caption("task_x") == "task_x"
    assert sample_caption("teacher") == "teacher"


def layer(rank: int, energy: float) -> dict:
    return {
        "layer": "unet/mid/cross/key", "rank_before": 0, "rank": rank, "width": 16, "energy_before": 0.25,
        "energy": energy, "bytes": 1_234, "flops_per_step": 56_789,
    }  # fmt: skip


def test_projected_layers_prototypes_and_held_out_replay_have_their_places(make_run):
    phases = [
        {"task": 1, "phase": "end", "threshold": 0.97, "projection": [layer(5, 0.975)]},
        {"task": 2, "phase": "solver+replay", "replay_validation_accuracy": 0.625},
        {"task": 2, "phase": "end", "threshold": 0.973, "projection": [layer(16, 1.0)], "warnings": ["it is full"]},
    ]
    workdir = make_run("a", phases=phases)
    (workdir / "prototypes").mkdir()
    for task in (1, 2):
        (workdir / "prototypes" / f"task_{task:02d}.png").write_bytes(
            (workdir / "samples" / f"task_{task:02d}.png").read_bytes()
        )
    page = report(workdir)
    words = " ".join(" ".join(page.words).split())
    for text in (
        "unet/mid/cross/key", "5 of 16 (0.9750)", "16 of 16 (1.000)", "threshold 0.9730", "1,234 bytes", "56,789",
        "task 2: it is full", "0.6250", "Class prototypes",
    ):  # fmt: skip
        assert text in words, text
    assert len(page.sources()) == len(report(make_run("b", phases=phases)).sources()) + 2


def test_pages_of_other_methods_have_none_of_these(make_run):
    words = " ".join(report(make_run("a")).words)
    for title in ("Gradient projection", "Class prototypes", "held out of training"):
        assert title not in words
