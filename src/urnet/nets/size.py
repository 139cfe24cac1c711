"""Size of a network: its parameters, and its multiply-accumulates for one image."""

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def count_parameters(module: nn.Module) -> int:
    """Count all parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, size: int, channels: int) -> int:
    """Count the multiply-accumulates of one image in evaluation mode.

    The count includes convolutions with their biases, matrix products and attention. It leaves out norms, activations
    and pooling. It uses shapes on PyTorch's meta device, so that a full-size network needs neither time nor memory.

    Args:
        module: A network that takes (B, C, H, W), on any device; it does not change.
        size: H and W of the image, px.
        channels: C of the image.

    Returns:
        Multiply-accumulates (MAC); 10⁹ of them are a GMAC. A multiply-accumulate is two floating-point operations.
    """
    tensors = {name: x.to("meta") for name, x in chain(module.named_parameters(), module.named_buffers())}
    image = torch.empty(1, channels, size, size, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: _convolution_flops})
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), counter:
            functional_call(module, tensors, (image,))
    finally:
        for part, training in modes.items():
            part.training = training
    return counter.get_total_flops() // 2


def _convolution_flops(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, *args: Any, out_shape: torch.Size, **kwargs: Any
) -> int:
    """Count a convolution as PyTorch does, plus one accumulation of the bias for each output value."""
    *_, transposed, _output_padding, _groups = args
    return conv_flop_count(x, weight, out_shape, transposed) + (2 * out_shape.numel() if bias else 0)
