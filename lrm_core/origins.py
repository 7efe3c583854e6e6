"""Where each number of an activation comes from, followed through one run of a backbone.

Beside each activation run three arrays of its shape: the image, the channel and the place (row and column) of each
number. What a function does to them follows from the function, not from the number of axes:

- permute, reshape, cat, roll, indexing and the like do the same to these arrays as to the activation.
- linear layers, LayerNorm and attention make new channels on the last axis; convolutions and batch norms on the first
  behind the batch. Convolutions and pooling make new places.
- Functions of each number alone, and all others that keep a shape, keep the arrays.

Unusual: functions are seen by `torch.overrides.TorchFunctionMode`, so graph and hooks give the same origins. The arrays
are views of a few numbers wherever they can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrm_core.graph import Graph, run_node
from lrm_core.hooked import hooks
from lrm_core.shadow import kept_random_states, shadow
from lrm_core.steps import Steps
from lrm_core.writes import tensors

NOTHING, UNKNOWN = -1, -2  # no image, channel or place; one that could not be followed
HALF = 1 << 15  # a place is row × 2¹⁵ + column
_NAME, _CONSTANT = "_lrm_origin", "_lrm_constant"
_MOVES = frozenset((
    "__get__", "__getitem__", "reshape", "view", "reshape_as", "view_as", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand", "expand_as",
    "broadcast_to", "repeat", "tile", "repeat_interleave", "cat", "concat", "concatenate", "stack", "chunk", "split",
    "tensor_split", "split_with_sizes", "unbind", "narrow", "select", "index_select", "gather", "roll", "flip", "rot90",
    "t", "adjoint", "unfold", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
))  # fmt: skip
_PASSES = _MOVES | {"dropout", "contiguous", "clone", "detach", "to", "type_as", "float"}  # what reads these reads it
_VIEWS = frozenset(("view", "view_as", "unflatten"))  # they take no array of few numbers in the place of many
_LAST = frozenset(("linear", "multi_head_attention_forward"))
_NORMS = frozenset(("layer_norm", "rms_norm"))
_FIRST_NORMS = frozenset(("batch_norm", "instance_norm", "group_norm"))
_PRODUCTS = frozenset(("matmul", "__matmul__", "bmm", "mm"))
_MEANS = frozenset(("mean", "sum", "amax", "amin"))
_SUMS = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__", "iadd"))


@dataclass(eq=False)
class Origin:
    """Where the numbers of an activation come from, and what is done with them.

    Attributes:
        arrays: image, channel and place of each number, each of the activation's shape.
        maker: the name of the function that made the activation. What only moves numbers, and dropout, leave it.
        readers: the functions that read it, and what they made. `values` stands for attention that reads its values.
    """

    arrays: tuple[Tensor, Tensor, Tensor]
    maker: str = ""
    readers: list[tuple[str, list[Origin]]] = field(default_factory=list)

    def read_by(self) -> Iterator[str]:
        """The names of the functions that read it. What only moves numbers, and dropout, is looked through."""
        for name, made in self.readers:
            if name in _PASSES:
                for origin in made:
                    yield from origin.read_by()
            else:
                yield name

    def values(self) -> Iterator[Origin]:
        """What attention reads as its values, of what only moves these numbers."""
        for name, made in self.readers:
            if name == "values":
                yield self
            elif name in _PASSES:
                for origin in made:
                    yield from origin.values()

    def is_normed(self) -> bool:
        """Whether a LayerNorm undoes a gain here: only LayerNorms read it, or it is a sum that one reads."""
        names = set(self.read_by())
        return bool(names & _NORMS) and (names <= _NORMS or self.maker in _SUMS)


def origin_of(value: Any) -> Origin | None:
    """What is known of an activation of a followed run."""
    return getattr(value, _NAME, None) if isinstance(value, Tensor) else None


class _Follow(TorchFunctionMode):
    """Notes the origin of what functions return. Functions that a noted function calls are not noted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [each for each in map(origin_of, tensors([*args, *kwargs.values()])) if each is not None]
        result = func(*args, **kwargs)
        made = tensors(result)
        name = getattr(func, "__name__", "")
        if not made or (not known and name not in _LAST and "conv" not in name):
            for value in made:
                if not isinstance(value, nn.Parameter):  # the user's own
                    setattr(value, _CONSTANT, True)
            return result
        try:
            origins = _origins(func, name, args, kwargs, result)
        except (RuntimeError, ValueError, TypeError, IndexError):  # the arrays are of another type than the activation
            origins = [None] * len(made)
        for value, origin in zip(made, origins, strict=True):
            if origin is not None:
                origin.maker = known[0].maker if name in _PASSES and known else name
            setattr(value, _NAME, origin)
        read = _values_of(name, [*args, *kwargs.values()])
        for each in known:
            role = "values" if each is read else name
            each.readers.append((role, [origin for origin in origins if origin is not None]))
        return result


