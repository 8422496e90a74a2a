"""Sanity check of the maps by cascading weight randomisation: do they change when what the network learned is wiped?

Adebayo et al. 2018, arXiv:1810.03292, section 3.1: from the head to the stem, one block after another is given fresh
random weights, those before it staying random, and at each step the map of the originally diagnosed class is compared
with the original map. A map that stays as it was does not depend on what the network learned: it shows the picture's
edges, or the network's shape, whatever was trained.

How it is done here, where the paper leaves a choice:

- Convolutions get the initial values that the library gives a network to be trained.
- Batch norms of such a block get scale 1, shift 0 and the mean and variance of what flows through them over the
  pictures of this check. With statistics of the old weights, or with 0 and 1, the signal would explode or die out over
  the blocks, and the map would change for that reason alone.
- The head is drawn `HEADS` times and the similarity is the mean over them, since a single random direction can by
  accident resemble the learned one. Of each draw both signs are tried and the more similar map counts: the sign of a
  random direction is the toss of a coin, and without this the mean would be near 0 whatever the map shows. The draws
  are the same at each step and serve every class alike.
- Similarity is Spearman's rank correlation over the grid's places (maps are not negative, so there are no signs to
  take away), and SSIM (Wang et al. 2004) of the maps, each stretched to its own maximum as it is displayed.
"""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import nn

from panoramic.grad_cam import closed_form
from panoramic.model_file import Model
from panoramic.network import forward_with_activation, head_weight, restore
from panoramic.runtime_torch import Classifier
from training.errors import DatasetError, RunError

#: Below this, for rank correlation and for SSIM, with all weights random, a map counts as changed. Equal maps have 1;
#: unrelated ones have a little above 0, as the better of two signs counts.
CHANGED_BELOW = 0.5

#: How often the head is drawn, each time with both signs.
HEADS = 8

#: SSIM's window, places; smaller where the grid is.
WINDOW = 7

#: The cascade's first entry: nothing is random yet.
TRAINED = "as trained"


@dataclass(frozen=True, eq=False)
class Step:
    """The cascade after one more block became random.

    Attributes:
        name: The block; all earlier ones are random too.
        spearman: (N,) rank correlation of each picture's map with its original.
        ssim: (N,) their SSIM.
        first_map: (h, w) of the first picture, from the first of the heads.
    """

    name: str
    spearman: NDArray[np.float64]
    ssim: NDArray[np.float64]
    first_map: NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """Whether the map changes, and in words.

    Attributes:
        changes: Both similarities are below `CHANGED_BELOW` at the last step.
        sentence: The same for a person, with the numbers and the criterion.
    """

    changes: bool
    sentence: str


@dataclass(frozen=True, eq=False)
class Cascade:
    """All of a check.

    Attributes:
        steps: From `TRAINED` to all weights random.
        used: Which pictures of the batch; those whose original map is empty or even have nothing to compare.
        classes: (N,) of those pictures, the diagnosed class whose map is followed.
    """

    steps: tuple[Step, ...]
    used: tuple[int, ...]
    classes: tuple[int, ...]


def judge(spearman: Sequence[float], ssim: Sequence[float]) -> Verdict:
    """Judge a curve by its end.

    Args:
        spearman: Mean rank correlation with the original map, step by step.
        ssim: Mean SSIM, likewise.
    """
    last = spearman[-1], ssim[-1]
    changes = max(last) < CHANGED_BELOW
    numbers = f"rank correlation {last[0]:.2f} and SSIM {last[1]:.2f} with the original map"
    if changes:
        sentence = (
            f"The map changes as the weights do: with all of them random it has {numbers}, both below {CHANGED_BELOW}."
        )
    else:
        sentence = (
            f"The map does not change as the weights do: with all of them random it still has {numbers}, and both "
            f"must be below {CHANGED_BELOW}. It does not show what the network learned; do not rely on it."
        )
    return Verdict(changes, sentence)


