"""How many updates the flags give, at which thresholds, and which plans are refused: against brute force."""

from __future__ import annotations

import argparse
import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.training.arguments import parse_arguments
from emmental.training.plan import Plan, plan_updates


def test_scores_without_a_penalty_are_warned_of(defaults: argparse.Namespace) -> None:
    assert plan_updates(flags(defaults, recipe="paper"), 100, 1).warning() is None
    alone = plan_updates(flags(defaults, pruning_method="l0", model_type="masked_bert", global_topk=False), 100, 1)
    assert "give --keep, or --regularization and --final_lambda" in alone.warning()


@pytest.fixture(scope="module")
def defaults() -> argparse.Namespace:
    return parse_arguments(["--data_dir", "glue/MRPC", "--task_name", "mrpc"])


def flags(defaults: argparse.Namespace, **changes: object) -> argparse.Namespace:
    assert set(changes) <= set(vars(defaults))
    return argparse.Namespace(**{**vars(defaults), **changes})


def plan_of(total: int, warmup: int = 0, **changes: object) -> Plan:
    """A plan of `total` updates, one batch each."""
    settings = {
        "batches_per_epoch": total,
        "accumulation": 1,
        "updates_per_epoch": total,
        "total_updates": total,
        "warmup_steps": warmup,
        "prunes": True,
        "method": "topK",
        "initial_threshold": 1.0,
        "final_threshold": 0.15,
        "initial_warmup": 1,
        "final_warmup": 2,
        "final_lambda": 0.0,
        "global_topk": False,
    }
    return Plan(**{**settings, **changes})


def simulated_updates(
    rows: int, batch_size: int, world_size: int, accumulation: int, epochs: float, max_steps: int
) -> tuple[int, int]:
    """(updates, updates of one epoch), by taking row after row.

    Each process takes up to `batch_size` rows at a time; an update is due after `accumulation` such rounds and when
    the rows of the epoch end; training stops when the epochs, counted in updates, or `max_steps` are reached.
    """

    def updates_of_an_epoch() -> int:
        left, rounds, updates = rows, 0, 0
        while left > 0:
            for _ in range(world_size):
                left -= min(batch_size, left)
            rounds += 1
            if rounds == accumulation or left == 0:
                updates, rounds = updates + 1, 0
        return updates

    per_epoch = updates_of_an_epoch()
    wanted = Fraction(str(epochs)) * per_epoch
    made = 0
    while made < max_steps if max_steps > 0 else made < wanted:
        made += 1
    return made, per_epoch


GRID = list(
    itertools.product(
        (1, 7, 24, 100),  # rows
        (1, 8, 32),  # batch size of a process
        (1, 2, 3),  # processes
        (1, 2, 5, 50),  # accumulation
        (0.1, 0.5, 1.0, 1.1, 3.0),  # epochs
        (-1, 3, 40),  # max_steps
    )
)


class TestNumberOfUpdates:
    def test_a_grid_of_flags_against_a_simulation(self, defaults):
        assert len(GRID) == 2160
        for rows, batch_size, world_size, accumulation, epochs, max_steps in GRID:
            args = flags(
                defaults,
                per_gpu_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                num_train_epochs=epochs,
                max_steps=max_steps,
            )
            plan = plan_updates(args, rows, world_size)
            expected = simulated_updates(rows, batch_size, world_size, accumulation, epochs, max_steps)
            case = (rows, batch_size, world_size, accumulation, epochs, max_steps)
            assert (plan.total_updates, plan.updates_per_epoch) == expected, case
            assert plan.warmup_steps == expected[0] // 10, case
            if plan.problem() is None:
                assert plan.at(plan.total_updates)[0] == 0.7, case

    @pytest.mark.parametrize(
        ("rows", "changes", "world_size", "updates"),
        [
            (3668, {}, 1, 1377),  # MRPC: 459 batches of 8, three times
            (3668, {"per_gpu_train_batch_size": 32}, 1, 345),  # 115 batches
            (3668, {}, 8, 174),  # 58 batches of 64
            (24, {"max_steps": 3}, 1, 3),
            (24, {"max_steps": 300}, 1, 300),
            (24, {"gradient_accumulation_steps": 50}, 1, 3),  # 3 batches make one update
            (24, {"gradient_accumulation_steps": 2}, 1, 6),  # 2 and 1
            (24, {"num_train_epochs": 1.5}, 1, 5),  # 4.5 updates begin a fifth
            (24, {"num_train_epochs": 0.01}, 1, 1),
            (80, {"num_train_epochs": 1.1}, 1, 11),  # 1.1 * 10 is 11.000000000000002
            (1, {}, 4, 3),
        ],
    )
    def test_by_hand(self, defaults, rows, changes, world_size, updates):
        assert plan_updates(flags(defaults, **changes), rows, world_size).total_updates == updates

    def test_warmup_is_a_tenth_unless_it_is_given(self, defaults):
        assert plan_updates(defaults, 3668, 1).warmup_steps == 137
        assert plan_updates(flags(defaults, warmup_steps=0), 3668, 1).warmup_steps == 0
        assert plan_updates(flags(defaults, warmup_steps=54), 3668, 1).warmup_steps == 54

    def test_the_flags_are_taken_over(self, defaults):
        args = flags(
            defaults,
            pruning_method="threshold",
            initial_threshold=0.9,
            final_threshold=0.3,
            initial_warmup=3,
            final_warmup=4,
            final_lambda=5.0,
            global_topk=True,
        )
        plan = plan_updates(args, 24, 1)
        assert (plan.method, plan.initial_threshold, plan.final_threshold) == ("threshold", 0.9, 0.3)
        assert (plan.initial_warmup, plan.final_warmup, plan.final_lambda, plan.global_topk) == (3, 4, 5.0, True)
        assert plan.prunes
        assert not plan_updates(flags(defaults, model_type="bert"), 24, 1).prunes


