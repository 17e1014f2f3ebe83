"""The phases that flags and facts lead to, and what is refused once the facts are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emmental.errors import UserError
from emmental.methods.brain_surgeon import BrainSurgeon
from emmental.training.arguments import parse_arguments
from emmental.training.facts import DataFacts, TokenFacts
from emmental.training.phases import FewerTokens, Phase
from emmental.training.route import log_interval, plan_lines, route, without_effect

FACTS = DataFacts(
    2000, 384, rows=2000, mean_length=50.0, model_type="bert", weights=1000, encoder_weights=800, memory=10**12
)
GIVEN = ["--data_dir", "data", "--task_name", "mrpc", "--output_dir", "out"]
DENSE = "DenseTraining dense"


def flags(*given: str):
    return parse_arguments([*GIVEN, *given])


def phases(*given: str, facts: DataFacts = FACTS) -> list[Phase]:
    return route(flags(*given), facts)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [DENSE, "CutHeadsAndNeurons .", "Recovery ."]),
        (["--no-dense_first"], ["CutHeadsAndNeurons .", "Recovery ."]),
        (["--num_train_epochs", "0"], ["DenseTraining dense", "CutHeadsAndNeurons ."]),
        (
            ["--keep", "0.5", "0.25"],
            [
                "DenseTraining dense",
                *("CutHeadsAndNeurons keep-0.5", "Recovery keep-0.5"),
                *("CutHeadsAndNeurons keep-0.25", "Recovery keep-0.25"),
            ],
        ),
        (["--speedup", "2"], [DENSE, "CutHeadsAndNeurons .", "Recovery ."]),
        (["--granularity", "unstructured"], ["DenseTraining dense", "CutSingleWeights .", "MaskedRecovery ."]),
        (["--pruning_method", "topK"], [DENSE, "FinePruning ."]),
        (["--granularity", "unstructured", "--recipe", "auto", "--mask_init", "uniform"], [DENSE, "FinePruning ."]),
        (["--recipe", "paper"], ["FinePruning ."]),
        (["--recipe", "paper", "--dense_first"], [DENSE, "FinePruning ."]),
        (["--recipe", "paper", "--granularity", "structured"], [DENSE, "CutHeadsAndNeurons .", "Recovery ."]),
        (["--model_type", "bert"], ["DenseTraining ."]),
    ],
)  # fmt: skip
def test_flags_lead_to_phases(given, expected):
    found = [f"{type(one).__name__} {one.folder.relative_to('out')}" for one in phases(*given)]
    assert found == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [DENSE, "FewerTokens .", "CutHeadsAndNeurons .", "Recovery ."]),
        (["--pruning_method", "topK"], [DENSE, "FewerTokens .", "FinePruning ."]),
        (["--recipe", "paper", "--dense_first"], [DENSE, "FewerTokens .", "FinePruning ."]),
        (
            ["--no-dense_first", "--granularity", "unstructured", "--keep", "0.5", "0.25"],
            [
                *("FewerTokens keep-0.5", "CutSingleWeights keep-0.5", "MaskedRecovery keep-0.5"),
                *("CutSingleWeights keep-0.25", "MaskedRecovery keep-0.25"),
            ],
        ),
    ],
)
def test_tokens_go_once_after_the_dense_model(given, expected):
    """Of 100 tokens 40 are used twice: `auto` keeps at least these, and is expected to keep twice as many."""
    facts = replace(FACTS, tokens=TokenFacts(100, 40))
    found = phases(*given, "--vocabulary", "auto", facts=facts)
    assert [f"{type(one).__name__} {one.folder.relative_to('out')}" for one in found] == expected
    assert [one.tokens_left for one in found if one.follows_dense] == [0.8] * sum(one.follows_dense for one in found)
    tokens = next(one for one in found if isinstance(one, FewerTokens))
    said = "vocabulary: 40 or more of 100 tokens stay, until few answers to held-out rows change"
    assert tokens.describe(facts) == said
    assert tokens.cost(facts) == pytest.approx(3 * 400 / 3 / tokens.rows_of_update(facts))


def test_auto_holds_rows_out():
    facts = replace(FACTS, examples=31, tokens=TokenFacts(100, 40))
    with pytest.raises(UserError, match="--vocabulary auto needs 32 training rows or more, not 31; give a number"):
        phases("--vocabulary", "auto", facts=facts)
    assert isinstance(phases("--vocabulary", "50", facts=facts)[1], FewerTokens)


def test_a_schedule_of_the_paper_ends_with_a_masked_model():
    alone, after_dense = phases("--recipe", "paper")[-1], phases("--pruning_method", "topK")[-1]
    assert (alone.follows_dense, alone.type_to_load) == (False, "masked_bert")
    assert (after_dense.follows_dense, after_dense.type_to_load) == (True, "bert")


def test_every_share_of_single_weights_has_its_own_recipe():
    """1,500 updates below 10 %, twice the rate at 5 % and below, and the brain surgeon there if its memory fits."""
    facts = DataFacts(**{**vars(FACTS), "memory_for_few": True})
    recoveries = phases("--granularity", "unstructured", "--keep", "0.5", "0.08", "0.04", facts=facts)[2::2]
    assert [(one.method, one.updates(facts)) for one in recoveries] == [
        ("fisher", 630), ("fisher", 1260), ("brain_surgeon", 1260),
    ]  # fmt: skip
    assert [one.settings.learning_rate for one in recoveries] == [1e-4, 1e-4, 2e-4]
    assert [one.settings.final_threshold for one in recoveries] == [0.5, 0.08, 0.04]
    schedules = phases("--pruning_method", "topK", "--keep", "0.5", "0.08")[1:]
    assert [one.updates(FACTS) for one in schedules] == [1260, 1260]


def test_heads_and_neurons_recover_at_the_rate_of_their_share():
    assert [one.settings.learning_rate for one in phases("--keep", "0.5", "0.1")[2::2]] == [5e-5, 2e-4]
    assert [one.settings.learning_rate for one in phases("--keep", "0.5", "0.1", "--learning_rate", "3e-5")[2::2]] == [
        3e-5, 3e-5,
    ]  # fmt: skip
    fast = phases("--speedup", "3")[-1]
    assert (fast.settings.learning_rate, fast.hard_rate) == (5e-5, 2e-4)
    assert phases("--speedup", "3", "--learning_rate", "3e-5")[-1].hard_rate is None


def test_flags_about_length_and_rate_count_for_the_pruning():
    dense, _, recovery = phases("--max_steps", "30", "--learning_rate", "3e-5")
    assert (dense.updates(FACTS), dense.settings.learning_rate) == (630, 1e-4)
    assert (recovery.updates(FACTS), recovery.settings.learning_rate) == (30, 3e-5)


def test_more_text_does_not_change_the_number_of_updates():
    facts = DataFacts(**{**vars(FACTS), "rows": 20_000})
    assert phases(facts=facts)[-1].updates(facts) == phases()[-1].updates(FACTS)


def test_a_masked_model_keeps_its_method():
    facts = DataFacts(**{**vars(FACTS), "saved_method": "magnitude"})
    assert phases("--recipe", "paper", facts=facts)[0].method == "magnitude"


@pytest.mark.parametrize(
    ("given", "changed", "line"),
    [
        ([], {"examples": 7}, "--granularity structured needs 8 training rows or more, not 7"),
        (
            ["--keep", "0.001"],
            {},
            "--keep 0.001 is less than one of the 800 encoder weights of .*; give 0.0013 or more",
        ),
        (
            ["--speedup", "2", "--speedup_length", "600"],
            {"model": "--model_name_or_path x"},
            "--speedup_length 600 is more than the 512 positions of --model_name_or_path x",
        ),
        (["--recipe", "paper", "--warmup_steps", "1000", "--max_steps", "10"], {}, "--warmup_steps 1000 is longer"),
    ],
)
def test_what_cannot_work_is_refused(given, changed, line):
    facts = DataFacts(**{**vars(FACTS), **changed})
    with pytest.raises(UserError, match=line):
        phases(*given, facts=facts)


def test_a_surgeon_without_room_is_refused():
    needed = BrainSurgeon.bytes_a_weight * FACTS.encoder_weights
    given = ("--granularity", "unstructured", "--pruning_method", "brain_surgeon", "--keep", "0.05")
    assert phases(*given, facts=DataFacts(**{**vars(FACTS), "memory": needed}))
    with pytest.raises(UserError, match=r"--pruning_method brain_surgeon needs .* GB of memory for this encoder"):
        phases(*given, facts=DataFacts(**{**vars(FACTS), "memory": needed - 1}))


def test_the_plan_has_a_line_for_each_phase():
    lines = plan_lines(phases("--no-bf16"), flags("--no-bf16"), FACTS)
    assert lines[0].startswith("filled in by --recipe auto: --per_gpu_train_batch_size 32, ")
    assert "learning_rate" not in lines[0]
    assert lines[1:] == [
        "phase 1, dense: 630 updates at learning rate 0.0001",
        "phase 2, cut of heads and neurons: 25.0% of the encoder stays",
        "phase 3, recovery: 315 updates at learning rate 5e-05",
    ]
    assert "remaining" in "".join(plan_lines(phases("--recipe", "paper"), flags("--recipe", "paper"), FACTS))


def test_a_run_that_the_recipe_decides_has_forty_log_entries():
    assert [log_interval(flags(), updates) for updates in (5, 400, 100_000)] == [1, 10, 50]
    assert log_interval(flags("--logging_steps", "70"), 400) == 70
    assert [one.settings.logging_steps for one in phases()] == [15, 1, 7]


def idle(*given: str) -> list[str]:
    return without_effect(phases(*given), flags(*given))


def test_flags_without_effect_are_named():
    assert idle() == []
    paper = idle("--recipe", "paper", "--temperature", "3", "--pruning_method", "magnitude", "--mask_scale", "2")
    assert paper == ["--temperature (no teacher)", "--mask_scale (magnitude learns no scores)"]
    assert idle("--speedup_length", "64") == ["--speedup_length (no --speedup)"]
    assert idle("--recipe", "paper", "--fp16", "--final_threshold", "0.5", "--no_cuda") == [
        "--fp16 (on a CPU it is slower than float32)"
    ]


def test_folders_are_those_of_the_shares():
    assert [one.folder for one in phases("--keep", "0.5", "0.125")[1:]] == [
        *[Path("out/keep-0.5")] * 2, *[Path("out/keep-0.125")] * 2,
    ]  # fmt: skip
