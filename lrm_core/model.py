"""LRM: any backbone with long-range modulatory feedback (Konkle & Alvarez, NeurIPS 2023).

In a later pass each destination has the value x + x · Σ f, where f comes from the sources in the pass before. Steering
replaces the activation of a source by a goal, so that the pass looks for something.

Unusual: the model holds parameters only. A pass returns a `State`, and the caller gives it to the next pass. So threads
may share a model. The steps that no feedback reaches run once for all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from lrm_base import checks
from lrm_core.feedback import Connection, Feedback
from lrm_core.graph import Graph, run_node
from lrm_core.passes import State, Steer, Stem, arriving, check_goals

__all__ = ["LRM", "Rule", "State", "Steer", "Stem"]

Rule = Literal["multiply", "rectify", "add"]


class LRM(nn.Module):
    """A backbone with feedback connections between its named steps.

    Args:
        backbone: any module that `torch.fx` can trace and that maps (b, 3, h, w) to one tensor.
        connections: feedback paths; see `Connection`. Destinations must be pre-activations (followed by a rectifier).
        image_size: side in pixels of a square image. The backbone runs once on such an image, to learn the shapes.
        feedback: makes a path from the shapes of its source and its destination: `Feedback`, or `PublishedFeedback` for
            published weights.
        rule: `multiply` is the publication's x + x · Σ f. `rectify` is x · max(0, 1 + Σ f): feedback may silence a
            feature, but it cannot turn a negative pre-activation positive. `add` is x + Σ f, a control that can see
            what is not there.

    Raises:
        ValueError: there is no connection or one is named twice; a step does not exist; a destination is not a
            pre-activation; a source does not come after its destination or is no tensor; or the backbone cannot run on
            an image of that size.
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
            raise ValueError("connections: got none, expected at least one connection")
        if len(set(connections)) < len(connections):
            raise ValueError(f"connections: a connection is named twice: {', '.join(c.key for c in connections)}")
        if rule not in get_args(Rule):
            raise ValueError(f"rule: got {rule!r}; choices: {', '.join(get_args(Rule))}")
        image_size = checks.whole_number("image_size", image_size, 1)
        self.backbone, self.rule, self.image_size = backbone, rule, image_size
        self.connections = tuple(connections)
        self.graph = Graph.of(backbone)
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        for connection in connections:
            source = self.graph.find(connection.source, "source")
            destination = self.graph.find(connection.destination, "destination")
            self.graph.check_destination(connection.destination, backbone)
            if order[source] <= order[destination]:
                raise ValueError(
                    f"source {connection.source!r} does not come after destination {connection.destination!r}, "
                    "so this is not feedback"
                )
        self.sources = tuple(dict.fromkeys(c.source for c in connections))
        self._arriving: dict[fx.Node, tuple[Connection, ...]] = {}
        for connection in connections:
            node = self.graph.steps[connection.destination]
            self._arriving[node] = (*self._arriving.get(node, ()), connection)
        self._first = min(self._arriving, key=order.__getitem__)  # it lies before all feedback
        self._plan()
        shapes = self._shapes(image_size)
        self.activation_shapes = {name: shapes[name] for name in self.sources}
        self.paths = nn.ModuleDict({c.key: feedback(shapes[c.source], shapes[c.destination]) for c in connections})

    def _plan(self) -> None:
        """Split the steps into the stem, which no feedback reaches, and the body; note the last use of each value."""
        reached = self.graph.downstream(c.destination for c in self.connections)
        runs = [node for node in self.graph.nodes if node.op not in ("placeholder", "output")]
        self.stem_nodes = tuple(node for node in runs if node not in reached)
        self._body_nodes = tuple(node for node in runs if node in reached)
        body = set(self._body_nodes)
        # The stem keeps what the body reads, and the destinations before feedback.
        self.kept_nodes = tuple(
            node
            for node in self.graph.nodes
            if node not in body and (node in self._arriving or any(user in body for user in node.users))
        )
        self._release = _last_uses(self._body_nodes, {self.graph.output})
        self.stem_release = _last_uses(self.stem_nodes, set(self.kept_nodes))

    def _shapes(self, image_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes, without the batch, of all sources and destinations for an image of that side."""
        parameter = next(self.backbone.parameters(), torch.empty(0))
        image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        wanted = {*self.sources, *(c.destination for c in self.connections)}
        training = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval()
        try:
            with torch.no_grad():
                values = self.graph.inputs(image)
                for node in (*self.stem_nodes, *self._body_nodes):
                    values[node] = run_node(node, self.backbone, values)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"image_size: got {image_size}, expected the side of an image that the backbone takes, "
                f"but step {node.name} raises: {error}"
            ) from error
        finally:
            for module, mode in training.items():
                module.training = mode
        steps = {name: values[self.graph.steps[name]] for name in wanted}
        for name, value in steps.items():
            if not isinstance(value, Tensor) or value.ndim < 2:
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"step {name!r}: got {got}, expected a tensor (batch, …) to connect")
        return {name: tuple(value.shape[1:]) for name, value in steps.items()}

    def stem(self, images: Float[Tensor, "b 3 h w"]) -> Stem:
        """Run the steps that no feedback reaches; all passes over these images share the result.

        Args:
            images: normalised as the backbone expects them.
        """
        values = self.graph.inputs(images)
        for node in self.stem_nodes:
            values[node] = run_node(node, self.backbone, values)
            for used in self.stem_release.get(node, ()):
                del values[used]
        return Stem({node: values[node] for node in self.kept_nodes})

    def step(
        self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = ()
    ) -> tuple[Float[Tensor, "b m"], State]:
        """One pass over images whose stem is known: (output, state for the next pass).

        Without a state this is the first pass. No feedback arrives in it, except from the goals in `steer`.

        Raises:
            ValueError: a goal does not fit; see `check`. Or the batch of a goal or of the state is neither 1 nor the
                number of images, or a goal has another spatial size than the activation that it replaces.
        """
        output, activations, _ = self._run(stem, state, steer, self.sources)
        return output, State(activations, 1 if state is None else state.num_passes + 1)

    def varies(self, name: str) -> bool:
        """Whether a step's activation may differ between passes. Raises ValueError if there is no such step."""
        node = self.graph.find(name, "inspected step")
        return node in self._arriving or node in self._body_nodes

    def inspect(
        self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = (), steps: Sequence[str] = ()
    ) -> tuple[Float[Tensor, "b m"], dict[str, Tensor], dict[str, Tensor]]:
        """The same pass as `step`, seen from inside: (output, activations of `steps`, changes at the destinations).

        A change is what feedback adds to a destination, x · Σ f. A destination that no feedback reaches in this pass
        has no change. The activation of a destination includes its change.

        Raises:
            ValueError: a step does not exist or lies before all feedback. Or `step` raises it.
        """
        for name in steps:
            if not self.varies(name):
                raise ValueError(f"steps: {name!r} lies before all feedback, so it is the same in every pass")
        return self._run(stem, state, steer, steps)

    def _run(
        self, stem: Stem, state: State | None, steer: Sequence[Steer], wanted: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        self.check(steer)
        feedback = arriving(stem.values[self._first], state, steer)
        names: dict[fx.Node, list[str]] = {}
        for name in wanted:
            names.setdefault(self.graph.steps[name], []).append(name)
        values: dict[fx.Node, Any] = dict(stem.values)
        activations: dict[str, Tensor] = {}
        changes: dict[str, Tensor] = {}
        for node in (*self.kept_nodes, *self._body_nodes):
            if node not in stem.values:
                values[node] = run_node(node, self.backbone, values)
            if node in self._arriving:
                factor = self._factor(node, values[node], feedback)
                if factor is not None:
                    if self.rule == "add":
                        change = factor.expand_as(values[node])
                    else:
                        change = values[node] * (factor.clamp(min=-1) if self.rule == "rectify" else factor)
                    changes[self._arriving[node][0].destination] = change
                    values[node] = values[node] + change
            activations |= dict.fromkeys(names.get(node, ()), values[node])
            for used in self._release.get(node, ()):
                del values[used]
        return values[self.graph.output], activations, changes

    def forward(
        self, images: Float[Tensor, "b 3 h w"], state: State | None = None, steer: Sequence[Steer] = ()
    ) -> tuple[Float[Tensor, "b m"], State]:
        """One pass: (output, state for the next pass). See `step`."""
        return self.step(self.stem(images), state, steer)

    def rollout(
        self,
        images: Float[Tensor, "b 3 h w"],
        passes: int = 2,
        steer: Sequence[Steer] = (),
        *,
        steer_first: bool = False,
    ) -> list[Float[Tensor, "b m"]]:
        """Outputs of several passes. The goals act from the second pass on, or from the first with `steer_first`.

        Raises:
            ValueError: `passes` is not a whole number above 0. Or `step` raises it.
        """
        passes = checks.whole_number("passes", passes, 1)
        self.check(steer)
        stem = self.stem(images)
        state: State | None = None
        outputs = []
        for index in range(passes):
            output, state = self.step(stem, state, steer if index or steer_first else ())
            outputs.append(output)
        return outputs

    def check(self, steer: Sequence[Steer]) -> None:
        """Check the goals of a pass without running it.

        Batches and the spatial sizes of maps depend on the images, and only a pass can check them.

        Raises:
            ValueError: a source is unknown or steered twice, or a target, strength or mix does not fit; see `Steer`.
        """
        check_goals(steer, self.activation_shapes)

    def _factor(self, node: fx.Node, value: Tensor, feedback: Mapping[str, tuple[Tensor, Any]]) -> Tensor | None:
        """Σ f at a destination; None if no feedback arrives there in this pass."""
        total: Tensor | None = None
        for connection in self._arriving[node]:
            if connection.source in feedback:
                activation, strength = feedback[connection.source]
                factor = self.paths[connection.key](activation, value, strength)
                total = factor if total is None else total + factor
        return total


def _last_uses(nodes: Sequence[fx.Node], kept: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each step, the values that no later step needs. Values in `kept` are left out."""
    last = {used: node for node in nodes for used in node.all_input_nodes}
    release: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        if used not in kept:
            release.setdefault(user, []).append(used)
    return release
