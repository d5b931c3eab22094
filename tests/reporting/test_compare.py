import math
import re
from html import unescape

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.compare import Group, Mean, compare, mean_of
from jdcl_jax.reporting.differences import warnings
from jdcl_jax.reporting.runs import load_run


@pytest.fixture
def with_union(results):
    """Scores of which fd_classifier has this union, and as last_union its last value."""

    def scores(*union: float) -> dict:
        tree = results()["scores"]
        tree["fd_classifier"]["union"] = list(union)
        tree["fd_classifier"]["summary"]["last_union"]["value"] = union[-1]
        return tree

    return scores


def test_mean_and_standard_error_by_hand():
    # mean 4; deviations -3, 0, 0, 3: variance 18 / 3 = 6; error sqrt(6 / 4).
    assert mean_of([1.0, 4.0, 4.0, 7.0]) == Mean(4.0, pytest.approx(math.sqrt(1.5)), 4)
    assert mean_of([1.0, math.nan, 3.0]) == Mean(2.0, pytest.approx(1.0), 2)
    one = mean_of([2.5])
    assert (one.mean, one.n, math.isnan(one.error)) == (2.5, 1, True)
    assert mean_of([]).n == 0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 4.0, 4.0, 7.0], "4.000 ± 1.225"),
        ([2.5], "2.500"),
        ([], "\N{EN DASH}"),
        ([2.0, 2.0], "2.000 ± 0.000"),
        ([1000.0, 1000.02], "1000 ± 0.010"),
    ],
)
def test_a_standard_error_is_written_only_from_two_runs_on(values, text):
    assert mean_of(values).text() == text
    assert mean_of(values).text(of=len(values)) == text


def test_a_mean_over_fewer_seeds_than_there_are_says_so():
    assert mean_of([2.0, math.nan, 2.0]).text(of=3) == "2.000 ± 0.000 (n=2)"
    assert mean_of([2.5, math.nan]).text(of=2) == "2.500 (n=1)"


def test_a_seed_that_has_no_number_is_named_and_its_mean_marked(make_run, with_union):
    paths = [
        make_run("gd-0", scores=with_union(1.0, 2.0, 3.0)),
        make_run("gd-1", scores=with_union(1.0, 2.0, None), seed=1),
        make_run("gd-2", scores=with_union(1.0, 2.0, 3.0), seed=2),
    ]
    text = compare(paths, paths[0].parent / "page.html")
    assert re.search(r"^gd +3 +3\.000 \+- 0\.000 \(n=2\) ", text, re.MULTILINE)
    (line,) = warnings([load_run(path) for path in paths])
    assert "no number of fd_classifier in" in line
    assert "gd-1" in line
    assert "(n=2)" in (paths[0].parent / "page.html").read_text()


def test_seeds_of_a_method_are_averaged(make_run, with_union):
    paths = [
        make_run("gd-0", scores=with_union(1.0, 2.0, 3.0)),
        make_run("gd-1", scores=with_union(3.0, 2.0, 7.0), seed=1),
        make_run("gr-0", scores=with_union(9.0, 9.0, 11.0), method="gr"),
    ]
    out = paths[0].parent / "page.html"
    text = compare(paths, out)
    # fd_classifier: mean of 3 and 7 is 5, standard deviation sqrt(8), error sqrt(8 / 2) = 2.
    assert re.search(r"^gd +2 +5\.000 \+- 2\.000 ", text, re.MULTILINE)
    assert re.search(r"^gr +1 +11\.00 ", text, re.MULTILINE)
    assert "WARNING" not in text
    page = out.read_text(encoding="utf-8")
    assert "5.000 ± 2.000" in page
    assert "Not comparable" not in page


def test_union_curves_are_means_with_errors_where_every_run_has_a_value(make_run, with_union):
    runs = [
        load_run(make_run("a", scores=with_union(1.0, math.nan, 3.0))),
        load_run(make_run("b", scores=with_union(3.0, 2.0, 7.0), seed=1)),
    ]
    mean, error = Group("digits", "gd", tuple(runs)).union("fd_classifier")
    np.testing.assert_allclose(mean, [2.0, np.nan, 5.0])
    np.testing.assert_allclose(error, [1.0, np.nan, 2.0])


def test_cost_is_the_mean_over_runs(make_run):
    totals = {"seconds": 46.0, "images": 115202, "model_flops": 5.0e12}
    paths = [make_run("a"), make_run("b", seed=1, totals=totals)]
    text = compare(paths, paths[0].parent / "page.html")
    assert re.search(r"^gd +2 +45 s +115,201 +4\.90 TFLOP$", text, re.MULTILINE)


