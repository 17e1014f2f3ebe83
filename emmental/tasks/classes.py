"""Finds which output of a model is which class of a task. Classes are matched by name, never by position.

The student keeps the order of its model: `in_order_of` gives its task that order, so class ids, logits and the saved
`id2label` agree. `class_order` says how to permute the logits of a teacher.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from emmental.errors import UserError
from emmental.tasks.task import Task, listed

logger = logging.getLogger(__name__)

_SYNONYMS = (
    ("negative", "neg"),
    ("positive", "pos"),
    ("not_equivalent", "not_paraphrase"),
    ("equivalent", "paraphrase"),
    ("not_duplicate", "not_duplicates"),
    ("duplicate", "duplicates"),
    ("unacceptable", "ungrammatical"),
    ("acceptable", "grammatical"),
    ("not_entailment", "non_entailment"),
)
"""Names that models on the Hub use for the classes of GLUE. Each row is one class."""


def classes_of_model(config: Any, called: str) -> tuple[str, ...]:
    """A model's names of its classes, in the order of its outputs; `LABEL_0`, ... if it has none.

    Args:
        config: the model's configuration.
        called: the model's name in messages: flag and value.

    Raises:
        UserError: the model gives several labels at once; `id2label` names a class twice, leaves out a number, or
            contradicts `label2id`.
    """
    refuse_several_labels(config, called)
    given = {int(number): str(name).strip() for number, name in (config.id2label or {}).items()}
    if sorted(given) != list(range(len(given))):
        raise UserError(f"{called}: id2label in its config has the numbers {listed(given)}; 0, 1, ... are expected")
    names = tuple(given[number] for number in range(len(given)))
    if len(set(names)) != len(names):
        raise UserError(f"{called}: id2label in its config names a class twice: {listed(names)}")
    if not isinstance(config.label2id or {}, dict):
        raise UserError(f"{called}: label2id in its config is not an object of names and numbers; correct config.json")
    back = {str(name).strip(): _number(number) for name, number in (config.label2id or {}).items()}
    if not back or (are_numbered(back) and not are_numbered(names)):
        return names
    if are_numbered(names) and not are_numbered(back) and sorted(back.values()) == list(range(len(names))):
        return tuple(sorted(back, key=back.__getitem__))
    numbers = {_loosely(name): number for name, number in back.items()} | back
    for number, name in enumerate(names):
        said = numbers.get(name, numbers.get(_loosely(name)))
        if said != number and not (said is None and are_numbered(back)):  # label2id has only default names
            raise UserError(
                f"{called}: label2id in its config contradicts id2label, which says that class {number} is {name!r}; "
                "correct config.json"
            )
    if beyond := [name for name, number in back.items() if number not in range(len(names)) and not are_numbered(back)]:
        raise UserError(f"{called}: label2id in its config has classes that id2label lacks: {listed(beyond)}")
    return names


def positive_class(config: Any, called: str, names: Sequence[str] | None = None) -> str | None:
    """The class that F1 is computed for, as a model's training recorded it; None if it has no such class.

    Args:
        config: the model's configuration.
        called: the model's name in messages.
        names: the user's names of the outputs, in their order.
    """
    positive, own = getattr(config, "positive_label", None), classes_of_model(config, called)
    if positive in own and names is not None and len(names) == len(own):
        return names[own.index(positive)]
    return positive if positive in own else None


def refuse_several_labels(config: Any, called: str) -> None:
    """Refuse a model whose labels do not exclude each other: elsewhere its answers would become one class each.

    Raises:
        UserError: the model is one. The message begins with `called`.
    """
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise UserError(
            f"{called} has the problem_type multi_label_classification: several labels a text are not supported; one "
            "class a text (single_label_classification) and a score (regression) are"
        )


def _number(value: Any) -> int:
    """A class id of `label2id`; -1 if it is not a number."""
    return int(value) if re.fullmatch(r"[0-9]+", str(value)) else -1


def are_numbered(names: Sequence[str] | dict[str, int]) -> bool:
    """Whether all names are `LABEL_0`, `LABEL_1`, ...: Transformers writes these if nobody named the classes."""
    return all(re.fullmatch(r"LABEL_[0-9]+", name) for name in names)


def is_classifier(config: Any) -> bool:
    """Whether a saved model has a classifier. A pretrained encoder has none, and gets a new one."""
    if not config.architectures:
        return not are_numbered((config.id2label or {}).values())
    return any(name.endswith("ForSequenceClassification") for name in config.architectures)


def class_order(
    task: Task, config: Any, called: str, names: Sequence[str] | None = None, names_flag: str = "--label_names"
) -> tuple[int, ...]:
    """For each output of a model, the class id in the task: a permutation of `range(num_labels)`.

    Args:
        task: its classes are found by their spelling in its files, by their names and by synonyms, in any case.
        config: the model's configuration; `LABEL_k` means class k of the task.
        called: what the user calls the model, for messages: flag and value.
        names: the user's names of the outputs, in their order, for models that do not name them.
        names_flag: the flag that takes these names.

    Raises:
        UserError: another number of classes, or names that do not match. The message has both lists.
    """
    refuse_several_labels(config, called)
    own = classes_of_model(config, called)
    if len(own) != task.num_labels:
        raise UserError(
            f"{called} has {len(own)} outputs, --task_name {task.name} needs {task.num_labels}: "
            f"{listed(own)} against {listed(task.names) or 'a score'}"
        )
    if task.is_regression:
        return (0,)
    found = _matching(task, own)
    if names:
        return _given_order(task, names, found, f"{names_flag} {listed(names)}", called)
    if found is not None:
        return found
    if are_numbered(own):
        numbers = tuple(int(name.removeprefix("LABEL_")) for name in own)
        if sorted(numbers) == list(range(task.num_labels)):
            return numbers
    raise UserError(
        f"{called} has the classes {listed(own)}, --task_name {task.name} has {listed(task.names)}; "
        f"the names do not match; give {names_flag} with the task's names in the order of the model's outputs"
    )


def in_order_of(task: Task, config: Any, called: str, names: Sequence[str] | None = None) -> Task:
    """The task with its classes in the order of a model's outputs; see `class_order`."""
    if task.is_regression:
        class_order(task, config, called)
        return task
    say_if_unnamed(task, config, called)
    return task.reordered(class_order(task, config, called, names))


