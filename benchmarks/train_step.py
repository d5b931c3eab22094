"""Times train steps of the denoiser, scanned and single ones, and of the same network under PyTorch.

    python benchmarks/train_step.py --size=small --peer=torch --out=results/train.json

One of our rounds is one call of the compiled function that training itself uses (several steps of data
gathering, noising, loss, gradients, clipping, AdamW and moving average); the peers' rounds are as many steps of their
own: diffusers' UNet2DModel with AdamW, gradient clipping and the same moving average (pip install 'jdcl_jax[bench]').
Rounds alternate, and a side rests while another works. Accelerators compute in bfloat16, all sides alike.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import itertools

import _compare
import _ours
import _part
import _peers
import _rows
import jax
from _sizes import SIZES

EAGER_GOAL, COMPILED_GOAL = 1.0, 1 / 1.3  # ours / eager on a CPU, ours / compiled on an accelerator
SHARE_GOAL = 0.35  # of the measured matrix product's rate, by the large network on an accelerator
SCAN_GOAL = 1.05  # a scanned step / a single one: not slower, within what one run differs from the next


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    sizes = ["tiny"] if options.tiny else options.size
    return list(itertools.chain.from_iterable(_measure_size(options, name) for name in sizes))


def _measure_size(options: argparse.Namespace, name: str) -> list[_rows.Row]:
    platform, size, dtype = jax.default_backend(), SIZES[name], _ours.compute_dtype()
    count = size.steps if platform == "cpu" else 5 * size.steps
    batch = size.batch_on(platform, "train")
    parts, parallel = _ours.make_parts(size, batch, dtype=dtype), _ours.parallel_beside(options.peer)
    phase = parts.method.phases(0)[0]
    scanned, _ = _ours.train_job(parts, parallel, count)
    single, _ = _ours.train_job(parts, parallel, 1)
    flops = _ours.step_flops(parts, phase, 0)
    forms = _peers.forms(platform, dtype, "train")
    with _compare.torch_peers(bool(options.peer), forms, "train", f"--size={name}", f"--batch={batch}") as peers:
        _compare.check_comparable(_ours.parameters(parts), platform, peers)
        sides = {"jdcl_jax": _compare.timed(scanned, count)}
        sides |= {side: lambda peer=peer: peer.round(count) for side, peer in peers.items()}
        timings = _compare.alternate(sides, options.repeats)
        row = _rows.timed_row(
            f"train step, {name}, batch {batch}, {dtype}",
            "step",
            timings,
            flops=flops,
            dtype=dtype,
            devices=parallel.count,
            parameters=_ours.parameters(parts),
            peers={side: peer.hello for side, peer in peers.items()},
        )
    if options.peer:
        row = _peers.against(row, platform, eager=EAGER_GOAL, compiled=COMPILED_GOAL)
    if platform != "cpu" and name == "large":
        row["share_goal"] = SHARE_GOAL
    both = {"scanned": _compare.timed(scanned, count), "single": _compare.timed(lambda: single(count), count)}
    what = f"train step, {name}: {count} steps in one call / one step a call"
    alone = _rows.timed_row(what, "step", _compare.alternate(both, options.repeats))
    return [row, _rows.with_goal(alone, alone["ratios"]["single"][0], most=SCAN_GOAL)]


if __name__ == "__main__":
    made = _part.parser(__doc__, peers=True)
    made.add_argument("--size", choices=SIZES, nargs="+", default=["small", "large"])
    _part.run_part(made.parse_args(), measure)
