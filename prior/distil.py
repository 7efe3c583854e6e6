"""What distilling a sentence encoder into a text tower needs: a good start, the loss, and what is measured.

Relational distillation after Park et al. 2019 and SEED (Fang et al. 2021): besides the cosine to the teacher, the
similarities to the class names and to the rest of the batch, which keep the order of neighbours. Unusual: every BPE
token starts as the teacher's embedding of its own letters, and the first layer as the mean of the tokens.
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
    """An OpenCLIP model's text tower and its loss against the teacher."""

    def __init__(self, model: nn.Module, class_targets: Float[Tensor, "c n"], relational: float, temperature: float):
        super().__init__()
        self.model, self.relational, self.temperature = model, relational, temperature
        self.register_buffer("class_targets", class_targets, persistent=False)

    def forward(self, ids: Int[Tensor, "b t"], targets: Float[Tensor, "b n"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts for the log. `targets` are of unit length."""
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

    letters: teacher embeddings of the tokens' strings; the last `num_special` tokens (start, end) have no meaning.
    """
    tower = text_tower(model)
    width = tower.token_embedding.embedding_dim
    _, directions = torch.linalg.eigh(targets.T @ targets)
    basis = directions.flip(1)[:, :width]  # (n, width), the largest first
    tower.token_embedding.weight.copy_(F.normalize(letters @ basis, dim=-1))
    tower.token_embedding.weight[-num_special:].normal_(std=0.01)
    tower.text_projection.copy_(basis.T)
    for number, block in enumerate(tower.transformer.resblocks):
        block.attn.in_proj_weight[: 2 * width].mul_(0.3)  # little preference between tokens: their mean
        block.attn.in_proj_weight[2 * width :].copy_(torch.eye(width))
        block.attn.out_proj.weight.copy_(torch.eye(width) * (1.0 if number == 0 else 0.1))
        block.mlp.c_proj.weight.mul_(0.1)


@torch.no_grad()
def measure(
    model: nn.Module, phrasing: Phrasing, indices: list[int], class_indices: list[int], template: str
) -> dict[str, float]:
    """Against the teacher, on phrases of the pool: mean cosine; agreement on the nearest class name, and within 5."""

    def embed(chosen: list[int]) -> Tensor:
        rows = [phrasing.tokens(index, template) for index in chosen]
        parts = [run_text_tower(model, pad(rows[i : i + 256]).to(device))[0] for i in range(0, len(rows), 256)]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    found, classes = embed(indices), embed(class_indices)
    model.train(training)
    targets, class_targets = phrasing.pool.targets[indices], phrasing.pool.targets[class_indices]
    nearest = (targets @ class_targets.T).argmax(1, keepdim=True)
    ranked = (found @ classes.T).argsort(1, descending=True)
    return {
        "cosine": float((found * targets).sum(1).mean()),
        "top1": float((ranked[:, :1] == nearest).any(1).float().mean()),
        "top5": float((ranked[:, :5] == nearest).any(1).float().mean()),
    }
