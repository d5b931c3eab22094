"""A study on one page and in one table, from run folders made by hand."""

import csv
import json
import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.reporting import study as module
from jdcl_jax.reporting.runs import PNG_SIGNATURE
from jdcl_jax.reporting.study import write_study
from jdcl_jax.reporting.study_runs import load_study, read_record


@pytest.fixture
def make_study(tmp_path, make_run):
    """`make_study({"gd": [{...}, None], "er(a=1)": [{}]})`: a study with these changes to the runs of seeds 0, 1, ...

    None leaves a recorded run without a folder. Returns the workdir.
    """

    def make(methods: dict[str, list[dict | None]]) -> Path:
        runs = []
        for label, seeds in methods.items():
            slug = re.sub(r"[^A-Za-z0-9_.=+]+", "-", label)
            for seed, changes in enumerate(seeds):
                if changes is not None:
                    make_run(
                        f"study/runs/{slug}-{seed}", **{"method": label.partition("(")[0], "seed": seed, **changes}
                    )
                runs.append({"method": label, "slug": slug, "seed": seed, "folder": f"runs/{slug}-{seed}"})
        call = {"command": "the command", "config": "configs/digits.py", "commit": "abc123", "versions": {"jax": "9"}}
        record = {"format": 1, "shared": {}, "runs": runs, "calls": [call]}
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / "study" / "study.json").write_text(json.dumps(record))
        return tmp_path / "study"

    return make


@pytest.fixture
def scored(results):
    """`scored(5.0, bwt=-1.0)`: changes that give fd_classifier these summaries."""

    def changes(last_union: float, **summaries: float) -> dict:
        scores = results()["scores"]
        scores["fd_classifier"]["union"][-1] = last_union
        found = scores["fd_classifier"]["summary"]
        for name, value in {"last_union": last_union, **summaries}.items():
            found[name] = {"value": value, "formula": f"formula of {name}"}
        return {"scores": scores}

    return changes


def rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "study.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(workdir: Path, **wanted: str) -> dict[str, str]:
    (found,) = (row for row in rows(workdir) if all(row[key] == value for key, value in wanted.items()))
    return found


def text_of(workdir: Path) -> str:
    """The page without its marks, each run of blanks one blank."""
    page = (workdir / "study.html").read_text(encoding="utf-8").replace("<wbr>", "")
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_table_has_means_errors_and_every_seed(make_study, scored) -> None:
    workdir = make_study({"gd": [scored(3.0), scored(7.0)], "er(a=1,b=2)": [scored(11.0), None]})
    write_study(workdir)
    found = row(workdir, method="gd", score="fd_classifier", summary="last_union")
    # Mean of 3 and 7; standard deviation sqrt(8), error sqrt(8 / 2).
    assert {key: float(found[key]) for key in ("mean", "standard_error", "n", "seed_0", "seed_1")} == {
        "mean": 5.0,
        "standard_error": 2.0,
        "n": 2,
        "seed_0": 3.0,
        "seed_1": 7.0,
    }
    single = row(workdir, method="er(a=1,b=2)", score="fd_classifier", summary="last_union")
    assert (single["mean"], single["standard_error"], single["n"], single["seed_1"]) == ("11.0", "", "1", "")
    assert len(rows(workdir)) == 2 * 2 * 5  # methods, scores, summaries
    assert row(workdir, method="gd", score="recall", summary="forgetting_max")["mean"] == ""
    assert "gd 2 5.000 ± 2.000" in text_of(workdir)
    assert "er(a=1,b=2) 1 11.00" in text_of(workdir)


def test_the_table_has_the_cost_of_training(make_study) -> None:
    doubled = [{"task": 1, "phase": "train", "seconds": 72.0, "steps": 600, "images": 57600, "model_flops": 4.8e12}]
    known = {"forward_flops": 1e6, "config": {"train": {"batch_size": 100}}}
    workdir = make_study({"gd": [known, {"cost": doubled, **known}]})
    write_study(workdir)
    found = row(workdir, score="recall", summary="average")
    # Of the hand-made run: two phases of training, 16 and 20 s, 300 steps and 28,800 images each.
    assert float(found["training_seconds"]) == (36 + 72) / 2
    assert float(found["training_passes"]) == (24_000 + 48_000) / 2
    assert float(found["training_images"]) == 57600
    assert float(found["training_model_flops"]) == (2.4e12 + 4.8e12) / 2
    assert float(found["evaluation_seconds"]) == 8


