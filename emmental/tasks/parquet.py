"""Reads tables in parquet with pyarrow, if that is installed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.cells import Row, cell_of
from emmental.tasks.task import listed


def parquet_table(path: Path, keys: Collection[str]) -> tuple[list[str], list[Row]]:
    """Header and rows, numbered from 1. Only columns in `keys` are read, in the order of the file.

    Raises:
        UserError: pyarrow is missing, the file is not parquet, it has none of `keys` or one twice, or a value is no
            cell (see `cell_of`); names file and row.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow; install it with `pip install pyarrow`") from None
    try:
        file = parquet.ParquetFile(path)
        every = file.schema_arrow.names
        header = [name for name in every if name in keys]
        for name in header:
            if every.count(name) > 1:
                raise UserError(f"{path}: more than one column named {name!r}")
        table = file.read(header)
        columns = {name: table.column(name).to_pylist() for name in header}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from None
    if not columns:
        raise UserError(f"{path}: no column named {' or '.join(keys)}; the columns are {listed(every)}")
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        place = f"{path}:{number}"
        rows.append((number, [cell_of(value, place, name) for value, name in zip(values, header, strict=True)]))
    return header, rows
