"""The cheap joint bound without a factorisation: a slope in [0, 1] is one half plus something in [-1/2, 1/2]."""

import torch

from robustres.certify.blocks.direct_search import DirectSearch
from robustres.certify.proof.largest_singular_value import largest_norm
from robustres.numerics import gamma, rounded_up


def loop_transformation(source: DirectSearch) -> float:
    """sigma(c_input + c_hidden z_input / 2) + sigma(c_hidden) sigma(z_input) / 2 over all frequencies, proved.

    For one hidden layer: its slopes lie in [0, 1], so it is half the identity plus half a map of slopes in [-1, 1].
    """
    middle = outer = inner = 0.0
    slack = 0.0
    with torch.no_grad():
        for form in source.chunks():
            c_input, c_hidden, z_input = (float(part.sum()) for part in form.absolute[:3])
            slack = gamma(form.roundings) * (c_input + 2 * c_hidden * z_input + c_hidden + z_input + 1)
            middle = largest_norm(form.c_input + 0.5 * (form.c_hidden @ form.z_input), at_least=middle)
            outer = largest_norm(form.c_hidden, at_least=outer)
            inner = largest_norm(form.z_input, at_least=inner)
    return rounded_up(middle + 0.5 * (outer + slack) * (inner + slack) + slack, 8)
