"""The trunk of a vision transformer in an ONNX file, read as data: no graph is run, and no other file is opened.

ONNX is protobuf: numbered fields, each a number or a run of bytes. Of the model only the initializers and the names of
the nodes that use them are looked at. Field numbers are those of onnx/onnx.proto (ModelProto, GraphProto, NodeProto,
TensorProto).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from musc.errors import WeightsError

GRAPH, NODE, INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_NAME, NODE_KIND = 1, 3, 4
DIMS, DATA_TYPE, TENSOR_NAME, RAW_DATA, EXTERNAL, LOCATION = 1, 2, 8, 9, 13, 14
FLOAT32 = 1
# Hugging Face's names of a DINOv2 as timm has them.
RENAMED = (
    ("backbone.embeddings.patch_embeddings.projection", "patch_embed.proj"), ("backbone.encoder.layer", "blocks"),
    ("backbone.layernorm", "norm"), ("attention.output.dense", "attn.proj"), ("attention.attention", "attn"),
    ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
)  # fmt: skip
CLASS_TOKEN = "backbone.embeddings.cls_token"
POSITION = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, of the patches


class _Stored(NamedTuple):
    dims: tuple[int, ...]
    data: memoryview
    transposed: bool


def read_trunk(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a DINOv2 trunk that was exported from Hugging Face's network, under timm's names.

    content: the bytes of the ONNX file; name: what errors call it. Biases and norms keep their names in an export; the
    matrix of a linear layer is anonymous, is found through the node that multiplies by it, and is stored transposed.
    Raises WeightsError where the bytes are no such model, a tensor is missing, is not float32, has another number of
    bytes than its shape says, or is said to lie in another file.
    """
    try:
        stored = _initializers(memoryview(content))
        state = {_renamed(key): _tensor(key, stored[key]) for key in stored if key.startswith("backbone.")}
        state["cls_token"] = state.pop(_renamed(CLASS_TOKEN))
        state["pos_embed"] = torch.cat([_tensor(key, stored[key]) for key in POSITION], dim=1)  # [1, 1 + M, C]
        for key in [key for key in state if ".attn.query." in key]:
            parts = [key.replace("query", part) for part in ("query", "key", "value")]
            state[key.replace("query", "qkv")] = torch.cat([state.pop(part) for part in parts])  # [3 C, C] or [3 C]
    except KeyError as error:
        raise WeightsError(f"{name}: the tensor {error.args[0]} is missing. Fetch the file again.") from error
    except (IndexError, struct.error, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{name}: not the ONNX file that it should be ({error}). Fetch it again.") from error
    return state


def _initializers(model: memoryview) -> dict[str, _Stored]:
    """The stored tensors by name, and those of multiplications by the name of their layer too."""
    stored: dict[str, _Stored] = {}
    nodes: list[dict[int, list[Any]]] = []
    for graph in _message(model).get(GRAPH, []):
        parts = _message(graph)
        nodes += [_message(node) for node in parts.get(NODE, [])]
        for tensor in map(_message, parts.get(INITIALIZER, [])):
            key = _text(tensor, TENSOR_NAME)
            if EXTERNAL in tensor or tensor.get(LOCATION, [0])[-1]:
                raise ValueError(f"{key} is said to lie in another file, which is not opened")
            if tensor.get(DATA_TYPE, [0])[-1] == FLOAT32:
                dims = tuple(tensor.get(DIMS, []))
                stored[key] = _Stored(dims, _run(tensor.get(RAW_DATA, [memoryview(b"")])[-1]), False)
    for node in nodes:
        inputs = [bytes(_run(name)).decode() for name in node.get(NODE_INPUT, [])]
        if NODE_KIND in node and _text(node, NODE_KIND) == "MatMul" and len(inputs) == 2 and inputs[1] in stored:
            layer = _text(node, NODE_NAME).strip("/").removesuffix("/MatMul").replace("/", ".")
            stored[f"{layer}.weight"] = stored[inputs[1]]._replace(transposed=True)
    return stored


def _renamed(key: str) -> str:
    for theirs, ours in RENAMED:
        key = key.replace(theirs, ours)
    return key


def _tensor(key: str, stored: _Stored) -> Tensor:
    if len(stored.data) != 4 * math.prod(stored.dims):
        raise ValueError(f"{key} has {len(stored.data)} bytes for the shape {stored.dims}")
    values = torch.from_numpy(np.frombuffer(stored.data, "<f4").astype(np.float32)).reshape(stored.dims)
    return values.T.contiguous() if stored.transposed else values


def _message(data: Any) -> dict[int, list[Any]]:
    """The values of a message by field number: whole numbers, or bytes, of which nothing is copied."""
    found: dict[int, list[Any]] = {}
    for field, value in _fields(_run(data)):
        found.setdefault(field, []).append(value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    value: Any
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if length > len(data) - at:
                raise ValueError(f"{length} bytes are announced and {len(data) - at} are left")
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in base 128, lowest digits first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        digit = data[at]
        value, at = value | (digit & 127) << shift, at + 1
        if digit < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _text(message: dict[int, list[Any]], field: int) -> str:
    return bytes(_run(message[field][-1])).decode()


def _run(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError(f"the number {value} where bytes belong")
    return value
