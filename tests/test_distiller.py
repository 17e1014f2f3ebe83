"""TaskDistiller: losses by hand, masks and boundaries made when they are due, one way from loss to update."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, BertForSequenceClassification

import distiller
from distiller import Distiller, TaskDistiller
from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.methods.movement import Movement
from emmental.patching import drop_masks, masked_layers
from emmental.pruning import densities, remaining_weights
from emmental.runs.evaluation import predict_logits
from emmental.runs.optimization import Learner
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes
from emmental.training.plan import Plan, plan_updates


@pytest.fixture
def make_distiller(make_args, bert_dir) -> Callable[..., TaskDistiller]:
    """A distiller of the tiny model, its scores drawn at random; keywords are flags."""

    def make(
        teacher_logits: torch.Tensor | None = None, num_labels: int = 2, rows: int = 80, **flags: object
    ) -> TaskDistiller:
        args = make_args(**{"learning_rate": 1e-2, "warmup_steps": 0, "max_grad_norm": 0, **flags})
        torch.manual_seed(0)
        dense = AutoConfig.from_pretrained(bert_dir)
        if args.model_type == "bert":
            model = BertForSequenceClassification.from_pretrained(bert_dir)
        else:
            masking = {"pruning_method": args.pruning_method, "mask_init": "kaiming", "num_labels": num_labels}
            model = MaskedBertForSequenceClassification.from_pretrained(
                bert_dir, config=MaskedBertConfig.from_dense(dense, **masking), ignore_mismatched_sizes=True
            )
        return TaskDistiller(args, model.train(), plan_updates(args, rows, 1), teacher_logits)

    return make


def logits_of(task_distiller: TaskDistiller, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """The student's logits with the masks in use, float64."""
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        return task_distiller.student(**inputs).logits.double().numpy()


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cross_entropies(logits: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    return -np.log(softmax(logits)[np.arange(len(labels)), labels.numpy()])


def divergences(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * np.log(p / q)).sum(-1) * temperature**2


def without_update(task_distiller: TaskDistiller, batch: dict[str, torch.Tensor], *arguments: float) -> dict:
    """The losses of a step that is the first of two micro-batches, so that parameters stay."""
    task_distiller.begin_update(2)
    assert task_distiller.step(batch, *arguments) is False
    return {name: value.item() for name, value in task_distiller.losses.items()}


class TestLosses:
    def test_cross_entropy_alone(self, make_distiller, make_features):
        task_distiller, batch = make_distiller(), make_features().batch([0, 3, 5, 6])
        losses = without_update(task_distiller, batch, 0.5, 0.0)
        expected = cross_entropies(logits_of(task_distiller, batch), batch["labels"]).mean()
        assert losses == {"ce": pytest.approx(expected, rel=1e-5), "total": pytest.approx(expected, rel=1e-5)}

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
    def test_distillation(self, make_distiller, make_features, temperature):
        """Rows find their teacher's logits by their index in the training set."""
        teacher = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)) * 3
        flags = {"alpha_ce": 0.3, "alpha_distil": 0.9, "temperature": temperature}
        task_distiller = make_distiller(teacher, teacher_name_or_path="unused", **flags)
        batch = make_features().batch([7, 0, 4])
        losses = without_update(task_distiller, batch, 0.5, 0.0)
        logits = logits_of(task_distiller, batch)
        ce = cross_entropies(logits, batch["labels"]).mean()
        distil = divergences(logits, teacher[[7, 0, 4]].double().numpy(), temperature).mean()
        assert losses["ce"] == pytest.approx(ce, rel=1e-5)
        assert losses["distil"] == pytest.approx(distil, rel=1e-4)
        assert losses["total"] == pytest.approx(0.3 * ce + 0.9 * distil, rel=1e-4)

    def test_a_student_that_agrees_with_its_teacher_loses_nothing(self, make_distiller, make_features):
        batch = make_features().batch(range(6))
        teacher = torch.zeros(10, 2)
        task_distiller = make_distiller(teacher)
        without_update(task_distiller, batch, 0.5, 0.0)
        teacher[:6] = torch.from_numpy(logits_of(task_distiller, batch)).float()
        task_distiller.step(batch, 0.5, 0.0)
        assert task_distiller.losses["distil"].item() == pytest.approx(0.0, abs=1e-6)

    def test_regression(self, make_distiller, make_features):
        """Squared errors, to the label and to the teacher's prediction; neither is a divergence that is always 0."""
        teacher = torch.linspace(0, 5, 10)[:, None]
        task_distiller = make_distiller(teacher, num_labels=1, task="sts-b", alpha_ce=0.25, alpha_distil=0.75)
        batch = make_features("sts-b").batch([1, 2, 8])
        losses = without_update(task_distiller, batch, 0.5, 0.0)
        scores = logits_of(task_distiller, batch)[:, 0]
        ce = ((scores - batch["labels"].numpy()) ** 2).mean()
        distil = ((scores - teacher[[1, 2, 8], 0].numpy()) ** 2).mean()
        assert distil > 0.1
        assert losses["ce"] == pytest.approx(ce, rel=1e-5)
        assert losses["distil"] == pytest.approx(distil, rel=1e-5)
        assert losses["total"] == pytest.approx(0.25 * ce + 0.75 * distil, rel=1e-5)

    @pytest.mark.parametrize(("mode", "shift"), [("l1", 0.0), ("l0", 2 / 3 * math.log(0.1 / 1.1))])
    def test_regularization(self, make_distiller, make_features, mode, shift):
        flags = {"pruning_method": "sigmoied_threshold", "initial_threshold": 0.0, "final_threshold": 0.1}
        task_distiller = make_distiller(regularization=mode, final_lambda=30.0, **flags)
        batch = make_features().batch([0, 1])
        losses = without_update(task_distiller, batch, 0.05, 15.0)
        scores = [
            layer.mask_scores.detach().double().numpy() for layer in masked_layers(task_distiller.student).values()
        ]
        penalty = np.mean([(1 / (1 + np.exp(shift - matrix))).mean() for matrix in scores])
        assert losses["regularization"] == pytest.approx(penalty, rel=1e-5)
        assert losses["total"] == pytest.approx(losses["ce"] + 15.0 * penalty, rel=1e-5)

    def test_rows_that_fill_a_batch_do_not_count(self, make_distiller, make_features):
        """Three rows and a repeat of weight 0 give the loss and the gradients of the three rows."""
        dataset = make_features()
        with_filler, without = make_distiller(), make_distiller()
        batch = dataset.batch([2, 3, 4, 2], np.array([4 / 3, 4 / 3, 4 / 3, 0.0], np.float32))
        filled = without_update(with_filler, batch, 0.5, 0.0)
        plain = without_update(without, dataset.batch([2, 3, 4]), 0.5, 0.0)
        assert filled["total"] == pytest.approx(plain["total"], rel=1e-6)
        for a, b in zip(with_filler.student.parameters(), without.student.parameters(), strict=True):
            assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6)

    def test_a_dense_student_needs_no_threshold(self, make_distiller, make_features):
        task_distiller = make_distiller(model_type="bert")
        assert task_distiller.plan.at(1) == (None, 0.0)
        before = task_distiller.student.classifier.weight.detach().clone()
        assert task_distiller.step(make_features().batch([0, 1]), None, 0.0) is True
        assert set(task_distiller.losses) == {"ce", "total"}
        assert not torch.equal(task_distiller.student.classifier.weight, before)


