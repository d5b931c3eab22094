"""Times train steps of the denoiser, and of the same network elsewhere.

    python benchmarks/train_step.py --size=small --peer=torch --out=results/train_small.json

One of our rounds is one call of the compiled function that training itself uses (`--steps-per-call`
steps of data gathering, noising, loss, gradients, clipping, AdamW and moving average); the peer's
round is as many steps of its own. Rounds alternate, the peer rests in its own process meanwhile,
and the medians are compared. Every timed round follows an untimed one of the same length, because the
side that waited must fetch its memory back first. With `--peer=torch` (pip install 'jdcl_jax[bench]') it is diffusers'
UNet2DModel under PyTorch eager with AdamW, gradient clipping and the same moving average.
"""

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__":
    reexec_with_hugepages()

import logging
import os

import _compare
import _ours
from _sizes import SIZES

from jdcl_jax.training.parallel import Parallel


def main() -> None:
    options = _compare.arguments(__doc__, steps_per_call=10)
    share_cpu()
    size, count = SIZES[options.size], options.steps_per_call
    parts, parallel = _ours.make_parts(size), Parallel()
    run, compile_seconds = _ours.train_job(parts, parallel, count)
    facts = _ours.facts(parts, parallel, compile_seconds)
    facts |= {"unit": "step", "batch": size.batch, "glibc": os.environ.get("GLIBC_TUNABLES", "")}
    sides = {"jdcl_jax": lambda: _compare.timed(run)}
    peer = None
    if options.peer:
        peer = _compare.Peer("train", f"--size={options.size}")
        facts["peer"] = _compare.same_network(facts, peer)
        sides[options.peer] = lambda: peer.round(count)
    print(f"{options.size}: {facts['parameters']:,} parameters, batch {size.batch}, {facts['device']}")
    timings = _compare.alternate(sides, options.repeats)
    if peer:
        peer.close()
    _compare.report("train_step", options, facts, timings, units=count)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jdcl_jax").setLevel(logging.INFO)
    main()
