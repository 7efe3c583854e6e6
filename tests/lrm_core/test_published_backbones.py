"""The published models from files in the published format that are made here: all keys and shapes, small on disk."""

import functools
import hashlib
import http.server
import io
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet

from lrm_base.download import DownloadError
from lrm_core import LRMNet, SteerableLRM
from lrm_core import published_backbones as published
from lrm_core.compat import PUBLISHED_CONNECTIONS, ours_to_published
from lrm_core.published_backbones import (
    STATISTICS,
    VISION_PROTOTYPES,
    WEIGHTS,
    image_transforms,
    load_vision_prototypes,
)

NAMES = ("alexnet_lrm1", "alexnet_lrm2", "alexnet_lrm3")


@functools.cache
def checkpoint(name: str) -> dict[str, torch.Tensor]:
    """Every entry of a published checkpoint in its spelling; entry number i is i / 1000 everywhere, stored once."""
    with torch.device("meta"):
        model = LRMNet(alexnet(), PUBLISHED_CONNECTIONS[name])
    keys = {}
    for index, (key, value) in enumerate(ours_to_published(model.state_dict(), model.lrm.connections).items()):
        spelt = re.sub(r"features_(\d)", r"features\1", key).replace("feedforward.", "backbone.")
        keys[f"module.{spelt}"] = torch.tensor(index / 1000).expand(value.shape)
    return keys


def save(folder: Path, stem: str, payload: object) -> Path:
    """The file of a payload, named by its hash as published files are."""
    stream = io.BytesIO()
    torch.save(payload, stream)
    path = folder / f"{stem}-{hashlib.sha256(stream.getvalue()).hexdigest()[:10]}.pth"
    path.write_bytes(stream.getvalue())
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def nowhere(monkeypatch):
    """An address at which nobody answers."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize(("name", "steering"), list(zip(NAMES, (True, False, True), strict=True)))
def test_a_published_file_in_the_cache_loads_without_a_network(name, steering, cache, nowhere, monkeypatch):
    path = save(cache, f"{name}_final_weights", {"state_dict": checkpoint(name), "epoch": 100})
    monkeypatch.setitem(WEIGHTS, name, f"{nowhere}/{path.name}")
    before = torch.get_rng_state()
    model, _ = getattr(published, name)(pretrained=True, steering=steering)
    assert type(model) is (SteerableLRM if steering else LRMNet)
    assert torch.equal(torch.get_rng_state(), before)
    loaded = ours_to_published(model.state_dict(), model.lrm.connections)
    assert [value.flatten()[[0, -1]].tolist() for value in loaded.values()] == [
        [pytest.approx(index / 1000)] * 2 for index in range(len(checkpoint(name)))
    ]


def test_the_weights_are_fetched_from_their_address(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "remote").mkdir()
    path = save(tmp_path / "remote", "prototypes", prototypes())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setitem(VISION_PROTOTYPES, "alexnet_lrm1", f"http://127.0.0.1:{server.server_port}/{path.name}")
        assert load_vision_prototypes("alexnet_lrm1").keys() == prototypes().keys()
        server.shutdown()
        thread.join()
    assert (cache / path.name).read_bytes() == path.read_bytes()


def test_without_a_network_the_file_and_its_place_are_named(cache, nowhere, monkeypatch):
    url = f"{nowhere}/{WEIGHTS['alexnet_lrm3'].rpartition('/')[2]}"
    monkeypatch.setitem(WEIGHTS, "alexnet_lrm3", url)
    with pytest.raises(DownloadError, match=r"3back_2steps_final_weights-63ab1b3b06\.pth") as caught:
        published.alexnet_lrm3()
    assert url in str(caught.value)
    assert str(cache) in str(caught.value)


def test_a_file_of_ones_own_in_the_published_format_loads_if_its_name_states_its_hash(tmp_path):
    path = save(tmp_path, "mine", checkpoint("alexnet_lrm1"))
    model, _ = published.alexnet_lrm1(pretrained=path)
    assert model.feedforward.features[0].bias[0].item() == pytest.approx(0.001)
    tampered = path.with_name(f"{path.stem[:-1]}{'1' if path.stem[-1] == '0' else '0'}.pth")
    with pytest.raises(DownloadError, match="truncated or was altered"):
        published.alexnet_lrm1(pretrained=path.rename(tampered))
    with pytest.raises(ValueError, match=r"expected a name that ends in -HEX\.pth"):
        published.alexnet_lrm1(pretrained=tampered.rename(tmp_path / "mine.pth"))


def test_weights_of_another_model_are_refused_by_their_published_keys(tmp_path):
    path = save(tmp_path, "mine", {"model": checkpoint("alexnet_lrm1")})
    with pytest.raises(ValueError, match=r"does not fit alexnet_lrm2: .*from_features_12_to_features_3\.neg_scale"):
        published.alexnet_lrm2(pretrained=path)
    extra = {**checkpoint("alexnet_lrm1"), "module.backbone.features.1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"does not fit alexnet_lrm1: .*features\.1\.weight"):
        published.alexnet_lrm1(pretrained=save(tmp_path, "extra", extra))


def test_an_untrained_model_follows_the_callers_seed():
    biases = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        biases.append(published.alexnet_lrm1(pretrained=False, steering=False)[0].feedforward.features[0].bias)
    assert torch.equal(biases[0], biases[1])
    assert not torch.equal(biases[0], biases[2])


def test_every_published_name_has_its_files_and_they_belong_together():
    assert tuple(WEIGHTS) == tuple(VISION_PROTOTYPES) == tuple(PUBLISHED_CONNECTIONS) == NAMES
    for name in NAMES:
        weights_hash = WEIGHTS[name].removesuffix(".pth").rpartition("-")[2]
        assert f"{name}_{weights_hash}-" in VISION_PROTOTYPES[name]


def test_the_addresses_are_those_that_are_known(shared):
    text = (shared / "README.md").read_text()
    assert [url for url in WEIGHTS.values() if url not in text] == []
    assert [url for url in VISION_PROTOTYPES.values() if url.rpartition("/")[2] not in text] == []
    assert VISION_PROTOTYPES["alexnet_lrm1"].rpartition("/")[0] in text


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_transforms_have_the_published_names_and_sizes():
    transforms = image_transforms()
    photo = picture(400, 300)
    shapes = {name: tuple(transforms[f"{name}_transform"](photo).shape) for name in ("train", "val", "test")}
    assert shapes == {"train": (3, 224, 224), "val": (3, 224, 224), "test": (3, 256, 256)}
    assert transforms.keys() == {"train_transform", "val_transform", "test_transform", "inv_transform"}


def test_pixels_are_normalised_by_the_statistics_of_imagenet():
    white = image_transforms()["val_transform"](Image.new("RGB", (300, 300), "white"))
    expected = [(1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert white.amin((1, 2)).tolist() == pytest.approx(expected)
    assert white.amax((1, 2)).tolist() == pytest.approx(expected)


def test_the_inverse_gives_the_picture_back():
    transforms = image_transforms()
    photo = picture(256, 256)
    seen = transforms["inv_transform"](transforms["val_transform"](photo))
    assert np.array_equal(np.asarray(seen), np.asarray(photo)[16:240, 16:240])
    far = transforms["inv_transform"](torch.tensor([9.0, 0.0, -9.0])[:, None, None].expand(3, 2, 2))
    assert far.getpixel((0, 0)) == (255, 116, 0)  # clipped, not wrapped round


def prototypes() -> dict[int, dict[str, object]]:
    """Two classes in the published format."""
    return {
        label: {"count": 50, **{key: torch.full((1000,), float(label)) for key in STATISTICS[1:]}} for label in (0, 999)
    }


def test_prototypes_are_read_as_published(cache, nowhere, monkeypatch):
    path = save(cache, "visual_prototypes", prototypes())
    monkeypatch.setitem(VISION_PROTOTYPES, "alexnet_lrm3", f"{nowhere}/{path.name}")
    for found in (load_vision_prototypes("alexnet_lrm3"), load_vision_prototypes(path)):
        assert found.keys() == {0, 999}
        assert found[999].keys() == set(STATISTICS)
        assert found[999]["count"] == 50
        assert torch.equal(found[999]["mean"], torch.full((1000,), 999.0))
    assert load_vision_prototypes(path, map_location="meta")[0]["std"].device.type == "meta"


@pytest.mark.parametrize(
    "payload", [{}, torch.zeros(3), {"a": {}}, {0: {"mean": torch.zeros(3)}}, {0: dict.fromkeys(STATISTICS, 1.0)}]
)
def test_prototypes_of_another_format_are_refused(tmp_path, payload):
    with pytest.raises(ValueError, match="expected a dict of class index to count, sum, sumsq, mean, std"):
        load_vision_prototypes(save(tmp_path, "prototypes", payload))


def test_unknown_prototypes_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no visual prototypes 'alexnet_lrm4'.* alexnet_lrm1, alexnet_lrm2"):
        load_vision_prototypes("alexnet_lrm4")
