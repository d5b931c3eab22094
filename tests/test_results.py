"""What a run records of itself."""

import json

import pytest

from jdcl_jax import results
from jdcl_jax.assembly import assemble
from jdcl_jax.results import Results
from jdcl_jax.training.parallel import Parallel


@pytest.fixture
def made_at(tiny_config, monkeypatch):
    """`made_at("a")`: a run's record, begun while the checkout was at that commit."""
    parts, parallel = assemble(tiny_config("finetune")), Parallel()

    def make(commit: str) -> Results:
        monkeypatch.setattr(results, "commit", lambda: commit)
        return Results(parts, parallel, "the command")

    return make


def test_a_run_names_every_commit_that_it_was_made_with(made_at) -> None:
    def after(record: Results, commit: str) -> Results:
        resumed = made_at(commit)
        resumed.restore(json.loads(json.dumps(record.history())))
        return resumed

    first = made_at("a")
    again = after(after(first, "a"), "b")
    assert (first.as_dict("running")["commit"], first.as_dict("running")["commits"]) == ("a", ["a"])
    assert (again.as_dict("running")["commit"], again.as_dict("running")["commits"]) == ("b", ["a", "b"])


def test_a_run_that_older_code_began_names_the_commit_of_now(made_at) -> None:
    record = made_at("b")
    old = {key: value for key, value in record.history().items() if key != "commits"}
    record.restore(old)
    assert record.as_dict("running")["commits"] == ["b"]
