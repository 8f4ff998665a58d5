"""The built-in data set: real photographs put into motion, so that the class of a clip is what happens over time.

`photographs` cuts pictures out of the photographs that scikit-image installs, `scenes` says what moves how in each
class, `drawing` turns a scene into pictures, `encoding` writes them as MP4, `store` renders a split to disk once.
`harness/datasets/motion.py` lists the result and says what the controls can reach.
"""
