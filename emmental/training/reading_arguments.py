"""Flags that say how to read the user's own files."""

from __future__ import annotations

from emmental.flags import Flags, flag

TASK_KINDS = ("classification", "regression")
DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
"""Names that `--delimiter` accepts besides the character itself."""
READING_FLAGS = (
    flag("text_column", "column of the text; default sentence1", changes_result=False),
    flag("text_pair_column", "column of the second text of pairs; default sentence2, if any", changes_result=False),
    flag(
        "label_column",
        "column of the label; default label; several: a 0/1 column for each of several labels",
        several=True,
        changes_result=False,
    ),
    flag("label_separator", "between the labels of a cell, if a row has several", changes_result=False),
    flag("delimiter", "character between the cells, or tab, semicolon, ...; default: detected", changes_result=False),
    flag(
        "encoding",
        "encoding of text files, such as latin-1; default: UTF-8, or UTF-16 if detected",
        changes_result=False,
    ),
    flag("task_kind", f"{' or '.join(TASK_KINDS)}; default: decided from the labels", accepts=(*TASK_KINDS, None)),
)
"""Flags that say how to read the user's own files."""
HOW_TO_READ = ("text_column", "text_pair_column", "label_column", "label_separator", "delimiter", "encoding")
"""Those of them that the report accepts too."""


def reading_problems(args: Flags) -> list[str]:
    """Mistakes in these flags, a line each."""
    problems = []
    if args.delimiter is not None and len(DELIMITERS.get(args.delimiter, args.delimiter)) != 1:
        problems.append(f"--delimiter accepts one character, or {', '.join(DELIMITERS)}, not {args.delimiter!r}")
    if args.encoding is not None and not _is_encoding(args.encoding):
        problems.append(f"--encoding accepts what Python knows (utf-8, latin-1, cp1252, ...), not {args.encoding!r}")
    if args.label_separator == "":
        problems.append("--label_separator accepts one character or more, such as ';'")
    if one := [f"--{name}" for name in _several_labels_flags(args)]:
        if len(one) > 1:
            problems.append(f"{' and '.join(one)}: a row's labels are in a cell, or in columns; give either")
        if args.task_kind is not None:
            problems.append(f"{one[0]} trains several labels at once, --task_kind {args.task_kind} one; give either")
    given = [f"--{one.name}" for one in READING_FLAGS if getattr(args, one.name) is not None]
    if given and not (args.train_file or args.validation_file or args.test_file or args.unlabeled_file):
        problems.append(f"{', '.join(given)}: only for your own files (--train_file, --validation_file, --test_file)")
    return problems


def _several_labels_flags(args: Flags) -> list[str]:
    """Flags that say that a row has several labels."""
    columns = ["label_column"] if len(args.label_column or ()) > 1 else []
    return columns + (["label_separator"] if args.label_separator is not None else [])


def _is_encoding(name: str) -> bool:
    try:
        return "".encode(name).decode(name) == ""
    except LookupError:  # no encoding of text
        return False
