"""Compares where a run under t5x places its state with where our trainer does; nothing is allocated.

python -m tests.interop.t5x_placement GIN_FILE ... ends with an error at the first difference, and prints the number of
parameters, of arrays that are split, and of steps. It is `__main__`, where the gin files look for t5x's `train`.
"""

import sys

import gin
import jax
import numpy as np
from flax import linen as nn
from flax.core import unfreeze
from jax.sharding import NamedSharding, PartitionSpec
from t5x import gin_utils, utils
from t5x.train import train

from mimo_jax.ahead_of_time import batches
from mimo_jax.training import program


def flat(tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: x is None)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def main(files):
    gin.configurable(train)
    # As launch/t5x.sh does by `python -P`: a folder `runs` in the checkout is no package of gin files.
    gin.config._FILE_READERS[:] = [reader for reader in gin.config._FILE_READERS if reader[0] is open]
    gin_utils.parse_gin_flags(["gin"], files, ["MODEL_DIR = ''", "PREPARED = None", "TRAIN_STEPS = 10"])
    given = gin.get_bindings(train)
    model, partitioner = given["model"], given["partitioner"]
    initializer = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, {}, partitioner)
    theirs = initializer.train_state_axes

    mesh, hardware = partitioner.mesh, partitioner.hardware
    rows = given["train_dataset_cfg"].batch_size
    batch = batches.packed_rows(rows=rows, context=64, model=model.objective.model)
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        ours = program.build(model.objective, model.optimizer_def.optimizer, hardware, mesh, batch).state

    split = 0
    for wanted, found in ((ours.params, unfreeze(theirs.params)), (ours.opt_state, theirs.param_states)):
        wanted, found = flat(wanted), flat(found)
        assert wanted.keys() == found.keys(), sorted(wanted.keys() ^ found.keys())
        for name, array in wanted.items():
            spec = found[name] or PartitionSpec()
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), len(array.shape)), name
            split += any(spec)
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(ours.params))
    print(count, split, model.optimizer_def.total_steps)


if __name__ == "__main__":
    main(sys.argv[1:])
