"""Makes the page of a run again, or one page that compares several.

python -m jdcl_jax.report runs/digits-gd-0
python -m jdcl_jax.report runs/digits-gd-* runs/digits-gr-* --out=compare.html
"""

import sys
from collections.abc import Sequence

from jdcl_jax.errors import Arguments, exit_on_user_error
from jdcl_jax.reporting.compare import compare
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.page import write_report
from jdcl_jax.reporting.runs import load_run
from jdcl_jax.reporting.table import score_table


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` without the program's name, from the process if None."""
    parser = Arguments(
        prog="python -m jdcl_jax.report",
        description="Writes the page of one run (report.html), or one page that compares several.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run, e.g. runs/digits-gd-0")
    parser.add_argument(
        "--out",
        default="",
        metavar="PAGE.html",
        help="the page to write; compare.html for several runs",
    )
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    plain_logging()
    with exit_on_user_error():
        if len(options.workdirs) > 1:
            out = options.out or "compare.html"
            print(compare(options.workdirs, out))
            print(f"\ncomparison: {out}")
        else:
            out = write_report(options.workdirs[0], options.out or None)
            print(score_table(load_run(options.workdirs[0]).results))
            print(f"\nreport: {out}")


if __name__ == "__main__":
    main()
