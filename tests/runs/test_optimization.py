"""From losses to updated parameters: groups, schedule, accumulation, clipping, finite checks, state, by hand."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.errors import NonFiniteError
from emmental.runs.optimization import Learner, adamw, linear_schedule, parameter_groups
from emmental.runs.precision import Precision

CPU = torch.device("cpu")


class Weights(nn.Module):
    """Two parameters whose gradients are whatever the loss multiplies them by."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(10.0))
        self.b = nn.Parameter(torch.tensor(20.0))


def constant_rate(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1.0)


def descent(model: nn.Module, max_grad_norm: float = 0.0, precision: Precision | None = None) -> Learner:
    """Plain gradient descent with rate 1: parameters move by minus their gradient."""
    groups = [{"name": name, "params": [parameter]} for name, parameter in model.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    return Learner(model, optimizer, constant_rate(optimizer), precision or Precision(CPU), max_grad_norm)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def adam_loop(model: nn.Module, total: int = 10, warmup: int = 2) -> Learner:
    optimizer = adamw(parameter_groups(model, 0.05, 0.1), 1e-8)
    return Learner(model, optimizer, linear_schedule(optimizer, warmup, total), Precision(CPU), 1.0)


def train(loop: Learner, updates: range, micro_batches: int = 2) -> None:
    """Updates on data that follow from their numbers."""
    for update in updates:
        generator = torch.Generator().manual_seed(update)
        loop.begin_update(micro_batches)
        for _ in range(micro_batches):
            x, y = torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)
            with loop.micro_batch():
                loop.optimize(nn.functional.cross_entropy(loop.model(x), y))


class TestParameterGroups:
    @pytest.fixture
    def model(self) -> MaskedBertForSequenceClassification:
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        return MaskedBertForSequenceClassification(MaskedBertConfig(vocab_size=41, **size))

    def test_membership(self, model):
        groups = {group["name"]: group for group in parameter_groups(model, 1e-4, 0.01, 1e-2)}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        members = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
        layer = "bert.encoder.layer.0."
        linears = [f"{layer}attention.self.{part}" for part in ("query", "key", "value")]
        linears += [f"{layer}{part}" for part in ("attention.output.dense", "intermediate.dense", "output.dense")]
        heads = ["bert.pooler.dense", "classifier"]
        norms = [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
        assert members["mask_scores"] == {f"{name}.mask_scores" for name in linears}
        assert members["weights"] == {f"{name}.weight" for name in linears + heads}
        assert members["undecayed"] == {f"{name}.bias" for name in linears + heads + norms} | {
            f"{name}.weight" for name in norms
        }

    def test_rates_and_decay(self, model):
        groups = {group["name"]: group for group in parameter_groups(model, 1e-4, 0.01, 1e-2)}
        assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
            "mask_scores": (1e-2, 0.0),
            "weights": (1e-4, 0.01),
            "undecayed": (1e-4, 0.0),
        }

    def test_frozen_parameters_and_empty_groups_are_left_out(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("mask_scores"))
        assert [group["name"] for group in parameter_groups(model, 1e-4, 0.0, 1e-2)] == ["mask_scores"]

    def test_layer_norms_are_known_by_their_type_not_their_name(self):
        model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        groups = {group["name"]: group["params"] for group in parameter_groups(model, 1e-4, 0.1)}
        assert [p is model[1].weight for p in groups["weights"]] == [True]
        assert len(groups["undecayed"]) == 3

    def test_decay_moves_weights_only(self):
        """Without gradients AdamW multiplies the decayed by 1 - rate * decay."""
        model = nn.Linear(2, 2)
        before = copy.deepcopy(model)
        optimizer = adamw(parameter_groups(model, 0.5, 0.1), 1e-8)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.allclose(model.weight, before.weight * 0.95)
        assert torch.equal(model.bias, before.bias)


class TestSchedule:
    def test_by_hand(self):
        """Warm-up of 2 and 6 updates: rates of the six updates, and what a seventh would have."""
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 8.0}])
        schedule = linear_schedule(optimizer, 2, 6)
        rates = []
        for _ in range(7):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == [0.0, 4.0, 8.0, 6.0, 4.0, 2.0, 0.0]

    def test_each_group_follows_its_own_rate(self):
        loop = adam_loop(network(), total=4, warmup=0)
        loop.optimizer.param_groups[0]["initial_lr"] = 1.0
        loop.scheduler.base_lrs[0] = 1.0
        train(loop, range(2))
        assert loop.learning_rates() == {"weights": pytest.approx(0.5), "undecayed": pytest.approx(0.025)}


