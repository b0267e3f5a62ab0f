"""Whether matrix products in bfloat16 are worthwhile."""

from typing import Any

import torch


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies matrices faster in bfloat16 than in float32; a processor that does not loses time.

    Every accelerator is assumed to. A processor does with AMX, or with the bfloat16 instructions of AVX-512 unless it
    is an Intel one, where these take twice the time of float32. Without a report of torch, it is assumed not to.
    """
    if torch.device(device).type != "cpu":
        return True
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return True
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() and "Intel" not in _processor()


def _processor() -> str:
    """The name of the processor as torch reports it, empty if it does not."""
    report: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(report.get("cpu_name", ""))