def test_rise_is_backward_transfer_with_its_sign_turned_where_a_run_is_older(make_study, scored) -> None:
    workdir = make_study({"gd": [scored(1.0, bwt=-2.5)], "gr": [scored(1.0, bwt=-2.5, rise=4.0)]})
    write_study(workdir)
    assert row(workdir, method="gd", score="fd_classifier", summary="rise")["mean"] == "2.5"
    assert row(workdir, method="gr", score="fd_classifier", summary="rise")["mean"] == "4.0"


def test_one_method_with_other_options_is_another_line_and_no_reason_for_a_warning(make_study, scored) -> None:
    def config(weight: float) -> dict:
        return {"config": {"method": {"name": "gd", "replay_weight": weight}}}

    methods = {
        "gd": [scored(3.0) | config(0.75)],
        "gd(replay_weight=1)": [scored(4.0) | config(1.0)],
        "finetune": [scored(5.0)],
    }
    text = write_study(make_study(methods))
    assert "WARNING" not in text
    lines = [line.split()[0] for line in text.splitlines() if re.match(r"gd|finetune", line)]
    assert lines == ["gd", "gd(replay_weight=1)", "finetune"]


def test_methods_come_in_the_order_asked_for_and_the_others_after_them(make_study) -> None:
    workdir = make_study({"a": [{}], "b": [{}], "c": [{}]})
    assert list(load_study(workdir).groups) == ["a", "b", "c"]
    assert list(load_study(workdir, ["c", "never run", "a"]).groups) == ["c", "a", "b"]
    write_study(workdir, ["c", "a"])
    assert list(dict.fromkeys(row["method"] for row in rows(workdir))) == ["c", "a", "b"]


def test_seeds_that_differ_in_more_than_the_seed_are_warned_of(make_study) -> None:
    workdir = make_study({"gd": [{}, {"config": {"seed": 1, "train": {"steps": 5}}}]})
    assert "WARNING: runs of gd on digits differ in more than the seed, yet are averaged: train.steps" in write_study(
        workdir
    )
    assert "Not comparable as they are" in text_of(workdir)


def test_runs_that_are_not_finished_missing_or_broken_are_named_and_left_out(make_study, scored) -> None:
    workdir = make_study({"gd": [scored(3.0), scored(99.0) | {"status": "running"}], "gr": [None], "er": [{}]})
    (workdir / "runs" / "er-0" / "results.json").write_text("{")
    text = write_study(workdir)
    assert "gd-1 is running, not finished" in text
    assert "gr, seed 0: no results yet" in text
    assert "er, seed 0: results.json of" in text
    found = row(workdir, method="gd", score="fd_classifier", summary="last_union")
    assert (found["mean"], found["seed_0"], found["seed_1"]) == ("3.0", "3.0", "")
    page = text_of(workdir)
    assert "gr, seed 0: no results yet" in page
    assert "gd-1 is running" in page


def test_a_study_without_any_result_has_a_page_too(make_study) -> None:
    workdir = make_study({"gd": [None]})
    assert write_study(workdir) == "WARNING: gd, seed 0: no results yet"
    assert "No run has scores yet" in text_of(workdir)
    assert len((workdir / "study.csv").read_text().splitlines()) == 1


def test_scores_are_grouped_and_the_frechet_distance_leads(make_study, results) -> None:
    scores = results()["scores"]
    names = ("bpd_fixed_small", "label_accuracy", "kld", "fd_classifier", "fid", "eps_mse")
    workdir = make_study({"gd": [{"scores": dict.fromkeys(names, scores["fd_classifier"])}]})
    study = load_study(workdir)
    assert list(study.scores) == ["fid", "fd_classifier", "kld", "eps_mse", "bpd_fixed_small", "label_accuracy"]
    assert study.headline == "fid"
    write_study(workdir)
    page = text_of(workdir)
    titles = ["Frechet distance fid", "Class histograms: KLD", "Error of the predicted noise", "Bits per dimension"]
    places = [page.index(title) for title in [*titles, "Other scores label_accuracy"]]
    assert places == sorted(places)
    assert page.count("Frechet distance") == 1  # once above both of its scores


def test_accuracy_leads_where_networks_classify(make_study, results) -> None:
    scores = results()["scores"]
    names = ("fd_classifier", "knn_probe", "accuracy_masked", "accuracy")
    workdir = make_study({"jdcl": [{"scores": dict.fromkeys(names, scores["recall"])}]})
    study = load_study(workdir)
    assert list(study.scores) == ["accuracy", "accuracy_masked", "fd_classifier", "knn_probe"]
    assert study.headline == "accuracy"


