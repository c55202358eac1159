"""The quickstart's runs, one at a time, on the data and weights a quickstart left behind.

    unitoken train --config quickstart:stage2 --workdir runs/again

Run it in the folder that holds `quickstart/`. Stages: stage1, stage2, stage3.
"""

import pathlib

from ml_collections import ConfigDict

from unitoken_jax.config import to_dict
from unitoken_jax.quickstart import recipe
from unitoken_jax.quickstart.run import Quickstart


def get_config(name="stage2") -> ConfigDict:
    stages = {stage.name: stage for stage in recipe.FROM_BASE.stages}
    if name not in stages:
        raise ValueError(f"no quickstart stage {name!r}: expected one of {', '.join(stages)}")
    quickstart = Quickstart(pathlib.Path("quickstart"), recipe.FROM_BASE, recipe.FROM_BASE.minutes, seed=0)
    return ConfigDict(to_dict(quickstart.stage_config(stages[name])))
