"""The paper's Tables 5 and 6 with the quickstart's model: seeds go in, out come scores of each of the tables'
models and the paper's findings beside those made here.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.ablate.cells import CELLS, Cell
    from unitoken_jax.ablate.run import Ablation
