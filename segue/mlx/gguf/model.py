"""The model in a GGUF file, as an mlx-lm model.

How it works: the file's architecture decides which mlx-lm model is built, and what its tensors are
called there (`architectures.py`). All shapes are compared before any tensor is read. Tensors are
read the largest first: what reading one needs beside it is then least compared with the whole.

Where MLX can hold ggml's blocks as they are (a scale and a bias to 32 numbers of 4 or 8 bits), the
numbers are repacked and stay what they are. Scales and all else then have one half type, norms
included: one float32 norm would carry all activations after it into float32, and MLX would cast
every weight that meets them.

llama's query and key rows are permuted in GGUF files, for interleaved rotary embedding; rotating
them that way is the same as putting them back. Files of Llama 3.1 and later have what each rotary
frequency is divided by instead of the rule that mlx-lm computes it from, and get a module that
rotates by those. Gemma's norms are stored with one added, which mlx-lm adds itself.

What does not work: other architectures, types of tensors or rotary scalings. They are refused by
name rather than read wrongly.
"""

from __future__ import annotations

from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import ModelFormatError, ModelLoadError, UnsupportedModelError
from ...gguf.header import BLOCKS, GGUFFile, TensorInfo, TensorType
from .architectures import (
    ARCHITECTURES,
    FOLDER_REMEDY,
    ROPE_DIVISORS,
    Architecture,
    Settings,
)
from .tensors import GROUP_SIZE, QUANTIZED_BITS, TensorReader


def load_model(file: GGUFFile, *, float32: bool = False) -> nn.Module:
    """Return the model of a GGUF file.

    Args:
        file: The file's header.
        float32: Dequantize every weight to float32. Otherwise 4-bit and 8-bit tensors that MLX can
            use stay quantized, and the rest is in half precision.

    Raises:
        UnsupportedModelError: if its architecture, a tensor type or a rotary scaling is not
            supported.
        ModelFormatError: if settings or tensors are missing or of the wrong shape.
    """
    name = file.text("general.architecture")
    architecture = ARCHITECTURES.get(name or "")
    if name is None or architecture is None:
        raise UnsupportedModelError(
            f"{file.path} has a model of architecture {name!r}, and Segue reads only "
            f"{', '.join(ARCHITECTURES)} from GGUF files.",
            remedy=FOLDER_REMEDY,
        )
    tensors = _renamed(file, name, architecture)
    settings = Settings(file, name)
    model = architecture.build(settings)
    _check_shapes(file, model, tensors)
    try:
        with TensorReader(file) as reader:
            _load_weights(model, architecture, tensors, reader, float32=float32)
            if ROPE_DIVISORS in file.tensors:
                _divide_frequencies(model, settings, reader)
    except ModelLoadError:
        raise
    except OSError as error:
        raise ModelFormatError(
            f"The tensors in {file.path} can't be read: {error.strerror}.",
            remedy="Check the disk, or copy the file again.",
        ) from error
    model.eval()
    mx.eval(model.parameters())
    return model


def _renamed(file: GGUFFile, name: str, architecture: Architecture) -> dict[str, TensorInfo]:
    """Return the file's tensors by their names in mlx-lm's model."""
    renamed = {}
    for tensor in file.tensors.values():
        if tensor.type not in BLOCKS:
            kind = tensor.type.name if isinstance(tensor.type, TensorType) else tensor.type
            raise UnsupportedModelError(
                f"{file.path} has {tensor.name!r} as {kind}, a tensor type that Segue does not "
                "read.",
                remedy=f"Use a file of {', '.join(kind.name for kind in BLOCKS)}.",
            )
        if tensor.name == ROPE_DIVISORS and name == "llama":
            continue
        new_name = architecture.rename(tensor.name)
        if new_name is None:
            raise UnsupportedModelError(
                f"{file.path} has a tensor {tensor.name!r}, which a {name} model does not have.",
                remedy=FOLDER_REMEDY,
            )
        renamed[new_name] = tensor
    return renamed


def _check_shapes(file: GGUFFile, model: Any, tensors: dict[str, TensorInfo]) -> None:
    """Refuse tensors that are not the model's, before any is read."""
    parameters: Any = tree_flatten(model.parameters())
    expected = {name: weight.shape for name, weight in parameters}
    wrong = [
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or expected.get(name) != tensors[name].shape
    ]
    if wrong:
        raise ModelFormatError(
            f"The tensors in {file.path} don't fit its own settings: {sorted(wrong)[0]} is missing "
            "or of another shape.",
            remedy="Convert the model again.",
        )


def _load_weights(
    model: Any,
    architecture: Architecture,
    tensors: dict[str, TensorInfo],
    reader: TensorReader,
    *,
    float32: bool,
) -> None:
    half = architecture.half
    if any(tensor.type == TensorType.BF16 for tensor in tensors.values()):
        half = mx.bfloat16
    dtype = mx.float32 if float32 else half
    weights: dict[str, mx.array] = {}
    bits: dict[str, int] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: -prod(item[1].shape)):
        path = name.rpartition(".")[0]
        if len(tensor.shape) == 1:
            # Read unrounded: taking an offset off a rounded number leaves less of it.
            weight = reader.dense(tensor, mx.float32)
            offset = architecture.norm_offset if path.endswith("norm") else 0.0
            weights[name] = (weight - offset).astype(dtype)
        elif float32 or tensor.type not in QUANTIZED_BITS:
            weights[name] = reader.dense(tensor, dtype)
        else:
            bits[path] = QUANTIZED_BITS[TensorType(tensor.type)]
            quantized = reader.quantized(tensor, dtype)._asdict()
            weights.update({f"{path}.{part}": array for part, array in quantized.items()})

    def quantization(path: str, _: nn.Module) -> bool | dict[str, Any]:
        return {"group_size": GROUP_SIZE, "bits": bits[path]} if path in bits else False

    nn.quantize(model, class_predicate=quantization)
    model.load_weights(list(weights.items()))


def _divide_frequencies(model: Any, settings: Settings, reader: TensorReader) -> None:
    """Give llama's layers the rotary frequencies of Llama 3.1 and later."""
    args = model.args
    tensor = settings.file.tensors[ROPE_DIVISORS]
    if tensor.shape != (args.head_dim // 2,):
        raise ModelFormatError(
            f"{settings.file.path} has {tensor.shape} rotary divisors for heads of "
            f"{args.head_dim} values.",
            remedy="Convert the model with a current llama.cpp.",
        )
    wavelengths = args.rope_theta ** (mx.arange(0, args.head_dim, 2) / args.head_dim)
    factor = args.rope_scaling["factor"] if args.rope_scaling else 1.0
    rope = _GivenRoPE(wavelengths * reader.dense(tensor, mx.float32) * factor)
    for layer in model.layers:
        layer.self_attn.rope = rope


class _GivenRoPE(nn.Module):  # type: ignore[misc]
    """Interleaved rotary embedding of given wavelengths, in tokens to a radian."""

    def __init__(self, wavelengths: mx.array) -> None:
        super().__init__()
        mx.eval(wavelengths)
        self._freqs = wavelengths  # mlx-lm's name; not a parameter, for it begins with _

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        dims = 2 * self._freqs.size
        return mx.fast.rope(
            x, dims, traditional=True, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )
