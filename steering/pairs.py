r"""Write the embeddings of captioned images by both towers of a CLIP. A prior is trained on them.

    python -m steering.pairs FOLDER --model clip:ViT-B-32:laion2b_s34b_b79k --output runs/pairs.safetensors

FOLDER is what `steering.labelled` reads. The images are kept in parts while it runs, so that the same command goes on
where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import load_card, save_weights, write_atomically
from lrm_base.checks import whole_number
from prior.captions import fill
from prior.class_names import TEMPLATES
from prior.clip_text import ClipText
from prior.name_list import without_article
from prior.pairs import KIND
from steering.errors import ImageError
from steering.joint import JointNetwork
from steering.labelled import Labelled, read_labelled
from steering.network import Network
from steering.rollouts import batch_of
from steering.steerer import Steerer

PART = 512  # images


def write_pairs(
    model: str, source: str, output: str | Path, *, limit: int | None = None, device: str | None = None
) -> dict[str, Any]:
    """Write `texts` (t, N), `says` (t,), `images` (n, M) and `shows` (n,); see `prior.pairs.Captioned`.

    A name is put into the sentences `prior.class_names.TEMPLATES`; a caption stays as it is. Captions that the text
    encoder would cut are left out with their images, and so are images that cannot be read. Embeddings are stored in
    half precision.

    Args:
        model: a CLIP; see `prior.clip.open_clip_model`.
        source: the images and what they show; see `steering.labelled.read_labelled`.
        output: the ….safetensors file to write.
        limit: at most so many images, from the first on; None means all.

    Returns:
        the card of the file.

    Raises:
        ValueError: the model is no CLIP; the file or its parts hold embeddings of something else; no image can be read;
            or `read_labelled` raises it.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"output: got {output}, expected a file ….safetensors")
    limit = None if limit is None else whole_number("limit", limit, 1)
    labelled = read_labelled(source)
    labelled = labelled if limit is None else labelled.only(range(min(limit, len(labelled.labels))))
    steerer = Steerer.load(model, device=device)
    network, text = joint_parts(steerer)
    usable = [text.num_tokens(each) <= text.context_length for each in labelled.texts]
    labelled = labelled.only([row for row, label in enumerate(labelled.labels) if usable[label]])
    asked = {
        "kind": KIND,
        "model": network.card["name"],
        "backbone_sha256": network.card["sha256"],
        "source": labelled.source,
        "captions" if labelled.are_captions else "names": len(labelled.texts),
        "asked": len(labelled.files),
        "captions_too_long": usable.count(False),
    }
    if output.is_file():
        found = load_card(output)
        _check_same(output, {key: found.get(key) for key in asked}, asked)
        return found
    images, shows = _images(network, labelled, output.with_suffix(".parts"), asked)
    texts, says = _texts(text, labelled)
    card = {**asked, "images": len(images), "unread": len(labelled.files) - len(images)}
    save_weights(output, {"texts": texts, "says": says, "images": images, "shows": shows}, card, half=True)
    shutil.rmtree(output.with_suffix(".parts"))
    return load_card(output)


def joint_parts(steerer: Steerer) -> tuple[JointNetwork, ClipText]:
    """The image side and the text side of a CLIP. Raises ValueError for another model."""
    network: Network = steerer.network
    if not isinstance(network, JointNetwork):
        raise ValueError(f"model: got {network.card['name']}, expected a CLIP such as clip:NAME:TAG")
    text = steerer.language.text
    assert isinstance(text, ClipText)
    return network, text


def _check_same(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    if found != asked:
        key = next(key for key in asked if found.get(key) != asked[key])
        raise ValueError(
            f"output: {path} holds embeddings of something else ({key} {found.get(key)!r}, expected {asked[key]!r}): "
            "delete it, or choose another file"
        )


@torch.no_grad()
def _images(network: JointNetwork, labelled: Labelled, parts: Path, asked: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings of all images that can be read, of unit length, and what each shows."""
    parts.mkdir(parents=True, exist_ok=True)
    settings = parts / "settings.json"
    if settings.is_file():
        _check_same(parts, json.loads(settings.read_text()), asked)
    write_atomically(settings, json.dumps(asked).encode())
    count = len(labelled.labels)
    bar = tqdm(total=count, desc="images", unit="image", disable=None)
    found = []
    for start in range(0, count, PART):
        path = parts / f"{start // PART:05d}.safetensors"
        rows = range(start, min(start + PART, count))
        if not path.is_file():
            embeddings, read = _part(network, labelled, rows, bar)
            shows = torch.tensor([labelled.labels[row] for row in read], dtype=torch.long)
            write_atomically(path, save({"images": embeddings.half().cpu().contiguous(), "shows": shows}))
        bar.n = rows.stop
        bar.refresh()
        found.append(load_file(path))
    bar.close()
    images, shows = (torch.cat([part[key] for part in found]) for key in ("images", "shows"))
    if not len(images):
        raise ValueError(f"folder: none of the {count} images in {labelled.source} can be read")
    return images, shows


def _part(network: JointNetwork, labelled: Labelled, rows: range, bar: tqdm) -> tuple[Float[Tensor, "n m"], list[int]]:
    read, embeddings, waiting = [], [torch.empty(0, network.width, device=network.device)], []
    size = None
    for row in rows:
        bar.update()
        try:
            waiting.append(network.pixels(labelled.open(row)))
            read.append(row)
        except ImageError:
            pass
        size = batch_of(network, waiting[0]) if size is None and waiting else size
        if waiting and (len(waiting) == size or row == rows[-1]):
            bare = network.model.backbone(torch.cat(waiting))  # the first pass, without places
            embeddings.append(F.normalize(bare.float(), dim=-1))
            waiting = []
    return torch.cat(embeddings), read


def _texts(text: ClipText, labelled: Labelled) -> tuple[Float[Tensor, "t n"], Tensor]:
    """Embeddings of all texts, of unit length, and the number of what each says."""
    if labelled.are_captions:
        return text.encode(labelled.texts).cpu(), torch.arange(len(labelled.texts))
    names = [without_article(name) for name in labelled.texts]
    sentences = [fill(template, name) for name in names for template in TEMPLATES]
    return text.encode(sentences).cpu(), torch.arange(len(names)).repeat_interleave(len(TEMPLATES))


def main(argv: list[str] | None = None) -> None:
    """Write the pairs that the command line asks for. What is wrong is a usage error (exit code 2)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="captioned or labelled images, as `steer calibrate` takes them")
    parser.add_argument("--model", required=True, help="a CLIP: clip:NAME:TAG, clip:NAME:FILE or clip:FOLDER")
    parser.add_argument("--output", required=True, metavar="FILE", help="….safetensors to write")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many images")
    parser.add_argument("--device", help="cpu, cuda, … (default: the best that there is)")
    given = parser.parse_args(argv)
    try:
        card = write_pairs(given.model, given.folder, given.output, limit=given.limit, device=given.device)
    except ValueError as error:
        parser.error(str(error))
    kind = next(kind for kind in ("captions", "names") if kind in card)
    left = f"; left out: {card['unread']} unread, {card['captions_too_long']} captions too long"
    print(f"{given.output}: {card['images']:,} images, {card[kind]:,} {kind}{left}")


if __name__ == "__main__":
    main()
