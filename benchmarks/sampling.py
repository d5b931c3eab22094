"""Times the sampler: batches of images by DDIM, from us and from the same network elsewhere.

    python benchmarks/sampling.py --size=small --peer=torch --out=results/sampling_small.json

One of our rounds is one call of the generator that evaluation and `jdcl_jax.sample` use: a single
compiled scan over `--sampler-steps` reverse timesteps, noise to uint8. With `--peer=torch`
(pip install 'jdcl_jax[bench]') it is diffusers' UNet2DModel and DDIMScheduler under PyTorch eager
and `torch.no_grad`. Rounds alternate, and the medians are compared. Every timed round
follows an untimed one, because the side that waited must fetch its memory back first.
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
    options = _compare.arguments(__doc__, sampler_steps=10)
    share_cpu()
    size, steps = SIZES[options.size], options.sampler_steps
    parts, parallel = _ours.make_parts(size, steps), Parallel()
    run, compile_seconds = _ours.sampling_job(parts, parallel, size.batch)
    facts = _ours.facts(parts, parallel, compile_seconds)
    facts |= {"unit": "batch", "batch": size.batch, "glibc": os.environ.get("GLIBC_TUNABLES", "")}
    sides = {"jdcl_jax": lambda: _compare.timed(run)}
    peer = None
    if options.peer:
        peer = _compare.Peer("sample", f"--size={options.size}", f"--sampler-steps={steps}")
        facts["peer"] = _compare.same_network(facts, peer)
        sides[options.peer] = lambda: peer.round(1)
    print(
        f"{options.size}: {facts['parameters']:,} parameters, batches of {size.batch} images in {steps} "
        f"steps, {facts['device']}"
    )
    timings = _compare.alternate(sides, options.repeats)
    if peer:
        peer.close()
    _compare.report("sampling", options, facts, timings, units=1)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jdcl_jax").setLevel(logging.INFO)
    main()
