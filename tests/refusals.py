"""How a command line says no."""

from collections.abc import Callable, Sequence

import pytest


def refusal_of(main: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command line ends; nothing else is said, and the exit code is 2."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
