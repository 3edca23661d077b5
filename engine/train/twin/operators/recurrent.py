"""Recurrent layers: LSTM, GRU and RNN in both directions, with initial states, lengths of sequences and either layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.named_activations import Activation, activation
from engine.train.twin.table import operator

# Takes what the input gives to all gates at one step, (batch, gates * hidden), and the states; gives the new states, the
# hidden one first.
Cell = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

_TAKE_ALPHA = frozenset({"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"})
_TAKE_BETA = frozenset({"affine", "hardsigmoid", "scaledtanh"})


@dataclass(frozen=True)
class _Direction:
    """One direction's tensors: `weight` (gates * hidden, input), `recurrence` (gates * hidden, hidden), biases of both."""

    weight: Tensor
    recurrence: Tensor
    input_bias: Tensor
    hidden_bias: Tensor
    peepholes: Tensor | None
    activations: tuple[Activation, ...]
    backward: bool


@operator("LSTM")
def lstm(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    memory: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a long short-term memory (Hochreiter and Schmidhuber 1997); gives outputs, last hidden and last cell states."""
    plain = peepholes is None and not node.integer("input_forget", 0)
    layer = _Layer(node, x, weight, recurrence, bias, lengths, (hidden, memory))
    if plain and layer.is_standard(("sigmoid", "tanh", "tanh")):
        return layer.fused(torch.lstm, (0, 2, 3, 1))
    return layer.scanned(lambda direction: _lstm_cell(node, direction), ("Sigmoid", "Tanh", "Tanh"), peepholes)


@operator("GRU")
def gru(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run gated recurrent units (Cho et al. 2014); gives outputs and last states."""
    layer = _Layer(node, x, weight, recurrence, bias, lengths, (hidden,))
    if node.integer("linear_before_reset", 0) and layer.is_standard(("sigmoid", "tanh")):
        return layer.fused(torch.gru, (1, 0, 2))
    return layer.scanned(lambda direction: _gru_cell(node, direction), ("Sigmoid", "Tanh"))


@operator("RNN")
def rnn(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a simple recurrent layer; gives outputs and last states."""
    layer = _Layer(node, x, weight, recurrence, bias, lengths, (hidden,))
    for name, function in (("tanh", torch.rnn_tanh), ("relu", torch.rnn_relu)):
        if layer.is_standard((name,), default=("tanh",)):
            return layer.fused(function, (0,))
    return layer.scanned(lambda direction: _rnn_cell(node, direction), ("Tanh",))


class _Layer:
    """A recurrent layer's inputs, in one layout: time first."""

    def __init__(
        self,
        node: Node,
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        states: Sequence[Tensor | None],
    ) -> None:
        self.node, self.weight, self.recurrence = node, weight, recurrence
        self.batch_first = bool(node.integer("layout", 0))
        self.x = x.transpose(0, 1) if self.batch_first else x
        self.bias = weight.new_zeros(weight.shape[0], 2 * weight.shape[1]) if bias is None else bias
        whole = lengths is None or bool((lengths == self.x.shape[0]).all())
        self.lengths = None if whole or lengths is None else lengths.to(x.device)
        empty = (weight.shape[0], self.x.shape[1], recurrence.shape[2])
        self.states = tuple(
            self.x.new_zeros(empty) if state is None else state.transpose(0, 1) if self.batch_first else state
            for state in states
        )
        self.direction = node.text("direction", "forward")

    def is_standard(self, names: Sequence[str], *, default: Sequence[str] | None = None) -> bool:
        """Say whether PyTorch's own layer computes this one."""
        found = [name.lower() for name in self.node.texts("activations") or []]
        found = found or list(default or names) * self.weight.shape[0]
        return self.lengths is None and "clip" not in self.node.attributes and found == [*names] * len(self.weight)

    def fused(self, function: Callable[..., tuple[Tensor, ...]], order: Sequence[int]) -> tuple[Tensor, ...]:
        """Run PyTorch's layer; `order` names the gates of the standard in PyTorch's order."""
        parameters: list[Tensor] = []
        for index in range(len(self.weight)):
            input_bias, hidden_bias = self.bias[index].chunk(2)
            for each in (self.weight[index], self.recurrence[index], input_bias, hidden_bias):
                parts = each.chunk(len(order))
                parameters.append(torch.cat([parts[gate] for gate in order]))
        backward = self.direction == "reverse"
        x = self.x.flip(0) if backward else self.x
        state = tuple(each.contiguous() for each in self.states)
        both = self.direction == "bidirectional"
        begin = state if len(state) > 1 else state[0]
        outputs, *last = function(x.contiguous(), begin, parameters, True, 1, 0.0, False, both, False)
        if backward:
            outputs = outputs.flip(0)
        return self._laid_out(outputs.unflatten(2, (len(self.weight), -1)).transpose(1, 2), last)

    def scanned(
        self, make: Callable[[_Direction], Cell], default: Sequence[str], peepholes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run a cell step by step."""
        outputs, last = [], []
        for index, activations in enumerate(_activations(self.node, default, len(self.weight))):
            input_bias, hidden_bias = self.bias[index].chunk(2)
            direction = _Direction(
                self.weight[index],
                self.recurrence[index],
                input_bias,
                hidden_bias,
                None if peepholes is None else peepholes[index],
                activations,
                self.direction == "reverse" or index == 1,
            )
            made, end = self._one_way(make(direction), direction, tuple(state[index] for state in self.states))
            outputs.append(made)
            last.append(end)
        return self._laid_out(torch.stack(outputs, dim=1), [torch.stack(each) for each in zip(*last, strict=True)])

    def _one_way(
        self, cell: Cell, direction: _Direction, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = _backward(self.x, self.lengths) if direction.backward else self.x
        outputs = []
        for step, gates in enumerate((x @ direction.weight.mT + direction.input_bias).unbind()):
            following = cell(gates, states)
            if self.lengths is None:
                states = following
                outputs.append(states[0])
                continue
            running = (step < self.lengths).unsqueeze(1)
            states = tuple(torch.where(running, new, old) for new, old in zip(following, states, strict=True))
            outputs.append(torch.where(running, states[0], torch.zeros_like(states[0])))
        made = torch.stack(outputs)
        return _backward(made, self.lengths) if direction.backward else made, states

    def _laid_out(self, outputs: Tensor, last: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Give outputs (time, directions, batch, hidden) and states (directions, batch, hidden) in the node's layout."""
        if not self.batch_first:
            return outputs, *last
        return outputs.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)


def _lstm_cell(node: Node, direction: _Direction) -> Cell:
    gate, candidate, output = direction.activations
    clip, coupled = node.number("clip", 0.0), bool(node.integer("input_forget", 0))
    peep = (0.0, 0.0, 0.0) if direction.peepholes is None else direction.peepholes.chunk(3)

    def cell(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, memory = states
        gates = gates + hidden @ direction.recurrence.mT + direction.hidden_bias
        enter, leave, forget, new = gates.chunk(4, dim=1)
        enter = gate(_clipped(enter + peep[0] * memory, clip))
        kept = 1 - enter if coupled else gate(_clipped(forget + peep[2] * memory, clip))
        memory = kept * memory + enter * candidate(_clipped(new, clip))
        return gate(_clipped(leave + peep[1] * memory, clip)) * output(memory), memory

    return cell


def _gru_cell(node: Node, direction: _Direction) -> Cell:
    gate, candidate = direction.activations
    clip, linear_first = node.number("clip", 0.0), bool(node.integer("linear_before_reset", 0))
    size = direction.recurrence.shape[1]
    of_gates, of_candidate = direction.recurrence.split((2 * size, size))
    gate_bias, candidate_bias = direction.hidden_bias.split((2 * size, size))

    def cell(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = states
        opened = gates[:, : 2 * size] + hidden @ of_gates.mT + gate_bias
        update, reset = gate(_clipped(opened, clip)).chunk(2, dim=1)
        if linear_first:
            recalled = reset * (hidden @ of_candidate.mT + candidate_bias)
        else:
            recalled = (reset * hidden) @ of_candidate.mT + candidate_bias
        new = candidate(_clipped(gates[:, 2 * size :] + recalled, clip))
        return ((1 - update) * new + update * hidden,)

    return cell


def _rnn_cell(node: Node, direction: _Direction) -> Cell:
    (function,) = direction.activations
    clip = node.number("clip", 0.0)

    def cell(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (function(_clipped(gates + states[0] @ direction.recurrence.mT + direction.hidden_bias, clip)),)

    return cell


def _clipped(x: Tensor, limit: float) -> Tensor:
    return x.clamp(-limit, limit) if limit > 0 else x


def _backward(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn sequences (time, batch, size) round, each within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, places.unsqueeze(2).expand(x.shape))


def _activations(node: Node, default: Sequence[str], directions: int) -> list[tuple[Activation, ...]]:
    """Give each direction's activations; parameters are listed for those alone that take some."""
    names = node.texts("activations") or list(default) * directions
    alphas, betas = iter(node.numbers("activation_alpha") or []), iter(node.numbers("activation_beta") or [])
    made = [
        activation(
            name,
            next(alphas, None) if name.lower() in _TAKE_ALPHA else None,
            next(betas, None) if name.lower() in _TAKE_BETA else None,
        )
        for name in names
    ]
    count = len(default)
    return [tuple(made[index * count : (index + 1) * count]) for index in range(directions)]
