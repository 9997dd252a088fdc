"""Text of others made visible: a policy, a data set or a server may write what makes a page or a terminal lie. Pure."""

from __future__ import annotations

BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
"""Controls that change the order in which text is shown."""
CONTROLS = (*range(0x09), *range(0x0B, 0x20))
SHOWN = {
    **{code: chr(0x2400 + code) for code in CONTROLS},
    **{code: f"⟦U+{code:04X}⟧" for code in (*BIDI, *range(0x7F, 0xA0), 0xFEFF)},
}


def visible(text: object) -> str:
    """As it was written, with a sign in place of each character that is not seen but acts. A lone surrogate is one."""
    return str(text).translate(SHOWN).encode("utf-8", "replace").decode("utf-8")