class TestMasks:
    def test_made_once_an_update(self, make_distiller, make_features, monkeypatch):
        calls = []
        original = Movement.mask_at
        monkeypatch.setattr(Movement, "mask_at", lambda *a: calls.append(1) or original(*a))
        task_distiller, dataset = make_distiller(), make_features()
        for update in range(1, 4):
            task_distiller.begin_update(3)
            for _ in range(3):
                task_distiller.step(dataset.batch([0, 1]), 0.5, 0.0)
            assert len(calls) == 12 * update
        assert task_distiller.global_step == 3

    def test_the_threshold_of_the_update_is_the_one_in_use(self, make_distiller, make_features):
        task_distiller, batch = make_distiller(), make_features().batch([0, 1])
        for threshold in (1.0, 0.5, 0.25):
            task_distiller.step(batch, threshold, 0.0)
            assert {layer.threshold for layer in masked_layers(task_distiller.student).values()} == {threshold}
            assert task_distiller.student.config.threshold == threshold
            assert remaining_weights(task_distiller.student) == 100 * threshold

    def test_l0_noise_follows_seed_and_update_so_that_ranks_agree(self, make_distiller, make_features):
        def gates(seed: int, updates: int) -> torch.Tensor:
            task_distiller = make_distiller(
                pruning_method="l0", seed=seed, learning_rate=0, mask_scores_learning_rate=0
            )
            torch.manual_seed(seed + updates)  # the global generator must not matter
            for _ in range(updates):
                task_distiller.step(make_features().batch([0, 1]), None, 0.0)
            return next(iter(masked_layers(task_distiller.student).values())).kept_mask

        assert torch.equal(gates(1, 2), gates(1, 2))
        assert not torch.equal(gates(1, 1), gates(1, 2))
        assert not torch.equal(gates(1, 1), gates(2, 1))

    @pytest.mark.parametrize("method", ["topK", "sigmoied_threshold", "l0"])
    def test_compiled_twice_and_not_for_thresholds_or_masks(self, make_distiller, make_features, monkeypatch, method):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
        weights = []
        flags = {"initial_threshold": 0.0, "final_threshold": 0.1} if method == "sigmoied_threshold" else {}
        for compiled in (False, True):
            task_distiller, dataset = (
                make_distiller(pruning_method=method, torch_compile=compiled, **flags),
                make_features(dev=40),
            )
            for layer in task_distiller.student.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0
            shortest_first = np.argsort(dataset.lengths, kind="stable")
            for update, threshold in enumerate((1.0, 0.9, 0.7, 0.5, 0.3)):
                batch = dataset.batch(shortest_first[8 * update :][:8].tolist())
                task_distiller.step(batch, threshold, 0.0)
            weights.append(torch.cat([value.flatten() for value in task_distiller.student.parameters()]).detach())
        assert counter.frame_count == 2
        logits = predict_logits(task_distiller.student, dataset, 8, Processes(), Precision(torch.device("cpu")))
        assert counter.frame_count <= 4  # masks are made outside of what is compiled
        plain = copy.deepcopy(task_distiller.student)
        plain._compiled_call_impl = None
        expected = predict_logits(plain, dataset, 8, Processes(), Precision(torch.device("cpu")))
        assert torch.allclose(logits, expected, atol=1e-5)
        # Adam follows the sign of a gradient: a few entries whose gradient is only rounding go elsewhere.
        apart = (weights[0] - weights[1]).abs() > 2e-5
        assert apart.float().mean() < 0.005


