"""Whitening of the class token, after training: its directions are made equally long over many drawn products.

Few directions hold most of what class tokens differ in, so those of one product are nearly parallel and RsCIN weighs
an image's neighbours like the image itself. Whitened, the others count as well: neighbours are told apart better, and
what looks less alike weighs less.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc.pretrain.images import batch
from musc.pretrain.train import pixels
from musc.vit import ViT


def whitening(tokens: Float[Tensor, "B C"], shrinkage: float) -> tuple[Float[Tensor, "C C"], Float[Tensor, "C"]]:
    """W and b such that z W^T + b has mean 0 and nearly the identity for covariance, z being the tokens in unit length.

    W = (S + shrinkage tr(S) / C I)^(-1/2), S the covariance of z: symmetric, so that directions stay what they are.
    """
    z = F.normalize(tokens.double(), dim=-1)
    centre = z.mean(0)
    values, vectors = torch.linalg.eigh((z - centre).T @ (z - centre) / len(z))
    W = vectors * (values + shrinkage * values.mean()).rsqrt() @ vectors.T
    return W.float(), (-W @ centre).float()


def whitened(model: ViT, *, seed: int, batches: int, products: int, count: int, size: int, shrinkage: float) -> ViT:
    """The network with a whitening of its class tokens for `batches` drawn batches of new products."""
    found = []
    for number in range(batches):
        images, _ = batch(seed, number, products, count, size)
        with torch.no_grad():
            found.append(model(pixels(images, model.config)))
    W, b = whitening(torch.cat(found), shrinkage)
    new = ViT(dataclasses.replace(model.config, whitened=True))
    new.load_state_dict(model.state_dict() | {"whitening.weight": W, "whitening.bias": b})
    return new.eval().requires_grad_(False)
