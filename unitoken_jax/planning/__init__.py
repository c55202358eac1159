"""What a training step takes, before it runs: a config and a topology go in, memory, FLOPs, traffic and an
estimate of the time come out, read from the program that the real compiler makes of the step.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.planning.cost import Cost, count_cost
    from unitoken_jax.planning.estimate import Time, estimate_time
    from unitoken_jax.planning.memory import Memory
    from unitoken_jax.planning.plan import CompiledStep, Plan
