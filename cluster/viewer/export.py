"""Episodes of a filter as files to take away: CSV of what the table shows, Parquet with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.records.episodes import EPISODES
from cluster.viewer import queries
from cluster.viewer.filters import Filter
from cluster.viewer.index import SETS, EpisodeIndex, conform

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a text with such a start for a formula, and a policy may have written one."""
BATCH = 5000


def csv_lines(con: queries.Connection, chosen: Filter) -> Iterator[str]:
    """Line by line, in the order of the filter. A text that a spreadsheet could run is given an apostrophe."""
    where, bound = chosen.where()
    columns = ", ".join(queries.LISTED)
    found = con.execute(f"SELECT {columns} FROM episodes WHERE {where} ORDER BY {chosen.order()}", bound)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([column[0] for column in found.description or ()])
    while rows := found.fetchmany(BATCH):
        writer.writerows([["'" + v if isinstance(v, str) and _runs(v) else v for v in row] for row in rows])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _runs(text: str) -> bool:
    """A negative number is none."""
    if not text.startswith(FORMULA):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def write_filtered(index: EpisodeIndex, chosen: Filter, path: Path) -> None:
    """All columns of the filtered episodes, turns included; a file that a resumed run has just removed is left out."""
    places = queries.places(index.cursor(), chosen)
    with pq.ParquetWriter(path, EPISODES, compression="zstd") as out:
        for (of_set, file), rows in groupby(places, key=lambda row: (row["set"], row["file"])):
            try:
                table = conform(pq.read_table(index.run / SETS[of_set] / f"{file}.parquet"), EPISODES)
            except (OSError, KeyError, pa.ArrowException):
                continue
            taken = [row["ordinal"] for row in rows if row["ordinal"] < len(table)]
            out.write_table(table.take(pa.array(taken, pa.int64())))
