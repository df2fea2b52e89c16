"""The practitioner's script: a 2-D U-Net of MONAI with the recipe of its tutorials, timed in CPU s.

A peer of ``experiments.benchmarks.race``, which runs it in an environment with PyTorch and MONAI
(``pip install monai torch``): DynUNet of five scales, instance norm, leaky ReLU, Dice and
cross-entropy, AdamW at 1e-3 with a polynomial rate and 20 steps of warm-up, gradient norm clipped
at 12, windows of 256 x 256 in batches of two, flips, quarter turns, contrast, brightness, gamma and
noise; Gaussian-weighted sliding windows that overlap by a quarter.

    python -P experiments/benchmarks/monai_unet.py --split=split.npz --seconds=375 --out=monai_0
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet

EDGE, BATCH, WARMUP, CLIP, POWER = 256, 2, 20, 12.0, 0.9


def main() -> None:
    """Train, predict, and write labels and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--split", type=Path, required=True, help="volumes, as the race writes them"
    )
    parser.add_argument("--seconds", type=float, default=375.0, help="process CPU s of training")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and windows")
    parser.add_argument("--width", type=int, default=12, help="channels of the finest scale")
    parser.add_argument("--rate", type=float, default=1e-3, help="initial learning rate")
    parser.add_argument(
        "--out", type=Path, required=True, help="of labels (.npy) and times (.json)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    rng = np.random.default_rng(given.seed)
    split = np.load(given.split)
    images, labels = standardised(split["train_images"]), split["train_labels"].astype(np.int64)
    classes = int(labels.max()) + 1
    network = DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=classes,
        kernel_size=[3] * 5,
        strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4,
        filters=[given.width * 2**scale for scale in range(5)],
        norm_name=("INSTANCE", {"affine": True}),
    ).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), given.rate, weight_decay=1e-4)
    loss_of = DiceCELoss(include_background=True, to_onehot_y=True, softmax=True, batch=True)
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / given.seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = given.rate * (1 - done) ** POWER * min(1, (step + 1) / WARMUP)
        windows = [draw(rng, images, labels) for _ in range(BATCH)]
        x, y = (torch.from_numpy(np.stack(block)) for block in zip(*windows, strict=True))
        x = x[:, None].contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        loss_of(network(x), y[:, None]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        step += 1
    trained = time.process_time() - start
    found = predict(network, standardised(split["test_images"]))
    np.save(given.out.with_suffix(".npy"), found.astype(np.uint8))
    record = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": step,
        "training_cpu_s": trained,
        "all_cpu_s": time.process_time(),
    }
    given.out.with_suffix(".json").write_text(json.dumps(record))


def standardised(volume: np.ndarray) -> np.ndarray:
    """Return the volume with mean 0 and deviation 1."""
    volume = volume.astype(np.float32)
    return (volume - volume.mean()) / volume.std()


def draw(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A window [y, x] and its labels, flipped, turned and relit."""
    window = (1, EDGE, EDGE)
    z, y, x = (int(rng.integers(n - m + 1)) for n, m in zip(images.shape, window, strict=True))
    blocks = [volume[z, y : y + EDGE, x : x + EDGE] for volume in (images, labels)]
    turns = int(rng.integers(4))
    blocks = [np.rot90(block, turns) for block in blocks]
    if rng.random() < 0.5:
        blocks = [np.flip(block, 1) for block in blocks]
    image: Any = blocks[0].astype(np.float32)
    if rng.random() < 0.5:
        image = image * rng.uniform(0.75, 1.25)
    if rng.random() < 0.5:
        image = image + rng.uniform(-0.3, 0.3)
    if rng.random() < 0.3:
        low, extent = image.min(), float(np.ptp(image)) + 1e-6
        image = ((image - low) / extent) ** rng.uniform(0.7, 1.5) * extent + low
    if rng.random() < 0.2:
        image = image + rng.normal(0, rng.uniform(0, 0.15), image.shape)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(blocks[1])


def predict(network: torch.nn.Module, volume: np.ndarray) -> np.ndarray:
    """Labels [z, y, x], section by section."""
    network.eval()
    with torch.no_grad():
        planes = [
            sliding_window_inference(
                torch.from_numpy(plane)[None, None], (EDGE, EDGE), 1, network, 0.25, "gaussian"
            )[0].argmax(0)
            for plane in volume
        ]
    return torch.stack(planes).numpy()


if __name__ == "__main__":
    main()
