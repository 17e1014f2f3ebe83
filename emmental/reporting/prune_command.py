"""Prunes a model of any task head on texts, without labels: small models, a table, a picture and a card.

python -m emmental.export.prune --model_name_or_path FOLDER_OR_HUB --texts texts.txt --keep 0.4 --output small
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import emmental
from emmental import atomic
from emmental.command_line import parse_flags, user_mistakes
from emmental.data.pruning_texts import Columns, read_inputs
from emmental.errors import UserError
from emmental.export.load_for_pruning import POOLINGS, LoadedModel, load_for_pruning
from emmental.export.model_folder import read_model
from emmental.export.sentence_models import copy_surroundings
from emmental.flags import Flags, flag, switch
from emmental.optional import is_there
from emmental.pretrained import weights_fingerprint
from emmental.reporting.prune_results import Row, card, measured, table, times_in_engines
from emmental.runs.output_folder import OutputFolder
from emmental.runs.progress import configure_logging
from emmental.shrinking import layer_sizes
from emmental.structured.prune import known_labels, share_budget, time_budget
from emmental.structured.rungs import CLIFF, Pruned
from emmental.structured.selection import Budget
from emmental.structured.texts import Material, material
from emmental.structured.vocabulary import counted_texts, saving, token_counts, vocabulary_size
from emmental.task_heads import MOST_PASSES, Agreement
from emmental.tasks.files import DELIMITERS
from emmental.training.prune_model import Start, recovered
from emmental.training.text_recovery import FLAGS as OF_RECOVERY

logger = logging.getLogger(__name__)

ALL = "all"
_PRUNED, _RECOVERY, _FACTS = "pruned", "recovery", "pruned.json"
_NAMED = {"tab": "\t", "comma": ",", "semicolon": ";"}
FLAGS = {
    "model and texts": (
        flag("model_name_or_path", "folder or Hub name of a trained encoder with any task head, or none"),
        flag("texts", "some 2,000 texts of the kind it will read: .txt, .csv, .tsv, .jsonl or .parquet; no labels"),
        flag("output", "folder to write; default: <name>-small"),
        flag("text_column", "column of the texts; default: sentence1, sentence, text, query or question"),
        flag(
            "text_pair_column",
            "second texts, or lists of documents; default: sentence2, documents or context",
        ),
        flag("label_column", "column of labels: the table then has the metric too"),
        flag("delimiter", "between the cells of .csv and .tsv; default: recognised"),
        flag("encoding", "of .csv and .tsv; default: recognised"),
        flag("max_length", "tokens of a text, at most; default: the model's own, up to 128", type=int, at_least=3),
        switch("accept_unknown_tokens", "go on although most tokens are unknown to the tokenizer"),
        flag("pooling", "of a model without a head, if its folder does not say it", accepts=(*POOLINGS, None)),
    ),
    "how small": (
        flag("keep", "share of the encoder that stays; several make a model each", None, float, several=True),
        flag("speedup", "instead: how many times as fast, in PyTorch on this machine", type=float, above_zero=True),
        flag("vocabulary", "auto, or how many of the tokens stay: those that the texts use most", ALL),
        flag("passes", "most backward passes for a batch", MOST_PASSES, at_least=1),
    ),
    "recovery": OF_RECOVERY,
    "what is written": (
        switch("onnx", "write <output>-onnx too: fp32 and int8"),
        switch("engines", "time the models in the engines of this machine", True),
        switch("overwrite_output", "start afresh in the output folder"),
        flag("threads", "CPU threads; default: PyTorch's", type=int, at_least=1),
    ),
}
_DEFAULT_KEEP = 0.4
_EVERYDAY = (
    "model_name_or_path texts output text_column text_pair_column label_column max_length keep speedup vocabulary "
    "updates onnx engines threads"
)


@dataclass(frozen=True)
class _Target:
    """One model to make: its name in the table, its budget, and the folder under the output for it."""

    name: str
    budget: Budget
    folder: Path


def prune_folder(flags: Flags) -> str:
    """Make the models that the flags ask for, and return the table.

    Raises:
        UserError: see `load_for_pruning`, `read_inputs` and `material`; the output folder is in use.
    """
    loaded = load_for_pruning(flags.model_name_or_path, flags.passes, flags.pooling)
    delimiter = _NAMED.get(flags.delimiter, flags.delimiter)
    columns = Columns(flags.text_column, flags.text_pair_column, flags.label_column, delimiter, flags.encoding)
    texts, labels = read_inputs(flags.texts, loaded.head, columns)
    known = None if labels is None else known_labels(loaded.head, loaded.model, labels)
    length = loaded.length(flags.max_length)
    rows = material(loaded.tokenizer, texts, known, length, 32, flags.accept_unknown_tokens, loaded.head)
    output = OutputFolder(flags.output or f"{Path(flags.model_name_or_path).name}-small", "--output")
    try:
        if flags.overwrite_output:
            output.start_afresh()
        size = None if flags.vocabulary == ALL else flags.vocabulary
        start = Start.of(loaded.model, loaded.tokenizer, rows, texts, size, "--vocabulary")
        targets = _targets(flags, loaded, length, output)
        made = [(target, _made(flags, start, target, output)) for target in targets]
        shown = _finish(flags, loaded, start, made, output, length)
        if size is None and not loaded.head.needs_words:
            counts = token_counts(loaded.tokenizer, counted_texts(texts))
            shown.append(saving(made[-1][1].model, loaded.tokenizer, counts, "--vocabulary"))
        return "\n".join(line for line in shown if line is not None)
    finally:
        output.close()


def _targets(flags: Flags, loaded: LoadedModel, length: int, output: OutputFolder) -> list[_Target]:
    if flags.speedup is not None:
        name = f"{flags.speedup:g} x as fast"
        return [_Target(name, time_budget(loaded.model, flags.speedup, length, "--speedup"), output.path)]
    shares = sorted(flags.keep or [_DEFAULT_KEEP], reverse=True)
    budgets = {share: share_budget(loaded.model, share, "--keep") for share in shares}
    folders = {share: output.path / f"keep-{share:g}" for share in shares} | {shares[-1]: output.path}
    return [_Target(f"{100 * share:g}% kept", budget, folders[share]) for share, budget in budgets.items()]


def _made(flags: Flags, start: Start, target: _Target, output: OutputFolder) -> Pruned:
    """The small model of a target. A cut that an earlier, interrupted command made is read again."""
    identity = {
        "model": weights_fingerprint(start.model),
        "texts": _fingerprint(start.rows),
        "target": target.name,
        "passes": flags.passes,
    }
    where = f"{_PRUNED}/{target.name.split('%')[0].split(' ')[0]}"
    found = _read_cut(output.path / where, identity)
    if found is None:
        found = start.cut(target.budget)
        if flags.updates:
            with atomic.atomic_folder(output.record_folder(where), damaged_too=True) as temporary:
                found.model.save_pretrained(temporary)
                atomic.write_json(temporary / _FACTS, {**identity, **asdict(found.agreement), "rungs": found.rungs})
    logger.info("%s, cut in %d rungs: %s", target.name, found.rungs, found.agreement)
    if flags.updates:
        folder = output.record_folder(f"{_RECOVERY}/{where.rpartition('/')[2]}")
        values = {one.name: getattr(flags, one.name) for one in OF_RECOVERY}
        cut = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        found = recovered(start, found, folder, cut, **values)
        logger.info("%s, after %d updates: %s", target.name, flags.updates, found.agreement)
    if found.agreement.changed > CLIFF:
        changed = f"{100 * found.agreement.changed:.1f} % of the {start.rows.head.unit} held-out texts"
        remedy = "a larger --keep" if flags.updates else "--updates 300, or a larger --keep"
        logger.warning("%s: %s differ from the dense model's: give %s", target.name, changed, remedy)
    return found


def _read_cut(folder: Path, identity: dict[str, object]) -> Pruned | None:
    try:
        atomic.verify_folder(folder)
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if any(facts[name] != value for name, value in identity.items()):
            return None
        return Pruned(read_model(folder), Agreement(facts["changed"], facts["divergence"]), facts["rungs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fingerprint(rows: Material) -> str:
    digest = hashlib.sha256()
    for encoding in rows.encodings:
        digest.update(json.dumps(list(encoding["input_ids"])).encode())
    return digest.hexdigest()


def _finish(
    flags: Flags,
    loaded: LoadedModel,
    start: Start,
    made: Sequence[tuple[_Target, Pruned]],
    output: OutputFolder,
    length: int,
) -> list[str]:
    """Write every model; measure them. Returns the lines to print."""
    models = {"dense": loaded.model} | {target.name: found.model for target, found in made}
    results = measured(loaded, models, start, length, flags.engines)
    shown = table(results)
    for target, found in made:
        _write(loaded, start.tokenizer, found.model, target, results, output)
    smallest = made[-1][1].model
    if flags.onnx:
        folder = Path(f"{output.path}-onnx")
        _write_onnx(output.path, folder)
        shown.append(f"ONNX files: {folder}")
    if flags.engines:
        shown += times_in_engines(loaded, smallest, start, length)
    output.write_json("summary.json", {"rows": [asdict(row) for row in results], "length": length})
    return [*shown, "", f"{made[-1][0].name}: {output.path}"]


def _write(
    loaded: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    small: PreTrainedModel,
    target: _Target,
    results: Sequence[Row],
    output: OutputFolder,
) -> None:
    """A folder with model, tokenizer, what sentence-transformers reads, card and picture."""
    inside = target.folder != output.path
    staged = output.record_folder(target.folder.name if inside else ".small-model")
    with atomic.atomic_folder(staged, damaged_too=True) as temporary:
        small.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        copy_surroundings(loaded.folder, loaded.around, temporary)
        atomic.write_text(temporary / "README.md", card(loaded, small, target.name, results))
        if is_there("pictures"):
            from emmental.pictures.structure import heads_and_neurons

            (temporary / "pictures").mkdir()
            now, before = (layer_sizes(each) for each in (small, loaded.model))
            heads = ([size.heads for size in now], max(size.heads for size in before))
            neurons = ([size.neurons for size in now], [size.neurons for size in before])
            title = f"{Path(loaded.name).name}, {target.name}"
            heads_and_neurons(heads, *neurons, title).save(temporary / "pictures" / "structure.png")
    if not inside:
        _move_up(staged, output)


def _move_up(staged: Path, output: OutputFolder) -> None:
    """Move the files of a whole model from `staged` into the output folder, config.json last."""
    files = [file for file in staged.rglob("*") if file.is_file() and file.name != atomic.MANIFEST]
    names = sorted((str(file.relative_to(staged)) for file in files), key=lambda name: (name == "config.json", name))
    output.record(*names)
    (output.path / "config.json").unlink(missing_ok=True)
    for name in names:
        (output.path / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).replace(output.path / name)
    shutil.rmtree(staged)


def _write_onnx(source: Path, folder: Path) -> None:
    if not is_there("ONNX files"):
        raise UserError("--onnx: onnx or onnxruntime is not installed: pip install onnx onnxruntime")
    from emmental.export.onnx import export_onnx_folder

    export_onnx_folder(source, folder, int8=True)


def _problems(flags: Flags) -> list[str]:
    problems = list(flags.problems())
    problems += [f"--{name} is required" for name in ("model_name_or_path", "texts") if not getattr(flags, name)]
    if flags.keep is not None and flags.speedup is not None:
        problems.append("--keep cannot be used with --speedup; give either")
    for share in flags.keep or ():
        if not 0 < share <= 1:
            problems.append(f"--keep accepts shares of weights above 0 and up to 1, not {share:g}")
    if flags.vocabulary != ALL:
        try:
            vocabulary_size(flags.vocabulary, "--vocabulary")
        except UserError as error:
            problems.append(str(error))
    if len(set(flags.keep or ())) < len(flags.keep or ()):
        problems.append("--keep names a share twice")
    if flags.delimiter and _NAMED.get(flags.delimiter, flags.delimiter) not in DELIMITERS:
        problems.append(f"--delimiter accepts {', '.join(_NAMED)}, or the character; not {flags.delimiter!r}")
    return problems


def main(argv: Sequence[str] | None = None) -> None:
    """Prune what the command line names; a mistake is one line on stderr and exit status 2."""
    description = "Make a smaller, faster model from a trained one and some texts, without labels; any task head."
    flags = parse_flags(description, FLAGS, argv, _EVERYDAY, lambda _: None, _problems)
    emmental.register()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    configure_logging(True)
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    with user_mistakes():
        print(prune_folder(flags))
