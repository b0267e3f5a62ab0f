"""Whether matrix products in bfloat16 are worthwhile."""

import torch


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether the device has bfloat16 products in hardware; a processor without them is slower in bfloat16.

    Every accelerator is assumed to have them; for a processor torch reports it, and without a report none are assumed.
    """
    if torch.device(device).type != "cpu":
        return True
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)
