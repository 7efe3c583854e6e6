"""Frozen text encoders: any OpenCLIP model as a function from texts to embeddings and token encodings.

A text encoder's folder is an OpenCLIP model like any other: a JSON configuration and safetensors. It follows CLIP
(Radford et al. 2021) and OpenCLIP (Cherti et al. 2023). The embedded one keeps its token embeddings in 8 bits
(`compact`). Unusual: a text that is too long raises an error and is not cut. Padding is not computed; the text tower is
causal, so this changes no number. A folder's plain text tower runs without `open_clip`, whose import takes seconds;
only its image tower and text towers of other kinds need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrm_base.building import no_random_start
from lrm_base.card import load_stored, load_weights, save_weights
from prior.bpe import Tokenizer
from prior.open_clip_models import create
from prior.text_tower import SHAPE, TextTower

WEIGHTS = "text.safetensors"
EMBEDDING = "token_embedding.weight"  # nine tenths of a small text tower


class TextEncoder:
    """A frozen text tower with its tokenizer.

    Attributes:
        name: name of the model.
        width: N, width of the embeddings that `encode` returns.
        token_width: width of the encodings that `tokens` returns.
        context_length: how many tokens fit, start and end included.
        card: the weight card of a model folder; empty for other OpenCLIP models.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        card: dict[str, Any] | None = None,
        seeing: Callable[[], nn.Module] | None = None,
    ) -> None:
        """`seeing` loads the model that has the image tower too, where `model` is the text tower alone."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.card, self._seeing = tokenizer, name, card or {}, seeing
        tower = text_tower(model)
        self.context_length: int = tower.context_length
        self.token_width: int = tower.token_embedding.embedding_dim
        projection = tower.text_projection
        if projection is None:
            self.width = self.token_width
        else:
            self.width = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @classmethod
    def load(
        cls, name_or_folder: str | Path, pretrained: str | None = None, device: str | torch.device = "cpu"
    ) -> TextEncoder:
        """Load a model folder of this project, or an OpenCLIP model by name.

        Args:
            name_or_folder: a folder with an OpenCLIP configuration (….json) and `text.safetensors`, or a name such as
                `ViT-B-16`.
            pretrained: for a name, OpenCLIP's tag (`openai`) or a file of weights. OpenAI's weights need the activation
                QuickGELU. A tag selects it by itself. For a file, the name must say it (`ViT-B-16-quickgelu`).

        Raises:
            ValueError: there is no such folder or name; the weights are missing, were altered or cannot be downloaded;
                the text tower is of another kind; or the package that holds the tokenizer's merges is missing.
        """
        folder = Path(name_or_folder)
        if folder.is_dir():
            return cls._load_folder(folder, device)
        import open_clip

        name = str(name_or_folder).replace("/", "-")
        if name not in open_clip.list_models():
            raise ValueError(
                f"text encoder: got {str(name_or_folder)!r}, which is neither a folder nor one of OpenCLIP's models"
            )
        if pretrained is None:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise ValueError(f"text encoder {name}: expected a file of weights or a tag; choices: {tags}")
        model = create(name, str(pretrained), device)[0]
        return cls(model, open_clip.get_tokenizer(name), f"{name}/{Path(pretrained).name}")

    @classmethod
    def _load_folder(cls, folder: Path, device: str | torch.device) -> TextEncoder:
        stored, card = load_stored(folder / WEIGHTS)
        name, seeing = card["name"], partial(_open_model, folder, device)
        shape = _configuration(folder, name)
        if shape.keys() != {"embed_dim", "text_cfg", "vision_cfg"} or shape["text_cfg"].keys() != SHAPE:
            return cls(seeing(), Tokenizer(), name, card)  # its text tower is of another kind
        visual = {key for key in stored if key.startswith("visual.")}
        own = {key: value for key, value in stored.items() if key not in (*visual, "logit_scale")}
        try:
            tower = TextTower(shape["text_cfg"], shape["embed_dim"], own)
        except ValueError as error:
            raise ValueError(f"{folder / WEIGHTS} does not hold the text tower of its configuration: {error}") from None
        return cls(tower.to(device), Tokenizer(), name, card, seeing if visual else None)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Embeddings of unit length, in float32 on the encoder's device.

        Raises:
            ValueError: there is no text, a text is empty, or a text needs more tokens than fit.
        """
        with torch.inference_mode():
            embedding, _ = run_text_tower(self.model, self._tokenize(texts))
        return F.normalize(embedding.float(), dim=-1).clone()

    def tokens(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b t token_width"], Bool[Tensor, "b t"]]:
        """Encodings of the single tokens after the last layer norm, and where they are: True for a token.

        `t` is the number of tokens of the longest text. Encodings behind the end of a text are zero. The token "!" has
        number 0, as padding has, and counts as padding, as it did for the published priors.

        Raises:
            ValueError: as `encode`.
        """
        ids = self._tokenize(texts)
        with torch.inference_mode():
            _, states = run_text_tower(self.model, ids)
        mask = (_until_end(ids) & (ids != 0))[:, : states.shape[1]]
        return (states.float() * mask[..., None]).clone(), mask

    @property
    def sees(self) -> bool:
        """Whether the model has an image tower that was trained together with the text tower."""
        aligned = not self.card or "zero_shot/top1" in self.card.get("measured", {})
        return aligned and (self._seeing is not None or hasattr(self.model, "visual"))

    @cached_property
    def _seeing_model(self) -> Any:
        return self.model if self._seeing is None else self._seeing().eval().requires_grad_(False)

    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Embeddings of images by the model's own image tower, of unit length.

        Args:
            pixels: in 0–1, of any size. The whole image is squashed to the size that the tower expects.

        Raises:
            ValueError: the model has no image tower, or one that was not trained (see `sees`).
        """
        if not self.sees:
            raise ValueError(f"text encoder {self.name} has no trained image tower")
        import open_clip

        model = self._seeing_model
        known = {**open_clip.get_model_preprocess_cfg(model), **self.card.get("preprocessing", {})}
        size, mean, std = (known[key] for key in ("size", "mean", "std"))
        size = (size, size) if isinstance(size, int) else tuple(size)
        device = next(self.model.parameters()).device
        small = F.interpolate(pixels.to(device).float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        centred = (small - _per_channel(small, mean)) / _per_channel(small, std)
        with torch.inference_mode():
            embedding = model.encode_image(centred)
        return F.normalize(embedding.float(), dim=-1).clone()

    def num_tokens(self, text: str) -> int:
        """The number of tokens of a text, start and end included."""
        return len(self.tokenizer.encode(text)) + 2

    def _tokenize(self, texts: Sequence[str]) -> Int[Tensor, "b t"]:
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, got one text: {texts[:60]!r}")
        if not texts:
            raise ValueError("expected at least one text, got none")
        rows = []
        for text in texts:
            if not text.strip():
                raise ValueError("the query is empty: expected words, such as 'a dog'")
            row = [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id]
            if len(row) > self.context_length:
                raise ValueError(
                    f"the query is too long for text encoder {self.name}: got {len(row)} tokens, at most "
                    f"{self.context_length} fit: {text[:60]!r}…"
                )
            rows.append(row + [0] * (self.context_length - len(row)))
        return torch.tensor(rows, device=next(self.model.parameters()).device)


def text_tower(model: nn.Module) -> Any:
    """The module of an OpenCLIP model that holds the text tower.

    Raises:
        ValueError: the tower is not OpenCLIP's own text transformer with its causal mask.
    """
    tower: Any = getattr(model, "text", model)
    needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
    missing = [name for name in needed if not hasattr(tower, name)]
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if missing or tower.attn_mask is None or getattr(tower, "cls_emb", None) is not None or pooling != "argmax":
        raise ValueError(
            f"text tower of {type(model).__name__}: expected OpenCLIP's causal text transformer read at the end token, "
            f"got {type(tower).__name__} with pooling {pooling!r}"
        )
    return tower


def run_text_tower(
    model: nn.Module, ids: Int[Tensor, "b t"]
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b s token_width"]]:
    """The embedding of each text before normalisation, and the states of its tokens after the last layer norm.

    `s` is the number of tokens of the longest text. The numbers are those of `model.encode_text`, which computes the
    padding too.

    Args:
        ids: tokens. The end token has the highest number of all, and behind it stands padding.

    Raises:
        ValueError: as `text_tower`.
    """
    tower = text_tower(model)
    end = ids.argmax(dim=-1)
    length = int(end.max()) + 1
    x = tower.token_embedding(ids[:, :length]) + tower.positional_embedding[:length]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))  # (b, s, token width)
    pooled = x[torch.arange(len(x), device=x.device), end]
    projection = tower.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return pooled, x


def open_folder(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Any, dict[str, Any]]:
    """The OpenCLIP model of a model folder with both towers, in float32, and its card.

    Raises:
        ValueError: a file is missing or was altered, or the folder has no OpenCLIP configuration of the card's name.
    """
    import open_clip

    folder = Path(folder)
    tensors, card = load_weights(folder / WEIGHTS)
    name = card["name"]
    if open_clip.get_model_config(name) != _configuration(folder, name):
        open_clip.add_model_config(folder / f"{name}.json")
    with no_random_start():
        model = open_clip.create_model(name, device=device)
    model.load_state_dict(tensors)
    return model, card


def _open_model(folder: Path, device: str | torch.device) -> Any:
    return open_folder(folder, device)[0]


def _configuration(folder: Path, name: str) -> dict[str, Any]:
    """The OpenCLIP configuration of that name in a folder. Raises ValueError if there is none."""
    file = folder / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"no OpenCLIP configuration: expected {file}")
    return json.loads(file.read_text())


def compact(folder: str | Path, output: str | Path) -> None:
    """Copy the folder of a text encoder, with the token embeddings in 8 bits: 60 % of the bytes of half precision."""
    folder, output = Path(folder), Path(output)
    tensors, card = load_weights(folder / WEIGHTS)
    output.mkdir(parents=True, exist_ok=True)
    configuration = (folder / f"{card['name']}.json").read_bytes()
    (output / f"{card['name']}.json").write_bytes(configuration)
    kept = {key: value for key, value in card.items() if key != "sha256"}
    save_weights(output / WEIGHTS, tensors, kept, half=True, eight_bits=[EMBEDDING])


def _per_channel(pixels: Float[Tensor, "b 3 h w"], values: Sequence[float]) -> Float[Tensor, "3 1 1"]:
    return rearrange(pixels.new_tensor(values), "c -> c 1 1")


def _until_end(ids: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=-1, keepdim=True)
