"""The groups that the operators of a model belong to, in order: measured by the harness, shown by the reports."""

GROUPS = {  # what a picture calls it
    "attention": "attention products",
    "projections": "projections",
    "mlp": "MLP",
    "convolutions": "embedding, position, pooling",
    "norms": "norms",
    "movement": "data movement",
    "rest": "rest",
}
WITH_PRODUCTS = tuple(group for group in GROUPS if group not in ("norms", "movement"))  # these hold no multiply-adds