class TestGlobalTopK:
    @pytest.fixture
    def make(self, make_distiller) -> Callable[..., TaskDistiller]:
        def make(**flags: object) -> TaskDistiller:
            settings = {
                "global_topk": True,
                "max_steps": 10,
                "final_threshold": 0.2,
                "global_topk_frequency_compute": 3,
            }
            return make_distiller(**{**settings, "warmup_steps": 1, **flags})

        return make

    @staticmethod
    def run(task_distiller: TaskDistiller, batch: dict[str, torch.Tensor], updates: int) -> list[float]:
        """Updates at the plan's thresholds; remaining weights in % during each."""
        remaining = []
        for _ in range(updates):
            threshold, regu_lambda = task_distiller.plan.at(task_distiller.global_step + 1)
            task_distiller.begin_update(2)
            task_distiller.step(batch, threshold, regu_lambda)
            remaining.append(remaining_weights(task_distiller.student))
            task_distiller.step(batch, threshold, regu_lambda)
        return remaining

    def test_the_threshold_is_computed_when_due_and_where_the_end_begins(self, make, make_features, monkeypatch):
        """Every third update; 9, the first of the last two; and after the last, for the finished model."""
        computed = []
        original = distiller.global_threshold

        def recorded(model: nn.Module, fraction: float) -> tuple[float, list[int]]:
            computed.append((task_distiller.global_step + 1, fraction))
            return original(model, fraction)

        monkeypatch.setattr(distiller, "global_threshold", recorded)
        task_distiller = make()
        assert task_distiller.plan.constant_end == 2
        self.run(task_distiller, make_features().batch([0, 1]), 10)
        assert [update for update, _ in computed] == [1, 4, 7, 9, 10, 11]
        assert computed == [(update, task_distiller.plan.at(update)[0]) for update, _ in computed]
        assert [fraction for _, fraction in computed[-3:]] == [0.2, 0.2, 0.2]

    @pytest.mark.parametrize("method", ["topK", "threshold"])
    def test_the_share_of_each_due_update_is_exact_and_of_all_matrices_together(self, make, make_features, method):
        task_distiller = make(pruning_method=method)
        remaining = self.run(task_distiller, make_features().batch([0, 1]), 10)
        weights = sum(layer.weight.numel() for layer in masked_layers(task_distiller.student).values())
        for update in (1, 4, 7, 9, 10):
            kept = math.floor(task_distiller.plan.at(update)[0] * weights)
            assert remaining[update - 1] == pytest.approx(100 * kept / weights), update
        assert remaining[0] == remaining[1] == 100.0
        assert len(set(densities(task_distiller.student).values())) > 1

    def test_the_finished_model_keeps_exactly_its_share(self, make, make_features):
        task_distiller = make()
        self.run(task_distiller, make_features().batch([0, 1]), 10)
        weights = sum(layer.weight.numel() for layer in masked_layers(task_distiller.student).values())
        assert remaining_weights(task_distiller.student) == pytest.approx(100 * math.floor(0.2 * weights) / weights)
        assert task_distiller.student.config.global_boundary == [
            task_distiller.global_threshold[0],
            list(task_distiller.global_threshold[1]),
        ]

    def test_a_resumed_run_has_the_threshold_of_the_run_before(self, make, make_features):
        """Interrupted after update 5, between two computations of the threshold."""
        batch = make_features().batch([0, 1, 2])
        straight, first, second = make(), make(), make()
        self.run(straight, batch, 8)
        self.run(first, batch, 5)
        saved = json.loads(json.dumps(first.state_dict(), allow_nan=False))
        second.student.load_state_dict(copy.deepcopy(first.student.state_dict()))
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        second.load_state_dict(saved)
        assert second.global_threshold == first.global_threshold
        drop_masks(first.student)  # those of update 5, from the scores before it
        assert remaining_weights(second.student) == remaining_weights(first.student)
        self.run(second, batch, 3)
        for name, parameter in straight.student.named_parameters():
            assert torch.equal(parameter, dict(second.student.named_parameters())[name]), name

    def test_without_it_every_matrix_keeps_the_same_share(self, make, make_features):
        task_distiller = make(global_topk=False)
        self.run(task_distiller, make_features().batch([0, 1]), 10)
        task_distiller.keep_exact_masks()
        assert task_distiller.global_threshold is None
        assert max(densities(task_distiller.student).values()) == pytest.approx(0.2, abs=0.01)
        assert min(densities(task_distiller.student).values()) == pytest.approx(0.2, abs=0.01)


