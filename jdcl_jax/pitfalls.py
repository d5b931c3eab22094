"""Ranks the same checkpoints by bits/dim and by what they generate.

python -m jdcl_jax.pitfalls runs/digits-study/runs/* --out=pitfalls.html
"""

import sys
from collections.abc import Sequence

from jdcl_jax.errors import Arguments, exit_on_user_error
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.pitfalls import write_pitfalls


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` without the program's name, from the process if None."""
    parser = Arguments(
        prog="python -m jdcl_jax.pitfalls",
        description="Kendall's tau between rankings of the same runs by bits/dim, Frechet distance and class coverage, "
        "and exact demonstrations of what bits/dim hides. Runs need evaluation.likelihood.images above 0 and bpd_* in "
        "evaluation.scores.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folders of runs, three or more methods")
    parser.add_argument("--out", default="pitfalls.html", metavar="PAGE.html", help="the page to write")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    plain_logging()
    with exit_on_user_error():
        print(write_pitfalls(options.workdirs, options.out))
        print(f"\npage: {options.out}")


if __name__ == "__main__":
    main()
