"""What is asked of the types of columns, however their values are encoded."""

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
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    is_list = is_list or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return (plain_type(kind.value_type), True) if is_list else (kind, False)


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    is_fixed = pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or is_fixed)


def doubled(names: Iterable[str]) -> list[str]:
    """Names that stand more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
