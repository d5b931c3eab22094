"""Rankings by bits/dim against rankings by what is generated, on runs whose numbers are chosen here."""

import math

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.scores import SCORES
from jdcl_jax.pitfalls import main
from jdcl_jax.reporting import pitfalls
from jdcl_jax.reporting.runs import load_run

# method -> (bpd_fixed_small, fd_classifier) on the union after tasks 1, 2, 3: bits rank a < b < c, after task 3
# distances rank c < b < a; after task 2 both rank a < b < c.
UNIONS = {
    "a": ([2.0, 2.1, 2.2], [5.0, 1.0, 9.0]),
    "b": ([2.0, 2.3, 2.4], [5.0, 2.0, 8.0]),
    "c": ([2.0, 2.5, 2.6], [5.0, 3.0, 7.0]),
}


@pytest.fixture
def runs(make_run, results):
    made = []
    for seed in (0, 1):
        for method, (bits, distances) in UNIONS.items():
            base = results()["scores"]["fd_classifier"]
            scores = {
                "fd_classifier": {**base, "union": distances},
                "bpd_fixed_small": {**base, "union": [b + 0.1 * seed for b in bits]},
                "bpd_fixed_large": {**base, "union": [b + 0.1 * seed - 0.75 for b in bits]},
            }
            folder = make_run(f"{method}-{seed}", method="gd", seed=seed, scores=scores, image_shape=[8, 8, 1])
            made.append(folder)
    return made


def with_curves(folder, bits) -> None:
    (folder / "curves").mkdir()
    rows = np.array([bits, bits, bits], np.float32)
    np.savez(folder / "curves" / "task_03.npz", bits_fixed_small=rows)


def test_rankings_are_compared_within_a_seed_after_the_last_task_and_after_all(runs) -> None:
    found = pitfalls.study([load_run(run) for run in runs])
    pair = ("bpd_fixed_small", "fd_classifier")
    assert found.methods == ("a", "b", "c")
    assert found.last[pair].mean == -1.0
    assert found.last[pair].n == 2
    assert found.every[pair].mean == pytest.approx(0.0)  # +1 after task 2, -1 after task 3; task 1 ranks nothing
    assert found.last["bpd_fixed_small", "bpd_fixed_large"].mean == 1.0


def test_the_variance_moves_bits_more_than_the_methods_differ(runs) -> None:
    found = pitfalls.study([load_run(run) for run in runs])
    assert found.variance_gap.mean == pytest.approx(0.75)
    assert found.method_gap == pytest.approx(0.4)
    assert any("0.75" in line and "0.4" in line for line in pitfalls.facts(found))


def test_the_mixture_is_shown_in_the_images_own_dimensions(runs) -> None:
    found = pitfalls.study([load_run(run) for run in runs])
    assert found.dims == 64
    rise, formula = found.mixture[0.01]
    assert formula == pytest.approx(math.log2(50) / 64)
    assert rise == pytest.approx(formula, rel=1e-9)


def test_late_timesteps_share_of_the_bound_comes_from_the_curves(runs) -> None:
    for run in runs:
        with_curves(run, [6.0, 3.0, 0.9, 0.1])
    found = pitfalls.study([load_run(run) for run in runs])
    assert found.late_share.mean == pytest.approx(0.1)


def test_the_page_has_every_method_and_tau_and_escapes_names(runs, tmp_path, capsys) -> None:
    out = tmp_path / "page.html"
    main([*map(str, runs), f"--out={out}"])
    page = out.read_text()
    assert "Kendall" in page
    for name in ("bpd_fixed_small / fd_classifier", ">a<", ">c<", "-1.000"):
        assert name in page, name
    assert "bpd_fixed_small / fd_classifier" in capsys.readouterr().out


def test_methods_with_other_options_are_not_warned_of_as_if_averaged(runs, tmp_path, capsys) -> None:
    main([*map(str, runs), f"--out={tmp_path / 'page.html'}"])
    assert "WARNING" not in capsys.readouterr().out


def test_what_makes_the_runs_incomparable_is_said_in_the_text_too(runs, make_run, results, tmp_path, capsys) -> None:
    tree = load_run(runs[0]).results | {"commit": "0123456", "seed": 2}
    main([*map(str, [*runs, make_run("a-2", **tree)]), f"--out={tmp_path / 'page.html'}"])
    text = capsys.readouterr().out
    assert "WARNING: different commits" in text
    assert str(runs[0]) in text  # folders of one name in two studies can be told apart


def test_every_score_of_classes_and_distances_is_ranked() -> None:
    assert set(pitfalls.RANKED) >= {name for name, score in SCORES.items() if score.lower_is_better}


def test_two_runs_that_a_ranking_could_not_tell_apart_are_refused(runs, make_run) -> None:
    again = make_run("elsewhere/a-0", **load_run(runs[0]).results)
    with pytest.raises(UserError, match="both called a, with the same seed"):
        pitfalls.study([load_run(run) for run in [*runs, again]])


def test_runs_of_one_task_are_refused(make_run, results) -> None:
    short = results()
    for score in short["scores"].values():
        score["union"], score["matrix"] = score["union"][:1], [row[:1] for row in score["matrix"][:1]]
    runs = [load_run(make_run(f"{m}-0", tasks=short["tasks"][:1], scores=short["scores"])) for m in "abc"]
    with pytest.raises(UserError, match="runs of two or more"):
        pitfalls.study(runs)


@pytest.mark.parametrize(
    ("pick", "message"),
    [(slice(0, 2), "three or more"), (slice(0, 0), "bits/dim")],
)
def test_too_few_runs_are_refused(runs, pick, message) -> None:
    with pytest.raises(UserError, match=message):
        pitfalls.study([load_run(run) for run in runs[pick]])


def test_runs_of_shorter_sequences_are_refused(runs, make_run, results) -> None:
    short = results()
    for score in short["scores"].values():
        score["union"], score["matrix"] = score["union"][:2], [row[:2] for row in score["matrix"][:2]]
    folder = make_run("short", tasks=short["tasks"][:2], scores=short["scores"])
    with pytest.raises(UserError, match="different numbers of tasks"):
        pitfalls.study([load_run(run) for run in [*runs, folder]])


def test_runs_without_bits_are_told_how_to_get_them(make_run, results) -> None:
    base = results()["scores"]
    for scores in (base, {**base, "eps_mse": base["fd_classifier"]}):
        runs = [load_run(make_run(f"{len(scores)}-{name}", method=name, scores=scores)) for name in "abc"]
        with pytest.raises(UserError, match=r"evaluation\.likelihood\.images=16"):
            pitfalls.study(runs)


def test_a_page_is_a_page(runs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, runs), f"--out={tmp_path / 'x.png'}"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
