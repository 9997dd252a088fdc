"""Predicates on Arrow column types, independent of their encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values behind a dictionary, run-length or extension type."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def without_list(kind: pa.DataType) -> tuple[pa.DataType, bool]:
    """The type of one value, and whether a row holds a list of them."""
    kind = plain_type(kind)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    is_list = any(test(kind) for test in (*lists, *views))
    return (plain_type(kind.value_type), True) if is_list else (kind, False)


def is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def duplicates(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
