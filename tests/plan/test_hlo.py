"""Bytes and collectives, from the text of small programs."""

import jax
import jax.numpy as jnp
import pytest

from nvret_jax.plan.hlo import Program, bytes_of

# As XLA writes it for a TPU: a loop of 12 whose condition alone says so, a sliced operand, an
# asynchronous gather, on-chip memory, and groups in each of the three spellings.
TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x.1, %y.1)
}

%sliced (p.0: bf16[12,64,32], p.1: s32[]) -> bf16[64,32] {
  %p.0 = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %zero, %zero)
  ROOT %flat = bf16[64,32]{1,0:T(8,128)(2,1)} bitcast(%cut)
}

%nested (n.0: bf16[12,64,32], n.1: s32[]) -> bf16[64,32] {
  %n.0 = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %n.1 = s32[]{:T(128)} parameter(1)
  %within = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(%n.0, %n.1), kind=kLoop, calls=%sliced
  ROOT %turned = bf16[64,32]{1,0:T(8,128)(2,1)} negate(%within)
}

%body (state.0: (s32[], f32[8,64], bf16[12,64,32])) -> (s32[], f32[8,64], bf16[12,64,32]) {
  %state.0 = (s32[]{:T(128)}, f32[8,64]{1,0:T(8,128)}, /*index=2*/bf16[12,64,32]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state.0), index=0
  %h = f32[8,64]{1,0:T(8,128)} get-tuple-element(%state.0), index=1
  %w = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state.0), index=2
  %part = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %start = (bf16[64,32], bf16[64,128]{1,0:S(1)}) all-gather-start(%part), replica_groups=[4,4]<=[16], dimensions={1}
  %whole = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%start)
  %out = f32[8,64]{1,0:T(8,128)} custom-call(%h, %whole), custom_call_target="product"
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %state.1 = (s32[], f32[8,64], bf16[12,64,32]) tuple(%next, %out, %w)
}

%condition (state.2: (s32[], f32[8,64], bf16[12,64,32])) -> pred[] {
  %state.2 = (s32[]{:T(128)}, f32[8,64]{1,0}, bf16[12,64,32]{2,1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %last = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%count, %last), direction=LT
}

ENTRY %main.1 (a: f32[8,64], b: bf16[12,64,32]) -> f32[8,64] {
  %a = f32[8,64]{1,0:T(8,128)} parameter(0)
  %b = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} parameter(1)
  %start.1 = s32[]{:T(128)} constant(0)
  %state.3 = (s32[], f32[8,64], bf16[12,64,32]) tuple(%start.1, %a, %b)
  %loop = (s32[], f32[8,64], bf16[12,64,32]) while(%state.3), condition=%condition, body=%body
  %h.1 = f32[8,64]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %sum = f32[8,64]{1,0:T(8,128)} all-reduce(%h.1), replica_groups=mesh['a'=2,'b'=8] {'b'}, to_apply=%add
  ROOT %swap = f32[8,64]{1,0:T(8,128)} all-to-all(%sum), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}
"""  # noqa: E501


def test_collectives_count_as_often_as_their_loop_runs():
    found = {c.kind: c for c in Program(TEXT).collectives(16)}
    part, whole = 64 * 32 * 2, 8 * 64 * 4
    assert found["all-gather"].count == 12
    assert found["all-gather"].bytes == 12 * 3 * part
    assert found["all-reduce"].bytes == 2 * whole * 7 / 8
    assert found["all-to-all"].bytes == whole * 3 / 4
    assert not any(c.per_iteration for c in found.values())


def test_a_collective_that_runs_beside_other_fusions_counts_once():
    """It starts before the loop, goes on in it and ends behind it, on one channel."""
    fused = """\
%overlap (o.0: f32[8,64]) -> f32[8,64] {
  %o.0 = f32[8,64]{1,0:T(8,128)} parameter(0)
  ROOT %going = f32[32,64]{1,0:T(8,128)} all-gather(%o.0), channel_id=7, replica_groups=[4,4]<=[16], dimensions={0}, metadata={op_name="loss"}
}

