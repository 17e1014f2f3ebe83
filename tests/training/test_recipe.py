"""What `--recipe auto` fills in, and how flags that the user gives decide the recipe."""

from __future__ import annotations

import pytest

from emmental.training.arguments import parse_arguments
from emmental.training.facts import DataFacts
from emmental.training.recipe import cut_weights_values, dense_values, structured_values, unstructured_values
from emmental.training.settings import TrainSettings

GIVEN = ["--data_dir", "data", "--task_name", "mrpc"]


def decided(*flags: str) -> tuple[str, str, list[float] | None]:
    args = parse_arguments([*GIVEN, *flags])
    return args.recipe, args.granularity, args.keep


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("auto", "structured", [0.25])),
        (["--keep", "0.4"], ("auto", "structured", [0.4])),
        (["--keep", "0.5", "0.25"], ("auto", "structured", [0.5, 0.25])),
        (["--granularity", "unstructured"], ("auto", "unstructured", [0.15])),
        (["--pruning_method", "topK"], ("auto", "unstructured", [0.15])),
        (["--pruning_method", "topK", "--final_threshold", "0.15"], ("paper", "unstructured", None)),
        (["--initial_warmup", "2"], ("paper", "unstructured", None)),
        (["--recipe", "paper"], ("paper", "unstructured", None)),
        (["--recipe", "paper", "--granularity", "structured"], ("paper", "structured", [0.25])),
        (["--model_type", "bert"], ("auto", "unstructured", [0.15])),
        (["--num_train_epochs", "2"], ("auto", "structured", [0.25])),
    ],
)
def test_flags_decide_the_recipe(flags, expected):
    assert decided(*flags) == expected


@pytest.mark.parametrize("recipe", ["auto", "paper"])
@pytest.mark.parametrize(
    ("method", "together"),
    [
        ("topK", False),
        ("magnitude", False),
        ("threshold", True),
        ("sigmoied_threshold", True),
        ("l0", True),
        ("fisher", True),
    ],
)
def test_keep_is_the_final_share_of_every_method(recipe, method, together):
    args = parse_arguments([*GIVEN, "--recipe", recipe, "--pruning_method", method, "--keep", "0.1"])
    assert (args.initial_threshold, args.final_threshold, args.global_topk) == (1.0, 0.1, together)


def test_scores_of_the_paper_decide_what_stays_without_keep():
    thresholds = ["--initial_threshold", "0", "--final_threshold", "0.1"]
    assert not parse_arguments([*GIVEN, "--pruning_method", "sigmoid_threshold", *thresholds]).global_topk


def test_fisher_ranks_all_matrices_together_every_ten_updates():
    args = parse_arguments([*GIVEN, "--pruning_method", "fisher", "--final_threshold", "0.1"])
    assert (args.global_topk, args.global_topk_frequency_compute) == (True, 10)
    args = parse_arguments([*GIVEN, "--pruning_method", "fisher", "--global_topk_frequency_compute", "3"])
    assert args.global_topk_frequency_compute == 3


