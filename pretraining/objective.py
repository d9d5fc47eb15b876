"""The objective: mutual scoring itself, made differentiable, on products whose defects are known.

Patch tokens of each stage are treated as MuSc treats them (joint LayerNorm, unit length), a token's score is its
distance to the nearest token of the other images of its product, averaged over the nearest images (Eq. 1-2), and
  - `ranking`: defective tokens must score above the normal ones of their product;
  - `image`: the highest score of a defective image must be above the highest normal one of any image of its product;
  - `identity`: a normal token must be nearer to its own product's tokens than to any other product's;
  - `product`: class tokens of one product must be nearer to each other than to those of others (for RsCIN);
  - `state`: within a product, those of defective images nearer to each other than to those of normal ones, and the
    reverse: RsCIN smooths scores over near class tokens, which helps where neighbours share their label;
  - `graded`: both, and images that only share their product far apart, so that RsCIN trusts them little.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

NORMAL, DEFECTIVE, UNCLEAR = 0, 1, -1


def token_labels(masks: Bool[Tensor, "B H W"], patch: int) -> Int[Tensor, "B M"]:
    """DEFECTIVE where at least 6 % of a patch's pixels were changed, NORMAL where none in or next to it was."""
    changed = masks[:, None].float()
    share = F.avg_pool2d(changed, patch).flatten(1)
    near = F.max_pool2d(F.max_pool2d(changed, patch), 3, stride=1, padding=1).flatten(1)
    labels = torch.full(share.shape, UNCLEAR, dtype=torch.long)
    labels[near == 0] = NORMAL
    labels[share >= 0.06] = DEFECTIVE
    return labels