def randomise(
    model: Model,
    batch: NDArray[np.float32],
    *,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> Cascade:
    """Run the cascade.

    Args:
        model: Stays as it is; a copy is made random.
        batch: (N, 3, h, w) from `panoramic.preprocess.prepare`.
        seed: Of all random weights; the same on every device.
        device: ``cpu``, ``cuda`` or ``cuda:0`` and so on.
        on_step: Called after each of `step_names`.

    Raises:
        DatasetError: No picture has a map to compare.
        RunError: The network's grid is too small to compare maps on.
        PanoramicError: No such device, or the network put out something infinite or not a number.
    """
    answers = Classifier(model, device=device).classify(batch)
    height, width = answers[0].cam.shape
    if min(height, width) < 3:
        raise RunError(
            f"the model's maps have {height}x{width} places, and at least 3x3 are needed to compare them; train one "
            "with a larger input size"
        )
    used = tuple(index for index, answer in enumerate(answers) if np.ptp(answer.cam) > 0)
    if not used:
        raise DatasetError(
            f"the maps of all {len(answers)} pictures are empty or the same everywhere, so that no change could show; "
            "give other pictures"
        )
    originals = np.stack([answers[index].cam for index in used])  # (N, h, w)
    net = restore(model.manifest.network, {name: tensor.clone() for name, tensor in model.state_dict.items()})
    fresh = _fresh_weights(net, seed=seed)
    heads = _random_heads(head_weight(net).shape[1], seed=seed).to(device)  # (R * signs, K)
    # All pictures go along, those without a map too: the batch norms' statistics are taken over them.
    x = torch.from_numpy(np.array(batch)).to(device)
    net = net.to(device)
    steps = [compare(TRAINED, originals, originals[None, None])]
    on_step()
    for name, modules in _blocks(net).items():
        for path, module in modules.items():
            module.load_state_dict(fresh[path])
            # In evaluation mode they would go on using statistics that belong to other weights.
            module.train(isinstance(module, nn.BatchNorm2d))
        with torch.inference_mode():
            _, activation = forward_with_activation(net, x)
            maps = torch.stack([closed_form(activation, heads, class_index=row) for row in range(len(heads))])
        by_draw = maps.cpu().numpy().reshape(HEADS, 2, *maps.shape[1:])  # (R, signs, N, h, w)
        steps.append(compare(name, originals, by_draw[:, :, list(used)]))
        on_step()
    return Cascade(tuple(steps), used, tuple(answers[index].class_index for index in used))


def step_names(model: Model) -> list[str]:
    """The cascade's steps for a model, `TRAINED` first."""
    return [TRAINED, *_blocks(restore(model.manifest.network, model.state_dict))]


def compare(name: str, originals: NDArray[np.float32], maps: NDArray[np.float32]) -> Step:
    """Compare the maps of a step with the originals.

    Args:
        name: The step's.
        originals: (N, h, w), none of them the same everywhere.
        maps: (R, S, N, h, w): the mean over R is taken of the largest over S.
    """

    def similarity(measure: Callable[[NDArray[np.float32], NDArray[np.float32]], float]) -> NDArray[np.float64]:
        each = [[[measure(a, b) for a, b in zip(originals, m, strict=True)] for m in of_draw] for of_draw in maps]
        return np.asarray(np.array(each).max(axis=1).mean(axis=0), np.float64)  # (R, S, N) to (N,)

    return Step(name, spearman=similarity(rank_correlation), ssim=similarity(map_ssim), first_map=maps[0, 0, 0])


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two maps (h, w), ties at their mean rank; 0 where one is the same everywhere."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def map_ssim(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """SSIM of two maps (h, w), not negative, each stretched to its own maximum; an empty one stays black."""
    smallest = min(a.shape)
    window = min(WINDOW, smallest if smallest % 2 else smallest - 1)
    stretched = [map_ / map_.max() if map_.max() > 0 else map_ for map_ in (a, b)]
    ssim = structural_similarity(*stretched, data_range=1.0, win_size=window)  # type: ignore[no-untyped-call]
    return float(ssim)


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_ranks[place], np.float64)


def _blocks(net: nn.Module) -> dict[str, dict[str, nn.Module]]:
    """The modules with weights by block, head to stem; blocks of an ensemble's members become random together."""
    found: dict[str, dict[str, nn.Module]] = {}
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            found.setdefault(_block_of(path), {})[path] = module
    # Modules come in the order of the forward pass, but for the head, whose weights stand in no module of their own.
    ordered = sorted(found, key=_depth, reverse=True)
    return {"head": {}} | {name: found[name] for name in ordered}


def _block_of(path: str) -> str:
    """``0._blocks.3._bn1`` is in block 4, counted as the paper of EfficientNet does."""
    if inside := re.search(r"(?:^|\.)_blocks\.(\d+)\.", path):
        return f"block {int(inside[1]) + 1}"
    return {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "last convolution", "_bn1": "last convolution"}[
        path.rsplit(".", 1)[-1]
    ]


def _depth(name: str) -> float:
    if name.startswith("block "):
        return float(name.removeprefix("block "))
    return 0.0 if name == "stem" else float("inf")


def _fresh_weights(net: nn.Module, *, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Initial values of every convolution and batch norm, drawn on the CPU; the caller's random numbers stay."""
    fresh = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                twin = deepcopy(module)
                twin.reset_parameters()
                fresh[path] = twin.state_dict()
    return fresh


def _random_heads(channels: int, *, seed: int) -> torch.Tensor:
    """Rows of linear layers at their initial values, each followed by its opposite, (2 * `HEADS`, K)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = nn.Linear(channels, HEADS).weight.detach()
    return torch.stack([rows, -rows], dim=1).flatten(end_dim=1)