def test_published_numbers_stand_beside_the_headline_only(make_study, monkeypatch) -> None:
    asked = []

    def cell(results, score, summary) -> str:
        asked.append((results["method"], results["seed"], score, summary))
        return "nothing <known>" if results["method"] == "er" else f"{summary} is 1.5"

    monkeypatch.setattr(module, "published_cell", cell)
    workdir = make_study({"gd": [{}, {}], "er": [{}]})
    write_study(workdir)
    assert asked == [(method, 0, "fd_classifier", key) for method in ("gd", "er") for key in ("average", "rise")]
    page = text_of(workdir)
    assert "gd 2.750 ± 0.000 average is 1.5 2.250 ± 0.000 rise is 1.5" in page
    assert "er 2.750 nothing <known> 2.250 nothing <known>" in page
    assert page.count("beside published numbers") == 1


def test_the_table_says_what_is_published_or_what_differs(make_study) -> None:
    workdir = make_study({"gd": [{"dataset": "fashion_mnist"}], "er": [{"dataset": "fashion_mnist"}]})
    write_study(workdir)
    found = row(workdir, method="gd", score="fd_classifier", summary="rise")["published"]
    assert found.startswith("another protocol: other score: fd_classifier instead of fid; ")
    assert row(workdir, method="er", score="fd_classifier", summary="rise")["published"] == "none published"
    assert row(workdir, method="gd", score="fd_classifier", summary="last_union")["published"] == ""
    page = text_of(workdir)
    first, *others = found.split("; ")
    assert f"{first}; {others[0]}; {others[1]}; and {len(others) - 2} more" in page
    assert "; ".join(others[2:]) in page
    assert "Not stated in the publications, so never compared: which Inception port" in page
    assert "3.9" not in page  # a value that is not comparable is not shown


def test_what_the_gradients_have_in_common_is_shown_where_it_was_measured(make_study) -> None:
    workdir = make_study({"gd": [{}]})
    write_study(workdir)
    assert "rank 1" not in text_of(workdir)
    assert not (workdir / "figures" / "structure.png").exists()
    rows = [{"t": t, "cosine": 0.3, "cosine_std": 0.1, "ratio": 0.5} for t in (0, 500, 999)]
    facts = {"workdir": "runs/x/runs/gd-0", "task": 1, "images": 128, "method": "gd", "dataset": "digits"}
    (workdir / "figures" / "structure.json").write_text(json.dumps({**facts, "rows": rows}))
    write_study(workdir)
    assert "of the run runs/x/runs/gd-0 after task 1, on 128 training images" in text_of(workdir)
    assert (workdir / "figures" / "structure.png").read_bytes().startswith(PNG_SIGNATURE)
    for broken in ("{", "{}", "[1]"):
        (workdir / "figures" / "structure.json").write_text(broken)
        with pytest.raises(UserError, match="delete it"):
            write_study(workdir)


def test_runs_of_a_shorter_sequence_are_on_the_page_too(make_study, results) -> None:
    base = results()["scores"]["fd_classifier"]
    bits = dict.fromkeys(("fd_classifier", "bpd_fixed_small"), base)
    short = {name: {**score, "union": score["union"][:2]} for name, score in bits.items()}
    short = {name: {**score, "matrix": [row[:2] for row in score["matrix"][:2]]} for name, score in short.items()}
    changed = {"tasks": results()["tasks"][:2], "scores": short}
    methods = {"gd": [{"scores": bits}], "gr": [{"scores": bits}], "er": [{"scores": bits}], "gd(a=1)": [changed]}
    write_study(workdir := make_study(methods))
    assert "gd(a=1) 1" in text_of(workdir)
    assert "Kendall" not in text_of(workdir)


def test_what_is_published_of_no_method_is_said_once(make_study) -> None:
    workdir = make_study({"gd": [{}], "er": [{}]})
    write_study(workdir)
    assert text_of(workdir).count("none for digits") == 1


def curves(folder: Path, errors: list[np.ndarray]) -> None:
    (folder / "curves").mkdir()
    for task, eps_mse in enumerate(errors, 1):
        arrays = {"eps_mse": eps_mse, "bits_fixed_small": eps_mse, "bits_fixed_large": eps_mse}
        np.savez(folder / "curves" / f"task_{task:02d}.npz", **arrays)


def three_tasks(timesteps: int) -> list[np.ndarray]:
    return [np.full((3, timesteps), float(task), np.float32) for task in (1, 2, 3)]


def test_figures_of_a_smaller_study_do_not_stay_beside_those_of_the_larger_one(make_study) -> None:
    write_study(workdir := make_study({"gd": [{}]}))
    before = {path.name for path in (workdir / "figures").iterdir()}
    write_study(make_study({f"er(a={number})": [{}] for number in range(8)}))
    after = {path.name for path in (workdir / "figures").iterdir()}
    assert "union-recall.png" in before - after
    assert {"union-recall-1.png", "union-recall-2.png"} <= after - before