class TestClipping:
    def test_by_hand(self):
        """Gradients 3 and 4 have norm 5; clipped to 1 they are 0.6 and 0.8."""
        model = Weights()
        loop = descent(model, max_grad_norm=1.0)
        loop.measuring = True
        assert loop.optimize(3 * model.a + 4 * model.b) is True
        assert (model.a.item(), model.b.item()) == (pytest.approx(9.4, abs=1e-5), pytest.approx(19.2, abs=1e-5))
        assert {name: norm.item() for name, norm in loop.gradient_norms.items()} == {"a": 3.0, "b": 4.0}

    @pytest.mark.parametrize("max_grad_norm", [0.0, 5.001, 100.0])
    def test_below_the_norm_or_off_nothing_is_clipped(self, max_grad_norm):
        model = Weights()
        descent(model, max_grad_norm).optimize(3 * model.a + 4 * model.b)
        assert (model.a.item(), model.b.item()) == (7.0, 16.0)

    def test_the_sum_of_an_update_is_clipped_not_its_parts(self):
        """Micro-batches with gradients (6, 0) and (0, 8) have the mean (3, 4)."""
        model = Weights()
        loop = descent(model, max_grad_norm=1.0)
        loop.begin_update(2)
        loop.optimize(6 * model.a)
        loop.optimize(8 * model.b)
        assert (model.a.item(), model.b.item()) == (pytest.approx(9.4, abs=1e-5), pytest.approx(19.2, abs=1e-5))

    def test_norms_are_measured_only_when_asked(self):
        model = Weights()
        loop = descent(model)
        loop.optimize(model.a)
        assert loop.gradient_norms == {}

    def test_parameters_without_gradient_are_passed_over(self):
        model = Weights()
        loop = descent(model, max_grad_norm=1.0)
        loop.measuring = True
        loop.optimize(2 * model.a)
        assert model.a.item() == pytest.approx(9.0, abs=1e-5)
        assert model.b.item() == 20.0
        assert loop.gradient_norms["b"].item() == 0.0


class TestAccumulation:
    @pytest.mark.parametrize("parts", [1, 2, 3, 6])
    def test_equals_one_big_batch(self, parts):
        x, y = torch.randn(12, 6), torch.randint(3, (12,))
        one, many = network(), network()
        whole, split = adam_loop(one, warmup=0), adam_loop(many, warmup=0)
        for _ in range(3):
            whole.optimize(nn.functional.cross_entropy(one(x), y))
            split.begin_update(parts)
            made = [
                split.optimize(nn.functional.cross_entropy(many(a), b))
                for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
            ]
            assert made == [False] * (parts - 1) + [True]
        assert (whole.global_step, split.global_step) == (3, 3)
        for a, b in zip(one.parameters(), many.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)

    def test_nothing_moves_before_the_last_micro_batch(self):
        model = Weights()
        loop = descent(model)
        loop.begin_update(3)
        assert loop.optimize(3 * model.a) is False
        assert loop.optimize(3 * model.a) is False
        assert (model.a.item(), loop.global_step) == (10.0, 0)
        assert loop.optimize(3 * model.a) is True
        assert (model.a.item(), loop.global_step) == (7.0, 1)
        assert model.a.grad is None

    def test_a_group_of_another_size_is_a_mean_too(self):
        """The last update of an epoch takes what is left: one micro-batch of gradient 4 moves by 4, not by 4 / 3."""
        model = Weights()
        loop = descent(model)
        loop.begin_update(3)
        for _ in range(3):
            loop.optimize(2 * model.a)
        loop.begin_update(1)
        loop.optimize(4 * model.a)
        assert model.a.item() == 4.0

    def test_a_group_cannot_begin_inside_another(self):
        loop = descent(Weights())
        loop.begin_update(2)
        loop.optimize(loop.model.a)
        with pytest.raises(AssertionError, match="not complete"):
            loop.begin_update(2)

    def test_ranks_exchange_gradients_on_the_last_micro_batch_only(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(network())
            exchanges = []

            def hook(state, bucket):  # DistributedDataParallel refuses annotations that are strings
                exchanges.append(loop._seen)
                done = torch.futures.Future()
                done.set_result(bucket.buffer())
                return done

            wrapped.register_comm_hook(None, hook)
            loop = adam_loop(wrapped, warmup=0)
            train(loop, range(2), micro_batches=3)
        finally:
            dist.destroy_process_group()
        assert exchanges == [2, 2]


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_loss_raises_before_parameters_change(self, value):
        loop = adam_loop(network(), warmup=0)
        train(loop, range(2))
        before = copy.deepcopy(loop.model.state_dict())
        loop.begin_update(2)
        loop.optimize(loop.model(torch.ones(1, 6)).sum())
        with pytest.raises(NonFiniteError, match=r"loss of update 3 is (nan|-?inf)"):
            loop.optimize(loop.model(torch.ones(1, 6)).sum() * value)
        assert loop.global_step == 2
        assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())

    def test_a_gradient_raises_before_parameters_change(self):
        """The square root of 0 has a finite value and an infinite slope."""
        model = Weights()
        with torch.no_grad():
            model.a.zero_()
        loop = descent(model, max_grad_norm=1.0)
        with pytest.raises(NonFiniteError, match="gradient of update 1 is inf"):
            loop.optimize(model.a.sqrt() + model.b)
        assert (model.a.item(), model.b.item(), loop.global_step) == (0.0, 20.0, 0)

    def test_finite_runs_pass_the_check(self):
        loop = adam_loop(network())
        train(loop, range(1))
        loop.check_finite()
        assert loop.global_step == 1


