"""Trains the reader of the demo's pictures on fresh drawings, and writes its weights.

    python tests/reader/train_reader.py [--pictures 44000] [--minutes 12] [--drawings FILE] [--start FILE] [--out FILE]

One thread, bfloat16. Every drawing is disturbed anew each time it is seen, in the ways a small diffusion model is apt
to: moved and bent a little, softened, reduced and enlarged, compressed in blocks, noisy, its colours shifted. `nothing`
is taught with empty places, and with noise, plain colours, blurs and shuffled pieces. Seeds below 10**6 are for tests.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from PIL import Image
from reader import FIELDS, NOTHING, WEIGHTS, Network, Reader, as_pictures, right
from safetensors.torch import save_file
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import (
    BACKGROUNDS,
    ENLARGED,
    FRAMINGS,
    SIDE_PX,
    Description,
    any_description,
    draw,
)
from sd_atelier.lib.standalone.demo.figure import ACCESSORIES, EXPRESSIONS, POSES
from sd_atelier.lib.standalone.demo.scenes import Stage
from sd_atelier.lib.standalone.demo.species import COLOURS, SPECIES
from sd_atelier.lib.standalone.demo.style import printed
from torch import Tensor
from torch.nn import functional

SEED = 1_000_000
BATCH = 128
CLASSES: dict[str, list[str | None]] = {
    "who": [*SPECIES, *CHARACTERS, NOTHING],
    "colour": [*COLOURS],
    "pose": [*POSES],
    "expression": [*EXPRESSIONS],
    "accessory": [None, *ACCESSORIES],
    "background": [*BACKGROUNDS],
    "framing": [*FRAMINGS],
}
UNTOLD = -1  # a label that a picture does not have


def drawings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures [N, 64, 64, 3] and their labels [N, fields]: 6 % empty places, a tenth printed."""
    rng = random.Random(seed)
    pictures = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    labels = np.full((count, len(FIELDS)), UNTOLD, np.int64)
    people = [*SPECIES, *CHARACTERS]
    for n in range(count):
        description = any_description(rng, people[n % len(people)])
        empty = rng.random() < 0.06
        picture = empty_place(description, rng) if empty else draw(description, rng)
        is_print = rng.random() < 0.1
        pictures[n] = np.asarray(printed(picture) if is_print else picture)
        labels[n] = labels_of(description, empty, is_print)
    return pictures, labels


def labels_of(description: Description, empty: bool, is_print: bool) -> list[int]:
    """The places of the description's words in `CLASSES`."""
    words = {field: getattr(description, field) for field in FIELDS}
    untold = set()
    if empty:
        words["who"] = NOTHING
        untold = set(FIELDS) - {"who", "background"}
    if is_print or description.colour is None:
        untold.add("colour")
    if description.framing == "close-up":
        untold.add("pose")
    return [UNTOLD if field in untold else CLASSES[field].index(words[field]) for field in FIELDS]


def empty_place(description: Description, rng: random.Random) -> Image.Image:
    stage = Stage((SIDE_PX * ENLARGED, SIDE_PX * ENLARGED), rng)
    BACKGROUNDS[description.background].draw(stage)
    picture = stage.image if rng.random() < 0.5 else stage.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.reduce(ENLARGED)


