"""Arguments of a call against the schema that the prompt declared: the small part of JSON Schema that tools need.

Understood are `type` (object, array, number, integer, string), `properties`, `required`, `items`, `minItems`,
`maxItems`, `minimum`, `maxLength` and `enum`. It is narrower than the standard: an object has no undeclared keys, a
number is finite, an integer is written as one, and a boolean is neither.
"""

from __future__ import annotations

import math
from typing import Any

from actors.tools.tool import Schema


def fault(value: Any, schema: Schema, name: str = "arguments") -> str | None:
    """Why a value does not fit the schema, or None. What the policy wrote is not quoted."""
    if "enum" in schema and (not isinstance(value, str) or value not in schema["enum"]):
        return f"{name} must be {' or '.join(schema['enum'])}"
    match schema["type"]:
        case "object":
            return _object_fault(value, schema, name)
        case "array":
            return _array_fault(value, schema, name)
        case "number":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_finite = is_number and (isinstance(value, int) or math.isfinite(value))
            return None if is_finite else f"{name} must be a finite number"
        case "integer":
            least = schema["minimum"]
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
            return None if fits else f"{name} must be an integer of at least {least}"
        case "string":
            most = schema.get("maxLength", math.inf)
            return (
                None
                if isinstance(value, str) and len(value) <= most
                else f"{name} must be a text of at most {most} characters"
            )
    raise AssertionError(f"a tool declares an unknown type: {schema['type']}")


def _object_fault(value: Any, schema: Schema, name: str) -> str | None:
    properties, required = schema["properties"], schema["required"]
    if not isinstance(value, dict) or not set(required) <= value.keys() <= set(properties):
        return f"{name} must be an object with the keys {', '.join(required)} and no others"
    found = (fault(value[key], properties[key], key) for key in properties if key in value)
    return next((each for each in found if each), None)


def _array_fault(value: Any, schema: Schema, name: str) -> str | None:
    least, most = schema["minItems"], schema["maxItems"]
    if not isinstance(value, list) or not least <= len(value) <= most:
        return f"{name} must be a list of {most} numbers"
    found = (fault(item, schema["items"], f"each number of {name}") for item in value)
    return next((each for each in found if each), None)