def in_given_order(task: Task, names: Sequence[str]) -> Task:
    """The task with its classes in the order of the user's list.

    Raises:
        UserError: the names are not those of the task.
    """
    return task.reordered(_given_order(task, names, None, f"--label_names {listed(names)}", ""))


def say_if_unnamed(task: Task, config: Any, called: str) -> None:
    """Log the class names assumed for a model that does not name its classes."""
    own = classes_of_model(config, called)
    if not task.is_regression and are_numbered(own) and _matching(task, own) is None:
        meant = zip(own, class_order(task, config, called), strict=True)
        pairs = listed(f"{name} is {task.names[number]}" for name, number in meant)
        logger.info("%s does not name its classes; they are assumed to be in this order: %s", called, pairs)


def _given_order(
    task: Task, names: Sequence[str], found: tuple[int, ...] | None, given: str, called: str
) -> tuple[int, ...]:
    order = _matching(task, names)
    if order is None:
        raise UserError(f"{given} are not the classes of the data, {listed(task.names)}")
    if found not in (None, order):
        own = [task.names[number] for number in found or ()]
        raise UserError(f"{given} contradicts {called}, whose outputs are {listed(own)}")
    return order


def same_class(name: str, others: Sequence[str]) -> str | None:
    """The one of `others` that differs from `name` only in case, hyphens and spaces; None if none or several do."""
    found = [each for each in others if _loosely(each) == _loosely(name)]
    return found[0] if len(found) == 1 else None


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _with_synonyms(words: set[str]) -> set[str]:
    known = {_loosely(word) for word in words}
    return words.union(*(row for row in _SYNONYMS if known & set(row)))


def _matching(task: Task, names: Sequence[str]) -> tuple[int, ...] | None:
    """The class for each name; None unless names and classes match one to one.

    Three ways are tried, each only if the one before fails: the exact spelling, any case, synonyms.
    """
    spelled = [{label, name} for label, name in zip(task.labels, task.names, strict=True)]
    ways: tuple[tuple[list[set[str]], Callable[[str], str]], ...] = (
        (spelled, str.strip),
        (spelled, _loosely),
        ([_with_synonyms(words) for words in spelled], _loosely),
    )
    for spellings, read in ways:
        classes: dict[str, set[int]] = {}
        for number, words in enumerate(spellings):
            for word in words:
                classes.setdefault(read(word), set()).add(number)
        found = [classes.get(read(name), set()) for name in names]
        order = tuple(next(iter(numbers)) for numbers in found if len(numbers) == 1)
        if len(order) == len(names) and sorted(order) == list(range(task.num_labels)):
            return order
    return None
