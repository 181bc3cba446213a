"""The layers that are timed: those of networks that people run, at the sizes of 224x224 images.

`quick` marks the subset of `--quick`: one layer per kind of work (stem, dense 3x3, pointwise,
grouped, depthwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BATCHES = (1, 16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the pytest suites
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def _extent(size: int, window: int, stride: int, padding: int) -> int:
    """Return the output extent of a sliding window without dilation."""
    return (size + 2 * padding - window) // stride + 1


@dataclass(frozen=True)
class ConvLayer:
    """A convolution C -> K with a square window on a square image."""

    net: str
    C: int
    K: int
    size: int
    window: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Return a short name such as `resnet50 64->64 3x3 @56`."""
        kind = {1: "", self.C: " dw"}.get(self.groups, f" g{self.groups}")
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return (
            f"{self.net} {self.C}->{self.K} {self.window}x{self.window}{stride}{kind} @{self.size}"
        )

    @property
    def out_size(self) -> int:
        """Return the output's height and width."""
        return _extent(self.size, self.window, self.stride, self.padding)

    @property
    def reduction_length(self) -> int:
        """Return how many products are summed for one output element."""
        return self.C // self.groups * self.window**2

    @property
    def options(self) -> dict[str, int]:
        """Return the keyword arguments that torch and fastconv share."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    def flops(self, batch: int) -> float:
        """Return the floating-point operations of one pass; a multiply-add counts as two."""
        return 2.0 * batch * self.K * self.out_size**2 * self.reduction_length

    def bytes(self, batch: int, dtype: torch.dtype) -> float:
        """Return the bytes of input, weight and output, each moved once."""
        maps = batch * (self.C * self.size**2 + self.K * self.out_size**2)
        return float(dtype.itemsize * (maps + self.K * self.reduction_length))

    def tensors(
        self, batch: int, dtype: torch.dtype, layout: str
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return input [N, C, H, W], weight [K, C/G, R, S] and bias [K]; outputs are near 1."""
        torch.manual_seed(0)
        x = torch.randn(batch, self.C, self.size, self.size)
        w = (
            torch.randn(self.K, self.C // self.groups, self.window, self.window)
            / self.reduction_length**0.5
        )
        b = torch.randn(self.K).to(dtype) if self.bias else None
        x, w = (tensor.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for tensor in (x, w))
        return x, w, b


@dataclass(frozen=True)
class TransposedLayer:
    """A transposed convolution C -> K with a square window on a square image."""

    net: str
    C: int
    K: int
    size: int
    window: int
    stride: int
    padding: int = 0
    output_padding: int = 0
    groups: int = 1
    bias: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Return a short name such as `dcgan 64->3 4x4 s2 @32`."""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        window = f"{self.window}x{self.window} s{self.stride}{groups}"
        return f"{self.net} {self.C}->{self.K} {window} @{self.size}"

    @property
    def out_size(self) -> int:
        """Return the output's height and width."""
        reach = (self.size - 1) * self.stride + self.window
        return reach - 2 * self.padding + self.output_padding

    @property
    def reduction_length(self) -> int:
        """Return how many products one output element sums at most."""
        return self.C // self.groups * (-(-self.window // self.stride)) ** 2

    @property
    def options(self) -> dict[str, int]:
        """Return the keyword arguments that torch and fastconv share."""
        names = ("stride", "padding", "output_padding", "groups")
        return {name: getattr(self, name) for name in names}

    def flops(self, batch: int) -> float:
        """Return the floating-point operations of one pass; those that padding cuts count."""
        return 2.0 * batch * self.C * self.size**2 * self.K // self.groups * self.window**2

    def bytes(self, batch: int, dtype: torch.dtype) -> float:
        """Return the bytes of input, weight and output, each moved once."""
        maps = batch * (self.C * self.size**2 + self.K * self.out_size**2)
        return float(dtype.itemsize * (maps + self.C * self.K // self.groups * self.window**2))

    def tensors(
        self, batch: int, dtype: torch.dtype, layout: str
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return input [N, C, H, W], weight [C, K/G, R, S] and bias [K]; outputs are near 1."""
        torch.manual_seed(0)
        x = torch.randn(batch, self.C, self.size, self.size)
        w = torch.randn(self.C, self.K // self.groups, self.window, self.window)
        w = w / self.reduction_length**0.5
        b = torch.randn(self.K).to(dtype) if self.bias else None
        x, w = (tensor.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for tensor in (x, w))
        return x, w, b


@dataclass(frozen=True)
class PoolLayer:
    """A max pooling with a square window on a square image."""

    net: str
    C: int
    size: int
    window: int
    stride: int
    padding: int = 0
    quick: bool = False

    @property
    def name(self) -> str:
        """Return a short name such as `vgg16 64 2x2 s2 @224`."""
        return f"{self.net} {self.C} {self.window}x{self.window} s{self.stride} @{self.size}"

    @property
    def out_size(self) -> int:
        """Return the output's height and width."""
        return _extent(self.size, self.window, self.stride, self.padding)

    @property
    def options(self) -> dict[str, int]:
        """Return the keyword arguments that torch and fastconv share."""
        return {"kernel_size": self.window, "stride": self.stride, "padding": self.padding}

    def bytes(self, batch: int, dtype: torch.dtype, *, indices: bool = False) -> float:
        """Return the bytes of input and output (and of int64 indices), each moved once."""
        outputs = batch * self.C * self.out_size**2
        inputs = batch * self.C * self.size**2
        return float(dtype.itemsize * (inputs + outputs) + (8 * outputs if indices else 0))

    def tensor(self, batch: int, dtype: torch.dtype, layout: str) -> Tensor:
        """Return an input [N, C, H, W]."""
        torch.manual_seed(0)
        x = torch.randn(batch, self.C, self.size, self.size).to(dtype)
        return x.contiguous(memory_format=LAYOUTS[layout])


def _conv(net: str, *rows: tuple, bias: bool = False) -> list[ConvLayer]:
    """Build layers from rows in the order of `fields`; the tail may be left out."""
    fields = ("C", "K", "size", "window", "stride", "padding", "groups", "quick")
    return [ConvLayer(net, bias=bias, **dict(zip(fields, row, strict=False))) for row in rows]


CONV_LAYERS = {
    layer.name: layer
    for layer in [
        *_conv(
            "resnet50",
            (3, 64, 224, 7, 2, 3, 1, True),
            (64, 64, 56, 1),
            (64, 64, 56, 3, 1, 1, 1, True),
            (64, 256, 56, 1, 1, 0, 1, True),
            (256, 64, 56, 1),
            (256, 128, 56, 1),
            (256, 512, 56, 1, 2),
            (128, 128, 56, 3, 2, 1),
            (128, 512, 28, 1),
            (128, 128, 28, 3, 1, 1),
            (512, 128, 28, 1),
            (512, 256, 28, 1),
            (512, 1024, 28, 1, 2),
            (256, 256, 28, 3, 2, 1),
            (256, 1024, 14, 1),
            (256, 256, 14, 3, 1, 1),
            (1024, 256, 14, 1),
            (1024, 512, 14, 1),
            (1024, 2048, 14, 1, 2),
            (512, 512, 14, 3, 2, 1),
            (512, 512, 7, 3, 1, 1, 1, True),
            (512, 2048, 7, 1),
            (2048, 512, 7, 1),
        ),
        *_conv(
            "vgg16",
            (3, 64, 224, 3, 1, 1),
            (64, 64, 224, 3, 1, 1),
            (64, 128, 112, 3, 1, 1),
            (128, 128, 112, 3, 1, 1),
            (128, 256, 56, 3, 1, 1),
            (256, 256, 56, 3, 1, 1, 1, True),
            (256, 512, 28, 3, 1, 1),
            (512, 512, 28, 3, 1, 1),
            (512, 512, 14, 3, 1, 1),
            bias=True,
        ),
        *_conv(
            "mobilenetv2",
            (3, 32, 224, 3, 2, 1),
            (32, 32, 112, 3, 1, 1, 32),
            (32, 16, 112, 1),
            (16, 96, 112, 1),
            (96, 96, 112, 3, 2, 1, 96),
            (96, 24, 56, 1),
            (24, 144, 56, 1),
            (144, 144, 56, 3, 1, 1, 144, True),
            (144, 24, 56, 1),
            (144, 144, 56, 3, 2, 1, 144),
            (144, 32, 28, 1),
            (32, 192, 28, 1),
            (192, 192, 28, 3, 1, 1, 192),
            (192, 32, 28, 1),
            (192, 192, 28, 3, 2, 1, 192),
            (192, 64, 14, 1),
            (64, 384, 14, 1),
            (384, 384, 14, 3, 1, 1, 384),
            (384, 64, 14, 1, 1, 0, 1, True),
            (384, 96, 14, 1),
            (96, 576, 14, 1),
            (576, 576, 14, 3, 1, 1, 576),
            (576, 96, 14, 1),
            (576, 576, 14, 3, 2, 1, 576),
            (576, 160, 7, 1),
            (160, 960, 7, 1),
            (960, 960, 7, 3, 1, 1, 960),
            (960, 160, 7, 1),
            (960, 320, 7, 1),
            (320, 1280, 7, 1),
        ),
        *_conv(  # its other layers are those of ResNet-50
            "resnext50",
            (64, 128, 56, 1),
            (128, 128, 56, 3, 1, 1, 32, True),
            (128, 256, 56, 1),
            (256, 256, 56, 1),
            (256, 256, 56, 3, 2, 1, 32),
            (256, 512, 28, 1),
            (256, 256, 28, 3, 1, 1, 32),
            (512, 512, 28, 1),
            (512, 512, 28, 3, 2, 1, 32),
            (512, 1024, 14, 1),
            (512, 512, 14, 3, 1, 1, 32),
            (1024, 1024, 14, 1),
            (1024, 1024, 14, 3, 2, 1, 32),
            (1024, 2048, 7, 1),
            (1024, 1024, 7, 3, 1, 1, 32),
            (2048, 1024, 7, 1),
        ),
        *_conv(  # its pointwise layers are linear ones
            "convnext_t",
            (3, 96, 224, 4, 4),
            (96, 96, 56, 7, 1, 3, 96, True),
            (96, 192, 56, 2, 2),
            (192, 192, 28, 7, 1, 3, 192),
            (192, 384, 28, 2, 2),
            (384, 384, 14, 7, 1, 3, 384),
            (384, 768, 14, 2, 2),
            (768, 768, 7, 7, 1, 3, 768),
            bias=True,
        ),
    ]
}

TRANSPOSED_LAYERS = {
    layer.name: layer
    for layer in (
        # A generator of images of 64x64; what grows a vector to 4x4 is a linear layer.
        TransposedLayer("dcgan", 1024, 512, 4, 4, 2, 1),
        TransposedLayer("dcgan", 512, 256, 8, 4, 2, 1),
        TransposedLayer("dcgan", 256, 128, 16, 4, 2, 1, quick=True),
        TransposedLayer("dcgan", 128, 64, 32, 4, 2, 1),
        TransposedLayer("dcgan", 64, 3, 32, 4, 2, 1, bias=True),
        # Windows that do not overlap.
        TransposedLayer("unet", 1024, 512, 28, 2, 2, bias=True),
        TransposedLayer("unet", 512, 256, 56, 2, 2, bias=True, quick=True),
        TransposedLayer("unet", 256, 128, 112, 2, 2, bias=True),
        TransposedLayer("unet", 128, 64, 224, 2, 2, bias=True),
        # Segmentation and keypoints: learned upsampling, and the bilinear one of every class.
        TransposedLayer("heads", 256, 256, 14, 4, 2, 1),
        TransposedLayer("heads", 256, 256, 28, 4, 2, 1),
        TransposedLayer("fcn", 21, 21, 16, 4, 2, 1, bias=True),
        TransposedLayer("fcn", 21, 21, 32, 16, 8, 4, groups=21, quick=True),
        TransposedLayer("fcn", 64, 64, 28, 4, 2, 1, groups=64),
        # Decoders whose windows overlap by a pixel.
        TransposedLayer("decoder", 256, 128, 28, 3, 2, 1, 1, bias=True),
        TransposedLayer("decoder", 128, 64, 56, 3, 2, 1, 1, bias=True),
        TransposedLayer("decoder", 64, 32, 112, 3, 2, 1, 1, bias=True),
    )
}

POOL_LAYERS = {
    layer.name: layer
    for layer in (
        PoolLayer("resnet50", 64, 112, 3, 2, 1, quick=True),
        PoolLayer("vgg16", 64, 224, 2, 2, quick=True),
        PoolLayer("vgg16", 128, 112, 2, 2),
        PoolLayer("vgg16", 256, 56, 2, 2),
        PoolLayer("vgg16", 512, 28, 2, 2),
        PoolLayer("vgg16", 512, 14, 2, 2),
        PoolLayer("googlenet", 480, 14, 3, 1, 1, quick=True),
        PoolLayer("yolo_spp", 512, 13, 13, 1, 6),
    )
}