def normalized(tokens: Float[Tensor, "B M C"], degree: int) -> Float[Tensor, "B M C"]:
    """Joint LayerNorm, `degree` x `degree` mean, unit length (Sec. 3.1)."""
    _, M, C = tokens.shape
    tokens = F.layer_norm(tokens, (M, C))
    if degree > 1:
        side = int(M**0.5)
        maps = rearrange(tokens, "b (h w) c -> b c h w", h=side)
        maps = F.avg_pool2d(maps, degree, stride=1, padding=degree // 2)
        tokens = rearrange(maps, "b c h w -> b (h w) c")
    return F.normalize(tokens, dim=-1)


def choose_queries(
    labels: Int[Tensor, "B M"], count: int, draw: Float[Tensor, "B M"], hardest: Int[Tensor, "B H"] | None = None
) -> Int[Tensor, "B Q"]:
    """`count` tokens of each image: the `hardest`, then in the order of `draw`, numbers in [0, 1), but defective ones
    sooner than normal ones, unclear ones last."""
    rank = draw + 0.6 * (labels == DEFECTIVE) - 2.0 * (labels == UNCLEAR)
    if hardest is not None:
        rank = rank.scatter(1, hardest, 9.0)
    return rank.topk(min(count, labels.shape[1]), dim=1).indices


def mutual_scores(picked: Float[Tensor, "P K Q C"], tokens: Float[Tensor, "P K M C"]) -> Float[Tensor, "P K Q K"]:
    """Each picked token's cosine to the nearest token of every image of its product, -1 for its own (Eq. 1)."""
    P, K, Q, _ = picked.shape
    similarity = rearrange(picked, "p k q c -> p (k q) c") @ rearrange(tokens, "p k m c -> p c (k m)")
    best = similarity.reshape(P, K, Q, K, -1).amax(-1)
    return best.masked_fill(torch.eye(K, dtype=torch.bool)[None, :, None, :], -1)


@torch.no_grad()
def hardest_tokens(stages: list[Tensor], labels: Int[Tensor, "P K M"], count: int) -> Int[Tensor, "B H"]:
    """The `count` tokens of each image that score highest, unclear ones left out: those that decide its image score."""
    near = torch.stack([mutual_scores(unit, unit).amax(-1) for unit in stages]).mean(0)
    return near.masked_fill(labels == UNCLEAR, 9.0).flatten(0, 1).topk(count, dim=-1, largest=False).indices


def stage_losses(
    tokens: Float[Tensor, "P K M C"],
    labels: Int[Tensor, "P K M"],
    queries: Int[Tensor, "P K Q"],
    others: Int[Tensor, " R"],
    temperature: float = 0.07,
) -> tuple[Tensor, Tensor, Float[Tensor, "P K Q"]]:
    """The ranking and identity losses of one stage, and the queries' scores.

    tokens: unit vectors of P products with K images each. labels: of each token. queries: indices of the Q scored
    tokens of each image. others: indices into the P * K * M tokens, the sample that stands for other products.
    """
    P, K, M, C = tokens.shape
    Q = queries.shape[-1]
    picked = tokens.gather(2, queries[..., None].expand(-1, -1, -1, C))  # [P, K, Q, C]
    nearest = mutual_scores(picked, tokens).topk(max(1, (K - 1) // 2), dim=-1).values  # Eq. 2
    scores = (2.001 - 2 * nearest).clamp_min(1e-4).sqrt().mean(-1)  # finite slope at distance 0

    kinds = labels.gather(2, queries)
    ranking = ranking_loss(scores.reshape(P, -1), kinds.reshape(P, -1))

    foreign = tokens.reshape(-1, C)[others]
    owner = others // (K * M)
    away = rearrange(picked, "p k q c -> p (k q) c") @ foreign.T / temperature  # [P, K * Q, R]
    away = away.masked_fill((owner[None] == torch.arange(P)[:, None])[:, None], -1e4)
    near = nearest.mean(-1).reshape(P, K * Q, 1) / temperature
    lost = torch.logsumexp(torch.cat([near, away], -1), -1) - near[..., 0]
    identity = lost[kinds.reshape(P, -1) == NORMAL].mean()
    return ranking, identity, scores


def ranking_loss(
    scores: Float[Tensor, "P T"], kinds: Int[Tensor, "P T"], margin: float = 0.15, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Mean over the defective tokens of log(1 + 20 mean_n exp((s_n - s + margin) / temperature)), n the normal ones."""
    normal, defective = kinds == NORMAL, kinds == DEFECTIVE
    excess = (scores[:, None, :] - scores[:, :, None] + margin) / temperature  # [P, defective, normal]
    excess = excess.masked_fill(~normal[:, None, :], -torch.inf)
    usable = defective & normal.any(1, keepdim=True)
    if not usable.any():
        return scores.sum() * 0
    mean = torch.logsumexp(excess[usable.nonzero(as_tuple=True)], -1)
    count = normal.sum(1, keepdim=True).expand_as(kinds)[usable]
    return F.softplus(mean + torch.log(20 / count)).mean()


def image_loss(
    scores: Float[Tensor, "P K Q"], kinds: Int[Tensor, "P K Q"], margin: float = 0.1, temperature: float = 0.05
) -> Float[Tensor, ""]:
    """Mean of softplus((n_j - d_i + margin) / temperature) over the defective images i and all images j of a product;
    d_i: the highest score of a DEFECTIVE token of image i, n_j: of a NORMAL one of image j."""
    best = scores.masked_fill(kinds != DEFECTIVE, -torch.inf).amax(-1)
    worst = scores.masked_fill(kinds != NORMAL, -torch.inf).amax(-1)
    usable = (best > -torch.inf)[:, :, None] & (worst > -torch.inf)[:, None, :]
    if not usable.any():
        return scores.sum() * 0
    excess = worst[:, None, :].expand_as(usable)[usable] - best[:, :, None].expand_as(usable)[usable]
    return F.softplus((excess + margin) / temperature).mean()


def product_loss(class_tokens: Float[Tensor, "P K C"], temperature: float = 0.1) -> Float[Tensor, ""]:
    """Supervised contrast: each image's class token against all others, those of its product being the right ones."""
    P, K, _ = class_tokens.shape
    z = F.normalize(class_tokens.reshape(P * K, -1), dim=-1)
    owner = torch.arange(P).repeat_interleave(K)
    same = (owner[:, None] == owner[None]) & ~torch.eye(P * K, dtype=torch.bool)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(P * K, dtype=torch.bool), -1e4)
    return -(logits.log_softmax(-1) * same).sum(-1).div(K - 1).mean()


def state_loss(
    class_tokens: Float[Tensor, "P K C"], labels: Int[Tensor, "P K M"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Supervised contrast within each product: an image's class token against the product's others, those of its own
    state being the right ones. Defective: a DEFECTIVE token; normal: nothing but NORMAL ones; others take no part."""
    K = class_tokens.shape[1]
    z = F.normalize(class_tokens, dim=-1)
    defective, normal = (labels == DEFECTIVE).any(-1), (labels == NORMAL).all(-1)  # [P, K]
    other = ~torch.eye(K, dtype=torch.bool)
    same = (defective[:, None] & defective[:, :, None] | normal[:, None] & normal[:, :, None]) & other
    unlike = defective[:, None] & normal[:, :, None] | normal[:, None] & defective[:, :, None]
    logits = (z @ z.mT / temperature).masked_fill(~(same | unlike), -1e4)
    told = same.any(-1) & unlike.any(-1)  # whose product shows both states
    if not told.any():
        return class_tokens.sum() * 0
    return -((logits.log_softmax(-1) * same).sum(-1) / same.sum(-1).clamp_min(1))[told].mean()


def graded_loss(
    class_tokens: Float[Tensor, "P K C"], labels: Int[Tensor, "P K M"], alike: float = 0.3, product: float = 0.1
) -> Float[Tensor, ""]:
    """Mean squared distance of the cosines from what they should be: `alike` for two images of one product and state,
    `product` for two of one product, at most 0 for two products. An image's own cosine is 1, so the smaller these are,
    the less RsCIN mixes into its score that does not look like it."""
    P, K, _ = class_tokens.shape
    z = F.normalize(class_tokens.flatten(0, 1), dim=-1)
    owner = torch.arange(P).repeat_interleave(K)
    defective, normal = (labels == DEFECTIVE).any(-1).flatten(), (labels == NORMAL).all(-1).flatten()
    same = owner[:, None] == owner
    state = defective[:, None] & defective | normal[:, None] & normal
    target = torch.where(state, alike, product)
    cosine = z @ z.T
    within = (cosine - target).square()[same & ~torch.eye(P * K, dtype=torch.bool)].mean()
    return within + cosine[~same].clamp_min(0).square().mean()


def objective(
    stages: list[Tensor],
    class_tokens: Tensor,
    masks: Bool[Tensor, "P K H W"],
    patch: int,
    generator: torch.Generator,
    *,
    queries: int = 64,
    hardest: int = 0,
    foreign: int = 512,
    degrees: tuple[int, ...] = (1, 3),
    image_weight: float = 0.0,
    identity_weight: float = 0.3,
    product_weight: float = 0.1,
    local_weight: float = 0.5,
    state_weight: float = 0.0,
    graded_weight: float = 0.0,
    heads: Iterable[nn.Module] = (),
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its parts for the log: `ranking`, `identity` (means over the stages), `image`,
    `product`, `state`, `graded`, and `auroc`, the share of (defective, normal) query pairs of a product that the mean
    of the stages' scores orders right.

    stages: per stage the tokens [P * K, M, C]. class_tokens: [P * K, C]. masks: the changed pixels. degrees: of
    aggregation, of which every batch draws one.
    """
    P, K = masks.shape[:2]
    labels = token_labels(masks.flatten(0, 1), patch)
    M = labels.shape[1]
    draw = torch.rand(labels.shape, generator=generator)
    others = torch.randint(P * K * M, (foreign,), generator=generator)
    degree = degrees[int(torch.randint(len(degrees), (1,), generator=generator))]
    units = [normalized(tokens, degree).reshape(P, K, M, -1) for tokens in stages]
    first = hardest_tokens(units, labels.reshape(P, K, M), hardest) if hardest else None
    chosen = choose_queries(labels, queries, draw, first).reshape(P, K, -1)
    labels = labels.reshape(P, K, M)
    ranking, identity, scores = [], [], []
    for unit in units:
        r, i, s = stage_losses(unit, labels, chosen, others)
        ranking.append(r)
        identity.append(i)
        scores.append(s)
    kinds = labels.gather(2, chosen).reshape(P, -1)
    mean = torch.stack(scores).mean(0).reshape(P, -1)
    joint = ranking_loss(mean, kinds)
    image = image_loss(mean.reshape(P, K, -1), kinds.reshape(P, K, -1))
    local = joint * 0
    known = labels.flatten(0, 1) != UNCLEAR
    target = (labels.flatten(0, 1) == DEFECTIVE).float()
    probes = list(heads)
    for head, tokens in zip(probes, stages, strict=False):
        logits = head(F.layer_norm(tokens, tokens.shape[1:]))[..., 0]
        weight = torch.tensor(10.0)  # defective tokens are about a tenth
        local = local + F.binary_cross_entropy_with_logits(logits[known], target[known], pos_weight=weight) / len(
            probes
        )
    rank, ident = torch.stack(ranking).mean(), torch.stack(identity).mean()
    by_product = class_tokens.reshape(P, K, -1)
    product, state = product_loss(by_product), state_loss(by_product, labels)
    loss = joint + rank + identity_weight * ident + product_weight * product + local_weight * local
    graded = graded_loss(by_product, labels)
    loss = loss + state_weight * state + graded_weight * graded + image_weight * image
    parts = {"joint": joint, "ranking": rank, "image": image, "identity": ident, "product": product}
    parts |= {"state": state, "graded": graded, "local": local}
    log = {name: float(value.detach()) for name, value in parts.items()}
    return loss, log | {"auroc": pair_auroc(mean.detach(), kinds)}


def pair_auroc(scores: Float[Tensor, "P T"], kinds: Int[Tensor, "P T"]) -> float:
    """The mean over the products of the AUROC of their tokens' scores."""
    values = []
    for s, k in zip(scores, kinds, strict=True):
        normal, defective = s[k == NORMAL], s[k == DEFECTIVE]
        if len(normal) and len(defective):
            values.append(float((defective[:, None] > normal[None]).float().mean()))
    return sum(values) / len(values) if values else float("nan")
