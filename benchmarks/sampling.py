"""Times the sampler: batches of images by DDIM, from us and from the same network under PyTorch.

    python benchmarks/sampling.py --size=small --peer=torch --out=results/sampling.json

One of our rounds is one call of the generator that evaluation and `jdcl_jax.sample` use: a single compiled scan over
`--sampler-steps` reverse timesteps, noise to uint8. The peers are diffusers' UNet2DModel and DDIMScheduler
(pip install 'jdcl_jax[bench]'). Rounds alternate. Then follows how the sampler's time grows with steps and batch.
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

from jdcl_jax.training.parallel import Parallel

EAGER_GOAL, COMPILED_GOAL = 1.0, 1 / 1.5  # ours / eager on a CPU, ours / compiled on an accelerator
LINEAR_GOAL = 1.10  # seconds an image and step of the larger chain or batch / of the smaller


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    sizes = ["tiny"] if options.tiny else options.size
    return [*itertools.chain.from_iterable(_measure_size(options, name) for name in sizes), *_growth(options, sizes[0])]


def _measure_size(options: argparse.Namespace, name: str) -> list[_rows.Row]:
    platform, steps, dtype = jax.default_backend(), options.sampler_steps, _ours.compute_dtype()
    batch = SIZES[name].batch_on(platform, "sample")
    parts = _ours.make_parts(SIZES[name], batch, sampler_steps=steps, dtype=dtype)
    parallel = _ours.parallel_beside(options.peer)
    run = _ours.sampling_job(parts, parallel, batch)
    words = ("sample", f"--size={name}", f"--batch={batch}", f"--sampler-steps={steps}")
    with _compare.torch_peers(bool(options.peer), _peers.forms(platform, dtype, "sample"), *words) as peers:
        _compare.check_comparable(_ours.parameters(parts), platform, peers)
        sides = {"jdcl_jax": _compare.timed(run, 1)}
        sides |= {side: lambda peer=peer: peer.round(1) for side, peer in peers.items()}
        row = _rows.timed_row(
            f"sampling, {name}, {batch} images, {steps} DDIM steps, {dtype}",
            "batch",
            _compare.alternate(sides, options.repeats),
            flops=_ours.forward_flops(parts, batch) * steps,
            dtype=dtype,
            devices=parallel.count,
            peers={side: peer.hello for side, peer in peers.items()},
        )
    return [_peers.against(row, platform, eager=EAGER_GOAL, compiled=COMPILED_GOAL) if options.peer else row]


def _growth(options: argparse.Namespace, name: str) -> list[_rows.Row]:
    """Five times the steps, and twice and half the batch, against the usual."""
    steps, batch = options.sampler_steps, SIZES[name].batch_on(jax.default_backend(), "sample")
    chosen = {f"{5 * steps} steps": (5 * steps, batch), f"{steps} steps": (steps, batch)}
    by_steps = _alternating(options, name, chosen)
    twice, half = {f"{2 * batch} images": (steps, 2 * batch)}, {f"{batch // 2} images": (steps, batch // 2)}
    by_batch = _alternating(options, name, twice | half)
    rows = []
    for what, found in (("with more steps", by_steps), ("in larger batches", by_batch)):
        row = _rows.timed_row(f"sampling, {name}, {what}", "image and step", found)
        rows.append(_rows.with_goal(row, next(iter(row["ratios"].values()))[0], most=LINEAR_GOAL))
    return rows


def _alternating(options: argparse.Namespace, name: str, chosen: dict[str, tuple[int, int]]) -> dict[str, list[float]]:
    parallel, sides = Parallel(), {}
    for label, (steps, batch) in chosen.items():
        parts = _ours.make_parts(SIZES[name], batch, sampler_steps=steps, dtype=_ours.compute_dtype())
        run = _ours.sampling_job(parts, parallel, batch)
        sides[label] = _compare.timed(run, steps * batch)
    return _compare.alternate(sides, options.repeats)


if __name__ == "__main__":
    made = _part.parser(__doc__, peers=True)
    made.add_argument("--size", choices=SIZES, nargs="+", default=["small", "large"])
    made.add_argument("--sampler-steps", type=int, default=10)
    _part.run_part(made.parse_args(), measure)
