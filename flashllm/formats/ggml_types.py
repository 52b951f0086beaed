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
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    20: GGMLType("IQ4_NL", 32, 18),
    23: GGMLType("IQ4_XS", 256, 136),
    30: GGMLType("BF16", 1, 2),
    39: GGMLType("MXFP4", 32, 17),
}
"""By number (ggml.h, enum ggml_type); sizes are those of ggml-common.h."""

# Types that exist and that this version cannot read, so that the message can name them.
OTHERS = {
    9: "Q8_1",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}


def ggml_type(number: int, where: str) -> GGMLType:
    """The type numbered `number`; `where` names the tensor in messages.

    Raises UnsupportedModel for a known type this version cannot read, CorruptModel for others.
    """
    if number in READABLE:
        return READABLE[number]
    if number in OTHERS:
        raise UnsupportedModel(
            f"{where} is {OTHERS[number]}, which is not supported yet; use a Q2_K to Q8_0 file"
        )
    raise CorruptModel(f"{where} has the unknown tensor type {number}; download the file again")
