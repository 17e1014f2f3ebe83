"""Writes the stages of a cascade: models in the fastest engine that loses nothing, and a bag of words."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from emmental import atomic
from emmental.architectures import longest_input
from emmental.cascade.answers import answers_of, differ
from emmental.cascade.fitting import fit_bag_of_words
from emmental.cascade.rows import Rows, answers_in
from emmental.cascade.stages import BF16, FILES, TOKENIZER_FILE, WORDS_ENGINE, Stage, WordsStage, read_stage
from emmental.cascade.timing import milliseconds
from emmental.cascade.words import Text
from emmental.data.tokenization import plain_text_backend, trained_length
from emmental.errors import UserError
from emmental.export.calibration import CALIBRATION_ROWS, Calibration
from emmental.export.model_folder import make_config, read_model, read_settings
from emmental.export.tokenizer import read_tokenizer_files, tokenizer_of
from emmental.inference.engines import ENGINES, ONNX_INT8, OPENVINO_INT8, TORCH, why_not_timed
from emmental.runs.precision import bf16_in_hardware
from emmental.tasks.classes import are_numbered, class_order, classes_of_model
from emmental.tasks.kinds import SCORES, SEVERAL, kind_of_model
from emmental.tasks.task import CUSTOM, Task
from emmental.tasks.wording import listed

logger = logging.getLogger(__name__)

AUTO = "auto"
WORDS_NAME = "bag of words"
_MOST_CHANGED = 0.01
"""Share of its own fp32 answers that an engine may change in any stage but the last, which may change none."""


@dataclass(frozen=True)
class Source:
    """A model that is to be a stage.

    Attributes:
        name: of the stage.
        folder: that it was read from.
        labels: names of its outputs.
        several: whether it gives several labels at once.
        max_length: texts are cut to this many tokens.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    several: bool
    max_length: int


def read_source(folder: str | Path, max_length: int | None = None) -> Source:
    """The model of a folder: masked, plain or small.

    Raises:
        UserError: it is no classifier, it gives a score, or it takes fewer tokens than `max_length`.
    """
    folder, called = Path(folder), f"--models {folder}"
    try:
        model, tokenizer = read_model(folder), tokenizer_of(folder)
    except UserError as error:
        raise UserError(f"--models: {error}") from None
    name = type(model).__name__
    if not name.endswith("ForSequenceClassification"):
        raise UserError(f"{called} is a {name}; a cascade accepts classifiers of texts or pairs")
    if (kind := kind_of_model(model.config)) is SCORES or model.config.problem_type == SCORES.problem_type:
        raise UserError(f"{called} predicts a score, and nothing says how sure it is; a cascade needs classes")
    longest = longest_input(model.config)
    if max_length is not None and not 3 < max_length <= longest:
        raise UserError(f"--max_seq_length accepts 4 to {longest} for {called}, not {max_length}")
    length = max_length or trained_length(model.config) or longest
    labels = classes_of_model(model.config, called)
    return Source(folder.resolve().name, folder, model, tokenizer, labels, kind is SEVERAL, length)


def classes_of(folder: str | Path) -> tuple[tuple[str, ...], bool]:
    """Names of the classes of a model, from its configuration alone, and whether several hold at once."""
    settings = read_settings(folder)
    config = make_config(CONFIG_MAPPING[settings.pop("model_type")], settings, str(folder))
    return classes_of_model(config, str(folder)), kind_of_model(config) is SEVERAL


def order_of(source: Source, last: Source) -> list[int]:
    """For each output of a stage, the number of its class in the last stage. Classes are matched by name.

    Raises:
        UserError: they do not match.
    """
    if are_numbered(source.labels) == are_numbered(last.labels) and source.several == last.several:
        if {*source.labels} == {*last.labels}:
            return [last.labels.index(name) for name in source.labels]
        if len(source.labels) == len(last.labels):
            task = Task(CUSTOM, last.labels, (), None, "", None, None, None, several=last.several)
            try:
                return list(class_order(task, source.model.config, str(source.folder)))
            except UserError:
                pass
    kinds = "" if source.several == last.several else " (only one of them gives several labels at once)"
    raise UserError(
        f"--models {source.folder} has the classes {listed(source.labels)}, the last stage {last.folder} has "
        f"{listed(last.labels)}{kinds}; they must have the same names"
    )


def stage_engines(engine: str) -> list[str]:
    """The engines that are tried: those of this machine that need no PyTorch, or the one asked for.

    Raises:
        UserError: the engine is not known, or this machine lacks it.
    """
    if engine != AUTO:
        if engine not in ENGINES:
            raise UserError(f"--engine accepts {', '.join([AUTO, *ENGINES])}, not {engine}")
        if reason := why_not_timed(engine):
            raise UserError(f"--engine {engine}: {reason}")
        return [engine]
    return [name for name in FILES if why_not_timed(name) is None] or [TORCH]


@dataclass(frozen=True)
class WrittenStage:
    """A stage in its folder.

    Attributes:
        folder: with what it needs.
        settings: for `cascade.json`.
        stage: ready to be asked.
        logits: (N, C) of the calibration texts.
    """

    folder: Path
    settings: dict[str, Any]
    stage: Stage
    logits: np.ndarray


