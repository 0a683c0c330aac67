"""Cells whose student is a linear map of stored vectors: the same mining and loss, in a second.

vectors.py   vectors of a data set, made once
task.py      what cells of one data set share: texts, vectors, candidates, negatives by rule
train.py     the map, trained by the project's loss and draws
run.py       cells of a grid
"""
