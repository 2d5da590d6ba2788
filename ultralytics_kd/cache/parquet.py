"""Parquet files whose names end in a hash of their content.

The hash is compared before Polars parses a file, because a damaged Parquet file may end the process.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import polars as pl

# Polars raises it for some damaged files; older releases call it PolarsPanicError
PANIC: type[BaseException] = getattr(pl.exceptions, "PanicException", None) or vars(pl.exceptions)["PolarsPanicError"]


def content_hash(content: bytes) -> str:
    """Return 128 bits of BLAKE2b as 32 hex digits.

    Args:
        content (bytes): Content of a file.
    """
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def parquet_bytes(table: pl.DataFrame, statistics: bool = True) -> bytes:
    """Return a table as the content of a Parquet file.

    Args:
        table (pl.DataFrame): The table.
        statistics (bool): Whether to store the range of every column.
    """
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=statistics)
    return buffer.getvalue()


def read_table(path: Path, schema: dict[str, Any]) -> pl.DataFrame | None:
    """Read a Parquet file, and return None if it is damaged, has another schema or lacks values.

    Args:
        path (Path): The file. Its name ends in the first 8 hex digits of its content's hash.
        schema (dict): Polars type of every column.

    Returns:
        (pl.DataFrame | None): The table, without nulls.
    """
    try:
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != content_hash(content)[:8]:
            return None
        table = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError, ValueError, PANIC):
        return None
    if dict(table.schema) != schema:
        return None
    lists = [table[name] for name, kind in schema.items() if isinstance(kind, pl.List)]
    nulls = sum(table.null_count().row(0)) or any(flat_values(column).null_count() for column in lists)
    return None if nulls else table


def flat_values(column: pl.Series) -> pl.Series:
    """Return the values of a column of lists, one after another.

    Args:
        column (pl.Series): Column of type `List`.
    """
    return column.filter(column.list.len() > 0).explode()  # Polars would turn an empty list into a null
