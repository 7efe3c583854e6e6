"""What one look gives: an image, a query, and what the network said before and after it was steered towards the query.

Unusual: a `Look` is a value and nothing else. It can be printed, serialised and drawn long after the model is gone.
`steering.picture` draws it.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lrm_base.checks import whole_number
from steering.errors import printable, shorten
from steering.evidence import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ranking = list[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class Look:
    """One image, looked at for one query.

    Attributes:
        image, query: as the user wrote them.
        model: name of the network that answered.
        prior: how the goal was made; see `Goal.source`.
        class_names: what the network can name, in the order of its outputs.
        picture: the photograph, full frame, upright, RGB.
        before: (classes,), logits of the first, unsteered pass.
        after: (classes,), logits of the last, steered pass.
        goal: (classes,), the logits that were asked for.
        heatmap: where the steered pass found the goal, 0 to 1, over the whole picture.
        evidence: change of the goal's support by steering, in nats (log-odds after − before).
        verdict: `present`, `absent`, `unsure`, or `unknown` where the network has no eyes for the words. None where no
            verdict was calibrated for this way of making goals.
        probability: calibrated probability that the goal is in the image, 0 to 1. None where the verdict is None or
            `unknown`.
        seconds: how long the look took.
        notes: what the network did not look at in the query, why no answer can be given, or what was judged; one
            sentence each.
        is_complement: whether everything in the query is unwanted ("- a cat"). `goal`, `after`, `heatmap` and
            `evidence` are then about the unwanted thing, such as where the cat is; `probability` and `verdict` are
            about its absence.
        nearest: up to three known things, the nearest to words that the network has no eyes for; see `Goal.nearest`.
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
    verdict: Answer | None
    probability: float | None
    seconds: float
    notes: tuple[str, ...] = ()
    is_complement: bool = False
    nearest: tuple[str, ...] = ()

    def ranking(self, which: Literal["before", "after", "goal"], top: int = 5) -> Ranking:
        """The `top` likeliest classes with their softmax probabilities, best first.

        Args:
            which: the pass `before` or `after` steering, or the `goal`, which tells what the query was understood as.

        Raises:
            ValueError: `which` is none of these, or `top` is below 1.
        """
        choices = {"before": self.before, "after": self.after, "goal": self.goal}
        if which not in choices:
            raise ValueError(f"which: got {which!r}, expected one of {', '.join(choices)}")
        top = whole_number("top", top, 1)
        probabilities = choices[which].detach().float().cpu().softmax(0)
        best = probabilities.topk(min(top, len(self.class_names)))
        return [(self.class_names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def as_dict(self, top: int = 5) -> dict[str, Any]:
        """Plain values, ready for JSON.

        Keys: image, query, model, prior, verdict, probability, evidence, goal, before, after, seconds, notes, nearest.
        `goal` lists the classes that the query was understood as. Control characters, and bytes of a file's name that
        are not UTF-8, are escaped.
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
            "notes": [printable(note) for note in self.notes],
            "nearest": [printable(name) for name in self.nearest],
        }

    def text(self, top: int = 5) -> str:
        """A few lines for a terminal: verdict, what the query was understood as, notes, rankings before → after.

        A line begins with `note:` where part of the query was not looked at, where its absence was judged, or where the
        network has no eyes for it.
        """
        goal = ", ".join(shorten(name, 28) for name, _ in self.ranking("goal", 3))
        head = f'{printable(self.image)} · "{printable(self.query)}"'
        verdict = "NOT CALIBRATED for this model and prior" if self.verdict is None else self.verdict.upper()
        verdict += "" if self.probability is None else f"  probability {self.probability:.2f}"
        lines = [head, f"  {verdict} · evidence {self.evidence:+.2f} nats · {self.seconds * 1000:.0f} ms"]
        lines.append(f"  looked for: {goal} ({self.model}, goal by {self.prior})")
        lines += [*(f"  note: {printable(note)}" for note in self.notes), ""]
        lines.append(f"     {'before':<39}after")
        pairs = zip(self.ranking("before", top), self.ranking("after", top), strict=True)
        for rank, ((old, p), (new, q)) in enumerate(pairs, start=1):
            arrow = "→" if rank == 1 else " "
            lines.append(f"  {rank:>2} {shorten(old, 28):<28} {p:>7.1%} {arrow} {shorten(new, 28):<28} {q:>7.1%}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def plot(self, path: str | os.PathLike | None = None, top: int = 5) -> "Figure":
        """Draw the photo, the heatmap over it, and bars before and after.

        Args:
            path: where to save the figure; the suffix chooses the format. None saves nothing.
        """
        from steering.picture import draw

        figure = draw(self, top)
        if path is not None:
            figure.savefig(path)
        return figure


def _named(ranking: Ranking) -> list[dict[str, str | float]]:
    return [{"name": name, "probability": round(probability, 6)} for name, probability in ranking]
