"""How the authors of a table counted operations: each rule as weights of what the harness counts.

All counts are of one view of one clip. Papers print most of them as GFLOPs although they are multiply-adds.
"""

from collections.abc import Callable

RULES: dict[str, dict[str, int]] = {  # softmax, activations, additions and pooling count as nothing in all of them
    "fvcore": {"macs": 1, "layernorm_elements": 5, "batchnorm_elements": 2},
    "fvcore_with_classifier": {"macs_with_classifier": 1, "layernorm_elements": 5, "batchnorm_elements": 2},
    "multiply_adds": {"macs": 1},
    "multiply_adds_with_classifier": {"macs_with_classifier": 1},
    "without_attention_products": {"macs_with_classifier": 1, "attention_products": -1},
    "mlps_only": {"mlp_macs": 1},
    "linear_maps": {"linear_maps": 1},
}
WORDS = {
    "fvcore": "fvcore's rule (multiply-adds, plus 5 per LayerNorm and 2 per BatchNorm element)",
    "fvcore_with_classifier": "fvcore's rule with the classifier",
    "multiply_adds": "plain multiply-adds",
    "multiply_adds_with_classifier": "multiply-adds with the classifier",
    "without_attention_products": "multiply-adds with the classifier and without the products of attention",
    "mlps_only": "the multiply-adds of the MLPs alone",
    "linear_maps": "the multiply-adds of the blocks' linear maps alone",
}


def operations(rule: str | None, count_of: Callable[[str], int | None]) -> int | None:
    """One view by a rule, from counts by name; None for an unknown rule or where a count that it needs is absent."""
    counts = {name: count_of(name) for name in RULES.get(rule or "", {})}
    if not counts or None in counts.values():
        return None
    return sum(weight * counts[name] for name, weight in RULES[rule].items())
