"""What one look gives: an image, a query, and what the network said before and after it was steered towards the query.

Unusual: a `Look` is a value and nothing else. It can be printed, serialised and drawn long after the model is gone. The
drawing is in `steering/picture.py`.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from steering.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ranking = list[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class Look:
    """One image looked at for one query.

    image, query: as the user wrote them; model: what answered; prior: what made the goal (`diffusion`, `class-names`,
    `published`, `prototype`, `image`).
    picture: the photograph, full frame, upright RGB.
    before, after, goal: logits of the first, unsteered pass; of the last, steered pass; and those that were asked for.
    heatmap: where the steered pass found the goal, 0 to 1, over the full frame, which the network sees squashed.
    evidence: change of the support for the goal by steering, in nats (log-odds after − before).
    verdict, probability: whether the goal is in the image, and the calibrated probability that it is, 0 to 1; None
    where the model was not calibrated for goals of this prior.
    seconds: what the look took.
    """

    image: str
    query: str
    model: str
    prior: str
    class_names: tuple[str, ...]
    picture: Image.Image
    before: Float[Tensor, " classes"]
    after: Float[Tensor, " classes"]
    goal: Float[Tensor, " classes"]
    heatmap: Float[Tensor, "rows columns"]
    evidence: float
    verdict: Literal["present", "absent", "unsure"] | None
    probability: float | None
    seconds: float

    def ranking(self, which: Literal["before", "after", "goal"], top: int = 5) -> Ranking:
        """The `top` likeliest classes of a pass with their softmax probabilities, best first.

        Of the goal, the classes that the query was understood as. Raises ValueError for another `which`, or `top` < 1.
        """
        choices = {"before": self.before, "after": self.after, "goal": self.goal}
        if which not in choices:
            raise ValueError(f"got ranking {which!r}; expected one of {', '.join(choices)}")
        if top < 1:
            raise ValueError(f"got top {top}; expected 1 or more")
        probabilities = choices[which].detach().float().cpu().softmax(0)
        best = probabilities.topk(min(top, len(self.class_names)))
        return [(self.class_names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def as_dict(self, top: int = 5) -> dict[str, Any]:
        """Plain values, ready for JSON: image, query, model, prior, verdict, probability, evidence, what was looked for
        (goal), before, after, seconds.

        Bytes of a file's name that are no UTF-8, and control characters, are written as escapes.
        """
        return {
            "image": printable(self.image),
            "query": printable(self.query),
            "model": self.model,
            "prior": self.prior,
            "verdict": self.verdict,
            "probability": None if self.probability is None else round(self.probability, 4),
            "evidence": round(self.evidence, 4),
            "goal": _named(self.ranking("goal", min(top, 3))),
            "before": _named(self.ranking("before", top)),
            "after": _named(self.ranking("after", top)),
            "seconds": round(self.seconds, 4),
        }

    def text(self, top: int = 5) -> str:
        """A few lines for a terminal: the verdict, what the query was understood as, before → after."""
        goal = ", ".join(short(name, 28) for name, _ in self.ranking("goal", 3))
        head = f'{printable(self.image)} · "{printable(self.query)}"'
        if self.verdict is None or self.probability is None:
            verdict = "NOT CALIBRATED for this model and prior"
        else:
            verdict = f"{self.verdict.upper()}  probability {self.probability:.2f}"
        lines = [head, f"  {verdict} · evidence {self.evidence:+.2f} nats · {self.seconds * 1000:.0f} ms"]
        lines += [f"  looked for: {goal} ({self.model}, goal by {self.prior})", ""]
        lines.append(f"     {'before':<39}after")
        pairs = zip(self.ranking("before", top), self.ranking("after", top), strict=True)
        for rank, ((old, p), (new, q)) in enumerate(pairs, start=1):
            arrow = "→" if rank == 1 else " "
            lines.append(f"  {rank:>2} {short(old, 28):<28} {p:>7.1%} {arrow} {short(new, 28):<28} {q:>7.1%}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def plot(self, path: str | os.PathLike | None = None, top: int = 5) -> "Figure":
        """Photo, heatmap over it, bars before and after. Saved where `path` is given; its suffix chooses the format."""
        from steering.picture import draw

        figure = draw(self, top)
        if path is not None:
            figure.savefig(path)
        return figure


def short(name: str, length: int) -> str:
    """`name` in at most `length` characters, the cut marked by an ellipsis."""
    return name if len(name) <= length else name[: length - 1].rstrip(" ,;") + "…"


def _named(ranking: Ranking) -> list[dict[str, str | float]]:
    return [{"name": name, "probability": round(probability, 6)} for name, probability in ranking]