"""  # noqa: E501
    again = "{}%{} = f32[8,64]{{1,0:T(8,128)}} fusion({}), kind=kCustom, calls=%overlap\n"
    text = TEXT.replace("%body (", fused + "%body (")
    text = text.replace("  %one = ", again.format("  ", "more", "%h") + "  %one = ")
    text = text.replace("  %start.1 = ", again.format("  ", "begun", "%a") + "  %start.1 = ")
    before = {c.kind: c for c in Program(TEXT).collectives(16)}["all-gather"]
    after = {c.kind: c for c in Program(text).collectives(16)}["all-gather"]
    assert after.count == before.count + 1
    assert after.bytes == before.bytes + 3 * 8 * 64 * 4
    # Another place in the source is another collective, whatever its channel.
    other = fused.replace("loss", "update").replace("%overlap", "%other")
    text = text.replace("%body (", other + "%body (").replace(
        again.format("  ", "begun", "%a"),
        again.format("  ", "begun", "%a")
        + again.format("  ", "second", "%a").replace("%overlap", "%other"),
    )
    assert {c.kind: c for c in Program(text).collectives(16)}["all-gather"].count == 14


def test_bytes_are_those_that_pass_between_chip_and_memory():
    part, state = 64 * 32 * 2, 8 * 64 * 4
    body = 4 + 2 * part  # an index, and the slice, not the stack: read, and written
    body += part  # what the gather takes; what it gives stays on the chip
    body += 2 * state  # the product: its other operand is on the chip
    body += 4 + 4  # the counter, and the constant beside it
    condition = 4 + 4 + 1
    entry = 2 * state + 2 * state
    moved, sure = Program(TEXT).hbm_bytes()
    assert moved == 12 * (body + condition) + entry
    assert sure


def test_a_slice_in_a_fusion_within_a_fusion_is_no_more_than_a_slice():
    text = TEXT.replace(
        "fusion(%w, %i), kind=kLoop, calls=%sliced", "fusion(%w, %i), calls=%nested"
    )
    assert text != TEXT
    assert Program(text).hbm_bytes() == Program(TEXT).hbm_bytes()


def test_an_operand_that_a_fusion_within_passes_on_is_read_as_what_uses_it_says():
    """A product's operand comes through a fusion that only gives it another shape."""
    product = """\
%shaped (q.0: bf16[12,64,32]) -> bf16[768,32] {
  %q.0 = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %long = bf16[768,32]{1,0:T(8,128)(2,1)} bitcast(%q.0)
}

%times (r.0: bf16[12,64,32]) -> f32[8,64] {
  %r.0 = bf16[12,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %rows = bf16[768,32]{1,0:T(8,128)(2,1)} fusion(%r.0), kind=kLoop, calls=%shaped
  ROOT %made = f32[8,64]{1,0:T(8,128)} convolution(%rows, %rows), dim_labels=bf_io->bf
}

"""
    line = "  %made.1 = f32[8,64]{1,0:T(8,128)} fusion(%b), kind=kOutput, calls=%times\n"
    text = TEXT.replace("ENTRY", product + "ENTRY").replace("  %start.1 =", line + "  %start.1 =")
    more = Program(text).hbm_bytes()[0] - Program(TEXT).hbm_bytes()[0]
    assert more == 12 * 64 * 32 * 2 + 8 * 64 * 4


def test_a_loop_of_unknown_length_is_counted_once_and_said_so():
    text = TEXT.replace("direction=LT", "direction=NE")
    program = Program(text)
    found = {c.kind: c for c in program.collectives(16)}
    assert found["all-gather"].count == 1
    assert found["all-gather"].per_iteration
    assert not found["all-reduce"].per_iteration
    assert not program.hbm_bytes()[1]


def test_a_length_that_the_program_states_is_taken():
    text = TEXT.replace("direction=LT", "direction=NE").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert Program(text).collectives(16)[0].count == 5


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048),
        ("(f32[], pred[3]{0}, /*index=2*/s4[6]{0})", 4 + 3 + 3),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
    ],
)
def test_sizes_of_shapes(shape, size):
    assert bytes_of(shape) == size


def test_a_program_of_this_machine_without_a_loop_is_counted_as_xla_does():
    def step(x, w):
        return jnp.tanh(x @ w) @ w

    array = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(step).lower(array, array).compile()
    program = Program(compiled.as_text())
    assert not program.loops
    assert program.hbm_bytes()[0] == pytest.approx(
        compiled.cost_analysis()["bytes accessed"], rel=0.05
    )


def test_a_scan_of_this_machine_has_its_length():
    def step(x, w):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]

    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (7, 64, 64))]
    program = Program(jax.jit(step).lower(*arrays).compile().as_text())
    loops = [op for ops in program.computations.values() for op in ops.values()]
    assert [program.trips(op) for op in loops if op.kind == "while"] == [7]
    assert program.hbm_bytes()[0] > 7 * 3 * 64 * 64 * 4


def test_sorts_and_selections_count_by_their_passes_as_often_as_they_run():
    """1,000 pairs along the first dimension take 10 · 11 / 2 passes, the 50 best of 64 21 + 7."""
    lines = """\
  %pairs = (f32[1000,8]{0,1}, s32[1000,8]{0,1}) sort(%h, %h), dimensions={0}, to_apply=%add
  %best = (f32[8,50]{1,0}, s32[8,50]{1,0}) custom-call(%h), custom_call_target="TopK"
"""
    program = Program(TEXT.replace("  %one =", lines + "  %one ="))
    assert program.sorting() == 12 * (1000 * 8 * 55 * 5 + 8 * 64 * (21 + 7) * 5)
    assert Program(TEXT).sorting() == 0
