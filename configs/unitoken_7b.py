"""UniToken-7B: Chameleon-7B decoder, SigLIP-SO400M/14-384, any-resolution images: the defaults."""


def get_config(_=None):
    return {}