def swap_tasks(tree: dict) -> None:
    first, second = tree["tasks"][:2]
    first["classes"], second["classes"] = second["classes"], first["classes"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(dataset="fashion_mnist"), ["data sets", "fashion_mnist"]),
        (swap_tasks, ["tasks"]),
        (
            lambda tree: tree["scores"]["recall"]["num_generated"].update(union=150),
            ["numbers of evaluated samples", "recall"],
        ),
        (
            lambda tree: tree["scores"]["recall"].update(description="k = 5"),
            ["definitions", "recall"],
        ),
        (lambda tree: tree["scores"].pop("fd_classifier"), ["no score fd_classifier", "b"]),
        (lambda tree: tree.update(weights="raw"), ["weights"]),
        (lambda tree: tree.update(provenance="a JPEG copy"), ["pixels"]),
        (lambda tree: tree.update(commit="0123456"), ["commits", "0123456"]),
        (lambda tree: tree.update(commits=["0123456", "789abcd"]), ["commits", "789abcd"]),
        (lambda tree: tree.update(versions={"jax": "0.0.1"}), ["versions", "0.0.1"]),
        (lambda tree: tree.update(reduced="16 channels"), ["reductions", "16 channels"]),
        (lambda tree: tree.update(status="running"), ["running", "not finished"]),
        (lambda tree: tree["config"].update(evaluation={"n": 50}), ["settings of evaluation"]),
        (lambda tree: tree["config"].update(sampler={"steps": 50}), ["settings of sampler"]),
        (lambda tree: tree["config"].update(diffusion={"timesteps": 500}), ["settings of diffusion"]),
    ],
)
def test_what_makes_runs_incomparable_is_named(make_run, results, change, words):
    tree = results(method="gr")
    change(tree)
    found = warnings([load_run(make_run("a")), load_run(make_run("b", **tree))])
    assert any(all(word in line for word in words) for line in found), found


def test_warnings_stand_on_the_page_and_in_the_text(make_run):
    paths = [make_run("a"), make_run("b", method="gr", weights="raw", reduced="<16> channels")]
    out = paths[0].parent / "page.html"
    text = compare(paths, out)
    found = [line.removeprefix("WARNING: ") for line in text.splitlines() if line.startswith("WARNING: ")]
    assert found == warnings([load_run(path) for path in paths])
    assert len(found) == 2
    page = unescape(out.read_text(encoding="utf-8"))
    assert "Not comparable as they are" in page
    assert all(line in page for line in found)


def test_runs_that_differ_only_in_method_seed_and_config_of_the_method_are_comparable(make_run):
    runs = [
        load_run(make_run("a")),
        load_run(make_run("b", seed=1, config={"seed": 1, "train": {"steps": 300}})),
        load_run(make_run("c", method="gr", config={"seed": 0, "train": {"steps": 500}})),
    ]
    assert warnings(runs) == []


def test_runs_may_have_their_data_and_caches_in_other_places(make_run):
    places = [{"data": {"dir": x}, "evaluation": {"cache_dir": x, "num_samples": 9}} for x in "ab"]
    runs = [load_run(make_run(f"gd-{n}", seed=n, config={"seed": n, **place})) for n, place in enumerate(places)]
    assert warnings(runs) == []


def test_seeds_averaged_though_their_configs_differ_are_warned_of(make_run):
    runs = [
        load_run(make_run("a")),
        load_run(make_run("b", seed=1, config={"seed": 1, "train": {"steps": 500}})),
    ]
    (line,) = warnings(runs)
    assert "train.steps" in line
    assert "seed" not in line.partition("averaged: ")[2]


def test_one_seed_twice_is_warned_of(make_run):
    (line,) = warnings([load_run(make_run("a")), load_run(make_run("b"))])
    assert "share a seed" in line


def test_other_hardware_is_said_beside_the_seconds(make_run):
    paths = [make_run("a"), make_run("b", method="gr", hardware={"backend": "gpu"})]
    text = compare(paths, paths[0].parent / "page.html")
    assert "not seconds" in text


def test_unfinished_runs_are_left_out_of_the_means(make_run, with_union):
    paths = [
        make_run("a", scores=with_union(1.0, 2.0, 3.0)),
        make_run("b", scores=with_union(1.0, 2.0, 99.0), seed=1, status="running"),
        make_run("c", method="er", status="running"),
    ]
    text = compare(paths, paths[0].parent / "page.html")
    assert re.search(r"^gd +1 +3\.000 ", text, re.MULTILINE)
    assert re.search(r"^er +0 +- ", text, re.MULTILINE)


def test_names_are_escaped_on_the_page(make_run):
    paths = [make_run("a", method="<script>x</script>"), make_run("b", dataset="<b>d</b>")]
    out = paths[0].parent / "page.html"
    compare(paths, out)
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_that_is_no_run_is_named(make_run, tmp_path):
    good = make_run("good")
    with pytest.raises(UserError, match="nothing-here"):
        compare([good, tmp_path / "nothing-here"], tmp_path / "page.html")
    (good / "results.json").write_text("{")
    with pytest.raises(UserError, match="good"):
        compare([good], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_one_run_twice_and_a_page_that_is_none_are_refused(make_run, tmp_path):
    run = make_run("a")
    with pytest.raises(UserError, match="twice"):
        compare([run, run.parent / "b" / ".." / "a"], tmp_path / "page.html")
    with pytest.raises(UserError, match=r"\.html"):
        compare([run], tmp_path / "page.png")
