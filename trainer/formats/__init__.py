"""Files of items and events: each format is a reader that yields the same rows, in bounded memory."""

from trainer.formats.opening import Format, Options, open_table, open_tables
from trainer.formats.rows import Row, Table

__all__ = ["Format", "Options", "Row", "Table", "open_table", "open_tables"]
