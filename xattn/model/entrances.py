"""Entrances: where an input becomes the first vectors of its tokens, stream by stream.

A text comes in through a table of embeddings, a picture through the convolution that reads its
pixels. Both are found by watching which module is given the input; gradients are taken at, and
other embeddings put in place of, what these modules return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

BLANK = "blank"
"""The array, ``[token]``, that is 1 where the mean embedding shall stand in place of a token's own;
of the decoder of an encoder-decoder ``decoder_blank``."""
BLANKS = (BLANK, f"decoder_{BLANK}")
CHUNK = 8192
"""Rows of a table that are looked up together."""
_MEANS: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()
"""Mean embeddings, with the state of the table that they are of."""
Inputs = Mapping[str, Tensor]
Forward = Callable[[], Any]


class Entrance(Protocol):
    """Where one stream comes in."""

    @property
    def module(self) -> nn.Module:
        """The module that reads the input."""
        ...

    def width(self, inputs: Inputs) -> int:
        """Return the number of tokens of the stream, padding counted."""
        ...

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Return the embeddings ``[batch, token, hidden]``."""
        ...

    def baseline(self, inputs: Inputs, kind: str) -> Tensor:
        """Return the embeddings of an input without content, ``[batch, token, hidden]``."""
        ...

    def output(self, inputs: Inputs, embeddings: Tensor) -> Tensor:
        """Return what the module shall return in order that these be the embeddings."""
        ...

    def noise(self, radius: float, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what to add to the module's output, given its input and that."""
        ...


@dataclass(frozen=True)
class TokenEntrance:
    """A table of embeddings, which looks ids up."""

    module: nn.Embedding
    ids: str
    """The name of the input that holds them."""
    token_id: Callable[[str], int]
    """The ids of the tokens that say nothing; see `Model.token_id`."""

    def width(self, inputs: Inputs) -> int:
        """Return the number of ids."""
        return inputs[self.ids].shape[1]

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Return the rows of the table."""
        return self.module(inputs[self.ids])  # type: ignore[no-any-return]

    def baseline(self, inputs: Inputs, kind: str) -> Tensor:
        """Return the embeddings of one token, everywhere."""
        ids = inputs[self.ids]
        return self.module(torch.full_like(ids, self.token_id(kind)))  # type: ignore[no-any-return]

    def mean(self) -> Tensor:
        """Return the mean embedding of the vocabulary, ``[hidden]``.

        Looked up and not taken from the table: some modules scale what they find.
        """
        weight = self.module.weight
        # shuffled copies of a network change their tables in place
        state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if self.module not in _MEANS or _MEANS[self.module][0] != state:
            numbers = torch.arange(weight.shape[0], device=weight.device)
            with torch.no_grad():
                starts = range(0, len(numbers), CHUNK)
                parts = [self.module(numbers[i : i + CHUNK]).double().sum(0) for i in starts]
            _MEANS[self.module] = state, torch.stack(parts).sum(0) / len(numbers)
        return _MEANS[self.module][1]

    def output(self, inputs: Inputs, embeddings: Tensor) -> Tensor:
        """Return the embeddings, cut to the table's width."""
        return embeddings[
            ..., : self.module.weight.shape[-1]
        ]  # a wrapped table has no embedding_dim

    def noise(self, radius: float, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what adds noise to embeddings; the tokens that say nothing stay as they are.

        Parameters
        ----------
        radius : float
            The largest of it, in units of the table's root mean square.
        seed : int
        """
        largest = radius * float(self.module.weight.detach().float().square().mean().sqrt())
        still = self.token_id("auto")
        drawn: dict[int, Tensor] = {}

        def of(number: int, hidden: int) -> Tensor:
            if number not in drawn:
                generator = torch.Generator().manual_seed(hash((seed, number)))
                even = 2 * torch.rand(hidden, generator=generator) - 1
                drawn[number] = even * (0.0 if number == still else largest)
            return drawn[number]

        def add(ids: Tensor, output: Tensor) -> Tensor:
            found, where = torch.unique(ids, return_inverse=True)
            rows = torch.stack([of(number, output.shape[-1]) for number in found.tolist()])
            return rows.to(output)[where]

        return add


@dataclass(frozen=True)
class PictureEntrance:
    """The convolution that reads the pixels: each of its positions is a patch."""

    module: nn.Conv2d
    front: int
    """How many tokens of its own the network puts before the patches. They come from no pixels and
    have no embedding here: theirs are zeros that nothing reads."""
    blank: Tensor
    """``[channel]``: a pixel of the mean colour, as the network is given it."""

    def width(self, inputs: Inputs) -> int:
        """Return the number of patches, and of tokens before them."""
        rows, columns = grid(self.module, inputs["pixel_values"].shape[-2:])
        return self.front + rows * columns

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Return the embeddings of the patches in reading order."""
        return self._read(inputs["pixel_values"])

    def baseline(self, inputs: Inputs, kind: str) -> Tensor:
        """Return the embeddings of a plain picture of the mean colour."""
        pixels = inputs["pixel_values"]
        return self._read(self.blank.to(pixels)[:, None, None].expand_as(pixels))

    def _read(self, pixels: Tensor) -> Tensor:
        patches = self.module(pixels.to(self.module.weight)).flatten(2).transpose(1, 2)
        return pad(patches, (0, 0, self.front, 0))

    def output(self, inputs: Inputs, embeddings: Tensor) -> Tensor:
        """Return the embeddings of the patches, laid out as the convolution does."""
        patches = embeddings[:, self.front :, : self.module.out_channels].transpose(1, 2)
        rows, columns = grid(self.module, inputs["pixel_values"].shape[-2:])
        return patches.reshape(*patches.shape[:2], rows, columns)

    def noise(self, radius: float, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what adds noise to the patches of every picture alike.

        Its unit is the root mean square of what the convolution makes of independent pixels of
        variance 1.
        """
        largest = radius * float(
            self.module.weight.float().square().flatten(1).sum(1).mean().sqrt()
        )

        def add(pixels: Tensor, output: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            even = 2 * torch.rand(output.shape[1:], generator=generator) - 1
            return (largest * even).to(output)

        return add


def of_texts(network: Any, paired: bool, token_id: Callable[[str], int]) -> list[Entrance]:
    """Return the entrance of a text model, or both of an encoder-decoder."""
    if not paired:
        return [TokenEntrance(network.get_input_embeddings(), "input_ids", token_id)]
    # some encoder-decoders never ask the table that the network itself names
    source, target = network.get_encoder(), network.get_decoder()
    return [
        TokenEntrance(source.get_input_embeddings(), "input_ids", token_id),
        TokenEntrance(target.get_input_embeddings(), "decoder_input_ids", token_id),
    ]


def blanked(streams: Sequence[Entrance], inputs: Inputs) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Return the modules whose embeddings are blank at some tokens, at which, and their mean.

    Parameters
    ----------
    streams : sequence of Entrance
    inputs : mapping
        With `BLANK`, the array that says at which, if there is any.
    """
    found: list[tuple[nn.Module, Tensor, Tensor]] = []
    for stream in streams:
        if isinstance(stream, TokenEntrance):
            blank = inputs.get(stream.ids.removesuffix("input_ids") + BLANK)
            if blank is not None:
                found.append((stream.module, blank.bool(), stream.mean()))
    return found


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return the streams' embeddings as one, the narrower filled up with zeros."""
    hidden = max(part.shape[-1] for part in parts)
    return torch.cat([pad(part, (0, hidden - part.shape[-1])) for part in parts], dim=1)


def outputs(
    streams: Sequence[Entrance], inputs: Inputs, embeddings: Tensor
) -> list[tuple[nn.Module, Tensor]]:
    """Return what each entrance's module shall return for embeddings of all streams."""
    parts = torch.split(embeddings, [stream.width(inputs) for stream in streams], dim=1)
    return [
        (stream.module, stream.output(inputs, part))
        for stream, part in zip(streams, parts, strict=True)
    ]


def grid(module: nn.Conv2d, size: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of what a convolution makes of a picture.

    Parameters
    ----------
    module : Conv2d
    size : tuple of int
        Height and width of the picture.

    Examples
    --------
    >>> grid(nn.Conv2d(3, 8, kernel_size=16, stride=16), (224, 224))
    (14, 14)
    """
    # without data, so that nothing is computed: only the rules for shapes are asked
    weight = module.weight.new_empty(module.weight.shape, device="meta")
    pixels = weight.new_empty((1, module.in_channels, *size))
    output = conv2d(
        pixels, weight, None, module.stride, module.padding, module.dilation, module.groups
    )
    rows, columns = output.shape[2:]
    return rows, columns


def first_reader(
    network: nn.Module, kind: type[nn.Module], fits: Callable[[Tensor], bool], forward: Forward
) -> tuple[str, nn.Module] | None:
    """Return name and module of a kind that is the first to be given a fitting input.

    Parameters
    ----------
    network : Module
    kind : type
    fits : callable
        Whether a tensor is the input that is looked for.
    forward : callable
        Runs the network.
    """
    found: list[tuple[str, nn.Module]] = []

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not found and args and fits(args[0]):
                found.append((name, module))

        return hook

    modules = [(name, m) for name, m in network.named_modules() if isinstance(m, kind)]
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
