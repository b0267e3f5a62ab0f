"""Where products in bfloat16 are worth it."""

import torch


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether the device has such products in hardware; a processor without them is slower in bfloat16.

    Every accelerator counts as one that has; of a processor torch says it, and one that it says nothing of has not.
    """
    if torch.device(device).type != "cpu":
        return True
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)
