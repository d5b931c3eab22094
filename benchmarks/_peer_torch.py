"""The same network from diffusers under PyTorch, timed in a process of its own.

Speaks JSON lines: first it warms up (and compiles) and says what it is, then for every line "n" it runs n units
untimed, n more, and answers the seconds of the latter. A unit is a train step or a batch of images. Its environment
is what the user's was before our own command line changed it.

The options choose how PyTorch does the work, never what work is done. If the compiled form does not start, for want of
a C++ compiler, say, one line on stderr says why, and the exit code is 3.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from _compare import UNUSABLE
from _sizes import CLIP_NORM, EMA, LEARNING_RATE, NUM_IMAGES, SIZES, TIMESTEPS, WEIGHT_DECAY, Size

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UNITS = 2
"""Units before the hello: the second one finds what only the second call of a compiled function compiles."""


@dataclasses.dataclass(frozen=True)
class Way:
    """How the work is done.

    Attributes:
      device: cpu or cuda.
      form: eager or compiled.
      layout: memory format of the network and of its images.
      dtype: in which convolutions and products are computed.
      fused: the optimizer updates all parameters in one loop; on a GPU it always does.
    """

    device: torch.device
    form: str
    layout: torch.memory_format
    dtype: torch.dtype
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """Work to time.

    Attributes:
      run: does so many units; does not wait for the device.
      network: the module itself, whatever was compiled.
      facts: what only this job can say of itself.
    """

    run: Callable[[int], None]
    network: torch.nn.Module
    facts: dict[str, Any]


def make_network(size: Size, way: Way) -> diffusers.UNet2DModel:
    """The UNet2DModel of a size on its device: blocks with attention where the feature maps have that height."""
    side, colours = size.image
    heights = [side // 2**level for level in range(len(size.channels))]
    kinds = ["Attn" if height in size.attention else "" for height in heights]
    network = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=colours,
        out_channels=colours,
        block_out_channels=size.channels,
        layers_per_block=size.layers_per_block,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=8,
    )
    return network.to(way.device, memory_format=way.layout)


def train_job(size: Size, batch: int, way: Way) -> Job:
    """Training steps: gather, noise, loss, backward, clip, AdamW, exponential moving average.

    bfloat16 is autocast around network and loss; parameters, gradients, optimizer and average stay float32.
    """
    network, device = make_network(size, way).train(), way.device
    side, colours = size.image
    images = torch.randint(0, 256, (NUM_IMAGES, colours, side, side), dtype=torch.uint8).to(device)
    betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0).float().to(device)
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    fused = True if way.fused or device.type == "cuda" else None  # None is PyTorch's own choice
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)
    autocast = way.dtype == torch.bfloat16

    def loss_of(x_t: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return torch.nn.functional.mse_loss(network(x_t, t).sample, eps)

    # The default mode, in which most train; CUDA graphs would ask that no gradient outlives its step.
    loss_of = compiled(loss_of, way, "default")

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(0, NUM_IMAGES, (batch,), device=device)
            x_0 = (images[rows].float() / 127.5 - 1).contiguous(memory_format=way.layout)
            t = torch.randint(0, TIMESTEPS, (batch,), device=device)
            eps = torch.randn_like(x_0)
            signal = alpha_bar[t][:, None, None, None]
            x_t = signal.sqrt() * x_0 + (1 - signal).sqrt() * eps
            loss_of(x_t, t, eps).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - EMA)

    facts = {
        "mode": "default" if way.form == "compiled" else None,
        "precision": "autocast, float32 parameters" if autocast else "float32 parameters",
        "optimizer": "AdamW, fused" if fused else "AdamW",
    }
    return Job(run, network, facts)


def sampling_job(size: Size, batch: int, way: Way, steps: int) -> Job:
    """Batches of images by DDIM, eta 0, x_0 clipped, zero terminal SNR.

    In bfloat16 the network is a bfloat16 copy, which need not cast its weights in every call as autocast does. DDIM
    stays float32: it divides by the root of a signal that is 0 at first.
    """
    network, device = make_network(size, way).eval(), way.device
    if way.dtype == torch.bfloat16:
        network = network.bfloat16()
    side, colours = size.image
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )
    scheduler.set_timesteps(steps)
    # The scheduler looks up its tables on the CPU, so a timestep on the GPU would make it wait, and the network would
    # wait for a copy of one on the CPU: each gets its own.
    times = [(t, torch.full((batch,), int(t), device=device)) for t in scheduler.timesteps]

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x.to(way.dtype), t).sample.float()

    # On a GPU with CUDA graphs, as diffusers' guide samples: safe, because a prediction is used up before the next.
    graphs = way.form == "compiled" and device.type == "cuda"
    mode = "reduce-overhead" if graphs else "default"
    predict = compiled(predict, way, mode)

    def run(batches: int) -> None:
        for _ in range(batches):
            with torch.no_grad():
                x = torch.randn((batch, colours, side, side), device=device)
                x = x.contiguous(memory_format=way.layout)
                for t, vector in times:
                    if graphs:
                        torch.compiler.cudagraph_mark_step_begin()
                    x = scheduler.step(predict(x, vector), t, x).prev_sample
                ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    facts = {
        "mode": mode if way.form == "compiled" else None,
        "precision": "bfloat16 network, float32 DDIM" if way.dtype == torch.bfloat16 else "float32 network and DDIM",
    }
    return Job(run, network, facts)


def compiled(function: Callable, way: Way, mode: str) -> Callable:
    """`function` in the form that was asked for."""
    return torch.compile(function, mode=mode) if way.form == "compiled" else function


@contextlib.contextmanager
def compiling(form: str) -> Iterator[None]:
    """Ends the program with one line and `UNUSABLE` if the compiled form does not start."""
    try:
        yield
    except Exception as error:  # the compilers below raise what they like
        if form != "compiled":
            raise
        cause = getattr(error, "inner_exception", error)
        text = " ".join(str(cause).split())
        print(f"the peer's compiled form does not start: {type(cause).__name__}: {text[:200]}", file=sys.stderr)
        sys.exit(UNUSABLE)


def set_up(device: torch.device) -> dict[str, Any]:
    """Chooses what a user of a GPU would, and says so: TF32 for float32, as JAX does, and the fastest convolutions."""
    if device.type != "cuda":
        return {"device": str(device)}
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return {
        "device": torch.cuda.get_device_name(device),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(job: Job, device: torch.device) -> float:
    """Seconds of the first units and of compiling, fewer where PyTorch's cache on disk has what it compiled before.

    The memory of compiling and of trying kernels is given back.
    """
    start = time.perf_counter()
    job.run(WARM_UNITS)
    wait(device)
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return seconds


def timed(job: Job, device: torch.device, units: int) -> dict[str, float]:
    """One round: `units` untimed, as many timed."""
    for _ in ("untimed", "timed"):
        start = time.perf_counter()
        job.run(units)
        wait(device)
        seconds = time.perf_counter() - start
    return {"seconds": seconds}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("train", "sample"))
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--batch", type=int, help="images at a time, if not the size's own")
    parser.add_argument("--form", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous", help="memory format")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--fused", action="store_true", help="update all parameters in one loop")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    size = SIZES[arguments.size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = arguments.batch or size.batch_on(device.type, arguments.job)
    way = Way(device, arguments.form, LAYOUTS[arguments.layout], DTYPES[arguments.dtype], arguments.fused)
    facts = set_up(device)
    with compiling(way.form):
        if arguments.job == "train":
            job = train_job(size, batch, way)
        else:
            job = sampling_job(size, batch, way, arguments.sampler_steps)
        seconds = warm_up(job, device)
    hello = {
        "parameters": sum(parameter.numel() for parameter in job.network.parameters()),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "threads": torch.get_num_threads(),
        **facts,
        "form": arguments.form,
        "layout": arguments.layout,
        "dtype": arguments.dtype,
        **job.facts,
        "batch": batch,
        "warm_seconds": seconds,
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(job, device, int(line))), flush=True)


if __name__ == "__main__":
    main()
