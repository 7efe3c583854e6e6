"""A CLIP with outputs over the names of a data set, so that the laboratory can measure it as it measures a classifier.

The best output is then zero-shot classification among these names (Radford et al. 2021). What users read of a CLIP
(support, evidence, verdicts, heatmaps) stays what they read: it is set against the bank of common things.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lrm_base.card import load_card
from lrm_base.data import DataConfig, load_images
from prior.captions import with_article
from prior.class_table import class_table
from steering.catalogue import DEFAULT_MODEL, MODELS
from steering.evidence import Seen
from steering.joint import JointNetwork
from steering.network import Glance, Network
from steering.steerer import Steerer

TABLE = "classes.json"
WNID = re.compile(r"n\d{8}")


class NamedNetwork(JointNetwork):
    """A CLIP whose `Seen.output` and `Seen.places` speak of a list of names. Make it with `named`.

    `asked`, and all that is read through it, speaks of the bank and of the goal, as it does of any CLIP.
    """

    names: JointNetwork

    @classmethod
    def of(
        cls, network: JointNetwork, classes: Sequence[dict[str, Any]], embeddings: Float[Tensor, "c m"]
    ) -> NamedNetwork:
        """The network with outputs over classes.

        Args:
            classes: the `name` of each class.
            embeddings: of unit length, of the names as texts.
        """
        other = object.__new__(cls)
        other.__dict__.update(network._like(card={**network.card, "classes": list(classes)}).__dict__)
        other.names = network.against([entry["name"] for entry in classes], embeddings)
        return other

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.names.bank.names

    def names_for(self, query: str) -> tuple[str, ...]:
        """The alternatives of a look: the bank, and what is looked for."""
        return (*self.bank.names, query)

    def _read(self, embedding: Tensor, patches: Float[Tensor, "b h w m"]) -> Seen:
        return self.names._read(embedding, patches)

    def asked(self, seen: Seen, goals: Float[Tensor, "b m"]) -> tuple[Seen, Float[Tensor, "b c"]]:
        """What a pass says of the bank and of each goal; see `JointNetwork.asked`."""
        assert seen.embedding is not None
        assert seen.windows is not None
        common = self.bank.embeddings.T
        output = self.scale * F.normalize(seen.embedding, dim=-1) @ common
        places = (self.scale * seen.windows @ common).softmax(-1).mean(1)
        return super().asked(Seen(output, places, seen.embedding, seen.windows), goals)

    @torch.no_grad()
    def unsteered(self, glance: Glance, passes: int | None = None) -> list[Float[Tensor, "b c"]]:
        """Outputs over the classes of all passes without a goal. They are no goals, unlike those of other networks."""
        return [self.over_names(embedding) for embedding in super().unsteered(glance, passes)]

    def over_names(self, embeddings: Float[Tensor, "b m"]) -> Float[Tensor, "b c"]:
        """How near embeddings, of images or of texts, lie to the name of each class, as logits."""
        return self.scale * F.normalize(embeddings.float(), dim=-1) @ self.names.bank.embeddings.T

    def first_map(self, glance: Glance, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b h w"]:
        """The probability of the goal at each patch of the first pass, in 0–1: the heatmap without steering."""
        return self.heatmap(glance, goals, strength=0.0, passes=2)[1]  # both passes of its mean are then the first


def over_classes(network: Network, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b c"]:
    """Goals as logits over the classes: a classifier's goals themselves, a CLIP's by their cosines with the names."""
    return network.over_names(goals) if isinstance(network, NamedNetwork) else goals


def named(steerer: Steerer, source: str) -> Steerer:
    """A CLIP with outputs over the classes of a data set; a classifier as it is, since it has classes of its own.

    Raises:
        ValueError: the data set does not name its classes; see `classes_of`.
    """
    network = steerer.network
    if not isinstance(network, JointNetwork):
        return steerer
    classes = classes_of(source)
    embeddings = steerer.language.embed([with_article(entry["name"]) for entry in classes])
    return steerer.with_network(NamedNetwork.of(network, classes, embeddings), steerer.verdicts)


def classes_of(source: str) -> list[dict[str, Any]]:
    """The classes of a data set in the order of its labels, each with its `name`, and its `wnid` if it has one.

    They are those of `classes.json` beside the images, if there is one: a list of classes, or the form of
    `prior.class_table`. Otherwise they are the labels' names or folders; WordNet ids are told by ImageNet's names.

    Raises:
        ValueError: there are no names, some are unknown WordNet ids, or two classes have one name.
    """
    data = load_images(DataConfig(source=source, num_holdout=0), "valid")
    given = getattr(data.features["label"], "names", None)
    path = Path(source).expanduser() / TABLE
    table = _table(path) if path.is_file() else []
    if given is None:
        if not table:
            raise ValueError(f"source: {source} does not name its classes: expected {TABLE} beside the images")
        classes = table
    else:
        known = {entry[key]: entry for entry in table or _imagenet() for key in ("wnid", "name") if key in entry}
        unknown = [name for name in given if name not in known and (table or WNID.fullmatch(name))]
        if unknown:
            where = path if table else f"ImageNet's classes, and there is no {path}"
            raise ValueError(f"source: {len(unknown)} of {len(given)} classes are not in {where}: {unknown[0]}, …")
        classes = [known.get(name, {"name": name.replace("_", " ")}) for name in given]
    twice = [name for name, count in Counter(entry["name"] for entry in classes).items() if count > 1]
    if twice:
        raise ValueError(f"source: {source} calls two classes {twice[0]!r}: expected names of their own in {path}")
    return [{key: entry[key] for key in ("wnid", "name") if key in entry} for entry in classes]


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        source = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    table = class_table(source) if isinstance(source, dict) else source
    if not isinstance(table, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in table):
        raise ValueError(f"{path}: expected a table of classes, each with its name")
    return table


def _imagenet() -> list[dict[str, Any]]:
    """ImageNet's classes by the card of the embedded model."""
    classes: list[dict[str, Any]] = load_card(MODELS / DEFAULT_MODEL / "backbone.safetensors")["classes"]
    return classes