def _values_of(name: str, values: Sequence[Any]) -> Origin | None:
    """What a function of attention reads as its values."""
    if name == "scaled_dot_product_attention":
        return origin_of(values[2])
    weights = origin_of(values[0]) if name in _PRODUCTS else None
    return origin_of(values[1]) if weights is not None and weights.maker == "softmax" else None


def _origins(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> list[Origin | None]:
    """The origins of the tensors that a function returned."""
    made = tensors(result)
    values = [*args, *kwargs.values()]
    first = values[0]
    origin = origin_of(first)
    if name in _MOVES or (name == "pad" and origin is not None):
        return _moved(func, args, kwargs, len(made))
    shape = made[0].shape
    if name in _LAST:
        return [_renewed(origin, shape, -1), *[None] * (len(made) - 1)]
    if "conv" in name and made[0].ndim > 2:
        return [_placed(_renewed(origin, shape, 1), shape)]
    if origin is None and name not in _PRODUCTS:
        return [_kept(each, values) for each in made]
    if name in _NORMS and len(args[1] if len(args) > 1 else kwargs["normalized_shape"]) == 1:
        return [_renewed(origin, shape, -1)]
    if name in _FIRST_NORMS:
        return [_renewed(origin, shape, 1)]
    if origin is not None and ("pool" in name or name in ("interpolate", "upsample")):
        inside = tuple(range(2, made[0].ndim))
        kept = Origin(_each(origin, lambda array: _at_first(array, inside).expand(shape)))
        return [_placed(kept, shape), *[None] * (len(made) - 1)]
    if name == "scaled_dot_product_attention":
        return [_product(origin, origin_of(values[2]), shape, -2)]
    if name in _PRODUCTS:
        right = origin_of(values[1])
        return [_product(origin, right, shape, -2) if right is not None else _renewed(origin, shape, -1)]
    if name in _MEANS and origin is not None:
        dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        keeps = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        return [None if dims is None else Origin(_each(origin, lambda array: _common(array, dims, keeps)))]
    return [_kept(each, values) for each in made]


def _each(origin: Origin, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    image, channel, place = origin.arrays
    return change(image), change(channel), change(place)


def _moved(func: Any, args: Any, kwargs: Any, count: int) -> list[Origin | None]:
    """What moves numbers moves the arrays likewise. What is made of parameters only has no place."""
    if func is F.pad:
        origin, pad = origin_of(args[0]), args[1] if len(args) > 1 else kwargs["pad"]
        return [origin and Origin(_each(origin, lambda array: F.pad(array, tuple(pad), value=NOTHING)))]

    def mapped(value: Any, index: int) -> Any:
        if isinstance(value, Tensor):
            origin = origin_of(value)
            if not value.is_floating_point():
                return value.cpu()  # it says which numbers to take
            if origin is None:
                learned = isinstance(value, nn.Parameter) or getattr(value, _CONSTANT, False)
                return torch.tensor(NOTHING if learned else UNKNOWN, dtype=torch.int32).expand(value.shape)
            array = origin.arrays[index]
            return array.contiguous() if getattr(func, "__name__", "") in _VIEWS else array
        if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            return type(value)(mapped(each, index) for each in value)
        return value

    made = []
    for index in range(3):
        result = func(*(mapped(each, index) for each in args), **{k: mapped(v, index) for k, v in kwargs.items()})
        made.append(tensors(result))
    return [Origin((made[0][each], made[1][each], made[2][each])) for each in range(count)]


def _at_first(array: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        array = array.narrow(axis, 0, 1)
    return array


def _line(size: int, axis: int, ndim: int) -> Tensor:
    return torch.arange(size, dtype=torch.int32).view([size if each == axis % ndim else 1 for each in range(ndim)])


def _renewed(origin: Origin | None, shape: torch.Size, axis: int) -> Origin:
    """New channels on an axis. Image and place are those of the first channel that was read."""
    channel = _line(shape[axis], axis, len(shape)).expand(shape)
    if origin is None or origin.arrays[0].ndim != len(shape):
        unknown = torch.tensor(UNKNOWN, dtype=torch.int32).expand(shape)
        return Origin((unknown, channel, unknown))
    axes = (axis,) if axis == -1 or origin.arrays[0].shape[2:] == shape[2:] else range(1, len(shape))
    image, _, place = (_at_first(array, axes).expand(shape) for array in origin.arrays)
    return Origin((image, channel, place))


def _placed(origin: Origin, shape: torch.Size) -> Origin:
    """New places on the axes behind the first two."""
    ndim = len(shape)
    if ndim > 4:
        return Origin((*origin.arrays[:2], torch.tensor(UNKNOWN, dtype=torch.int32).expand(shape)))
    place = _line(shape[-1], -1, ndim)
    if ndim == 4:
        place = place + HALF * _line(shape[2], 2, ndim)
    return Origin((*origin.arrays[:2], place.expand(shape)))


def _product(left: Origin | None, right: Origin | None, shape: torch.Size, axis: int) -> Origin | None:
    """Rows of the one and columns of the other: image and place from the left, channels from the right."""
    if left is None or right is None:
        return None
    image, place = (left.arrays[each].narrow(-1, 0, 1).expand(shape) for each in (0, 2))
    return Origin((image, right.arrays[1].narrow(axis, 0, 1).expand(shape), place))


def _common(array: Tensor, dims: Any, keeps: bool) -> Tensor:
    """What is the same for all numbers that are summed; otherwise nothing."""
    low, high = array.amin(dims, keeps), array.amax(dims, keeps)
    return low.where(low == high, NOTHING)


def _kept(value: Tensor, values: Sequence[Any]) -> Origin | None:
    """The origin of what has the same shape, or a smaller one that broadcasts. Of several, one with places."""
    found = [each for each in map(origin_of, tensors(list(values))) if each is not None]
    same = [each for each in found if each.arrays[0].shape == value.shape]
    if not same and len(found) > 1 and found[0].arrays[0].ndim == value.ndim:
        return Origin(_each(found[0], lambda array: array.expand(value.shape)))
    if len(same) > 1:
        same.sort(key=lambda each: not varies(each.arrays[2]))
    return Origin(same[0].arrays) if same else None


def varies(array: Tensor) -> bool:
    """Whether the numbers of an array are not all the same."""
    for axis in range(array.ndim):  # views of few numbers stay few
        if array.stride(axis) == 0:
            array = array.narrow(axis, 0, min(1, array.shape[axis]))
    return bool(array.numel()) and bool((array != array.flatten()[0]).any())


def follow(steps: Steps, backbone: nn.Module, images: Tensor) -> dict[Any, tuple[tuple[int, ...], Origin | None]]:
    """Run a backbone and follow all numbers.

    Args:
        steps: of the backbone in its present modes.
        backbone: it is not changed.
        images: (b, c, h, w).

    Returns:
        For each step that has a name and is a tensor: its shape and its origin.
    """
    copied = shadow(backbone)
    images = images.clone()
    shape = images.shape
    image = _line(shape[0], 0, 4).expand(shape)
    setattr(images, _NAME, _placed(_renewed(Origin((image, image, image)), shape, 1), shape))
    found: dict[Any, tuple[tuple[int, ...], Origin | None]] = {}

    def note(step: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            found[step] = (tuple(value.shape), origin_of(value))

    with kept_random_states(), torch.no_grad():
        if isinstance(steps, Graph):
            named = set(steps.steps.values())
            left = {node: len(node.users) for node in steps.nodes}
            values: dict[Any, Any] = {steps.images: images}
            for node in steps.nodes[1:-1]:
                with _Follow():
                    values[node] = run_node(node, steps, copied, values)
                if node in named:
                    note(node, values[node])
                for used in node.all_input_nodes:
                    left[used] -= 1
                    if not left[used]:
                        del values[used]
        else:
            with hooks(copied, lambda step, inputs, output: note(step, output)), _Follow():
                copied(images)
    return found
