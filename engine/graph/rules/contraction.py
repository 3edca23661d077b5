"""Matrix products of every spelling, as sums over shared letters."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.graph.attributes import integer, text
from engine.graph.execution import Execution
from engine.graph.labels import Array, Labels
from engine.graph.rules.elementwise import join
from engine.graph.rules.registry import CONTRIB, Rules, listed


@dataclass(frozen=True, eq=False)
class Term:
    """An operand: its value, a letter for each axis ("" where the size is 1), its labels, its place in the node."""

    value: ir.Value
    letters: tuple[str, ...]
    labels: Labels | None
    constant: bool
    index: int

    @property
    def letter(self) -> str:
        """Give the letter of the axis that shrinks."""
        assert self.labels is not None
        return self.letters[self.labels.axis]


def spread(term: Term, letters: tuple[str, ...]) -> Array:
    """Arrange a term's atoms by letters, which must hold all that they vary along."""
    assert term.labels is not None
    atoms = term.labels.atoms
    kept = [axis for axis in range(atoms.ndim) if atoms.shape[axis] > 1]
    order = sorted(kept, key=lambda axis: letters.index(term.letters[axis]))
    dense = atoms.reshape([atoms.shape[axis] for axis in kept]).transpose([kept.index(axis) for axis in order])
    sizes = {term.letters[axis]: atoms.shape[axis] for axis in order}
    return dense.reshape([sizes.get(letter, 1) for letter in letters])


def contract(run: Execution, node: ir.Node, operands: list[tuple[int, str]], out: str) -> Labels | None:
    """Apply the rule of sum-products: shared letters unite, letters of the result pass, a weight's own letter is new."""
    terms = [_term(run, node, index, letters) for index, letters in operands]
    if any(len(set(filter(None, term.letters))) < len(list(filter(None, term.letters))) for term in terms):
        run.freeze_inputs(node, "takes a diagonal")
        return None
    owners: dict[str, list[Term]] = {}
    for term in terms:
        if term.labels is not None:
            owners.setdefault(term.letter, []).append(term)
    result: Labels | None = None
    for letter, owned in owners.items():
        inherited = _shared(run, node, terms, out, letter=letter, owned=owned)
        if result is not None:
            run.freeze(inherited, node, "meets channels of another axis")
        result = result or inherited
    return _produced(run, node, terms, out, result)


def _shared(
    run: Execution, node: ir.Node, terms: list[Term], out: str, *, letter: str, owned: list[Term]
) -> Labels | None:
    """Unite all that has a letter; give the result's labels if it has the letter too."""
    if any(letter in term.letters and not term.constant and term not in owned for term in terms):
        for term in owned:
            run.freeze(term.labels, node, "is multiplied with a value without removable channels")
    merged, letters = _united(run, node, owned)
    weights = [term for term in terms if term.constant and letter in term.letters]
    for term in weights:
        rest = _projected(run, node, merged, letters, term.letters)
        found = Labels(run.shape(term.value), rest, term.letters.index(letter))
        run.member(term.value, found, "pass" if letter in out else "in", node)
    if letter in out:
        rest = _projected(run, node, merged, letters, tuple(out))
        return Labels(run.shape(node.outputs[0]), rest, out.index(letter))
    if not weights:
        assert owned[0].labels is not None
        run.sink(node, owned[0].index, owned[0].labels)
    return None


def _term(run: Execution, node: ir.Node, index: int, letters: str) -> Term:
    value = node.inputs[index]
    assert value is not None
    shape = run.shape(value)
    named = tuple(letter if size > 1 else "" for letter, size in zip(letters, shape, strict=True))
    constant = run.constant(value) and value.name not in run.labels
    return Term(value, named, run.label(value), constant, index)


def _united(run: Execution, node: ir.Node, owned: list[Term]) -> tuple[Array, tuple[str, ...]]:
    letters = tuple(sorted({letter for term in owned for letter in term.letters if letter}))
    first = spread(owned[0], letters)
    for term in owned[1:]:
        other = spread(term, letters)
        run.unite(first, other, node)
        first = np.broadcast_to(first, np.broadcast_shapes(first.shape, other.shape))
    return first, letters


def _projected(run: Execution, node: ir.Node, atoms: Array, letters: tuple[str, ...], target: tuple[str, ...]) -> Array:
    """Arrange atoms for other letters; over letters that are not there they are united."""
    absent = tuple(axis for axis, letter in enumerate(letters) if letter not in target and atoms.shape[axis] > 1)
    if absent:
        atoms = run.align(node)(atoms, absent)
    sizes = dict(zip(letters, atoms.shape, strict=True))
    order = sorted((letter for letter in letters if letter in target), key=target.index)
    gone = tuple(axis for axis, letter in enumerate(letters) if letter not in target)
    dense = atoms.squeeze(gone)
    left = [letter for letter in letters if letter in target]
    return dense.transpose([left.index(letter) for letter in order]).reshape(
        [sizes.get(letter, 1) if letter else 1 for letter in target]
    )


