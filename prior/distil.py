"""Distilling a sentence encoder into a text tower: a good start, the loss, and the measures.

The loss is relational, after Park et al. 2019 and SEED (Fang et al. 2021). Besides the cosine with the teacher, it
compares the similarities to the class names and to the rest of the batch, so that the order of neighbours is kept.
Unusual: every BPE token starts as the teacher's embedding of its own letters, and the first layer starts as the mean of
the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prior.phrases import Phrasing, pad
from prior.text import run_text_tower, text_tower


class Distiller(nn.Module):
    """An OpenCLIP model's text tower and its loss against the teacher.

    Args:
        class_targets: the teacher's embeddings of the class names, of unit length.
        relational: weight of the two divergences in the loss.
        temperature: temperature of the softmaxes that the divergences compare.
    """

    def __init__(self, model: nn.Module, class_targets: Float[Tensor, "c n"], relational: float, temperature: float):
        super().__init__()
        self.model, self.relational, self.temperature = model, relational, temperature
        self.register_buffer("class_targets", class_targets, persistent=False)

    def forward(self, ids: Int[Tensor, "b t"], targets: Float[Tensor, "b n"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts for the log. `targets`: the teacher's embeddings of these texts, of unit length."""
        embedding = F.normalize(run_text_tower(self.model, ids)[0].float(), dim=-1)
        cosine = (embedding * targets).sum(-1).mean()
        classes: Any = self.class_targets
        to_classes = self._divergence(embedding @ classes.T, targets @ classes.T)
        itself = torch.eye(len(targets), device=targets.device) * -100.0
        to_others = self._divergence(embedding @ embedding.T + itself, targets @ targets.T + itself)
        loss = 1 - cosine + self.relational * (to_classes + to_others)
        return loss, {"cosine": cosine.detach(), "classes": to_classes.detach(), "neighbours": to_others.detach()}

    def _divergence(self, got: Tensor, expected: Tensor) -> Tensor:
        log_got = F.log_softmax(got / self.temperature, dim=-1)
        log_expected = F.log_softmax(expected / self.temperature, dim=-1)
        return F.kl_div(log_got, log_expected, reduction="batchmean", log_target=True)


@torch.no_grad()
def start_from_letters(
    model: nn.Module, letters: Float[Tensor, "vocabulary n"], targets: Float[Tensor, "m n"], num_special: int = 2
) -> None:
    """Set the text tower to a bag of words in the main directions of the targets.

    Args:
        letters: the teacher's embeddings of the strings of the tokens, in the order of the vocabulary.
        targets: the teacher's embeddings of phrases, whose main directions become the axes of the tower.
        num_special: how many tokens at the end of the vocabulary (start, end) have no meaning of their own.
    """
    tower = text_tower(model)
    width = tower.token_embedding.embedding_dim
    _, directions = torch.linalg.eigh(targets.T @ targets)
    basis = directions.flip(1)[:, :width]  # (n, width), the main direction first
    tower.token_embedding.weight.copy_(F.normalize(letters @ basis, dim=-1))
    tower.token_embedding.weight[-num_special:].normal_(std=0.01)
    tower.text_projection.copy_(basis.T)
    for number, block in enumerate(tower.transformer.resblocks):
        block.attn.in_proj_weight[: 2 * width].mul_(0.3)  # attention is nearly even, so it takes the mean of the tokens
        block.attn.in_proj_weight[2 * width :].copy_(torch.eye(width))
        block.attn.out_proj.weight.copy_(torch.eye(width) * (1.0 if number == 0 else 0.1))
        block.mlp.c_proj.weight.mul_(0.1)


@torch.no_grad()
def measure(
    model: nn.Module, phrasing: Phrasing, indices: list[int], class_indices: list[int], template: str
) -> dict[str, float]:
    """Compare the text tower with the teacher on phrases of the pool, each put into a template.

    Args:
        indices: indices of the phrases in the pool.
        class_indices: indices of the class names in the pool.

    Returns:
        `cosine`, the mean cosine with the teacher's embeddings. `top1` and `top5`, how often the teacher's nearest
        class name is the tower's nearest, or among its nearest five.
    """

    def embed(chosen: list[int]) -> Tensor:
        rows = [phrasing.tokens(index, template) for index in chosen]
        parts = [run_text_tower(model, pad(rows[i : i + 256]).to(device))[0] for i in range(0, len(rows), 256)]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    embeddings, classes = embed(indices), embed(class_indices)
    model.train(training)
    targets, class_targets = phrasing.pool.targets[indices], phrasing.pool.targets[class_indices]
    nearest = (targets @ class_targets.T).argmax(1, keepdim=True)
    ranked = (embeddings @ classes.T).argsort(1, descending=True)
    return {
        "cosine": float((embeddings * targets).sum(1).mean()),
        "top1": float((ranked[:, :1] == nearest).any(1).float().mean()),
        "top5": float((ranked[:, :5] == nearest).any(1).float().mean()),
    }