def test_figures_are_on_the_page_and_beside_it(make_study) -> None:
    workdir = make_study({"gd": [{}], "er(a=1)": [{}]})
    for folder in (workdir / "runs").iterdir():
        curves(folder, three_tasks(8))
    write_study(workdir)
    names = sorted(path.name for path in (workdir / "figures").iterdir())
    assert names == sorted(
        f"{name}.png"
        for name in (
            *("union-fd_classifier", "union-recall", "forgetting", "forgetting-relative"),
            *("forgetting-gd", "forgetting-er-a=1-", "forgetting-relative-gd", "forgetting-relative-er-a=1-"),
            *("eps_mse-gd", "eps_mse-er-a=1-", "bits_fixed_small", "bits_fixed_large"),
            *("cost-model_flops", "cost-seconds"),
        )
    )
    assert all((workdir / "figures" / name).read_bytes().startswith(PNG_SIGNATURE) for name in names)
    page = (workdir / "study.html").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf'src="data:image/svg\+xml;base64,[^"]+" alt="{re.escape(name[:-4])}"', page)
    assert "Without curves" not in page


def test_runs_without_curves_of_every_task_are_named_and_the_rest_is_drawn(make_study) -> None:
    workdir = make_study({"gd": [{}, {}], "old": [{}], "half": [{}], "other": [{}], "open": [{"status": "running"}]})
    for name, errors in {
        "gd-0": three_tasks(8),
        "gd-1": three_tasks(8),
        "half-0": three_tasks(8)[:2],
        "other-0": three_tasks(9),
        "open-0": three_tasks(8),
    }.items():
        curves(workdir / "runs" / name, errors)
    write_study(workdir)
    assert "so not in these pictures: old-0, half-0, other-0." in text_of(workdir)
    drawn = {path.stem for path in (workdir / "figures").glob("eps_mse-*")}
    assert drawn == {"eps_mse-gd"}


def test_a_study_of_older_runs_says_that_there_is_nothing_to_draw(make_study) -> None:
    workdir = make_study({"gd": [{"cost": [], "config": {}}]})
    write_study(workdir)
    page = text_of(workdir)
    assert "no finished run of two tasks or more has curves" in page
    assert "No finished run has recorded its cost" in page
    assert not list((workdir / "figures").glob("forgetting*"))


def test_samples_are_those_of_the_last_task_and_the_first_finished_seed(make_study) -> None:
    workdir = make_study({"gd": [{"status": "running"}, {}, {}], "er": [{}]})
    write_study(workdir)
    page = text_of(workdir)
    assert "gd, seed 1, after task 3" in page
    assert "er, seed 0, after task 3" in page
    assert page.count("after task 3") == 2


def test_the_page_says_how_it_was_made_stands_alone_and_escapes_names(make_study) -> None:
    workdir = make_study({"gd(<script>x</script>)": [{"provenance": "<b>pixels</b>"}]})
    write_study(workdir)
    page = (workdir / "study.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert all(text in text_of(workdir) for text in ("the command", "configs/digits.py", "abc123", "jax 9", "pixels"))


def test_the_folder_may_be_moved(make_study) -> None:
    workdir = make_study({"gd": [{}]})
    moved = workdir.rename(workdir.with_name("moved"))
    write_study(moved)
    assert row(moved, score="recall", summary="average")["n"] == "1"


def test_a_folder_without_a_study_or_with_a_broken_one(tmp_path) -> None:
    assert read_record(tmp_path) is None
    with pytest.raises(UserError, match=r"holds no study: study\.json is missing"):
        write_study(tmp_path)
    whole = {"format": 1, "shared": {}, "calls": [], "runs": [{"method": "a", "slug": "a", "seed": 0, "folder": "a"}]}
    for broken in (
        "{",
        "[]",
        json.dumps(whole | {"format": 2}),
        json.dumps(whole | {"runs": [{"method": "a", "slug": "a", "seed": "0", "folder": "a"}]}),
        json.dumps(whole | {"runs": [{"method": "a", "seed": 0, "folder": "a"}]}),
        json.dumps({key: value for key, value in whole.items() if key != "calls"}),
    ):
        (tmp_path / "study.json").write_text(broken)
        with pytest.raises(UserError, match=r"study\.json can't be read"):
            read_record(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps(whole))
    assert read_record(tmp_path) == whole


def test_unknown_numbers_are_empty_in_the_table(make_study, scored) -> None:
    workdir = make_study({"gd": [scored(math.nan)]})
    write_study(workdir)
    assert "nan" not in (workdir / "study.csv").read_text().lower()
