"""Which runs a study is made of: how they are written, where they go, and what is refused before any of them starts."""

import itertools
import json
import re
from pathlib import Path

import pytest

from jdcl_jax import campaign
from jdcl_jax.campaign import Spec, make_plan, parse_seeds, parse_specs, run_plan, write_record
from jdcl_jax.errors import UserError
from jdcl_jax.workdir import Workdir

DIGITS = str(Path(__file__).parents[1] / "configs" / "digits.py")


def words(text: str) -> list[tuple[str, ...]]:
    return [spec.words for spec in parse_specs(text)]


def test_keys_belong_to_the_method_unless_they_begin_with_a_section_of_the_config() -> None:
    assert words("finetune, er(buffer_size=20,train.ema=0.9) ,gd(method.teacher_steps=1)") == [
        ("finetune",),
        ("er", "method.buffer_size=20", "train.ema=0.9"),
        ("gd", "method.teacher_steps=1"),
    ]
    assert words("gd(rank1_ewc.strength=1000)") == [("gd", "method.rank1_ewc.strength=1000")]


def test_commas_within_brackets_do_not_separate() -> None:
    assert words("joint(model.channels=(8, 16),train.ema=0.5),gd") == [
        ("joint", "model.channels=(8, 16)", "train.ema=0.5"),
        ("gd",),
    ]


def test_the_name_in_tables_is_the_spec_as_it_was_written() -> None:
    assert [spec.text for spec in parse_specs("gd, er(buffer_size = 20)")] == ["gd", "er(buffer_size = 20)"]


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "no methods"),
        ("gd,er(buffer_size=20", "open bracket"),
        ("gd(teacher_steps)", "'teacher_steps' in gd"),
        ("gd(=3)", "'=3'"),
        ("gd[teacher_steps=1]", "NAME(key=value,...)"),
        ("gd)teacher_steps=1(", "NAME(key=value,...)"),
        ("teacher_steps=1", "NAME(key=value,...)"),
        ("gd,er,gd", "gd twice"),
        ("gd(teacher_steps=1),gd( teacher_steps = 1 )", "twice"),
    ],
)
def test_what_is_no_method_is_refused(text: str, about: str) -> None:
    with pytest.raises(UserError, match=re.escape(about)):
        parse_specs(text)


def test_slugs_can_be_read() -> None:
    texts = "gd,rank1_ewc+gd(rank1_ewc.strength=1000,train.ema=0.995),gd(train.learning_rate=1e-4)"
    assert [spec.slug for spec in parse_specs(texts)] == [
        "gd",
        "rank1_ewc+gd-rank1_ewc.strength=1000-train.ema=0.995",
        "gd-train.learning_rate=1e-4",
    ]


def test_different_specs_never_share_a_folder_and_a_shell_needs_no_quotes() -> None:
    """All short values over characters that are lost or mean something in a slug."""
    values = ["".join(v) for n in (0, 1, 2, 3) for v in itertools.product("1-=b( ", repeat=n)]
    specs = [Spec("", ("a", f"method.b={value}")) for value in values]
    specs += [Spec("", ("a", f"method.b={one}", f"method.b={two}")) for one in values[:40] for two in values[:40]]
    specs += [Spec("", ("a", "method.b=" + "1" * n)) for n in range(90, 300, 7)]
    distinct = {spec.words for spec in specs}
    slugs = {spec.words: spec.slug for spec in specs}
    assert len(distinct) > 1800
    assert len(set(slugs.values())) == len(distinct)
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]{1,130}", slug) for slug in slugs.values())


def test_a_digest_cannot_be_imitated() -> None:
    (lost,) = parse_specs("a(b=x[])")
    digest = lost.slug[-12:]
    imitations = [f"a(b=x{between}{digest})" for between in ("-", "--", ".", "", "+")]
    assert lost.slug not in [spec.slug for spec in parse_specs(",".join(imitations))]
    assert lost.slug.startswith("a-b=x-")


