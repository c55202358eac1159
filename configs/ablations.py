"""The paper's ablations (Tables 5 and 6) at 7B: stage II on fewer examples, without any-resolution images.

    unitoken train --config ablations:unified-joint --workdir runs/a --config.train.init_from=MODEL

The names are those of the models that `unitoken ablate` makes small. Those that read features start from
stage I, made with `--config stage1 --config.model.sequence.resolution=base`.
"""

import stage2
from ml_collections import ConfigDict

from unitoken_jax.ablate.cells import CELLS
from unitoken_jax.train.optimizer import stage_groups

# About how many tokens an example takes: 1,060 of an image's codes, 756 of its features, 150 of text.
READ = {"unified": 1966, "discrete": 1210, "continuous": 906}
DRAWN = 1210
ROWS, ROW_LENGTH = 24, 8192  # about 128 examples of the joint mixture, as in Table 2


def get_config(name="unified-joint") -> ConfigDict:
    cells = {cell.name: cell for cell in CELLS}
    if name not in cells:
        raise ValueError(f"no ablation {name!r}: expected one of {', '.join(cells)}")
    cell = cells[name]
    config = stage2.get_config()
    *understanding, generation = config.data.sources
    for sources, millions in ((understanding, cell.understanding), ([generation], cell.generation)):
        total = sum(source["weight"] for source in sources)
        for source in sources:
            source["weight"] *= millions / total
    groups = stage_groups(2)
    if cell.encoding == "discrete":
        groups = [group for group in groups if "siglip" not in group.pattern]
    tokens = (cell.understanding * READ[cell.encoding] + cell.generation * DRAWN) * 1_000_000
    config.model = {"sequence": {"resolution": "base", "encoding": cell.encoding}}
    config.data.sources = [source for source in config.data.sources if source["weight"]]
    config.data.row_length, config.data.rows = ROW_LENGTH, ROWS
    config.optimizer.groups = groups
    config.train.steps = round(tokens / (ROWS * ROW_LENGTH))
    return config
