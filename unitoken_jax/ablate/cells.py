"""The models that the paper's Tables 5 and 6 compare, in the paper's numbers.

`unitoken ablate` trains them in the small world, configs/ablations.py describes them at 7B.
"""

import dataclasses
from typing import Literal

Encoding = Literal["unified", "discrete", "continuous"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of the tables: how it reads images, and the millions of examples the paper gave it."""

    name: str
    encoding: Encoding
    understanding: float
    generation: float


CELLS = (
    Cell("discrete-understanding", "discrete", 10, 0),
    # One cell for every encoding: nothing is read in it, and stage I leaves the decoder as it is.
    Cell("generation", "discrete", 0, 10),
    Cell("discrete-joint", "discrete", 10, 10),
    Cell("unified-understanding", "unified", 10, 0),
    Cell("unified-joint", "unified", 10, 10),
    Cell("continuous-understanding", "continuous", 10, 0),
    Cell("continuous-joint", "continuous", 10, 10),
    Cell("unified-joint-2to1", "unified", 10, 5),
    Cell("unified-small", "unified", 2, 2),
    Cell("unified-small-2to1", "unified", 2, 1),
)