SCHEDULES = list(
    itertools.product(
        (10, 37, 100),  # updates
        (0, 1, 3),  # warmup_steps
        (0, 1, 2),  # initial_warmup
        (0, 1, 2),  # final_warmup
        ((1.0, 0.15), (1.0, 0.03), (0.0, 0.1)),  # thresholds
        (0.0, 400.0),  # final_lambda
    )
)


def threshold_on_paper(update: int, total: int, start: int, end: int, thresholds: tuple[float, float]) -> Fraction:
    """The schedule in fractions: constant for `start` updates, a cubic slope, constant for the last `end`."""
    first, last = map(Fraction, map(str, thresholds))
    if update <= start or update > total - end:
        return first if update <= start else last
    left = Fraction(total - end - update, total - end - start)
    return last + (first - last) * left**3


class TestSchedule:
    def test_a_grid_of_flags_against_fractions(self, defaults):
        sound = 0
        for total, warmup, initial_warmup, final_warmup, thresholds, final_lambda in SCHEDULES:
            args = flags(
                defaults,
                max_steps=total,
                warmup_steps=warmup,
                initial_warmup=initial_warmup,
                final_warmup=final_warmup,
                initial_threshold=thresholds[0],
                final_threshold=thresholds[1],
                final_lambda=final_lambda,
            )
            plan = plan_updates(args, 3668, 1)
            start, end = initial_warmup * warmup, final_warmup * warmup
            case = (total, warmup, initial_warmup, final_warmup, thresholds, final_lambda)
            assert (plan.problem() is None) == (start + max(end, 1) < total), case
            if plan.problem() is not None:
                continue
            sound += 1
            for update in range(1, total + 1):
                expected = threshold_on_paper(update, total, start, end, thresholds)
                threshold, regu_lambda = plan.at(update)
                assert threshold == pytest.approx(float(expected), rel=1e-9, abs=1e-12), (*case, update)
                share = expected / Fraction(str(thresholds[1]))
                assert regu_lambda == pytest.approx(final_lambda * float(share), rel=1e-9, abs=1e-9), (*case, update)
            assert plan.at(total) == (thresholds[1], final_lambda), case
        assert sound >= 200


class TestPhases:
    @given(
        total=st.integers(2, 400),
        warmup=st.integers(0, 60),
        initial_warmup=st.integers(0, 3),
        final_warmup=st.integers(0, 3),
        thresholds=st.sampled_from([(1.0, 0.15), (1.0, 0.03), (0.0, 0.1), (0.7, 0.69), (1.0, 0.0)]),
    )
    @settings(deadline=None, max_examples=200)
    def test_every_sound_plan_moves_as_it_says(self, total, warmup, initial_warmup, final_warmup, thresholds):
        start, end = thresholds
        plan = plan_of(
            total,
            warmup,
            initial_warmup=initial_warmup,
            final_warmup=final_warmup,
            initial_threshold=start,
            final_threshold=end,
        )
        if plan.problem() is not None:
            assert plan.warmup_steps > total or plan.pruning_updates < 1
            return
        values = [plan.at(update)[0] for update in range(1, total + 1)]
        assert plan.constant_start + plan.pruning_updates + plan.constant_end == total
        assert values.count(start) == plan.constant_start
        assert values[total - plan.constant_end :] == [end] * plan.constant_end
        moving = values[plan.constant_start : total - plan.constant_end]
        assert moving == sorted(moving, reverse=start > end)
        assert len(set(moving)) == plan.pruning_updates

    def test_lambda_follows_the_threshold(self):
        plan = plan_of(100, 10, initial_threshold=0.0, final_threshold=0.1, final_lambda=400.0)
        assert plan.at(10) == (0.0, 0.0)
        assert plan.at(45) == (pytest.approx(0.0875), pytest.approx(350.0))
        assert plan.at(100) == (0.1, 400.0)

    def test_a_dense_model_has_neither(self):
        assert plan_of(10, prunes=False).at(5) == (None, 0.0)