def test_gates_start_further_apart_than_their_noise():
    values = unstructured_values(DataFacts(5000, 384), "l0", 0.1)
    assert (values["mask_scale"], values["mask_scores_learning_rate"]) == (5.0, 0.01)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--keep", "0"], "--keep"),
        (["--keep", "1.5"], "--keep is the share"),
        (["--keep", "0.1", "0.5"], "falling"),
        (["--keep", "0.1", "--final_threshold", "0.1"], "--keep replaces --final_threshold"),
        (["--keep", "0.1", "--final_lambda", "10"], "--keep replaces --final_lambda"),
        (["--keep", "0.1", "--regularization", "l1"], "--keep replaces --regularization"),
        (["--recipe", "auto", "--final_threshold", "0.2"], "--final_threshold is for single weights with --recipe"),
        (["--recipe", "auto", "--pruning_method", "topK", "--final_threshold", "0.3"], "give --keep instead"),
        (["--granularity", "structured", "--final_threshold", "0.2"], "give --keep instead"),
        (["--model_type", "bert", "--keep", "0.5"], "--model_type bert trains dense and contradicts --keep"),
        (["--model_type", "bert", "--speedup", "2"], "--model_type bert trains dense and contradicts --speedup"),
        (["--keep", "0.5", "--pruning_method", "topK", "--initial_threshold", "0.3"], "0.3 is below --keep 0.5"),
        (["--keep", "1.5", "--pruning_method", "topK"], "--keep is the share"),
        (["--keep", "0.1", "--pruning_method", "l0", "--initial_threshold", "0.05"], "weights would grow back"),
        (["--keep", "0.1", "--pruning_method", "threshold", "--initial_threshold", "2"], "--initial_threshold is the"),
        (["--keep", "0.1", "--pruning_method", "l0", "--global_topk"], "--keep sets the share that stays for every"),
        (["--keep", "0.1", "--speedup", "3"], "--speedup replaces --keep"),
        (["--speedup", "0.5"], "--speedup accepts numbers from 1"),
        (["--speedup", "3", "--granularity", "unstructured"], "--speedup needs --granularity structured"),
        (["--granularity", "structured", "--pruning_method", "magnitude"], "omit --pruning_method magnitude"),
        (["--granularity", "structured", "--model_type", "bert"], "contradicts --granularity structured"),
        (["--pruning_method", "topK", "--num_train_epochs", "0"], "--num_train_epochs accepts numbers above 0 here"),
        (["--num_train_epochs", "0", "--max_steps", "6"], "trains nothing and contradicts --max_steps 6; omit one"),
        (["--granularity", "both"], "--granularity accepts structured, unstructured"),
        (["--recipe", "best"], "--recipe accepts auto, paper"),
    ],
)
def test_contradictions_are_refused_in_a_line(flags, line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*GIVEN, *flags])
    assert ended.value.code == 2
    said = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert len(said) == 1
    assert line in said[0]


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(3668, 6.0), (67349, 1.0), (2490, 8.0), (5749, 4.0), (100, 20.0), (20000, 1.0)],
)
def test_dense_epochs_are_those_of_600_updates(examples, epochs):
    assert dense_values(DataFacts(examples, 384))["num_train_epochs"] == epochs


def test_rates_follow_the_width():
    rates = [dense_values(DataFacts(5000, width))["learning_rate"] for width in (384, 512, 768, 1024)]
    assert rates == [1e-4, 1e-4, 3e-5, 2e-5]


def test_a_hard_cut_recovers_at_a_higher_rate():
    rates = [structured_values(DataFacts(5000, 384), keep)["learning_rate"] for keep in (0.5, 0.25, 0.15, 0.1)]
    assert rates == [5e-5, 5e-5, 2e-4, 2e-4]


def test_the_surgeon_cuts_single_weights_to_five_percent_or_less_where_it_fits():
    facts = DataFacts(5000, 384, memory_for_few=True)
    chosen = [cut_weights_values(facts, keep).get("pruning_method") for keep in (0.15, 0.051, 0.05, 0.03)]
    assert chosen == [None, None, "brain_surgeon", "brain_surgeon"]
    assert "pruning_method" not in cut_weights_values(DataFacts(5000, 384), 0.03)
    given = parse_arguments([*GIVEN, "--keep", "0.03", "--pruning_method", "fisher"])
    assert TrainSettings.of(given, cut_weights_values(facts, 0.03)).pruning_method == "fisher"


def test_no_phase_is_longer_than_3000_updates_or_20_epochs():
    for examples in (50, 1000, 30_000, 400_000):
        facts = DataFacts(examples, 384)
        for values in (structured_values(facts, 0.25), unstructured_values(facts, "topK", 0.03)):
            assert values["num_train_epochs"] <= 20
            assert values["num_train_epochs"] * facts.updates_per_epoch <= 3000 + facts.updates_per_epoch


def test_processes_share_a_batch():
    assert [DataFacts(1000, 384, processes).batch_size for processes in (1, 2, 8, 64)] == [32, 16, 4, 1]


def test_what_the_user_gave_stays():
    args = parse_arguments([*GIVEN, "--learning_rate", "7e-5", "--max_steps", "30"])
    settings = TrainSettings.of(args, structured_values(DataFacts(3668, 384), 0.25))
    assert settings.learning_rate == 7e-5
    assert settings.num_train_epochs == 3.0  # max_steps counts
    assert "learning_rate" not in settings.by_recipe
    assert "per_gpu_train_batch_size" in settings.by_recipe
    assert settings.per_gpu_train_batch_size == 32


def test_fp16_rules_out_bfloat16():
    values = dense_values(DataFacts(3668, 384, has_bf16=True))
    assert TrainSettings.of(parse_arguments(GIVEN), values).bf16
    assert not TrainSettings.of(parse_arguments([*GIVEN, "--fp16"]), values).bf16


def test_fixed_values_hold_whatever_the_flags_say():
    args = parse_arguments([*GIVEN, "--learning_rate", "7e-5"])
    assert TrainSettings.of(args, {"learning_rate": 1.0}, learning_rate=2.0).as_flags()["learning_rate"] == 2.0
