"""What devices can do at most: dense peaks as their maker states them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """TFLOP/s without sparsity.

    `bf16`: of the tensor cores; datasheets often show twice as much, with sparsity. `fp32`: true float32, in which
    torch computes unless told to use TF32; None where it was not looked up.
    """

    source: str
    bf16: float
    fp32: float | None


# By words of the name that CUDA gives the device, those with more words first.
PEAKS: dict[str, Peak] = {
    "H100 NVL": Peak("NVIDIA H100 datasheet, NVL", 835.5, 60.0),
    "H100 PCIe": Peak("NVIDIA H100 datasheet, PCIe", 756.0, 51.0),
    "H100": Peak("NVIDIA H100 datasheet, SXM", 989.5, 67.0),
    "H200": Peak("NVIDIA H200 datasheet, SXM", 989.5, 67.0),
    "B200": Peak("NVIDIA DGX B200 datasheet, an eighth of the system", 2250.0, None),
    "A100": Peak("NVIDIA A100 datasheet", 312.0, 19.5),
    "L40S": Peak("NVIDIA L40S datasheet", 362.0, 91.6),
    "L4": Peak("NVIDIA L4 datasheet", 121.0, 30.3),
    "A10": Peak("NVIDIA A10 datasheet", 125.0, 31.2),
}


def peak_of(device: torch.device, precision: str) -> float | None:
    """The device's peak in FLOP/s at a precision of training.precision; None if it is not known, as of a CPU."""
    return peak_by_name(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_by_name(name: str, precision: str) -> float | None:
    """As :func:`peak_of`, by the name that CUDA gives, such as "NVIDIA A100-SXM4-80GB"."""
    words = name.replace("-", " ").split()
    if "MIG" in words or precision == "fp64":  # a part of a device; what nobody trains in
        return None
    for part, peak in PEAKS.items():
        if set(part.split()) <= set(words):
            found = getattr(peak, precision)
            return None if found is None else 1e12 * found
    return None