def write_stages(
    sources: Sequence[Source],
    place: Path,
    engines: Sequence[str],
    texts: Sequence[Text],
    design: np.ndarray,
    threads: int,
) -> list[WrittenStage]:
    """Write models as stages, see `write_stage`, each into a folder in `place`. No two have the same name."""
    written, names = [], set()
    for number, source in enumerate(sources):
        logger.info("%s: written for %s", source.name, ", ".join(engines))
        one = write_stage(source, sources[-1], place / str(number), engines, texts, design, threads)
        while one.settings["name"] in names:
            one.settings["name"] += "'"
        names.add(one.settings["name"])
        written.append(one)
        logger.info("%s: %s is the fastest that loses nothing", one.settings["name"], one.settings["engine"])
    return written


def write_bag_of_words(
    folder: Path, training: Rows, texts: Sequence[Text], last: Source, final: Stage, separator: str
) -> WrittenStage | None:
    """Fit a bag of words and write it as a stage into a new folder; None if nothing can be learnt.

    Args:
        training: what it learns from. Without labels, it learns the answers of the last stage.
        texts: of the calibration.
        last, final: the last stage.
        separator: between the labels of a text, see `answers_in`.
    """
    if training.labels is None:
        answers = answers_of(final.logits(training.texts), last.several)
    else:
        answers = answers_in(training.labels, last.labels, last.several, separator)
    fitted = fit_bag_of_words(training.texts, answers, len(last.labels))
    if fitted is None:
        logger.warning("--train_file has no words to learn from, or one answer only: no bag of words")
        return None
    fitted.save(folder)
    stage = WordsStage(folder)
    return WrittenStage(folder, {"name": WORDS_NAME, "engine": WORDS_ENGINE}, stage, stage.logits(texts))


def write_stage(
    source: Source,
    last: Source,
    folder: Path,
    engines: Sequence[str],
    texts: Sequence[Text],
    design: np.ndarray,
    threads: int,
) -> WrittenStage:
    """Write a model as a stage into a new folder, in the fastest of these engines that loses nothing on the texts.

    An engine that rounds may change no answer of the last stage, and at most 1 % of another's, which is judged on the
    rows `design` alone: the others test what the stage answers as it is served.
    """
    settings = {
        "name": source.name,
        "max_length": source.max_length,
        "truncation_side": source.tokenizer.truncation_side,
        "pad_token_id": source.tokenizer.pad_token_id,
        "order": order_of(source, last),
    }
    made = folder.with_name(f"{folder.name}-engines")
    _write_files(source, made, engines, [texts[row] for row in design])
    every = {name: {**settings, **_of_engine(name)} for name in engines}
    ready = {name: read_stage(made, every[name], threads) for name in engines}
    exact = next((name for name in engines if not ENGINES[name].rounds), engines[0])
    logits = {exact: ready[exact].logits(texts)}
    times = milliseconds([*ready.values()], texts, 1, threads) if len(ready) > 1 else [0.0]
    by_time = [name for _, name in sorted(zip(times, ready, strict=True))]
    most, judged = (0.0, slice(None)) if source is last else (_MOST_CHANGED, design)
    for name in by_time:
        if name not in logits:
            logits[name] = ready[name].logits(texts)
        pair = [answers_of(logits[one][judged], last.several) for one in (name, exact)]
        if name == exact or differ(*pair).mean() <= most:
            break
    _copy_needed(made, folder, name)
    shutil.rmtree(made)
    return WrittenStage(folder, every[name], ready[name], logits[name])


def _of_engine(name: str) -> dict[str, Any]:
    """Settings of a stage about its engine."""
    bf16 = ENGINES[name].bf16 or (ENGINES[name].calibrated and bf16_in_hardware())
    return {"engine": name, BF16: True} if bf16 and name in FILES else {"engine": name}


def _write_files(source: Source, folder: Path, engines: Sequence[str], texts: Sequence[Text]) -> None:
    """Write what the engines run: ONNX files, or the model as Transformers saves it."""
    from emmental.export.onnx import write_onnx_folder
    from emmental.export.onnx_int8 import calibration_batches

    tokenizer = {TOKENIZER_FILE: plain_text_backend(source.tokenizer).to_str()}
    if not any(name in FILES for name in engines):
        source.model.save_pretrained(folder, max_shard_size="1TB")
        atomic.write_text(folder / TOKENIZER_FILE, tokenizer[TOKENIZER_FILE])
        return
    batches = ()
    if {ONNX_INT8, OPENVINO_INT8} & {*engines}:
        step = max(1, len(texts) // CALIBRATION_ROWS)
        batches = calibration_batches(texts[::step], source.tokenizer, source.max_length)
    write_onnx_folder(
        source.model,
        {**read_tokenizer_files(source.folder), **tokenizer},
        folder,
        ONNX_INT8 in engines,
        source.name,
        calibration=Calibration(batches),
        openvino=OPENVINO_INT8 in engines,
    )


def _copy_needed(made: Path, folder: Path, engine: str) -> None:
    """Copy the files that an engine needs, and no others."""
    if engine not in FILES:
        shutil.copytree(made, folder)
        return
    for name in (TOKENIZER_FILE, *FILES[engine]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / name, folder / name)
