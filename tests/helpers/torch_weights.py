"""Random weights for torch peers, and the peer `transformers` lacks; import it after
`pytest.importorskip("torch")` and "transformers".
"""

import torch
from transformers.models.chameleon import modeling_chameleon as blocks


def randomise(module, seed: int | None = None) -> None:
    """Every weight of `module`, norms and biases too; `seed` None goes on with torch's generator as it is."""
    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(0, 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
            if "norm" in name and name.endswith("weight"):
                weight += 1


class TorchDecoder(torch.nn.Module):
    """The published decoder's layout: conv_in, mid, up (the lowest resolution has the highest number)."""

    def __init__(self, config):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        width = widths[-1]
        self.conv_in = torch.nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = torch.nn.Module()
        self.mid.block_1 = blocks.ChameleonVQVAEEncoderResnetBlock(config, width, width)
        self.mid.attn_1 = blocks.ChameleonVQVAEEncoderAttnBlock(width)
        self.mid.block_2 = blocks.ChameleonVQVAEEncoderResnetBlock(config, width, width)
        levels = []
        for number in reversed(range(len(widths))):
            level = torch.nn.Module()
            level.block, level.attn = torch.nn.ModuleList(), torch.nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                level.block.append(blocks.ChameleonVQVAEEncoderResnetBlock(config, width, widths[number]))
                width = widths[number]
                if config.resolution // 2**number in (config.attn_resolutions or ()):
                    level.attn.append(blocks.ChameleonVQVAEEncoderAttnBlock(width))
            if number:
                level.upsample = torch.nn.Module()
                level.upsample.conv = torch.nn.Conv2d(width, width, 3, padding=1)
            levels.insert(0, level)
        self.up = torch.nn.ModuleList(levels)
        self.norm_out = torch.nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = torch.nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(x))))
        for number in reversed(range(len(self.up))):
            level = self.up[number]
            for i, block in enumerate(level.block):
                x = block(x)
                x = level.attn[i](x) if len(level.attn) else x
            if number:
                x = level.upsample.conv(torch.nn.functional.interpolate(x, scale_factor=2.0))
        return self.conv_out(torch.nn.functional.silu(self.norm_out(x)))