class TestProblems:
    def test_warmup_longer_than_the_training(self):
        message = plan_of(50, 60).problem()
        assert "--warmup_steps 60 is longer than the training of 50 updates" in message
        assert all(flag in message for flag in ("--warmup_steps up to 5", "--num_train_epochs", "--max_steps"))
        assert "\n" not in message

    def test_warmup_longer_than_the_training_of_a_dense_model(self):
        assert "--warmup_steps" in plan_of(50, 60, prunes=False).problem()
        assert plan_of(50, 40, prunes=False).problem() is None

    def test_phases_that_leave_nothing(self):
        message = plan_of(100, 40).problem()
        assert "of 100 updates the first 40 (--initial_warmup 1 x --warmup_steps 40) and the last 80" in message
        assert "--warmup_steps up to 33" in message
        assert "\n" not in message

    def test_the_paper_warmup_in_a_short_run(self, defaults):
        """12,000 warm-up steps are half of the paper's MNLI run, and 30 times this one."""
        assert plan_updates(flags(defaults, warmup_steps=12000), 3668, 1).problem() is not None

    @pytest.mark.parametrize("options", [{"method": "l0"}, {"initial_threshold": 0.15}, {"prunes": False}])
    def test_nothing_to_move_is_no_problem(self, options):
        assert plan_of(100, 40, **options).problem() is None

    @pytest.mark.parametrize("warmup", [0, 1, 32, 33])
    def test_sound(self, warmup):
        assert plan_of(100, warmup).problem() is None

    @given(
        total=st.integers(2, 300),
        warmup=st.integers(1, 300),
        initial_warmup=st.integers(0, 4),
        final_warmup=st.integers(0, 4),
    )
    @settings(deadline=None, max_examples=300)
    def test_the_warmup_that_is_advised_is_the_longest_that_works(self, total, warmup, initial_warmup, final_warmup):
        phases = {"initial_warmup": initial_warmup, "final_warmup": final_warmup}
        message = plan_of(total, min(warmup, total), **phases).problem()
        if message is None:
            return
        advised = int(re.search(r"give --warmup_steps up to (\d+), or more", message)[1])
        assert plan_of(total, advised, **phases).problem() is None
        assert plan_of(total, advised + 1, **phases).problem() is not None

    def test_a_single_update_needs_more_of_them(self):
        message = plan_of(1).problem()
        assert message.endswith("constant; give more --num_train_epochs or --max_steps")


class TestShown:
    @pytest.mark.parametrize(("total", "warmup"), [(1, 0), (5, 0), (12, 1), (100, 10), (345, 34), (73632, 12000)])
    def test_about_a_dozen_updates_in_order(self, total, warmup):
        plan = plan_of(total, warmup)
        shown = plan.shown_updates()
        assert shown == sorted(set(shown))
        assert (shown[0], shown[-1]) == (1, total)
        assert len(shown) == total if total < 10 else 9 <= len(shown) <= 12
        assert {max(plan.constant_start, 1), max(total - plan.constant_end, 1)} <= set(shown)

    def test_lines(self):
        lines = plan_of(100, 10, final_lambda=2.0, accumulation=3, batches_per_epoch=300).lines()
        assert lines[0] == (
            "100 updates, 100 an epoch (300 batches, 3 an update); learning rate rises for 10 updates, then falls to 0"
        )
        assert lines[1] == (
            "phases: 10 updates at the initial threshold 1, 70 pruning, 20 at the final threshold 0.15"
        )
        assert lines[2].split() == ["update", "threshold", "remaining", "lambda"]
        assert lines[3].split() == ["1", "1.0000", "100.0", "%", "13.33"]
        assert lines[-1].split() == ["100", "0.1500", "15.0", "%", "2"]
        assert len(lines) == 3 + len(plan_of(100, 10).shown_updates())

    def test_what_remains_follows_from_the_threshold_only_where_it_is_a_fraction(self):
        for method, global_topk, expected in (
            ("topK", False, "15.0 %"),
            ("magnitude", False, "15.0 %"),
            ("threshold", True, "15.0 %"),
            ("threshold", False, "by scores"),
            ("sigmoied_threshold", False, "by scores"),
            ("sigmoied_threshold", True, "15.0 %"),
            ("l0", True, "15.0 %"),
        ):
            assert expected in plan_of(100, 10, method=method, global_topk=global_topk).lines()[-1], method

    def test_a_degenerate_plan_can_be_shown(self):
        assert "0 pruning" in plan_of(100, 60).lines()[1]

    def test_dense_training_says_so(self):
        assert plan_of(10, prunes=False).lines()[1:] == ["dense training: nothing is pruned"]


def test_a_method_alone_has_a_schedule_that_makes_sense() -> None:
    own = ["--data_dir", "glue/MRPC", "--task_name", "mrpc", "--recipe", "paper"]
    for method in ("topK", "threshold", "sigmoid_threshold", "Magnitude", "L0"):
        alone = parse_arguments([*own, "--pruning_method", method])
        expected = (0.0, 0.1) if method.endswith("threshold") else (1.0, 0.7)
        assert (alone.initial_threshold, alone.final_threshold) == expected
    ended = parse_arguments([*own, "--pruning_method", "threshold", "--final_threshold", "0.4"])
    assert (ended.initial_threshold, ended.final_threshold) == (0.0, 0.4)
