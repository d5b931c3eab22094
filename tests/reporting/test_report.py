import pytest

from jdcl_jax.report import main


def test_one_run_rewrites_its_report(make_run, capsys):
    folder = make_run("a")
    (folder / "report.html").write_text("old")
    main([str(folder)])
    assert "<h1>gd on digits" in (folder / "report.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert str(folder / "report.html") in printed
    assert "fd_classifier" in printed


def test_one_run_can_be_reported_elsewhere(make_run, tmp_path, capsys):
    folder = make_run("a")
    main([str(folder), f"--out={tmp_path / 'page.html'}"])
    assert (tmp_path / "page.html").exists()
    assert not (folder / "report.html").exists()
    assert str(tmp_path / "page.html") in capsys.readouterr().out


def test_several_runs_are_compared(make_run, tmp_path, capsys):
    paths = [str(make_run("a")), str(make_run("b", method="gr"))]
    main([*paths, f"--out={tmp_path / 'page.html'}"])
    printed = capsys.readouterr().out
    assert "gr" in printed
    assert str(tmp_path / "page.html") in printed
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("arguments", [["missing"], ["missing", "other", "--out=page.html"]])
def test_the_users_errors_are_one_line_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "missing" in printed.err
    assert printed.out == ""


def test_a_page_that_cannot_be_written_is_the_users_error(make_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit:
        main([str(make_run("a")), f"--out={tmp_path / 'file' / 'page.html'}"])
    assert exit.value.code == 2
    assert "cannot write" in capsys.readouterr().err


def test_no_run_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
