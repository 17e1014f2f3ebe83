"""Readers of tables: content of a file -> rows of its format -> table."""

from emmental.tasks.files.content import member_name
from emmental.tasks.files.formats import DELIMITERS, Row
from emmental.tasks.files.table import FORMATS, TEXT_LINES, Table, read_table, table_format

__all__ = ["DELIMITERS", "FORMATS", "TEXT_LINES", "Row", "Table", "member_name", "read_table", "table_format"]
