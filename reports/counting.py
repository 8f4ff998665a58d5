"""How the authors of a table counted operations, as functions of what the harness measures.

All counts are of one view of one clip, classifier excluded. Papers print most of them as GFLOPs although they are
multiply-adds.
"""


def fvcore(macs: int, layernorm_elements: int, batchnorm_elements: int) -> int:
    """fvcore's rule: one per multiply-add, five per LayerNorm element, two per BatchNorm element in evaluation.

    Softmax, activations, additions and pooling count as nothing.
    """
    return macs + 5 * layernorm_elements + 2 * batchnorm_elements


def multiply_adds(macs: int, layernorm_elements: int, batchnorm_elements: int) -> int:
    """One per multiply-add of linear layers, convolutions and attention, and nothing for anything else."""
    return macs


RULES = {"fvcore": fvcore, "multiply_adds": multiply_adds}
WORDS = {
    "fvcore": "fvcore's rule (multiply-adds, plus 5 per LayerNorm and 2 per BatchNorm element)",
    "multiply_adds": "plain multiply-adds",
}
