"""Image towers of CLIP as backbones: the embedding is what is steered, and late units are scaled by how they vote.

A tower (Radford et al. 2021) turns an image into an embedding in a space that it shares with texts. Its last steps are
linear: what a late unit writes reaches the embedding through the projection. So the transpose of that way tells which
units vote for an embedding. It is the first weight of the feedback; nothing needs to be trained. The towers of OpenCLIP
(vision transformers, the ResNets of OpenAI, timm's vision transformers) and of Hugging Face's CLIPModel are known.

Places: the value path of the last attention gives an embedding for each patch (MaskCLIP; Zhou, Loy & Dai 2022).

Unusual: the vote of a unit in an earlier block is read as if its output went straight to the end, past later blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lrm_core.feedback import Connection, Strength, strength_pair
from lrm_core.layouts import Layout, fitted
from lrm_core.model import LRM

OUTPUT = "joint"  # the step that is steered: the embedding, before it is brought to unit length
BLOCKS = 3  # the last blocks or stages that feedback reaches


class JointTower(nn.Module):
    """An image tower with its embedding as a named step, `joint`.

    Attributes:
        visual: (b, 3, h, w), normalised → (b, M).
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual, self.joint = visual, nn.Identity()

    def forward(self, images: Any) -> Any:  # not Tensor: torch.fx passes a proxy
        """The embeddings, (b, M), of any length."""
        return self.joint(self.visual(images))


class HuggingFaceVisual(nn.Module):
    """The image tower of a `transformers.CLIPModel`, with its projection."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, images: Any) -> Any:
        """The embeddings, (b, M)."""
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


@dataclass(frozen=True)
class Anatomy:
    """What a tower's end looks like.

    Attributes:
        votes: for each destination of feedback, a late pre-activation, how its channels vote: (channels, M).
        patches: the step whose activation `embed` reads.
        embed: that activation → embeddings of patches, (b, rows, columns, M), of any length.
    """

    votes: Mapping[str, Tensor]
    patches: str
    embed: Callable[[Tensor], Tensor]


class VotePath(nn.Module):
    """Feedback from an embedding: f = Σ over the embedding's direction of how each channel votes.

    The embedding is brought to unit length, and a centre that all texts share is taken away. A strength scales the
    votes; a pair scales negative and positive ones. The learned gain starts at 0, so that the passes of a new model are
    equal until a goal is set.

    Args:
        source: layout of the embedding, a vector.
        destination: layout of what is scaled.
    """

    centre: Tensor

    def __init__(self, source: Layout | tuple[int, ...], destination: Layout | tuple[int, ...]) -> None:
        super().__init__()
        self.source, self.destination = Layout.of(source), Layout.of(destination)
        self.gain = nn.Parameter(torch.zeros(2))  # for negative and for positive votes
        self.projection = nn.Linear(self.source.channels, self.destination.channels, bias=False)
        self.register_buffer("centre", torch.zeros(self.source.channels))
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, source: Float[Tensor, "b m"], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """The factor f of the destination, in a shape that broadcasts to the destination's."""
        votes = self.projection(F.normalize(source, dim=-1) - self.centre)
        negative, positive = self.gain.unbind() if strength is None else strength_pair(strength)
        factor = negative * votes.clamp(max=0) + positive * votes.clamp(min=0)
        return self.destination.spread(fitted(factor, self.source, self.destination, destination))


def wrap_tower(visual: nn.Module, image_size: int) -> tuple[LRM, Anatomy]:
    """A tower with feedback from its embedding to late pre-activations. The votes are not set; see `set_votes`.

    Args:
        image_size: side of the images in pixels.

    Raises:
        ValueError: the tower is of a kind that is not known here, or it cannot be wrapped.
    """
    tower = JointTower(visual).eval().requires_grad_(False)
    anatomy = _anatomy(visual)
    connections = [Connection(OUTPUT, destination) for destination in anatomy.votes]
    return LRM(tower, connections, image_size, feedback=VotePath), anatomy


@torch.no_grad()
def set_votes(model: LRM, anatomy: Anatomy, texts: Float[Tensor, "t m"]) -> None:
    """Start the feedback of `wrap_tower`: the projection's transpose, scaled by what texts at large give.

    Args:
        texts: embeddings of unit length of many different texts. Their mean is the centre, and over them and all
            channels of a destination the factor f has the standard deviation 1 at strength 1.
    """
    centre = texts.mean(0)
    for connection in model.connections:
        path: Any = model.paths[connection.key]
        votes = anatomy.votes[connection.destination].to(texts)
        spread = (votes @ (texts - centre).T).std().clamp(min=1e-12)
        path.projection.weight.copy_(votes / spread)
        path.centre.copy_(centre)


