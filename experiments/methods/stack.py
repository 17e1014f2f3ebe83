"""Many BERT classifiers of one shape that train side by side: each product runs once for all of them.

With one small model, a GPU mostly waits for kernel launches. With a stack, methods are compared over seeds in
minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


class Batch(NamedTuple):
    """Rows of every seed: token ids, token types and mask, int64 (S, B, T)."""

    ids: Tensor
    types: Tensor
    mask: Tensor


class Stack:
    """M classifiers that share their embeddings, which are not trained.

    Attributes:
        weights: float32 (M, N), the encoder's matrices of every model, one after the other, layer by layer.
        rest: name -> float32 (M, ...): biases, LayerNorms, pooler and classifier.
        sizes: numbers of weights of the matrices; they add up to N.
        seed_of: int64 (M,), the seed whose rows of a batch a model gets.
    """

    def __init__(self, models: Sequence[PreTrainedModel], seed_of: Sequence[int], device: torch.device) -> None:
        self.config = models[0].config
        self.embeddings = models[0].bert.embeddings.to(device).eval()
        self.seed_of = torch.tensor(seed_of, device=device)
        states = [model.state_dict() for model in models]
        names = [f"bert.encoder.layer.{i}.{m}" for i in range(self.config.num_hidden_layers) for m in MATRICES]
        self._shapes = [tuple(states[0][f"{name}.weight"].shape) for name in names]
        self.sizes = [rows * columns for rows, columns in self._shapes]
        flat = [torch.cat([state[f"{name}.weight"].reshape(-1) for name in names]) for state in states]
        self.weights = torch.stack(flat).to(device).requires_grad_()
        matrices = {f"{name}.weight" for name in names}
        others = [n for n in states[0] if n not in matrices and not n.startswith("bert.embeddings")]
        self.rest = {n: torch.stack([s[n] for s in states]).to(device).requires_grad_() for n in others}

    def taken(self, which: Sequence[int], seed_of: Sequence[int]) -> Stack:
        """A stack of copies of some of the models."""
        other = object.__new__(Stack)
        other.config, other.embeddings, other._shapes, other.sizes = (
            self.config,
            self.embeddings,
            self._shapes,
            self.sizes,
        )
        other.seed_of = torch.tensor(seed_of, device=self.weights.device)
        other.weights = self.weights.detach()[list(which)].clone().requires_grad_()
        other.rest = {n: each.detach()[list(which)].clone().requires_grad_() for n, each in self.rest.items()}
        return other

    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [self.weights, *self.rest.values()]

    def matrix(self, number: int, values: Tensor | None = None) -> Tensor:
        """One matrix of the first model (outputs, inputs): of its weights, or of other `values` (1, N)."""
        values = self.weights.data if values is None else values
        return values[0].split(self.sizes)[number].view(self._shapes[number])

    def bias(self, number: int) -> Tensor:
        """The bias (outputs,) of this matrix."""
        layer, name = divmod(number, len(MATRICES))
        return self.rest[f"bert.encoder.layer.{layer}.{MATRICES[name]}.bias"].data[0]

    def logits(
        self,
        batch: Batch,
        product: Tensor,
        training: bool = False,
        see: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Logits of all models.

        Args:
            batch: rows of every seed.
            product: (M, N), the weights to compute with, such as masked ones.
            training: use dropout, at the configuration's rates.
            see: called with the number of each matrix and its input (M, B * T, columns).

        Returns:
            float32 (M, B, classes).
        """
        config = self.config
        with torch.no_grad():
            flat = [each.flatten(0, 1) for each in batch]
            embedded = self.embeddings(input_ids=flat[0], token_type_ids=flat[1])
        states = embedded.unflatten(0, batch.ids.shape[:2])[self.seed_of]
        states = F.dropout(states, config.hidden_dropout_prob, training)
        allowed = batch.mask[self.seed_of].flatten(0, 1)[:, None, None].bool()
        parts = product.split(self.sizes, dim=1)

        def linear(number: int, name: str, x: Tensor) -> Tensor:
            x = x.flatten(1, 2)
            if see:
                see(number, x)
            weight = parts[number].unflatten(1, self._shapes[number])
            return torch.baddbmm(self.rest[f"{name}.bias"][:, None], x, weight.transpose(1, 2)).unflatten(
                1, batch.ids.shape[1:]
            )

        for layer in range(config.num_hidden_layers):
            name, first = f"bert.encoder.layer.{layer}", layer * len(MATRICES)
            query, key, value = (
                linear(first + k, f"{name}.{MATRICES[k]}", states)
                .unflatten(-1, (config.num_attention_heads, -1))
                .flatten(0, 1)
                .transpose(1, 2)
                for k in range(3)
            )
            rate = config.attention_probs_dropout_prob if training else 0.0
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=rate)
            context = context.transpose(1, 2).flatten(2).unflatten(0, states.shape[:2])
            attended = self._joined(
                f"{name}.attention.output", linear(first + 3, f"{name}.{MATRICES[3]}", context), states, training
            )
            inner = F.gelu(linear(first + 4, f"{name}.{MATRICES[4]}", attended))
            states = self._joined(
                f"{name}.output", linear(first + 5, f"{name}.{MATRICES[5]}", inner), attended, training
            )
        pooled = torch.tanh(self._dense("bert.pooler.dense", states[:, :, 0]))
        return self._dense("classifier", F.dropout(pooled, config.hidden_dropout_prob, training)).float()

    def _joined(self, name: str, new: Tensor, old: Tensor, training: bool) -> Tensor:
        total = F.dropout(new, self.config.hidden_dropout_prob, training) + old
        normed = F.layer_norm(total.float(), total.shape[-1:], eps=self.config.layer_norm_eps)
        gain, bias = (self.rest[f"{name}.LayerNorm.{each}"][:, None, None] for each in ("weight", "bias"))
        return normed * gain + bias

    def _dense(self, name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(self.rest[f"{name}.bias"][:, None], x, self.rest[f"{name}.weight"].transpose(1, 2))
