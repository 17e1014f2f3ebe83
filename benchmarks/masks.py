"""Time to make the masks of a whole encoder, by method, and the numbers of weights kept and promised.

python -m benchmarks.masks --layers 12 --hidden 768
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.arguments import parser
from benchmarks.measurements import report, table, timed
from emmental.command_line import leave_if
from emmental.methods import METHODS, PRUNING_METHODS
from emmental.modules import MaskedLinear
from emmental.modules.binarizer import count_kept
from emmental.patching import masked_layers
from emmental.pruning import global_threshold, renew_masks


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--layers", type=int, default=12, help="layers of the encoder")
    made.add_argument("--hidden", type=int, default=768, help="its hidden size; the feed-forward has four times that")
    made.add_argument("--density", type=float, default=0.15, help="share of weights kept")
    made.add_argument("--repeats", type=int, default=5, help="timed repetitions of each method")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print a table, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    sound = 0 < options.density < 1 and min(options.layers, options.hidden, options.repeats, options.threads) >= 1
    leave_if([] if sound else ["--density accepts numbers between 0 and 1, the others numbers from 1"], "masks.py")
    torch.set_num_threads(options.threads)
    masks = {method: measured(options, method) for method in PRUNING_METHODS}
    masks["topK global"] = measured(options, "topK", together=True)
    masks["topK by torch.sort"] = by_sorting(options)
    rows = (
        [name, f"{row['scores'] / 1e6:.1f}", row["seconds"].text(1e3, 1), str(row["kept"]), str(row["promised"] or "")]
        for name, row in masks.items()
    )
    shown = table(["masks of one update", "10^6 scores", "ms (quartiles)", "kept", "promised"], rows)
    return report(options, {"options": vars(options), "masks": masks}, shown)


def measured(options: argparse.Namespace, method: str, together: bool = False) -> dict[str, Any]:
    """Seconds for the masks of all layers. `together`: with one new threshold for all matrices."""
    model = encoder(options, method)
    tau = 1 - 2 * options.density
    threshold = {"threshold": tau, "sigmoied_threshold": 1 / (1 + 2.718281828459045**-tau)}.get(
        method, options.density
    )

    def make() -> None:
        renew_masks(model, threshold, global_threshold(model, threshold) if together else None, noise_seed=1)
        _finish(options)

    seconds = timed(make, options.repeats)
    sizes = [layer.weight.numel() for layer in masked_layers(model).values()]
    promised = None
    if together:
        promised = count_kept(options.density, sum(sizes))
    elif METHODS[method].by_share:
        promised = sum(count_kept(options.density, size) for size in sizes)
    kept = sum(int(torch.count_nonzero(layer.mask)) for layer in masked_layers(model).values())
    return {"scores": sum(sizes), "seconds": seconds, "kept": kept, "promised": promised}


def by_sorting(options: argparse.Namespace) -> dict[str, Any]:
    """The masks of topK, made by sorting all scores of every matrix, as in the reference implementation."""
    scores = [layer.mask_scores.detach() for layer in masked_layers(encoder(options, "topK")).values()]
    keep = [count_kept(options.density, matrix.numel()) for matrix in scores]
    masks: list[torch.Tensor] = []

    def make() -> None:
        masks.clear()
        for matrix, kept in zip(scores, keep, strict=True):
            order = torch.sort(matrix.reshape(-1), descending=True).indices
            masks.append(torch.zeros_like(matrix).view(-1).index_fill_(0, order[:kept], 1.0))
        _finish(options)

    seconds = timed(make, 1, warmup=0)
    kept = sum(int(mask.sum()) for mask in masks)
    return {"scores": sum(s.numel() for s in scores), "seconds": seconds, "kept": kept, "promised": sum(keep)}


def encoder(options: argparse.Namespace, method: str) -> nn.ModuleList:
    """The masked matrices of an encoder, scores uniform in [-1, 1]."""
    torch.manual_seed(0)
    hidden = options.hidden
    shapes = [*[(hidden, hidden)] * 4, (hidden, 4 * hidden), (4 * hidden, hidden)] * options.layers
    make: Callable[..., MaskedLinear] = MaskedLinear
    return nn.ModuleList(
        make(*shape, pruning_method=method, mask_init="uniform", mask_scale=1.0, device=options.device)
        for shape in shapes
    ).train()


def _finish(options: argparse.Namespace) -> None:
    if options.device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
