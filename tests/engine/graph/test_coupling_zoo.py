"""Every topology of the zoo is pruned by half: valid, much smaller, and equal to the masked original."""

import onnx
import onnx_ir as ir
import pytest
import zoo as topologies

from engine.graph import io, macs
from engine.graph.coupling import Coupling, analyse
from engine.graph.masking import mask
from engine.graph.slicing import remove

# The runtime's own operators have no schema in onnx, so shapes behind them cannot be inferred by the checker.
FUSED = frozenset({"fused_bert"})


def half_of(coupling: Coupling) -> set[int]:
    """Half of every group; where heads can go, their width stays."""
    has_heads = any(group.kind == "heads" for group in coupling.groups)
    found: set[int] = set()
    for group in coupling.groups:
        if group.kind == "conv_groups" or (has_heads and group.kind == "head_width"):
            continue
        count = len(coupling.units(group)) // 2
        found.update(atom for unit in coupling.choose(group, count, beside=found) for atom in unit.atoms)
    return found


@pytest.mark.parametrize("name", sorted(topologies.ZOO))
def test_half_of_every_group_goes_and_the_oracle_holds(name, zoo, run, difference):
    proto = zoo.ZOO[name]()
    onnx.checker.check_model(proto, full_check=name not in FUSED)
    original, model = zoo.load(zoo.ZOO[name]()), zoo.load(proto)
    coupling = analyse(model)
    atoms = half_of(coupling)
    pruned, masked = remove(model, coupling, atoms), mask(model, coupling, atoms)

    onnx.checker.check_model(ir.to_proto(pruned), full_check=name not in FUSED)
    assert macs.total(pruned) <= 0.65 * macs.total(model)
    assert io.weight_bytes(pruned) < io.weight_bytes(original)
    assert coupling.prunable_macs > 0.9
    feeds = [zoo.feed(proto, batch) for batch in (1, 3)]
    expected = run(original, *feeds)
    assert difference(run(model, *feeds), expected) <= 1e-5
    silenced = run(masked, *feeds)
    assert difference(silenced, expected) > 1e-3, "removing half of a network changes what it says"
    assert difference(run(pruned, *feeds), silenced) <= 1e-5
    # Integer kernels, which the runtime puts in when it optimises, round in other places.
    tolerance = 1e-2 if name == "quantized" else 1e-4
    assert difference(run(pruned, *feeds, optimise=True), silenced) <= tolerance


@pytest.mark.parametrize("name", sorted(topologies.ZOO))
def test_each_kind_of_group_goes_alone(name, zoo, run, difference):
    """Head width, heads and groups of convolutions too, picked by scores that differ from line to line."""
    proto = zoo.ZOO[name]()
    model = zoo.load(proto)
    coupling = analyse(model)
    feeds = [zoo.feed(proto, 2)]
    for kind in sorted({group.kind for group in coupling.groups}):
        groups = [group for group in coupling.groups if group.kind == kind]
        atoms: set[int] = set()
        for group in groups:
            scores = {atom: float((atom * 7919) % 101) for atom in group.atoms}
            chosen = coupling.choose(group, max(1, len(coupling.units(group)) // 3), scores, atoms)
            atoms.update(atom for unit in chosen for atom in unit.atoms)
        pruned, masked = remove(model, coupling, atoms), mask(model, coupling, atoms)
        assert macs.total(pruned) < macs.total(model), kind
        assert difference(run(pruned, *feeds), run(masked, *feeds)) <= 1e-5, kind
