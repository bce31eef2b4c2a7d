"""What can be trained: one algorithm, one file, registered in `registry.ALGORITHMS`.

An algorithm has `prepare(host)`, `parameters()`, `groups()`, `branch_of(layer)`, `training(step, micro)`, `off()`,
`export()`, `restore()`, `delta()`, `layer_names()` and `metadata()`; the loop asks for nothing else. tests/trainables/test_every_algorithm.py holds the laws.
"""
