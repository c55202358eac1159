"""UniToken-7B: Chameleon-7B decoder, SigLIP-SO400M/14-384, any-resolution images: the defaults."""

from ml_collections import ConfigDict


def get_config(_=None) -> ConfigDict:
    return ConfigDict()
