"""Whitening of the patch tokens, after training: what normal patches differ in from their nearest counts less.

Mutual scoring compares a patch with the nearest of other images. Even normal patches differ from theirs, and mostly in
a few directions: where a grain lies in its patch, how the light falls. One linear map per block shortens those, so that
what a defect adds stands out in all the others.
"""

from __future__ import annotations

import dataclasses

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from musc.backbones.embedded import ViT
from pretraining.images import Program, batch
from pretraining.objective import NORMAL, normalized, token_labels
from pretraining.train import pixels

DEGREES = (1, 3, 5)  # the paper's, with which the tokens are scored


def whitening(S: Float[Tensor, "C C"], shrinkage: float) -> Float[Tensor, "C C"]:
    """W = (S / s + shrinkage I)^-1/2, s the mean eigenvalue of S; symmetric, so that directions stay what they are."""
    values, vectors = torch.linalg.eigh(S.double())
    return (vectors * (values / values.mean() + shrinkage).rsqrt() @ vectors.T).float()


def differences(units: Float[Tensor, "P K M C"], labels: Int[Tensor, "P K M"]) -> Float[Tensor, "n C"]:
    """What the NORMAL ones of unit tokens differ in from the nearest token of their product's other images."""
    found = []
    for product, kinds in zip(units, labels, strict=True):
        for k, (tokens, kind) in enumerate(zip(product, kinds, strict=True)):
            others = torch.cat([product[:k], product[k + 1 :]]).flatten(0, 1)
            normal = tokens[kind == NORMAL]
            found.append(normal - others[(normal @ others.T).argmax(1)])
    return torch.cat(found).double()


@torch.no_grad()
def whitened(
    model: ViT,
    *,
    seed: int,
    batches: int,
    products: int,
    count: int,
    size: int,
    shrinkage: float,
    program: Program,
) -> ViT:
    """The network with a whitening of every block's patch tokens, for `batches` drawn batches of new products.

    S sums d d^T over the differences d of tokens aggregated to each of the DEGREES.
    """
    stages = tuple(range(1, model.depth + 1))
    S = torch.zeros(model.depth, model.width, model.width, dtype=torch.float64)
    for number in range(batches):
        images, masks = batch(seed, number, products, count, size, program)
        labels = token_labels(torch.from_numpy(masks).flatten(0, 1), model.patch_size)
        labels = rearrange(labels, "(p k) m -> p k m", p=products)
        for moments, tokens in zip(S, model.forward_stages(pixels(images, model.config), stages)[0], strict=True):
            for degree in DEGREES:
                units = rearrange(normalized(tokens, degree), "(p k) m c -> p k m c", p=products)
                d = differences(units, labels)
                moments += d.T @ d
    new = ViT(dataclasses.replace(model.config, whitened=True))
    maps = {f"whitening.{block}.weight": whitening(each, shrinkage) for block, each in enumerate(S)}
    new.load_state_dict(model.state_dict() | maps)
    return new.eval().requires_grad_(False)