class TestOneWay:
    def test_both_distillers_share_one_implementation(self):
        for name in ("optimize", "begin_update", "micro_batch", "check_finite", "learning_rates"):
            assert getattr(TaskDistiller, name) is getattr(Distiller, name) is getattr(Learner, name)

    def test_a_step_hands_its_total_to_optimize_once(self, make_distiller, make_features, monkeypatch):
        handed = []

        def optimize(self: Learner, loss: torch.Tensor) -> bool:
            handed.append(loss)
            return True

        monkeypatch.setattr(Learner, "optimize", optimize)
        task_distiller = make_distiller()
        assert task_distiller.step(make_features().batch([0, 1]), 0.5, 0.0) is True
        assert len(handed) == 1
        assert handed[0] is task_distiller.losses["total"]

    def test_micro_batches_add_up_to_the_big_batch(self, make_distiller, make_features):
        dataset = make_features()
        whole, parts = make_distiller(), make_distiller()
        for update in range(3):
            rows = [(4 * update + i) % 10 for i in range(4)]
            whole.step(dataset.batch(rows), 0.5, 0.0)
            parts.begin_update(2)
            parts.step(dataset.batch(rows[:2]), 0.5, 0.0)
            parts.step(dataset.batch(rows[2:]), 0.5, 0.0)
        assert whole.global_step == parts.global_step == 3
        for name, parameter in whole.student.named_parameters():
            if not name.endswith("key.bias"):  # its gradient is rounding noise, which Adam scales up
                assert torch.allclose(parameter, parts.student.get_parameter(name), atol=2e-3), name

    def test_the_plan_sets_the_learning_rates(self, make_distiller, make_features):
        task_distiller = make_distiller(max_steps=4, warmup_steps=2, initial_warmup=0, final_warmup=1)
        assert isinstance(task_distiller.plan, Plan)
        rates = []
        for _ in range(4):
            rates.append(task_distiller.learning_rates()["weights"])
            task_distiller.step(make_features().batch([0, 1]), 0.5, 0.0)
        assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005])
        assert task_distiller.learning_rates() == {"mask_scores": 0.0, "weights": 0.0, "undecayed": 0.0}
