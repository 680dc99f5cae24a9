"""Training under t5x (github.com/google-research/t5x): what `python -m t5x.train` needs of this package.

    model         a t5x model around the language model's objective
    optimizer     the parameter groups of `training.optimizer` as a t5x optimiser
    partitioner   the mesh and the rules of `parallel.mesh.Hardware` as a t5x partitioner; rules for t5x's own
    axes          axis names of our parameters in the form t5x reads
    data          the loader's batches, the same as our trainer's, as t5x's training and evaluation data
    seqio_data    t5x's own data path over the seqio tasks and mixtures of `data.tasks`
    checkpoints   t5x's checkpoints made of ours, and ours made of t5x's

t5x is no package of an index: launch/t5x.sh installs it (docs/t5x.md). Without it only `axes` can be imported.
"""
