"""Hidden-state distillation: which layers are compared, and how.

The losses are those of TinyBERT (Jiao et al. 2020, arXiv 1909.10351; squared error, a learned projection when the
student is narrower) and of DistilBERT (Sanh et al. 2019, arXiv 1910.01108; cosine).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emmental.errors import UserError
from emmental.runs.evaluation import model_inputs
from emmental.runs.precision import Precision
from emmental.teaching.losses import cosine_distance


def layer_map(student_layers: int, teacher_layers: int, by_hand: Sequence[int] | None = None) -> list[int]:
    """The teacher's layer that each of the student's layers imitates; layers count from 1, and 0 means none.

    By default they are spread evenly, and the last imitates the last.

    Raises:
        UserError: `by_hand` does not have one number for each layer of the student, or names no layer of the teacher.
    """
    if by_hand is None:
        return [max(1, round(layer * teacher_layers / student_layers)) for layer in range(1, student_layers + 1)]
    if len(by_hand) != student_layers:
        raise UserError(
            f"--teacher_layers takes {student_layers} numbers, one a layer of the student, not {len(by_hand)}"
        )
    if max(by_hand) > teacher_layers or max(by_hand) < 1:
        raise UserError(
            f"--teacher_layers accepts 1 to {teacher_layers}, the teacher's layers, and 0 for none (not all of them), "
            f"not {', '.join(map(str, by_hand))}"
        )
    return list(by_hand)


class TeacherStates:
    """The teacher's hidden states, computed for every batch.

    Args:
        teacher: a frozen model in evaluation mode.
        layers: which of its layers are compared, from 1.
        precision: of its forward pass.
    """

    def __init__(self, teacher: nn.Module, layers: Sequence[int], precision: Precision) -> None:
        self.teacher = teacher
        self.layers = list(layers)
        self.precision = precision

    @torch.no_grad()
    def of(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """(B, T, H) on the batch's device, for each layer of the teacher that is compared."""
        with self.precision.autocast():
            inputs = model_inputs(batch, batch["input_ids"].device, self.teacher)
            states = self.teacher(**inputs, output_hidden_states=True).hidden_states
        return [states[layer] for layer in self.layers]


class HiddenStateMatch:
    """Compares the student's hidden states with the teacher's.

    Args:
        states: the teacher's, for the layers in `layers` that are not 0, each once and in ascending order.
        layers: for each of the student's layers the teacher's, from 1; 0 for none.
        projection: from the student's width to the teacher's.
    """

    def __init__(self, states: TeacherStates, layers: Sequence[int], projection: nn.Module) -> None:
        self.states = states
        self.layers = list(layers)
        self.projection = projection
        self._column = {layer: column for column, layer in enumerate(compared_layers(layers))}

    def losses(self, hidden_states: Sequence[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the compared layers and each row's attended tokens.

        Args:
            hidden_states: of the student, projected: the embeddings and each layer's output, (B, T, H).
            batch: what the student was given.

        Returns:
            "hidden_cos": 1 - cosine, and "hidden_mse": squared difference, mean over H; (B,) each.
        """
        known = self.states.of(batch)
        pairs = [
            (hidden_states[layer].float(), known[self._column[target]].float())
            for layer, target in enumerate(self.layers, 1)
            if target
        ]
        attended = batch["attention_mask"]
        cosines = [_row_means(cosine_distance(ours, theirs), attended) for ours, theirs in pairs]
        squares = [_row_means((ours - theirs).square().mean(-1), attended) for ours, theirs in pairs]
        return {"hidden_cos": torch.stack(cosines).mean(0), "hidden_mse": torch.stack(squares).mean(0)}


class ProjectedStudent(nn.Module):
    """A student that gives its hidden states too, projected to the teacher's width.

    Args:
        student: a classifier.
        projection: see `HiddenStateMatch`.
    """

    def __init__(self, student: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.projection = projection

    def forward(self, **inputs: Tensor) -> Any:
        """The student's outputs, `hidden_states` projected."""
        outputs = self.student(**inputs, output_hidden_states=True)
        outputs.hidden_states = tuple(self.projection(states) for states in outputs.hidden_states)
        return outputs


def compared_layers(layers: Sequence[int]) -> list[int]:
    """The teacher's layers that occur in a map, each once, in ascending order."""
    return sorted({layer for layer in layers if layer})


def projection_between(student_width: int, teacher_width: int, seed: int) -> nn.Module:
    """The identity for equal widths, else a linear map without bias; one seed always gives the same one."""
    if student_width == teacher_width:
        return nn.Identity()
    projection = nn.Linear(student_width, teacher_width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        projection.weight.normal_(std=student_width**-0.5, generator=generator)
    return projection


def _row_means(values: Tensor, attended: Tensor) -> Tensor:
    return (values * attended).sum(1) / attended.sum(1).clamp(min=1)
