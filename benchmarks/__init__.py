"""Public code beside ours: a family of models that is found in a checkout only, and the rows of `ablation=peers`.

Each module here registers one implementation of somebody else and says how its weights become ours. Its models are
measured like any other, in turn with ours; that both compute the same is the check before each time, in which our model
with the translated weights, in float64 on the reference kernel, is what theirs has to equal.
"""
