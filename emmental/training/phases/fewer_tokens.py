"""Fewer tokens: those that the rows hardly use go, from the tokenizer and from the dense model's embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from emmental import atomic
from emmental.data.tokenization import load_tokenizer
from emmental.pretrained import from_pretrained, weights_fingerprint
from emmental.runs.run import Run
from emmental.structured.vocabulary import MOST_CHANGED, HeldOut, Reduced, Vocabulary
from emmental.task_heads import task_head
from emmental.tasks import read_split
from emmental.training.facts import DataFacts
from emmental.training.phases.cut import held_out_rows, is_complete
from emmental.training.phases.phase import Phase, PhaseContext
from emmental.training.recipe import AUTO_TOKENS

logger = logging.getLogger(__name__)

_FOLDER, _RECORD = "vocabulary", "vocabulary.json"
FEWEST_ROWS = 32
"""Fewest labelled rows for `auto`: a part of them is held out."""
_USUAL_SIZES, _ROWS = 2, 400


@dataclass
class FewerTokens(Phase):
    """Remove tokens from the dense model before it is cut. The dense model itself keeps all: it teaches.

    Attributes:
        size: how many stay: a number as text, or `auto`.
    """

    size: str = AUTO_TOKENS

    @property
    def trains(self) -> bool:
        """Tokens go without updates."""
        return False

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """The dense model with fewer tokens, in evaluation mode. Later phases get its tokenizer and rows.

        Rank 0 removes the tokens and writes `<folder>/vocabulary`; all read it. A resumed run finds it there.
        """
        folder, processes = self.folder / _FOLDER, part.processes
        identity = {
            "size": self.size,
            "dense": weights_fingerprint(model),
            "data": context.rows.fingerprint,
            "seed": part.seed,
        }
        if processes.any(processes.is_main and not is_complete(folder, _RECORD, identity)):
            with processes.main_first():
                if processes.is_main:
                    vocabulary = Vocabulary(context.tokenizer, model.config)
                    found = self._reduced(vocabulary, model.eval(), part, context)
                    with atomic.atomic_folder(part.output.record_folder(_FOLDER), damaged_too=True) as temporary:
                        found.model.save_pretrained(temporary)
                        found.tokenizer.save_pretrained(temporary)
                        fewest = vocabulary.seen_often(context.rows.token_counts())
                        atomic.write_json(temporary / _RECORD, identity | {"changed": found.changed, "fewest": fewest})
        else:
            logger.info("using the vocabulary of the earlier run: %s", folder)
        reduced = from_pretrained(AutoModelForSequenceClassification, str(folder)).to(processes.device).eval()
        record = atomic.read_object(folder / _RECORD)
        _tell(reduced, model, record["changed"], record["fewest"])
        context.tokenizer, taught = load_tokenizer(folder), context.rows
        context.rows = context.tokenise(context.tokenizer)
        context.rows.for_teacher = taught
        context.reduced, context.source = reduced, str(folder)
        return reduced

    def _reduced(self, vocabulary: Vocabulary, model: PreTrainedModel, part: Run, context: PhaseContext) -> Reduced:
        counts = context.rows.token_counts()
        if self.size != AUTO_TOKENS:
            return vocabulary.reduced(model, vocabulary.choose(counts, int(self.size), "--vocabulary"))
        labelled = part.datasets[part.task.name, "train"]
        rows, _ = held_out_rows(len(labelled), part.seed)
        split = read_split(part.task, part.data_dir, "train")
        columns = [split.texts_a] if split.texts_b is None else [split.texts_a, split.texts_b]
        texts = [tuple(column[row] for column in columns) for row in rows]
        held_out = HeldOut(texts, labelled.token_counts(rows), task_head(model), part.max_seq_length)
        return vocabulary.automatic(model, counts, held_out)

    def describe(self, facts: DataFacts) -> str:
        """How many tokens stay."""
        tokens = facts.tokens
        count = f"{int(self.size):,}" if self.size != AUTO_TOKENS else f"{tokens.fewest:,} or more"
        why = "" if self.size != AUTO_TOKENS else ", until few answers to held-out rows change"
        return f"vocabulary: {count} of {tokens.whole:,} tokens stay{why}"

    def cost(self, facts: DataFacts) -> float:
        """Time of the answers to held-out rows, in updates of the dense model."""
        passes = 0 if self.size != AUTO_TOKENS else 1 + _USUAL_SIZES
        return passes * min(_ROWS, facts.examples / 5) / 3 / self.rows_of_update(facts)


def tokens_left(size: str, facts: DataFacts) -> float:
    """The share of the tokens that stays; for `auto` about twice the fewest."""
    whole = facts.tokens.whole
    return (min(whole, 2 * facts.tokens.fewest) if size == AUTO_TOKENS else int(size)) / whole


def _tell(reduced: PreTrainedModel, dense: PreTrainedModel, changed: Any, fewest: int) -> None:
    before, after = dense.config.vocab_size, reduced.config.vocab_size
    if changed is not None and after == before:
        logger.warning(
            "--vocabulary auto: all %d tokens stay, because with fewer %.0f %% of the answers to held-out rows "
            "or more change. The recovery repairs some of that: --vocabulary %d keeps those that the rows use twice",
            before,
            100 * MOST_CHANGED,
            fewest,
        )
        return
    found = "" if changed is None else f"; {100 * changed:.1f} % of the answers to held-out rows change"
    logger.info("vocabulary: %d of %d tokens stay%s", after, before, found)