def _anatomy(visual: Any) -> Anatomy:
    """The end of a tower. Raises ValueError for a tower of another kind."""
    if isinstance(visual, HuggingFaceVisual):
        return _hugging_face(visual)
    if hasattr(visual, "transformer") and hasattr(visual, "ln_post"):
        return _open_clip_vit(visual)
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return _modified_resnet(visual)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and hasattr(trunk, "blocks") and hasattr(trunk.blocks[-1], "attn"):
        return _timm_vit(visual)
    if trunk is not None and hasattr(trunk, "forward_head"):
        found = _timm_map(visual)
        if found is not None:
            return found
    kind = type(visual if trunk is None else trunk).__name__
    raise ValueError(
        f"model: got an image tower of kind {kind}, expected a vision transformer or a ResNet of OpenCLIP, a vision "
        "transformer, a ConvNeXt or an EfficientNet of timm in OpenCLIP, or Hugging Face's CLIPModel"
    )


def _open_clip_vit(visual: Any) -> Anatomy:
    blocks = visual.transformer.resblocks
    if visual.proj is None or getattr(visual, "attn_pool", None) is not None or visual.pool_type not in ("tok", "avg"):
        raise ValueError(
            f"model: got a vision transformer with pooling {visual.pool_type!r}, expected one whose class token or "
            "mean goes through a projection"
        )
    first = len(blocks) - min(BLOCKS, len(blocks))
    onward = visual.ln_post.weight.detach()[:, None] * visual.proj.detach()  # (width, M)
    votes = {
        f"visual.transformer.resblocks.{first + i}.mlp.c_fc": _written(block.mlp.c_proj, block.ls_2) @ onward
        for i, block in enumerate(blocks[first:])
    }
    return Anatomy(votes, f"visual.transformer.resblocks.{len(blocks) - 1}.ln_1", partial(_open_clip_patches, visual))


