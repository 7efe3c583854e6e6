"""LRM: any backbone with long-range modulatory feedback (Konkle & Alvarez, NeurIPS 2023).

A later pass sees, at each destination, x + x · Σ f(source of the pass before). Steering replaces a source's activation
by a goal, so that the pass looks *for* something.

Unusual: the model holds parameters only. What a pass leaves behind is a `State` that the caller hands to the next one;
threads may share a model, and stepping pass by pass is the roll-out. Steps that no feedback reaches are run once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from lrm_core.feedback import Connection, Feedback, Strength
from lrm_core.graph import Graph, run_node

Rule = Literal["multiply", "add"]


@dataclass(frozen=True)
class Steer:
    """A goal for one pass: what the feedback of `source` shall be, whatever the pass before made of it.

    Attributes:
        source: name of a step that feedback comes from, usually the classifier.
        target: (b, …) or (1, …), an activation of that step: for a classifier of M classes (b, M) logits.
        strength: replaces the gain of every path out of `source`: one number, or (negative, positive). 0 switches
            these paths off. A `PublishedFeedback` multiplies its gain by it instead.
        mix: share of the target; the rest is the model's own activation. 1 replaces it, 0 is no goal.
    """

    source: str
    target: Tensor
    strength: Strength = 1.0
    mix: float = 1.0


@dataclass(frozen=True)
class State:
    """What a pass leaves for the next: the activations of the sources, and how many passes were run."""

    activations: Mapping[str, Tensor]
    num_passes: int

    def detach(self) -> State:
        """The same values without the graph of gradients."""
        return State({name: value.detach() for name, value in self.activations.items()}, self.num_passes)

    def expand(self, batch: int) -> State:
        """The state of one image, (1, …), as a view for a batch of goals, (batch, …)."""
        return State({k: v.expand(batch, *v.shape[1:]) for k, v in self.activations.items()}, self.num_passes)


@dataclass(frozen=True)
class Stem:
    """Values of the steps that no feedback reaches: the same in every pass over an image."""

    values: Mapping[fx.Node, Any]

    def expand(self, batch: int) -> Stem:
        """The stem of one image, (1, …), as a view for a batch of goals, (batch, …)."""
        return Stem(
            {
                node: value.expand(batch, *value.shape[1:])
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1
                else value
                for node, value in self.values.items()
            }
        )


class LRM(nn.Module):
    """A backbone with feedback connections between its named steps.

    Args:
        backbone: any module that `torch.fx` can trace and that maps (b, 3, h, w) to one tensor.
        connections: feedback paths; see `Connection`. Destinations must be pre-activations (followed by a rectifier).
        image_size: side in pixels of an image with which the backbone can be run once, to learn the shapes.
        feedback: makes a path of the shapes of its source and its destination: `Feedback`, or `PublishedFeedback` for
            published weights.
        rule: `multiply` is the publication's x + x · Σ f; `add` is x + Σ f, a control that can find what is not there.

    Raises:
        ValueError: no connection, a connection named twice, a step that does not exist, a destination that is not a
            pre-activation, or a source that does not come after its destination.
    """

    def __init__(
        self,
        backbone: nn.Module,
        connections: Sequence[Connection],
        image_size: int = 224,
        *,
        feedback: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] = Feedback,
        rule: Rule = "multiply",
    ) -> None:
        super().__init__()
        if not connections:
            raise ValueError("an LRM needs at least one connection")
        if len(set(connections)) < len(connections):
            raise ValueError(f"a connection is named twice: {', '.join(c.key for c in connections)}")
        self.backbone, self.rule, self.image_size = backbone, rule, image_size
        self.connections = tuple(connections)
        self.graph = Graph.of(backbone)
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        for connection in connections:
            source = self.graph.find(connection.source, "source")
            destination = self.graph.find(connection.destination, "destination")
            self.graph.check_destination(connection.destination, backbone)
            if order[source] <= order[destination]:
                raise ValueError(f"{connection.source!r} does not come after {connection.destination!r}: not feedback")
        self.sources = tuple(dict.fromkeys(c.source for c in connections))
        self._arriving: dict[fx.Node, tuple[Connection, ...]] = {}
        for connection in connections:
            node = self.graph.steps[connection.destination]
            self._arriving[node] = (*self._arriving.get(node, ()), connection)
        self._plan()
        shapes = self._shapes(image_size)
        self.activation_shapes = {name: shapes[name] for name in self.sources}
        self.paths = nn.ModuleDict({c.key: feedback(shapes[c.source], shapes[c.destination]) for c in connections})

    def _plan(self) -> None:
        """Split the steps into those before all feedback and the rest, and note when a value is last used."""
        reached = self.graph.downstream(c.destination for c in self.connections)
        runs = [node for node in self.graph.nodes if node.op not in ("placeholder", "output")]
        self._stem_nodes = tuple(node for node in runs if node not in reached)
        self._body_nodes = tuple(node for node in runs if node in reached)
        body = set(self._body_nodes)
        # Kept from the stem: what the body reads, and the destinations themselves, still unmodulated.
        self._kept = tuple(
            node
            for node in self.graph.nodes
            if node not in body and (node in self._arriving or any(user in body for user in node.users))
        )
        self._release = _last_uses(self._body_nodes, {self.graph.output})
        self._stem_release = _last_uses(self._stem_nodes, set(self._kept))

    def _shapes(self, image_size: int) -> dict[str, tuple[int, ...]]:
        parameter = next(self.backbone.parameters())
        image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        wanted = {*self.sources, *(c.destination for c in self.connections)}
        training = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval()
        try:
            with torch.no_grad():
                values: dict[fx.Node, Any] = {}
                for node in self.graph.nodes:
                    if node.op == "placeholder":
                        values[node] = image
                    elif node.op != "output":
                        values[node] = run_node(node, self.backbone, values)
        finally:
            for module, mode in training.items():
                module.training = mode
        return {name: tuple(values[self.graph.steps[name]].shape[1:]) for name in wanted}

    def stem(self, images: Float[Tensor, "b 3 h w"]) -> Stem:
        """Run what no feedback reaches; it serves every pass over these images. Pixels as the backbone expects them."""
        values: dict[fx.Node, Any] = {n: images for n in self.graph.nodes if n.op == "placeholder"}
        for node in self._stem_nodes:
            values[node] = run_node(node, self.backbone, values)
            for used in self._stem_release.get(node, ()):
                del values[used]
        return Stem({node: values[node] for node in self._kept})

    def step(
        self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = ()
    ) -> tuple[Float[Tensor, "b m"], State]:
        """One pass over images whose stem is known: (output, what it leaves for the next pass).

        Without a state this is the first pass, where no feedback arrives but that of a goal in `steer`.
        """
        output, activations, _ = self._run(stem, state, steer, self.sources)
        return output, State(activations, 1 if state is None else state.num_passes + 1)

    def inspect(
        self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = (), steps: Sequence[str] = ()
    ) -> tuple[Float[Tensor, "b m"], dict[str, Tensor], dict[str, Tensor]]:
        """The same pass as `step`, seen from inside: (output, activations of `steps`, changes at the destinations).

        A change is what feedback added to a destination, x · Σ f; destinations that no feedback reached in this pass
        have none. Activations of destinations are those after it. Steps before all feedback cannot be asked for.

        Raises:
            ValueError: a step does not exist, or lies in the stem.
        """
        inside = set(self._body_nodes) | set(self._arriving)
        for name in steps:
            if self.graph.find(name, "inspected step") not in inside:
                raise ValueError(f"{name!r} lies before all feedback: it is the same in every pass")
        return self._run(stem, state, steer, steps)

    def _run(
        self, stem: Stem, state: State | None, steer: Sequence[Steer], wanted: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        feedback = self._feedback(state, steer)
        names: dict[fx.Node, list[str]] = {}
        for name in wanted:
            names.setdefault(self.graph.steps[name], []).append(name)
        values: dict[fx.Node, Any] = dict(stem.values)
        activations: dict[str, Tensor] = {}
        changes: dict[str, Tensor] = {}
        for node in (*self._kept, *self._body_nodes):
            if node not in stem.values:
                values[node] = run_node(node, self.backbone, values)
            if node in self._arriving:
                factor = self._factor(node, values[node], feedback)
                if factor is not None:
                    change = values[node] * factor if self.rule == "multiply" else factor.expand_as(values[node])
                    changes[self._arriving[node][0].destination] = change
                    values[node] = values[node] + change
            activations |= dict.fromkeys(names.get(node, ()), values[node])
            for used in self._release.get(node, ()):
                del values[used]
        return values[self.graph.output], activations, changes

    def forward(
        self, images: Float[Tensor, "b 3 h w"], state: State | None = None, steer: Sequence[Steer] = ()
    ) -> tuple[Float[Tensor, "b m"], State]:
        """One pass: (output, what it leaves for the next pass). See `step`."""
        return self.step(self.stem(images), state, steer)

    def rollout(
        self,
        images: Float[Tensor, "b 3 h w"],
        passes: int = 2,
        steer: Sequence[Steer] = (),
        *,
        steer_first: bool = False,
    ) -> list[Float[Tensor, "b m"]]:
        """Outputs of several passes. The goal acts from the second pass on, or from the first with `steer_first`."""
        if passes < 1:
            raise ValueError(f"passes: got {passes}, expected at least 1")
        stem = self.stem(images)
        state: State | None = None
        outputs = []
        for index in range(passes):
            output, state = self.step(stem, state, steer if index or steer_first else ())
            outputs.append(output)
        return outputs

    def _feedback(self, state: State | None, steer: Sequence[Steer]) -> dict[str, tuple[Tensor, Strength | None]]:
        """For each source that sends feedback in this pass: its activation, and the gain if a goal sets it."""
        feedback: dict[str, tuple[Tensor, Strength | None]] = {}
        if state is not None:
            feedback = {name: (value, None) for name, value in state.activations.items()}
        self.check(steer)
        for goal in steer:
            own = feedback.get(goal.source)
            target = goal.target
            if own is not None:
                target = target.to(own[0]).expand_as(own[0])
                if goal.mix != 1.0:
                    target = goal.mix * target + (1 - goal.mix) * own[0]
            feedback[goal.source] = (target, goal.strength)
        return feedback

    def check(self, steer: Sequence[Steer]) -> None:
        """Raise ValueError if these cannot be the goals of a pass. Their batches are not compared with the images'."""
        steered: set[str] = set()
        for goal in steer:
            if goal.source not in self.sources:
                raise ValueError(f"cannot steer {goal.source!r}; sources of feedback: {', '.join(self.sources)}")
            if goal.source in steered:
                raise ValueError(f"{goal.source!r} is steered twice in one pass")
            steered.add(goal.source)
            expected = self.activation_shapes[goal.source]
            got = tuple(goal.target.shape)
            if len(got) != len(expected) + 1 or got[1 : 2 if len(expected) == 3 else None] != (
                expected[:1] if len(expected) == 3 else expected
            ):
                raise ValueError(f"goal for {goal.source!r}: expected shape (batch, {str(expected)[1:-1]}), got {got}")

    def _factor(self, node: fx.Node, value: Tensor, feedback: Mapping[str, tuple[Tensor, Any]]) -> Tensor | None:
        total: Tensor | None = None
        for connection in self._arriving[node]:
            if connection.source in feedback:
                activation, strength = feedback[connection.source]
                factor = self.paths[connection.key](activation, value, strength)
                total = factor if total is None else total + factor
        return total


def _last_uses(nodes: Sequence[fx.Node], kept: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """After which of these steps which values are no longer needed, but for those that are kept."""
    last = {used: node for node in nodes for used in node.all_input_nodes}
    release: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        if used not in kept:
            release.setdefault(user, []).append(used)
    return release
