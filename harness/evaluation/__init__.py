"""What a trained model is worth: predictions for every view of every video, and the figures that follow from them.

`views` runs the model, `predictions` keeps what it said, `scores` turns that into accuracy with intervals (NumPy
alone), `gradcam` shows where a class was seen; `trained` finds the model that a command line names.
"""