def _open_clip_patches(visual: Any, tokens: Tensor) -> Tensor:
    last, prefix = visual.transformer.resblocks[-1], 1 if hasattr(visual, "class_embedding") else 0
    width = last.attn.embed_dim
    values = F.linear(tokens, last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    joined = visual.ln_post(last.ls_1(last.attn.out_proj(values)))
    return _on_grid(joined[:, prefix:] @ visual.proj)


def _timm_vit(visual: Any) -> Anatomy:
    trunk, blocks = visual.trunk, visual.trunk.blocks
    first, pool = len(blocks) - min(BLOCKS, len(blocks)), getattr(trunk, "attn_pool", None)
    onward, scale = _linear_part(trunk, visual, pool), getattr(trunk.norm, "weight", None)
    if scale is not None:
        onward = scale.detach()[:, None] * onward
    votes = {}
    for i, block in enumerate(blocks[first:]):
        if not hasattr(block.mlp, "fc1") or not hasattr(block.mlp, "fc2"):
            raise ValueError(f"model: got an mlp of kind {type(block.mlp).__name__}, expected one of two linear layers")
        votes[f"visual.trunk.blocks.{first + i}.mlp.fc1"] = _written(block.mlp.fc2, block.ls2) @ onward
    if pool is not None or trunk.global_pool == "avg":
        return Anatomy(votes, "visual.trunk.norm", partial(_timm_pooled, visual))
    return Anatomy(votes, f"visual.trunk.blocks.{len(blocks) - 1}.norm1", partial(_timm_values, visual))


def _timm_pooled(visual: Any, tokens: Tensor) -> Tensor:
    return _on_grid(_read_tokens(visual, tokens[:, visual.trunk.num_prefix_tokens :]))


def _timm_values(visual: Any, tokens: Tensor) -> Tensor:
    trunk, last = visual.trunk, visual.trunk.blocks[-1]
    values = _last_part(last.attn.qkv, 3, tokens)
    return _on_grid(_read_tokens(visual, trunk.norm(last.ls1(last.attn.proj(values))))[:, trunk.num_prefix_tokens :])


def _read_tokens(visual: Any, tokens: Tensor) -> Tensor:
    """What the end of a tower makes of tokens, as if each were pooled alone."""
    trunk, pool = visual.trunk, getattr(visual.trunk, "attn_pool", None)
    if pool is not None:
        pooled = pool.proj(_last_part(pool.kv, 2, tokens))
        tokens = pooled + pool.mlp(pool.norm(pooled)) if pool.mlp is not None else pooled
    return visual.head(trunk.head(trunk.fc_norm(tokens)))


def _last_part(layer: nn.Linear, parts: int, tokens: Tensor) -> Tensor:
    """The last of equal parts of what a linear layer gives: the values of attention."""
    start = layer.out_features // parts * (parts - 1)
    return F.linear(tokens, layer.weight[start:], None if layer.bias is None else layer.bias[start:])


def _timm_map(visual: Any) -> Anatomy | None:
    """A convnet of timm: a ConvNeXt, or a network that ends in a convolution and its norm, as an EfficientNet does."""
    trunk = visual.trunk
    onward = _linear_part(trunk, visual, None)
    if hasattr(trunk, "conv_head") and hasattr(trunk, "bn2"):
        votes, patches = {"visual.trunk.bn2": onward}, "visual.trunk.bn2"
    elif hasattr(trunk, "stages") and hasattr(trunk.stages[-1].blocks[-1], "mlp") and hasattr(trunk, "norm_pre"):
        norm: Any = getattr(getattr(trunk, "head", None), "norm", None)
        onward = onward if getattr(norm, "weight", None) is None else norm.weight.detach()[:, None] * onward
        number, blocks = len(trunk.stages) - 1, trunk.stages[-1].blocks
        first, patches = len(blocks) - min(BLOCKS, len(blocks)), "visual.trunk.norm_pre"
        votes = {
            f"visual.trunk.stages.{number}.blocks.{first + i}.mlp.fc1": _written(block.mlp.fc2, block) @ onward
            for i, block in enumerate(blocks[first:])
        }
    else:
        return None

    return Anatomy(votes, patches, partial(_timm_positions, visual))


def _timm_positions(visual: Any, maps: Tensor) -> Tensor:
    places = visual.head(visual.trunk.forward_head(rearrange(maps, "b c h w -> (b h w) c 1 1")))
    return rearrange(places, "(b h w) m -> b h w m", b=len(maps), h=maps.shape[2])


def _linear_part(trunk: Any, visual: Any, pool: Any) -> Tensor:
    """The linear way from the normed token to the embedding, (width, M), without the branches of mlps."""
    way = torch.eye(trunk.num_features, device=next(trunk.parameters()).device)
    weights: list[Tensor] = []
    if pool is not None:
        weights += [pool.kv.weight[pool.kv.out_features // 2 :], pool.proj.weight]
    heads = [layer for head in (getattr(trunk, "head", None), visual.head) if head for layer in head.modules()]
    weights += [layer.weight for layer in heads if isinstance(layer, nn.Linear)]
    for weight in weights:
        way = way @ weight.detach().T
    return way


def _modified_resnet(visual: Any) -> Anatomy:
    pool = visual.attnpool
    onward = (pool.c_proj.weight.detach() @ pool.v_proj.weight.detach()).T  # (channels, M)
    count = len(visual.layer4)
    votes = {f"visual.layer4.{i}": onward for i in range(count - min(BLOCKS, count), count)}

    return Anatomy(votes, f"visual.layer4.{count - 1}.act3", partial(_resnet_positions, pool))


def _resnet_positions(pool: Any, maps: Tensor) -> Tensor:
    places = rearrange(maps, "b c h w -> b h w c")
    position = pool.positional_embedding[1:]
    if len(position) == places.shape[1] * places.shape[2]:
        places = places + rearrange(position, "(h w) c -> h w c", h=places.shape[1])
    return pool.c_proj(pool.v_proj(places))


def _hugging_face(visual: HuggingFaceVisual) -> Anatomy:
    layers = visual.vision_model.encoder.layers
    first = len(layers) - min(BLOCKS, len(layers))
    norm, projection = visual.vision_model.post_layernorm, visual.visual_projection
    onward = norm.weight.detach()[:, None] * projection.weight.detach().T
    votes = {
        f"visual.vision_model.encoder.layers.{first + i}.mlp.fc1": layer.mlp.fc2.weight.detach().T @ onward
        for i, layer in enumerate(layers[first:])
    }

    patches = f"visual.vision_model.encoder.layers.{len(layers) - 1}.layer_norm1"
    return Anatomy(votes, patches, partial(_hugging_face_patches, visual))


def _hugging_face_patches(visual: HuggingFaceVisual, tokens: Tensor) -> Tensor:
    attention = visual.vision_model.encoder.layers[-1].self_attn
    values = attention.out_proj(attention.v_proj(tokens))
    return _on_grid(visual.visual_projection(visual.vision_model.post_layernorm(values))[:, 1:])


def _written(down: Any, scale: Any) -> Tensor:
    """What each hidden unit of an mlp writes into the residual stream, (units, width). 1×1 convolutions are linear."""
    written = down.weight.detach().flatten(1).T
    gamma = getattr(scale, "gamma", None)
    return written if gamma is None else written * gamma.detach()


def _on_grid(patches: Float[Tensor, "b p m"]) -> Float[Tensor, "b h w m"]:
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) m -> b h w m", h=side)
