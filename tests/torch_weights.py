"""Random weights for torch peers; import it after `pytest.importorskip("torch")`."""

import torch


def randomise(module, seed: int | None = None) -> None:
    """Every weight of `module`, norms and biases too; `seed` None goes on with torch's generator as it is."""
    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(0, 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
            if "norm" in name and name.endswith("weight"):
                weight += 1
