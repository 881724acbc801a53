"""What a column holds, by its Arrow type, however it is laid out."""

import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a column holds lists, of positives for example."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in (*tests, pa.types.is_list_view, pa.types.is_large_list_view))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return what a column's values are, whether or not they are in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Tell whether values are texts, however they are laid out."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)
