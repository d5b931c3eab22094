"""The same network from diffusers under PyTorch eager, timed in a process of its own.

Speaks JSON lines: first it says what it is, then for every line "n" it runs n steps untimed, n more, and
answers the seconds of the latter. Its environment is what the user's was before our own command line changed it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import diffusers
import torch
from _sizes import CLIP_NORM, EMA, LEARNING_RATE, NUM_IMAGES, SIZES, TIMESTEPS, WEIGHT_DECAY, Size


def make_network(size: Size) -> diffusers.UNet2DModel:
    """The UNet2DModel of a size: blocks with attention where the feature maps have that height."""
    side, colours = size.image
    heights = [side // 2**level for level in range(len(size.channels))]
    kinds = ["Attn" if height in size.attention else "" for height in heights]
    return diffusers.UNet2DModel(
        sample_size=side,
        in_channels=colours,
        out_channels=colours,
        block_out_channels=size.channels,
        layers_per_block=size.layers_per_block,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=8,
    )


def train_job(size: Size, device: torch.device) -> tuple[Callable[[int], None], torch.nn.Module]:
    """Training steps: gather, noise, loss, backward, clip, AdamW, exponential moving average."""
    network = make_network(size).to(device).train()
    side, colours = size.image
    images = torch.randint(0, 256, (NUM_IMAGES, colours, side, side), dtype=torch.uint8).to(device)
    betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0).float().to(device)
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(0, NUM_IMAGES, (size.batch,), device=device)
            x_0 = images[rows].float() / 127.5 - 1
            t = torch.randint(0, TIMESTEPS, (size.batch,), device=device)
            eps = torch.randn_like(x_0)
            signal = alpha_bar[t][:, None, None, None]
            x_t = signal.sqrt() * x_0 + (1 - signal).sqrt() * eps
            loss = torch.nn.functional.mse_loss(network(x_t, t).sample, eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - EMA)

    return run, network


def sampling_job(size: Size, device: torch.device, steps: int) -> tuple[Callable[[int], None], torch.nn.Module]:
    """Batches of images by DDIM, eta 0, x_0 clipped, zero terminal SNR."""
    network = make_network(size).to(device).eval()
    side, colours = size.image
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )
    scheduler.set_timesteps(steps)

    def run(batches: int) -> None:
        for _ in range(batches):
            with torch.no_grad():
                x = torch.randn((size.batch, colours, side, side), device=device)
                for t in scheduler.timesteps:
                    x = scheduler.step(network(x, t).sample, t, x).prev_sample
                ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    return run, network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("train", "sample"))
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--sampler-steps", type=int, default=10)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.job == "train":
        run, network = train_job(size, device)
    else:
        run, network = sampling_job(size, device, arguments.sampler_steps)
    hello = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        for _ in ("untimed", "timed"):
            start = time.perf_counter(), time.process_time()
            run(int(line))
            if device.type == "cuda":
                torch.cuda.synchronize()
            stop = time.perf_counter(), time.process_time()
        print(json.dumps({"seconds": stop[0] - start[0], "cpu": stop[1] - start[1]}), flush=True)


if __name__ == "__main__":
    main()
