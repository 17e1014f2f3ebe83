"""Times the stages of a cascade on real texts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from emmental.cascade.stages import Stage
from emmental.cascade.words import Text

TEXTS_ALONE, TEXTS_BATCHED = 100, 128
"""Texts that are timed one at a time, and in batches of `BATCH`."""
BATCH = 32
MS_ALONE, MS_BATCHED = "milliseconds", f"milliseconds_in_batches_of_{BATCH}"
"""Keys of mean times of a text, alone and in such batches."""
_TURNS = 3


def spread(texts: Sequence[Text], most: int) -> list[Text]:
    """At most `most` texts, spread evenly over all."""
    return [texts[number * len(texts) // most] for number in range(most)] if len(texts) > most else list(texts)


def milliseconds(stages: Sequence[Stage], texts: Sequence[Text], batch_size: int, threads: int) -> list[float]:
    """Mean time of each stage for one text, tokenisation included, with these texts in batches.

    The stages take turns, and of each batch the fastest of three runs counts, so other programs disturb little. With
    one thread, the time is that of the processor.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    chosen = spread(texts, TEXTS_ALONE if batch_size == 1 else TEXTS_BATCHED)
    batches = [chosen[begin : begin + batch_size] for begin in range(0, len(chosen), batch_size)]
    totals = [0.0] * len(stages)
    for batch in batches:
        fastest = [float("inf")] * len(stages)
        for _ in range(_TURNS):
            for number, stage in enumerate(stages):
                begin = clock()
                stage.logits(batch, batch_size)
                fastest[number] = min(fastest[number], clock() - begin)
        totals = [total + one for total, one in zip(totals, fastest, strict=True)]
    return [1e3 * total / len(chosen) for total in totals]
