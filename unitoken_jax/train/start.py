"""What a run starts from: a model directory or random weights, with LoRA pairs beside them, and what is
frozen perhaps in fewer bits."""

from jax.sharding import Mesh

from unitoken_jax.checkpoint import model_directory
from unitoken_jax.config import Config, to_dict
from unitoken_jax.model.decoder import stack_layers
from unitoken_jax.model.init import abstract_params, init_lora, init_params
from unitoken_jax.model.lora import merge_trees
from unitoken_jax.model.quantize import BITS, QUANTIZED_KERNELS
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.train.checkpoint import differing_settings
from unitoken_jax.train.optimizer import peak_rates
from unitoken_jax.train.state import flatten


def check_start(config: Config, params: dict | None = None) -> None:
    """Raises ValueError, before any weight is read, for a start that cannot be: LoRA pairs or quantized
    kernels without a model directory to take them from, another network than it has, groups that find
    nothing.

    `params`: as `starting_point`'s.
    """
    settings = config.train
    narrow: str | None = settings.frozen_dtype if settings.frozen_dtype in BITS else None
    if (narrow or config.lora.rank) and (params is not None or not settings.init_from):
        setting = "lora.rank" if config.lora.rank else f"train.frozen_dtype {settings.frozen_dtype!r}"
        raise ValueError(
            f"{setting} needs a model to start from: set config.train.init_from to a model directory"
        )
    if settings.init_from:
        if config.lora.rank:
            opened = model_directory.open_model(settings.init_from)
        else:
            purpose = "training (config.train.init_from)"
            opened = model_directory.open_unquantized(settings.init_from, purpose)
        narrow = narrow or opened.params.quantization
        _check_same_network(config, opened.config)
    rates = peak_rates(flatten(abstract_params(config.model, config.lora)), config.optimizer.groups)
    if narrow and (trained := [path for path in rates if QUANTIZED_KERNELS.match(path)]):
        raise ValueError(
            f"optimizer.groups train {trained[0]}, which the run would hold in {narrow}: train LoRA pairs "
            "beside it instead (lora.rank, and a group for lora_[ab]$), or start from a model that is not "
            "quantized, with train.frozen_dtype as it is stored"
        )


def starting_point(
    config: Config, params: dict | None, tokenizer: Tokenizer | None, mesh: Mesh
) -> tuple[dict, Tokenizer]:
    """(the nested tree of all parameters, the tokenizer) that a run starts with.

    Args:
        config: all settings, which `check_start` has seen.
        params: what the caller has; None: what config.train.init_from has, or random weights.
        tokenizer: the caller's; None: the model directory's, or config.train.tokenizer.
        mesh: where the parameters go.
    """
    settings = config.train
    if settings.init_from and (params is None or tokenizer is None):
        quantize = settings.frozen_dtype if settings.frozen_dtype in BITS else None
        loaded = model_directory.load_model(settings.init_from, mesh=mesh, quantize=quantize)
        loaded.params["decoder"] = stack_layers(loaded.params["decoder"], consume=True)
        tokenizer = tokenizer or loaded.tokenizer
        params = loaded.params if params is None else params
    if tokenizer is None:
        if not settings.tokenizer:
            raise ValueError(
                "nothing to start from: set config.train.init_from to a model directory, or "
                "config.train.tokenizer to a tokenizer.json to start from random weights"
            )
        tokenizer = Tokenizer.load(settings.tokenizer)
    if params is None:
        params = init_params(config.model, settings.seed, mesh)
    if config.lora.rank:
        params = merge_trees(params, init_lora(config.model, config.lora, settings.seed, mesh))
    return params, tokenizer


def _check_same_network(config: Config, stored) -> None:
    """ValueError naming each setting of a network in which the model directory is another one."""
    free = ("decoder.dropout", "vq.commitment", "sequence.", "generation.")
    lines = differing_settings(to_dict(stored), to_dict(config.model))
    lines = [f"config.model.{line}" for line in lines if not line.startswith(free)]
    if lines:
        raise ValueError(
            f"{config.train.init_from} holds another network than config.model (there / here):\n  "
            + "\n  ".join(lines)
            + "\nSet these keys to what the model directory has."
        )