def test_seeds() -> None:
    assert parse_seeds("0, 2,10") == [0, 2, 10]
    for text in ("", "0,", "-1", "1.5", "one", "0,0"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


@pytest.fixture
def plan(tiny_words, tmp_path):
    """`plan("gd,gr", "0,1", "tasks.first=2")`: a plan of tiny runs in one workdir."""

    def make(methods: str, seeds: str = "0", *more: str, config: str = DIGITS):
        return make_plan(f"{config}:{tiny_words(*more)}", methods, seeds, tmp_path / "study")

    return make


def test_runs_come_seed_by_seed_each_with_its_own_config_and_folder(plan, tmp_path) -> None:
    made = plan("finetune,er(buffer_size=20,train.ema=0.9)", "3,1")
    assert [(run.spec.text, run.seed) for run in made.runs] == [
        ("finetune", 3),
        ("er(buffer_size=20,train.ema=0.9)", 3),
        ("finetune", 1),
        ("er(buffer_size=20,train.ema=0.9)", 1),
    ]
    run = made.runs[3]
    assert run.config.seed == 1
    assert run.config.method.name == "er"
    assert run.config.method.buffer_size == 20
    assert run.config.train.ema == 0.9
    assert run.config.train.steps == 4
    assert made.runs[2].config.train.ema == 0.0
    job = run.job()
    assert job.command[1:3] == ["-m", "jdcl_jax.main"]
    assert job.command[3].startswith(f"--config={DIGITS}:")
    assert job.command[3].endswith(",er,method.buffer_size=20,train.ema=0.9,seed=1")
    assert job.command[4] == f"--workdir={tmp_path}/study/runs/er-buffer_size=20-train.ema=0.9-1"
    assert job.log == tmp_path / "study" / "logs" / "er-buffer_size=20-train.ema=0.9-1.log"
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "unknown method": (("finetune,gdd",), "gdd: 'gdd' is no method"),
    "unknown option": (("er(bufer_size=20)",), "er(bufer_size=20): unknown config key 'method.bufer_size'"),
    "another method's option": (("finetune(teacher_steps=1)",), "unknown config key 'method.teacher_steps'"),
    "wrong type": (("finetune,gd(teacher_steps=some)",), "gd(teacher_steps=some): method.teacher_steps is"),
    "what validate refuses": (("finetune,gd(train.weight_decay=0.1)",), "train.optimizer=adamw"),
    "what the method refuses": (("finetune,er(buffer_size=1)",), "er(buffer_size=1): method.buffer_size"),
    "what needs the data": (("finetune,finetune(tasks.order=gd-43)",), "finetune(tasks.order=gd-43): "),
    "one run under two names": (("er,er(rehearsal_coefficient=1.0)",), "the same as er"),
    "a seed of its own": (("finetune(seed=3)",), "method.seed"),
    "a seed for all": (("finetune", "0", "seed=3"), "--seeds=0"),
    "a method for all": (("finetune", "0", "gd"), "--methods=gd"),
    "no seeds": (("finetune", "one"), "--seeds=one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(name, plan, tmp_path) -> None:
    arguments, about = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(about)):
        plan(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_run_is_validated_and_data_are_loaded_once_for_all_that_share_them(plan, monkeypatch) -> None:
    validated, assembled = [], []
    monkeypatch.setattr(campaign, "validate", lambda config: validated.append((config.method.name, config.seed)))
    assemble = campaign.assemble
    monkeypatch.setattr(campaign, "assemble", lambda config: assembled.append(config.train.ema) or assemble(config))
    plan("finetune,gd,gd(train.ema=0.9)", "0,1")
    assert validated == [(name, seed) for seed in (0, 1) for name in ("finetune", "gd", "gd")]
    assert assembled == [0.0, 0.9]


def test_a_preset_is_no_method(tmp_path) -> None:
    config = DIGITS.replace("digits.py", "fashion_mnist.py")
    with pytest.raises(UserError, match="small is a preset"):
        make_plan(config, "gd,small", "0", tmp_path / "study")


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (None, "FileNotFoundError"),
        ("1 +", "SyntaxError"),
        ("x = 1", "get_config"),
        ("import nothing_here", "nothing_here"),
    ],
)
def test_a_config_file_that_is_missing_or_broken(text, about, tmp_path) -> None:
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=about):
        make_plan(str(file), "gd", "0", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def finish(run) -> None:
    """Makes a run look finished."""
    Workdir(run.folder, run.config).write_config()
    (run.folder / "results.json").write_text('{"status": "finished"}')
    (run.folder / "report.html").write_text("")


def lines_of(plan) -> list[str]:
    """What `run_plan` says of a plan whose runs are all finished."""
    said: list[str] = []
    assert run_plan(plan, command="again", jobs=1, say=said.append) == []
    return said


def test_a_study_may_get_more_methods_and_seeds(plan, tmp_path) -> None:
    write_record(plan("finetune,er", "0"), "first")
    write_record(plan("gd,finetune", "1"), "second")
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [(run["method"], run["seed"], run["folder"]) for run in record["runs"]] == [
        ("gd", 1, "runs/gd-1"),
        ("finetune", 1, "runs/finetune-1"),
        ("finetune", 0, "runs/finetune-0"),
        ("er", 0, "runs/er-0"),
    ]
    assert [call["command"] for call in record["calls"]] == ["first", "second"]
    assert record["calls"][0]["versions"]["jax"]
    assert "commit" in record["calls"][0]


def test_finished_runs_are_skipped_and_nothing_is_written_then(plan, tmp_path) -> None:
    made = plan("finetune,gd", "0")
    write_record(made, "first")
    for run in made.runs:
        finish(run)
    before = (tmp_path / "study" / "study.json").read_bytes()
    assert lines_of(plan("finetune,gd", "0")) == ["all 2 runs are finished"]
    assert (tmp_path / "study" / "study.json").read_bytes() == before
    assert not (tmp_path / "study" / "logs").exists()


def test_finished_runs_that_are_not_recorded_yet_are_recorded(plan, tmp_path) -> None:
    made = plan("finetune", "0")
    finish(made.runs[0])
    lines_of(made)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["runs"][0]["folder"] == "runs/finetune-0"


def test_a_workdir_of_another_study_is_refused_with_the_keys_that_differ(plan) -> None:
    write_record(plan("finetune", "0"), "first")
    with pytest.raises(UserError, match=r"study holds another study \(train.steps: 4 -> 8\)"):
        plan("gd", "0", "train.steps=8")
    plan("gd(train.steps=8)", "0")  # a method's own settings are no other study
    plan("gd", "0", "data.dir=elsewhere")  # and where things lie is none either


def test_a_run_of_another_config_in_the_way_is_refused(plan) -> None:
    run = plan("finetune", "0").runs[0]
    Workdir(run.folder, run.config).write_config()
    with pytest.raises(UserError, match="runs/finetune-0 holds a run with another config"):
        plan("finetune", "0", "train.steps=8")


@pytest.mark.parametrize("name", ["config.json", "study.json"])
def test_a_workdir_that_holds_something_else_is_refused(name, plan, tmp_path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / name).write_text("{}")
    with pytest.raises(UserError, match="write another --workdir"):
        plan("finetune", "0")


def test_a_workdir_that_cannot_be_written(tiny_words, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    made = make_plan(f"{DIGITS}:{tiny_words()}", "finetune", "0", tmp_path / "file" / "study")
    with pytest.raises(UserError, match=r"file/study/study\.json"):
        run_plan(made, command="", jobs=1, say=print)
    assert (tmp_path / "file").read_text() == "mine"
