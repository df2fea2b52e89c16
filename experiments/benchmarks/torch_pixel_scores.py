"""Scores of pixels in PyTorch and by baal, the peers of ``experiments.benchmarks.pixel_scores``.

All take the logits [n, 1 + passes, c, y, x] float32 of a network and of its stochastic passes, and
return columns [n] by name, large where in doubt. ``by_picture``: what the selectors of
nihalsid/ViewAL compute (after their description, not their text), all in one loop, and BALD, which
they lack, in their manner. ``by_chunk``: the same columns, many pictures at once. ``in_baal``: the
means that baal has.
"""

import importlib

import numpy as np
import torch

Columns = dict[str, np.ndarray]
Maps = dict[str, torch.Tensor]

# Values of a pixel above which the count counts, and above which the quantile's does.
LEVELS = {
    **{"entropy": (0.5, 0.3), "max_softmax": (0.3, 0.15), "margin": (0.6, 0.3)},
    **{"bald": (0.1, 0.02), "mean_entropy": (0.5, 0.3), "vote_entropy": (0.4, 0.1)},
}
HOWS = {measure: ("mean", f"count{level}", "quantile") for measure, (level, _) in LEVELS.items()}
NAMES = [f"{measure}:{how}" for measure, hows in HOWS.items() for how in hows]
CLASSES = 2
# Pictures that the loop takes through its network at once.
BATCH = 8


def _entropy_map(probabilities: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(probabilities.shape[1:])
    for p in probabilities:
        total = total - p * torch.log(p + 1e-12)
    return total


def _picture_maps(plain: torch.Tensor, passes: torch.Tensor, votes: torch.Tensor) -> Maps:
    """Maps of one picture: a class at a time, a sort for the margin."""
    array, most = plain.numpy(), plain.max(dim=0)[0]
    at = np.indices(array.shape)
    second = torch.from_numpy(array[array.argsort(0), at[1], at[2]][-2])
    whole = _entropy_map(passes.mean(dim=0))
    shares = [(votes == c).sum(dim=0, dtype=torch.float32) / len(votes) for c in range(CLASSES)]
    return {
        **{"entropy": _entropy_map(plain), "max_softmax": 1 - most, "margin": 1 - (most - second)},
        "bald": whole - torch.stack([_entropy_map(one) for one in passes]).mean(dim=0),
        **{"mean_entropy": whole, "vote_entropy": _entropy_map(torch.stack(shares))},
    }


def _chunk_maps(plain: torch.Tensor, passes: torch.Tensor, votes: torch.Tensor) -> Maps:
    """Maps of many pictures at once, nothing computed twice."""
    top, entr = plain.topk(2, dim=1)[0], torch.special.entr
    whole = entr(passes.mean(dim=1)).sum(dim=1)
    shares = torch.stack([(votes == c).float().mean(dim=1) for c in range(CLASSES)], dim=1)
    return {
        **{"entropy": entr(plain).sum(dim=1), "max_softmax": 1 - top[:, 0]},
        **{"margin": 1 - (top[:, 0] - top[:, 1]), "mean_entropy": whole},
        "bald": whole - entr(passes).sum(dim=2).mean(dim=1),
        "vote_entropy": entr(shares).sum(dim=1),
    }


def _summed(maps: Maps) -> torch.Tensor:
    """[columns] or [columns, pictures]."""
    found = []
    for name, levels in LEVELS.items():
        found.append(maps[name].mean(dim=(-2, -1)))
        found += [(maps[name] > level).float().mean(dim=(-2, -1)) for level in levels]
    return torch.stack(found)


def _parts(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax [b, c, y, x] of the network, [b, m, c, y, x] of the passes; votes [b, m, y, x]."""
    passes = batch[:, 1:]
    return batch[:, 0].softmax(dim=1), passes.softmax(dim=2), passes.argmax(dim=2)


def by_picture(x: np.ndarray) -> Columns:
    """All columns by a loop over pictures, ``BATCH`` of them through the network at once."""
    rows = []
    for batch in torch.from_numpy(x).split(BATCH):
        for picture in zip(*_parts(batch), strict=True):
            rows.append(_summed(_picture_maps(*picture)).numpy())
    return dict(zip(NAMES, np.stack(rows, axis=1), strict=True))


def by_chunk(x: np.ndarray, *, size: int) -> Columns:
    """All columns, ``size`` pictures at once."""
    batches = torch.from_numpy(x).split(size)
    found = torch.cat([_summed(_chunk_maps(*_parts(batch))) for batch in batches], dim=1)
    return dict(zip(NAMES, found.numpy(), strict=True))


def in_baal(x: np.ndarray, *, size: int) -> Columns:
    """The means that baal has, chunk by chunk; of probabilities, which it does not make again."""
    baal = importlib.import_module("baal.active.heuristics")
    kinds = {"entropy": baal.Entropy, "max_softmax": baal.Certainty, "margin": baal.Margin}
    kinds |= {"bald": baal.BALD, "mean_entropy": baal.Entropy}
    found: dict[str, list[np.ndarray]] = {f"{name}:mean": [] for name in kinds}
    for batch in torch.from_numpy(x).split(size):
        p = batch.softmax(dim=2).moveaxis(1, -1).numpy()
        for name, kind in kinds.items():
            part = p[..., 1:] if name in ("bald", "mean_entropy") else p[..., :1]
            sure = kind(reduction="mean").get_uncertainties(part)
            found[f"{name}:mean"].append(1 - sure if name in ("max_softmax", "margin") else sure)
    return {name: np.concatenate(parts) for name, parts in found.items()}
