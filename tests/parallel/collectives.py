"""What the devices of a compiled program exchange."""

import re

import numpy as np

KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
ALONE = re.compile(r"replica_groups=\{\{\d+\}(,\{\d+\})*\}")


def sizes(program):
    """Numbers of entries of all results of collectives in the text of a compiled program.

    Those among groups of one device, which `shard_map` leaves for mesh axes of size 1, move nothing and do not count.
    """
    lines = [line for line in program.splitlines() if not ALONE.search(line)]
    results = [match[1] for line in lines if (match := re.search(rf"= (.*?) (?:{KINDS})(?:-start)?\(", line))]
    shapes = [shape for result in results for shape in re.findall(r"\w\[([\d,]*)\]", result)]
    return [int(np.prod([int(n) for n in shape.split(",") if n], dtype=int)) for shape in shapes]