class TestLossScaling:
    @staticmethod
    def scaled(model: nn.Module, scale: float) -> Learner:
        precision = Precision(CPU, fp16=True)
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        return descent(model, max_grad_norm=0.0, precision=precision)

    def test_gradients_are_unscaled_before_the_update(self):
        model = Weights()
        loop = self.scaled(model, 1024.0)
        loop.optimize(3 * model.a + 4 * model.b)
        assert (model.a.item(), model.b.item()) == (7.0, 16.0)
        assert loop.skipped_updates == 0

    def test_clipping_sees_unscaled_gradients(self):
        model = Weights()
        loop = self.scaled(model, 1024.0)
        loop.max_grad_norm = 1.0
        loop.optimize(3 * model.a + 4 * model.b)
        assert (model.a.item(), model.b.item()) == (pytest.approx(9.4, abs=1e-5), pytest.approx(19.2, abs=1e-5))

    def test_an_overflow_is_skipped_counted_and_halves_the_scale(self):
        model = Weights()
        loop = self.scaled(model, 2.0**127)  # 3 * 2^127 is beyond float32
        loop.optimize(3 * model.a)
        assert (model.a.item(), loop.global_step, loop.skipped_updates) == (10.0, 1, 1)
        assert loop.precision.scaler.get_scale() == 2.0**126
        loop.optimize(1.5 * model.a)
        assert (model.a.item(), loop.global_step, loop.skipped_updates) == (8.5, 2, 1)

    def test_fused_adamw_skips_too(self):
        model = Weights()
        optimizer = adamw([{"name": "all", "params": list(model.parameters()), "lr": 0.5}], 1e-8)
        precision = Precision(CPU, fp16=True)
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        loop = Learner(model, optimizer, constant_rate(optimizer), precision, 1.0)
        loop.optimize(3 * model.a)
        assert (model.a.item(), model.b.item(), loop.skipped_updates) == (10.0, 20.0, 1)
        loop.optimize(1.5 * model.a)
        assert model.a.item() == pytest.approx(9.5, abs=1e-4)  # Adam's first step is its rate

    def test_an_overflow_at_every_scale_ends_the_run(self):
        model = Weights()
        loop = self.scaled(model, 2e-3)
        loop.optimize((model.a - 10.0).sqrt())  # finite, with an infinite slope
        with pytest.raises(NonFiniteError, match="update 2 overflow at every loss scale; use --bf16"):
            loop.optimize((model.a - 10.0).sqrt())
        assert model.a.item() == 10.0


class TestState:
    def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(self):
        straight = adam_loop(network())
        train(straight, range(8))
        first = adam_loop(network())
        train(first, range(3))
        saved = json.dumps(first.state_dict(), allow_nan=False)
        second = adam_loop(network(seed=5))
        second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        for group in second.optimizer.param_groups:
            group["lr"] = 99.0  # the schedule decides
        second.load_state_dict(json.loads(saved))
        assert second.learning_rates() == first.learning_rates()
        train(second, range(3, 8))
        assert second.global_step == 8
        assert second.learning_rates() == straight.learning_rates()
        for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_scale_and_skipped_updates_are_kept(self):
        model = Weights()
        loop = TestLossScaling.scaled(model, 2.0**127)
        loop.optimize(3 * model.a)
        saved = json.loads(json.dumps(loop.state_dict()))
        other = TestLossScaling.scaled(Weights(), 4.0)
        other.load_state_dict(saved)
        assert (other.global_step, other.skipped_updates) == (1, 1)
        assert other.precision.scaler.get_scale() == 2.0**126

    @pytest.mark.parametrize("name", ["global_step", "skipped_updates"])
    @pytest.mark.parametrize("value", [-5, 2.5, "3", True, None])
    def test_counters_that_count_nothing_are_refused(self, name, value):
        loop = adam_loop(network())
        with pytest.raises(ValueError, match=f"{name} is .*, not a number of updates"):
            loop.load_state_dict({**loop.state_dict(), name: value})


class TestPrecision:
    def test_off(self):
        precision = Precision(CPU)
        assert (precision.dtype, precision.scaler.is_enabled(), precision.pad_to_multiple_of) == (None, False, 1)
        with precision.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32

    @pytest.mark.parametrize(
        ("options", "dtype", "scales"),
        [({"fp16": True}, torch.float16, True), ({"bf16": True}, torch.bfloat16, False)],
    )
    def test_on(self, options, dtype, scales):
        precision = Precision(CPU, **options)
        assert (precision.dtype, precision.scaler.is_enabled(), precision.pad_to_multiple_of) == (dtype, scales, 1)
        with precision.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype

    def test_gpus_in_mixed_precision_pad_to_eight(self):
        assert Precision(torch.device("cuda"), bf16=True).pad_to_multiple_of == 8
        assert Precision(torch.device("cuda")).pad_to_multiple_of == 1

    @pytest.mark.parametrize(("level", "lines"), [("O1", 0), ("O2", 1), ("O3", 1)])
    def test_old_levels_are_explained_once(self, caplog, level, lines):
        with caplog.at_level("INFO"):
            Precision(CPU, fp16=True, opt_level=level)
        assert len(caplog.records) == lines