def disturbed(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """Pictures [N, 3, H, W] in 0..1, in any order, as a model might have drawn them; an eighth stays as it is."""
    count = len(pictures)
    parts = list(bend(pictures[count // 8 :], dice).tensor_split(7))
    parts[0] = resampled(parts[0], SIDE_PX // 2, dice)
    parts[1] = resampled(parts[1], int(torch.randint(24, 56, (), generator=dice)), dice)
    parts[2] = blurred(parts[2], 0.4 + 0.8 * torch.rand((), generator=dice).item())
    parts[3] = blocky(parts[3], dice)
    parts[4] = sharpened(parts[4], dice)
    for n in (0, 3, 5):
        noise = torch.randn(parts[n].shape, generator=dice)
        parts[n] = parts[n] + 0.07 * torch.rand(len(noise), 1, 1, 1, generator=dice) * noise
    return torch.cat([pictures[: count // 8], recoloured(torch.cat(parts), dice)]).clamp(0, 1)


def recoloured(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """Saturation, contrast, lightness and the balance of the channels changed, by half, wholly, or not at all."""
    count = len(pictures)
    strength = torch.randint(0, 3, (count, 1, 1), generator=dice) / 2
    saturation = 1 + 0.25 * strength * spread(count, 1, dice)
    gains = (1 + 0.25 * strength * spread(count, 1, dice)) * (1 + 0.06 * strength * spread(count, 3, dice))
    lightness = strength * (0.05 * spread(count, 1, dice) + 0.03 * spread(count, 3, dice))
    mixing = saturation * torch.eye(3) + (1 - saturation) / 3
    return torch.baddbmm(lightness + 0.5 * (1 - gains), gains * mixing, pictures.flatten(2)).view_as(pictures)


def spread(count: int, channels: int, dice: torch.Generator) -> Tensor:
    """Uniform in -1..1: [count, channels, 1]."""
    return torch.rand(count, channels, 1, generator=dice) * 2 - 1


def bend(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """Moved by up to 3 px, scaled and turned a little, bent by a smooth field of some 2 px; half of them mirrored."""
    count = len(pictures)
    angle, scale = 0.1 * spread(count, 1, dice).flatten(), 1 + 0.08 * spread(count, 1, dice).flatten()
    mirror = torch.randint(0, 2, (count,), generator=dice) * 2 - 1
    move = 0.09 * spread(count, 2, dice).flatten(1)
    along, across = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([along * mirror, -across, move[:, 0], across * mirror, along, move[:, 1]], dim=1)
    grid = functional.affine_grid(rows.view(count, 2, 3), list(pictures.shape), align_corners=False)
    field = 0.06 * torch.randn(count, 2, 5, 5, generator=dice) * torch.rand(count, 1, 1, 1, generator=dice)
    field = functional.interpolate(field, size=SIDE_PX, mode="bilinear", align_corners=True)
    return functional.grid_sample(
        pictures, grid + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False
    )


def resampled(pictures: Tensor, side: int, dice: torch.Generator) -> Tensor:
    smaller = functional.interpolate(pictures, size=side, mode="bilinear", antialias=True)
    mode = ("nearest", "bilinear", "bicubic")[int(torch.randint(0, 3, (), generator=dice))]
    return functional.interpolate(smaller, size=SIDE_PX, mode=mode)


def blurred(pictures: Tensor, sigma_px: float) -> Tensor:
    places = torch.arange(SIDE_PX, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma_px) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    for _ in range(2):  # rows, then columns
        pictures = (pictures.reshape(-1, SIDE_PX) @ weights.T).view(pictures.shape).transpose(2, 3)
    return pictures


def sharpened(pictures: Tensor, dice: torch.Generator) -> Tensor:
    return pictures + torch.rand((), generator=dice) * (pictures - blurred(pictures, 1.0))


def blocky(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """Blocks of 8x8 px, their cosine waves rounded, the finer the coarser, as JPEG does."""
    k = torch.arange(8, dtype=torch.float32)
    waves = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) * 0.5
    waves[0] *= math.sqrt(0.5)
    step = (0.02 + 0.06 * torch.rand((), generator=dice)) * (1 + k + k[:, None])
    blocks = pictures.unflatten(3, (8, 8)).unflatten(2, (8, 8)).transpose(3, 4)
    values = torch.round(waves @ blocks @ waves.T / step) * step
    return (waves.T @ values @ waves).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def ruined(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """What shows nothing any more: noise, plain colours, great blurs, shuffled pieces, pictures under heavy noise."""
    noise, plain, vague, pieces, buried = pictures.tensor_split(5)
    noise = torch.randn(noise.shape, generator=dice)
    softened = [blurred(part, 0.5 + 3 * torch.rand((), generator=dice).item()) * 2 for part in noise[::2].split(1)]
    noise[::2] = torch.cat(softened)
    noise = 0.3 * noise + plain_colours(len(noise), dice)
    plain = plain_colours(len(plain), dice) + blurred(0.6 * torch.randn(plain.shape, generator=dice), 6.0)
    vague = blurred(vague, 5 + 8 * torch.rand((), generator=dice).item())
    side = 8 if torch.rand((), generator=dice) < 0.5 else 16
    tiles = functional.unfold(pieces, side, stride=side)
    tiles = tiles[:, :, torch.randperm(tiles.shape[2], generator=dice)]
    pieces = functional.fold(tiles, (SIDE_PX, SIDE_PX), side, stride=side)
    buried = 0.5 + 0.15 * (buried - 0.5) + 0.3 * torch.randn(buried.shape, generator=dice)
    return torch.cat([noise, plain, vague, pieces, buried]).clamp(0, 1)


def plain_colours(count: int, dice: torch.Generator) -> Tensor:
    return torch.rand(count, 3, 1, 1, generator=dice).expand(count, 3, SIDE_PX, SIDE_PX)


def train(network: Network, pictures: np.ndarray, labels: np.ndarray, minutes: float) -> tuple[Network, int]:
    """The mean of the network's weights over the last steps, after so many minutes, and the number of steps."""
    dice = torch.Generator().manual_seed(SEED)
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.02, betas=(0.9, 0.98))
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    weights = torch.tensor([2.0, 1.0, 1.0, 0.5, 1.0, 0.7, 0.7])
    order = torch.empty(0, dtype=torch.long)
    begun, step = time.monotonic(), 0
    while (part := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, part / 0.03) * 0.5 * (1 + math.cos(math.pi * part)) + 1e-6
        if len(order) < BATCH:
            order = torch.randperm(len(pictures), generator=dice)
        chosen, order = order[:BATCH], order[BATCH:]
        clean = torch.from_numpy(pictures[chosen.numpy()]).permute(0, 3, 1, 2).float() / 255
        aims = torch.from_numpy(labels[chosen.numpy()])
        num_ruined = BATCH // 20
        seen = disturbed(clean, dice)
        seen[:num_ruined] = ruined(clean[:num_ruined], dice)
        aims[:num_ruined] = UNTOLD
        aims[:num_ruined, 0] = CLASSES["who"].index(NOTHING)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(seen.contiguous(memory_format=torch.channels_last))
        losses = [
            functional.cross_entropy(scores.float(), aims[:, field], ignore_index=UNTOLD)
            for field, scores in enumerate(outputs)
        ]
        loss = (torch.stack(losses) * weights).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(network)
        if step % 50 == 0:
            shown = " ".join(f"{field} {value:.3f}" for field, value in zip(FIELDS, losses, strict=True))
            print(f"step {step}, {part:.0%}: {shown}", flush=True)
        step += 1
    return average.module, step


def accuracy(reader: Reader, count: int, seed: int, change=lambda pictures: pictures) -> dict[str, float]:
    """The share of drawings, all of figures, in which each field that their captions tell is read right."""
    rng = random.Random(seed)
    people = [*SPECIES, *CHARACTERS]
    descriptions = [any_description(rng, people[n % len(people)]) for n in range(count)]
    readings = reader.read(change(as_pictures([draw(d, rng) for d in descriptions])).clamp(0, 1))
    results = [right(r, d) for r, d in zip(readings, descriptions, strict=True)]
    return {f: round(float(np.mean([r[f] for r in results if f in r])), 4) for f in FIELDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=44_000)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--drawings", type=Path, help="a .npz file to keep the drawings in")
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the tails of the blurs: products with denormal numbers are many times slower
    if options.drawings and options.drawings.exists():
        kept = np.load(options.drawings)
        pictures, labels = kept["pictures"], kept["labels"]
    else:
        pictures, labels = drawings(options.pictures, SEED)
        if options.drawings:
            np.savez(options.drawings, pictures=pictures, labels=labels)
    print(f"{len(pictures)} drawings", flush=True)
    torch.manual_seed(SEED)
    network = Reader(options.start).network if options.start else Network([len(CLASSES[field]) for field in FIELDS])
    network, num_steps = train(network, pictures, labels, options.minutes)
    values = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    state = {name: value.half().contiguous() for name, value in values.items()}
    settings = {"seed": SEED, "pictures": len(pictures), "batch": BATCH, "steps": num_steps}
    metadata = {"classes": json.dumps(CLASSES), "settings": json.dumps(settings)}
    save_file(state, options.out, metadata)
    reader = Reader(options.out)
    measured = {
        "clean": accuracy(reader, 1100, 2_000_000),
        "half resolution": accuracy(reader, 550, 2_000_001, lambda p: resampled(p, SIDE_PX // 2, torch.Generator())),
        "blurred by 0.8 px": accuracy(reader, 550, 2_000_002, lambda p: blurred(p, 0.8)),
    }
    for name, values in measured.items():
        print(name, values)
    save_file(state, options.out, {**metadata, "accuracy": json.dumps(measured)})


if __name__ == "__main__":
    main()