def _produced(run: Execution, node: ir.Node, terms: list[Term], out: str, result: Labels | None) -> Labels | None:
    """Give fresh atoms to the axis that only a weight has."""
    active = {letter for term in terms if not term.constant for letter in term.letters if letter}
    weights = [term for term in terms if term.constant]
    if len(weights) == len(terms):
        return result
    for term in weights:
        own = [letter for letter in term.letters if letter and letter in out and letter not in active]
        if not own:
            continue
        key = f"{node.name}:out{term.index}"
        if result is not None:
            run.deferred.add(key)
            return result
        letter = max(own, key=term.letters.index) if term.letters[-1] in own else own[0]
        batch = [other for other in term.letters if other and other in out and other != letter]
        shape = run.shape(term.value)
        sizes = [shape[term.letters.index(other)] for other in (*batch, letter)]
        atoms = run.fresh(key, int(np.prod(sizes)), node)
        if atoms is None:
            return None
        table, letters = atoms.reshape(sizes), (*batch, letter)
        order = sorted(range(len(letters)), key=lambda place: letters[place])
        table, letters = table.transpose(order), tuple(letters[place] for place in order)
        inside = _projected(run, node, table, letters, term.letters)
        run.member(term.value, Labels(shape, inside, term.letters.index(letter)), "out", node)
        result = Labels(
            run.shape(node.outputs[0]), _projected(run, node, table, letters, tuple(out)), out.index(letter)
        )
    return result


_BATCH = "abcdefgh"


def matmul(run: Execution, node: ir.Node) -> None:
    """MatMul and its fused form with transposed operands."""
    run.set(node, _matmul(run, node))


def _matmul(run: Execution, node: ir.Node) -> Labels | None:
    left, right = (run.shape(value) for value in node.inputs[:2])
    if len(left) == 1 or len(right) == 1:
        batch = _BATCH[: max(len(left), len(right)) - 2]
        first = "k" if len(left) == 1 else batch + "mk"
        second = "k" if len(right) == 1 else batch + "kn"
        out = batch + ("" if len(left) == 1 else "m") + ("" if len(right) == 1 else "n")
        return contract(run, node, [(0, first), (1, second)], out)
    rank = max(len(left), len(right)) - 2
    if rank > len(_BATCH) or integer(node, "transBatchA", 0) or integer(node, "transBatchB", 0):
        run.freeze_inputs(node, "has too many or transposed batch axes")
        return None
    batch = _BATCH[:rank]
    first = batch[rank - (len(left) - 2) :] + ("km" if integer(node, "transA", 0) else "mk")
    second = batch[rank - (len(right) - 2) :] + ("nk" if integer(node, "transB", 0) else "kn")
    return contract(run, node, [(0, first), (1, second)], batch + "mn")


def gemm(run: Execution, node: ir.Node) -> None:
    """Gemm: a product, then a bias."""
    first = "km" if integer(node, "transA", 0) else "mk"
    second = "nk" if integer(node, "transB", 0) else "kn"
    result = contract(run, node, [(0, first), (1, second)], "mn")
    run.set(node, with_bias(run, node, result, 2))


def with_bias(run: Execution, node: ir.Node, result: Labels | None, index: int) -> Labels | None:
    """Join a result that is not yet an output with a further operand of the node."""
    bias = node.inputs[index] if len(node.inputs) > index else None
    output = node.outputs[0]
    if bias is None or not output.name:
        return result
    if result is None:
        run.freeze(run.label(bias), node, "meets a value without removable channels")
        return None
    run.labels[output.name] = result
    joined = join(run, node, [output, bias], result.shape)
    del run.labels[output.name]
    return joined


def einsum(run: Execution, node: ir.Node) -> None:
    """Einsum of any number of terms without ellipsis."""
    equation = text(node, "equation", "").replace(" ", "")
    if "..." in equation or "->" not in equation:
        run.freeze_inputs(node, "its equation is implicit or has an ellipsis")
        return
    inputs, out = equation.split("->")
    run.set(node, contract(run, node, list(enumerate(inputs.split(","))), out))


RULES: Rules = {
    **listed(matmul, "MatMul"),
    **listed(gemm, "Gemm"),
    **listed(einsum, "Einsum"),
    **listed(matmul, "FusedMatMul", domain=CONTRIB),
    **listed(gemm, "FusedGemm", domain=CONTRIB),
}
