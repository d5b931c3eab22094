"""Which forms of the PyTorch side are timed, and which of them a goal is about."""

import _rows

EAGER, TUNED, COMPILED = "torch eager", "torch eager, tuned", "torch.compile, tuned"


def forms(platform: str, dtype: str, job: str) -> dict[str, tuple[str, ...]]:
    """Name -> options of the peer: eager as it comes, tuned, and compiled besides; job "train" or "sample".

    Tuned means channels last, which suits these convolutions, and in training an AdamW that updates all parameters in
    one loop, which a GPU always gets.
    """
    tuned = ("--layout=channels_last", *(["--fused"] if job == "train" else []))
    kinds: dict[str, tuple[str, ...]] = {EAGER: ()} if platform == "cpu" else {}
    kinds |= {TUNED: ("--form=eager", *tuned), COMPILED: ("--form=compiled", *tuned)}
    return {name: (*words, f"--dtype={dtype}") for name, words in kinds.items()}


def against(row: _rows.Row, platform: str, *, eager: float, compiled: float) -> _rows.Row:
    """The row with its goal: against eager PyTorch on a CPU, against the compiled one on an accelerator.

    The goal of a peer that was left out stands there as not measured.
    """
    name, most = (EAGER, eager) if platform == "cpu" else (COMPILED, compiled)
    return _rows.with_goal(row, row["ratios"].get(name, [None])[0], most=most)
