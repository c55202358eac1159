"""LOGITS -> LOSS -> NEW STATE: a config goes in, out comes a run directory with checkpoints, logs and a
model. `train` does all of that; the other names are its pieces, for those who write a loop of their own.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.train.checkpoint import Checkpoints, SaveError
    from unitoken_jax.train.loop import train
    from unitoken_jax.train.loss import LossSums, cross_entropy
    from unitoken_jax.train.optimizer import peak_rates, stage_groups, transformation
    from unitoken_jax.train.placement import initial_state, shard_batch
    from unitoken_jax.train.preemption import Preempted
    from unitoken_jax.train.state import State
    from unitoken_jax.train.step import make_evaluation_step, make_model, make_train_step
    from unitoken_jax.train.vq import train_vq
