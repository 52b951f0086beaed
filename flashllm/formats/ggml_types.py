"""The tensor types of ggml: how many weights make a block, and how many bytes a block takes."""

from __future__ import annotations

import dataclasses

from flashllm.errors import CorruptModel, UnsupportedModel


@dataclasses.dataclass(frozen=True)
class GGMLType:
    """A tensor type: `block` consecutive weights of a row take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


READABLE = {
    0: GGMLType("F32", 1, 4),
    1: GGMLType("F16", 1, 2),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    8: GGMLType("Q8_0", 32, 34),
    30: GGMLType("BF16", 1, 2),
}

# Types that exist (ggml.h, enum ggml_type) and that this version cannot read, so that the message
# can name them.
OTHERS = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def ggml_type(number: int, where: str) -> GGMLType:
    """The type numbered `number`; `where` names the tensor in messages.

    Raises UnsupportedModel for a known type this version cannot read, CorruptModel for others.
    """
    if number in READABLE:
        return READABLE[number]
    if number in OTHERS:
        readable = ", ".join(kind.name for kind in READABLE.values())
        raise UnsupportedModel(
            f"{where} is {OTHERS[number]}, which is not supported yet; use a file of {readable}"
        )
    raise CorruptModel(f"{where} has the unknown tensor type {number}; download the file again")
