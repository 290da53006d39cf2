r"""Triton kernels of the selective scan.

``scan_triton`` launches the kernels and imports this file at first use.

A program is one warp. It holds the states of a block of channels as a tile ``(OUTER, STATES, INNER)`` in registers.
The channel is outer * INNER + inner. The program advances four steps at a time. Triton assigns the elements of a tile
to lanes from the last axis on, so the shape decides the layout: INNER neighbouring lanes have different channels,
the other lanes of the warp divide the states, and each thread has OUTER channels. Reasons for this design:

* The limit is one exp2 per channel, state and step: a multiprocessor computes 16 per clock, so a warp needs 8 cycles on
  its quarter. Each step also needs four multiplications and additions. A scan across lanes would need about 15
  instructions per step, half of them shuffles. Two passes of a plain loop are faster, and they split the length into
  any number of chunks.
* Values that depend only on channel and step (softplus, gate and their gradients) are computed on tiles of four steps,
  ``(OUTER, 1, INNER, 4)``, without duplicates between lanes. Then each step is broadcast to the lanes of its states.
  These tiles are read in the memory order of the tensor, 16 bytes per lane.
* Forward, INNER = 32 keeps all states of a channel in one thread, and y needs no shuffle.
* Backward sums over states (for u, delta and z) and over channels (for B and C). With INNER = 8 a lane holds 4 states
  of OUTER channels, and the sums take 2 and 3 shuffles per value. With all states in one thread they would take 0 and
  5 shuffles, for eight times as many values.

Steps after the end and channels outside the block have step size 0: decay 1 and input 0, so the state does not change.
"""

# Kernels are written in Triton's language: tuples grow while loops are unrolled, and Triton checks the types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# The argument ``zero`` is always 0, but the compiler must not know it. Otherwise the compiler sees that tiles of states
# are aligned, gives four neighbouring values to each lane and uses this layout for all arithmetic on states. In the
# compiled kernels that added shuffles over states (forward) or tripled them (backward).
zero_unknown = triton.jit(do_not_specialize=["zero"])


class Signal(NamedTuple):
    """A tensor ``(batch, channels, length)`` with its strides."""

    data: Tensor
    batch: int
    channel: int
    step: int


class Projection(NamedTuple):
    """B or C in any form, with strides and channels per group."""

    data: Tensor
    batch: int
    group: int
    state: int
    step: int
    width: int


@zero_unknown
def chunk_ends(
    u, delta, A, A_channel, A_state, B, bias, rows, sums,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """First forward phase: end state and step-size sum of each chunk.

    Every chunk starts from zero.
    """
    row, chunk, _, first, channel, present, state, offset, limit, valid, rate = _locate_tile(
        A, A_channel, A_state, chunks, blocks, band, channels, length, states, zero, STATES, OUTER, INNER
    )
    shift = _per_channel(bias, channel, present)
    u_at, delta_at = _signal_pointers(u, row, channel), _signal_pointers(delta, row, channel)
    B_at, B_limit = _projection_pointers(B, row, first, channel, present, state, states, length, B_FIXED)

    h = tl.zeros((OUTER, STATES, INNER), tl.float32)
    total = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    for group in range(tl.cdiv(tl.minimum(chunk_steps, length - start), 4)):
        step = start + group * 4
        size = _step_sizes(_load_four(delta_at, step, delta.step, limit) + shift, step, limit, SOFTPLUS)
        total += size
        drives = _split_four(size * _load_four(u_at, step, u.step, limit))
        sizes, Bs = _split_four(size), _split_four(_load_four(B_at, step, B.step, B_limit))
        for i in tl.static_range(4):
            h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
    tl.store(_state_pointers(rows, row, chunks + 1, chunk + 1, channels, states, offset), h, valid)
    tl.store(sums + (row * chunks + chunk) * channels + channel, tl.sum(total, axis=3), present)


@zero_unknown
def chunk_gradients(
    grad_y, delta, z, A, A_channel, A_state, C, bias, rows, sums,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, C_FIXED: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """First backward phase: state gradient at the start of each chunk.

    The state gradient at the end of every chunk is taken as zero.
    """
    row, chunk, _, first, channel, present, state, offset, limit, valid, rate = _locate_tile(
        A, A_channel, A_state, chunks, blocks, band, channels, length, states, zero, STATES, OUTER, INNER
    )
    shift = _per_channel(bias, channel, present)
    grad_at, delta_at = _signal_pointers(grad_y, row, channel), _signal_pointers(delta, row, channel)
    C_at, C_limit = _projection_pointers(C, row, first, channel, present, state, states, length, C_FIXED)

    passed = tl.zeros((OUTER, STATES, INNER), tl.float32)
    total = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    groups = tl.cdiv(tl.minimum(chunk_steps, length - start), 4)
    for group in range(groups):
        step = start + (groups - 1 - group) * 4
        size = _step_sizes(_load_four(delta_at, step, delta.step, limit) + shift, step, limit, SOFTPLUS)
        total += size
        grad = _load_four(grad_at, step, grad_y.step, limit)
        if z is not None:
            gate = _load_four(_signal_pointers(z, row, channel), step, z.step, limit)
            grad *= gate * _sigmoid(gate)
        sizes, grads = _split_four(size), _split_four(grad)
        Cs = _split_four(_load_four(C_at, step, C.step, C_limit))
        for i in tl.static_range(3, -1, -1):
            passed = tl.exp2(rate * sizes[i]) * (Cs[i] * grads[i] + passed)
    tl.store(_state_pointers(rows, row, chunks + 1, chunk, channels, states, offset), passed, valid)
    tl.store(sums + (row * chunks + chunk) * channels + channel, tl.sum(total, axis=3), present)


@triton.jit
def carry(
    rows, sums, A, A_channel, A_state, chunks, channels, states,
    REVERSE: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Second phase: end states of chunks after all previous chunks.

    With REVERSE the state gradients at the start of chunks, after all following chunks.
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    size = channels * states
    inside = column < size
    channel = column % channels
    rate = tl.load(A + channel * A_channel + (column // channels) * A_state, inside, other=0.0).to(tl.float32) * LOG2E
    base = rows + row * (chunks + 1) * size + column
    value = tl.load(base + (chunks if REVERSE else 0) * size, inside, other=0.0)
    for tile in range(tl.cdiv(chunks, CHUNKS)):
        within = tl.arange(0, CHUNKS)[:, None]
        number = tile * CHUNKS + within
        exists = (number < chunks) & inside
        chunk = (chunks - 1 - number if REVERSE else number).to(tl.int64)
        pointers = base + (chunk if REVERSE else chunk + 1) * size
        decay = tl.exp2(rate * tl.load(sums + (row * chunks + chunk) * channels + channel, exists, other=0.0))
        decay, end = tl.associative_scan((decay, tl.load(pointers, exists, other=0.0)), 0, _join_segments)
        end += decay * value
        tl.store(pointers, end, exists)
        value = tl.sum(tl.where(within == CHUNKS - 1, end, 0.0), axis=0, keep_dims=True)


@zero_unknown
def outputs(
    u, delta, A, A_channel, A_state, B, C, D, z, bias, rows, y, carries,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, LAST: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Third forward phase: y, and the state before every 16 steps.

    Every chunk starts from its state of the second phase. ``carries`` receives the states. With a single chunk this is
    the complete scan, and LAST writes its end state.
    """
    row, chunk, _, first, channel, present, state, offset, limit, valid, rate = _locate_tile(
        A, A_channel, A_state, chunks, blocks, band, channels, length, states, zero, STATES, OUTER, INNER
    )
    shift, skip = _per_channel(bias, channel, present), _per_channel(D, channel, present)
    u_at, delta_at = _signal_pointers(u, row, channel), _signal_pointers(delta, row, channel)
    y_at = _signal_pointers(y, row, channel)
    B_at, B_limit = _projection_pointers(B, row, first, channel, present, state, states, length, B_FIXED)
    C_at, C_limit = _projection_pointers(C, row, first, channel, present, state, states, length, C_FIXED)

    start = chunk * chunk_steps
    h = tl.load(_state_pointers(rows, row, chunks + 1, chunk, channels, states, offset), valid, other=0.0)
    for group in range(tl.cdiv(tl.minimum(chunk_steps, length - start), 4)):
        step = start + group * 4
        if carries is not None:  # noqa: SIM102  # the compiler knows this condition, but not the one below
            if step % 16 == 0:
                pointers = _state_pointers(carries, row, tl.cdiv(length, 16), step // 16, channels, states, offset)
                tl.store(pointers, h, valid)
        u_tile = _load_four(u_at, step, u.step, limit)
        size = _step_sizes(_load_four(delta_at, step, delta.step, limit) + shift, step, limit, SOFTPLUS)
        sizes, drives = _split_four(size), _split_four(size * u_tile)
        Bs = _split_four(_load_four(B_at, step, B.step, B_limit))
        Cs = _split_four(_load_four(C_at, step, C.step, C_limit))
        values = ()
        for i in tl.static_range(4):
            h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
            values += (tl.sum(Cs[i] * h, axis=1, keep_dims=True),)
        value = _join_four(values) + skip * u_tile
        if z is not None:
            gate = _load_four(_signal_pointers(z, row, channel), step, z.step, limit)
            value *= gate * _sigmoid(gate)
        _store_four(y_at, step, y.step, limit, value)
    if LAST:
        tl.store(_state_pointers(rows, row, chunks + 1, chunk + 1, channels, states, offset), h, valid)


@zero_unknown
def gradients(  # noqa: C901  # one loop over values in registers; helpers would need all of them as arguments
    grad_y, u, delta, A, A_channel, A_state, B, C, D, z, bias, rows, carries,
    grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_bias,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr, C_FIXED: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Third backward phase: all gradients, as parts to sum.

    The gradients of B and C have one part per block of channels, those of the other parameters one part per chunk.

    Segments of 16 steps are processed from the last to the first. In each segment, the states before its groups of four
    steps are computed from the saved state. Then each group, from the last to the first, computes its states forwards
    and its gradients backwards. exp2 is computed 1.75 times per step, and only the saved states are read from memory.
    """
    row, chunk, block, first, channel, present, state, offset, limit, valid, rate = _locate_tile(
        A, A_channel, A_state, chunks, blocks, band, channels, length, states, zero, STATES, OUTER, INNER
    )
    shift, skip = _per_channel(bias, channel, present), _per_channel(D, channel, present)
    u_at, delta_at = _signal_pointers(u, row, channel), _signal_pointers(delta, row, channel)
    grad_at = _signal_pointers(grad_y, row, channel)
    B_at, B_limit = _projection_pointers(B, row, first, channel, present, state, states, length, B_FIXED)
    C_at, C_limit = _projection_pointers(C, row, first, channel, present, state, states, length, C_FIXED)
    shared_at = (block * (tl.num_programs(0) // (chunks * blocks)) + row) * length * states + state
    shared_limit = tl.where(state < states, length, 0)

    A_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    B_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    C_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    D_sum = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    bias_sum = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    passed = tl.load(_state_pointers(rows, row, chunks + 1, chunk + 1, channels, states, offset), valid, other=0.0)
    segments = tl.cdiv(tl.minimum(chunk_steps, length - start), 16)
    for back in range(segments):
        segment = start // 16 + segments - 1 - back
        h = tl.load(
            _state_pointers(carries, row, tl.cdiv(length, 16), segment, channels, states, offset), valid, other=0.0
        )
        before_0, before_1, before_2, before_3 = h, h, h, h
        for group in range(3):
            step = segment * 16 + group * 4
            size = _step_sizes(_load_four(delta_at, step, delta.step, limit) + shift, step, limit, SOFTPLUS)
            drives = _split_four(size * _load_four(u_at, step, u.step, limit))
            sizes, Bs = _split_four(size), _split_four(_load_four(B_at, step, B.step, B_limit))
            for i in tl.static_range(4):
                h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
            # Registers have no index, so each variable is overwritten until its own group.
            before_1 = tl.where(group < 1, h, before_1)
            before_2 = tl.where(group < 2, h, before_2)
            before_3 = h

        for group in range(4):
            step = segment * 16 + 12 - group * 4
            h = before_3
            before_3, before_2, before_1 = before_2, before_1, before_0
            u_tile, grad = _load_four(u_at, step, u.step, limit), _load_four(grad_at, step, grad_y.step, limit)
            raw = _load_four(delta_at, step, delta.step, limit) + shift
            size = _step_sizes(raw, step, limit, SOFTPLUS)
            sizes, drives = _split_four(size), _split_four(size * u_tile)
            Bs = _split_four(_load_four(B_at, step, B.step, B_limit))
            Cs = _split_four(_load_four(C_at, step, C.step, C_limit))
            through_value = grad
            if z is not None:
                gate = _load_four(_signal_pointers(z, row, channel), step, z.step, limit)
                sigmoid = _sigmoid(gate)
                through_value = grad * gate * sigmoid
            grads = _split_four(through_value)

            decays, kepts, values = (), (), ()
            for i in tl.static_range(4):
                decay = tl.exp2(rate * sizes[i])
                kept = decay * h
                h = kept + Bs[i] * drives[i]
                decays += (decay,)
                kepts += (kept,)
                if z is not None:
                    values += (tl.sum(Cs[i] * h, axis=1, keep_dims=True),)

            to_inputs, to_decays, to_Bs, to_Cs = (), (), (), ()
            for i in tl.static_range(3, -1, -1):
                to_state = Cs[i] * grads[i] + passed
                passed = decays[i] * to_state
                to_decay = to_state * kepts[i]
                A_sum += to_decay * sizes[i]
                to_inputs += (tl.sum(to_state * Bs[i], axis=1, keep_dims=True),)
                to_decays += (tl.sum(to_decay * rate, axis=1, keep_dims=True),)
                h = kepts[i] + Bs[i] * drives[i]
                if B_FIXED:
                    B_sum += to_state * drives[i]
                else:
                    to_Bs += (_sum_channels(to_state * drives[i]),)
                if C_FIXED:
                    C_sum += h * grads[i]
                else:
                    to_Cs += (_sum_channels(h * grads[i]),)

            if z is not None:
                gate_grad = grad * sigmoid * (1.0 + gate * (1.0 - sigmoid))
                to_z = gate_grad * (_join_four(values) + skip * u_tile)
                _store_four(_signal_pointers(grad_z, row, channel), step, grad_z.step, limit, to_z)
            to_input = _join_four_reversed(to_inputs)
            to_size = u_tile * to_input + LN2 * _join_four_reversed(to_decays)
            if SOFTPLUS:
                to_size *= _sigmoid(raw)
            to_size = tl.where(_four_steps(step) < tl.expand_dims(limit, 3), to_size, 0.0)
            D_sum += through_value * u_tile
            bias_sum += to_size
            _store_four(_signal_pointers(grad_delta, row, channel), step, grad_delta.step, limit, to_size)
            to_u = size * to_input + skip * through_value
            _store_four(_signal_pointers(grad_u, row, channel), step, grad_u.step, limit, to_u)
            if not B_FIXED:
                _store_four(grad_B + shared_at, step, states, shared_limit, _join_four_reversed(to_Bs))
            if not C_FIXED:
                _store_four(grad_C + shared_at, step, states, shared_limit, _join_four_reversed(to_Cs))

    part = (row * chunks + chunk) * channels
    matrix = part * states + offset
    tl.store(grad_A + matrix, A_sum, valid)
    if B_FIXED:
        tl.store(grad_B + matrix, B_sum, valid)
    if C_FIXED:
        tl.store(grad_C + matrix, C_sum, valid)
    tl.store(grad_D + part + channel, tl.sum(D_sum, axis=3), present)
    tl.store(grad_bias + part + channel, tl.sum(bias_sum, axis=3), present)


@triton.jit
def _locate_tile(
    A, A_channel, A_state, chunks, blocks, band, channels, length, states, zero,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Return indices, masks and decay rates of this program's tile.

    A band is a run of channels that share their groups of B and C; no block crosses a band. Programs of neighbouring
    channels are neighbours.

    Returns:
        Row of the batch, chunk, block, first channel, channels with their mask, states, offsets in a row of states,
        number of valid steps, mask of channels and states, and A in units of log 2.
    """
    program = tl.program_id(0)
    block = program % blocks
    chunk = (program // blocks) % chunks
    row = (program // blocks // chunks).to(tl.int64)
    blocks_in_band = tl.cdiv(band, OUTER * INNER)
    number = block // blocks_in_band
    first = number * band + (block % blocks_in_band) * (OUTER * INNER)
    channel = first + tl.arange(0, OUTER)[:, None, None] * INNER + tl.arange(0, INNER)[None, None, :]
    present = channel < (number + 1) * band
    state = tl.arange(0, STATES)[None, :, None]
    valid = present & (state < states)
    rate = tl.load(A + channel * A_channel + state * A_state, valid, other=0.0).to(tl.float32) * LOG2E
    offset, limit = state * channels + channel + zero, tl.where(present, length, 0)
    return row, chunk, block, first, channel, present, state, offset, limit, valid, rate


@triton.jit
def _per_channel(values, channel, present):
    """Load one number per channel, to broadcast over tiles of four steps.

    Without ``values`` and in absent channels the number is 0.
    """
    if values is None:
        return tl.zeros((channel.shape[0], 1, channel.shape[2], 1), tl.float32)
    else:  # noqa: RET505  # Triton removes the unused branch only after an else
        return tl.expand_dims(tl.load(values + channel, present, other=0.0).to(tl.float32), 3)


@triton.jit
def _signal_pointers(signal, row, channel):
    """Return pointers to step 0 of each channel."""
    return signal.data + row * signal.batch + channel.to(tl.int64) * signal.channel


@triton.jit
def _projection_pointers(projection, row, first, channel, present, state, states, length, FIXED: tl.constexpr):
    """Return pointers to step 0 of B or C, and step limits."""
    if FIXED:
        pointers = projection.data + channel * projection.group + state * projection.state
        return pointers, tl.where(present & (state < states), length, 0)
    else:  # noqa: RET505  # as above
        group = (first // projection.width).to(tl.int64)
        pointers = projection.data + row * projection.batch + group * projection.group
        return pointers + state.to(tl.int64) * projection.state, tl.where(state < states, length, 0)


@triton.jit
def _state_pointers(values, row, count, number, channels, states, offset):
    """Return pointers to state ``number`` of ``count`` in a batch row."""
    return values + (row * count + number) * (channels * states) + offset


@triton.jit
def _four_steps(step):
    """Return four steps from ``step`` on, along a tile's last axis."""
    return step + tl.arange(0, 4)[None, None, None, :]


@triton.jit
def _load_four(pointers, step, stride, limit):
    """Load four steps as a tile in float32, 0 from ``limit`` on."""
    four = _four_steps(step)
    pointers = tl.expand_dims(pointers, 3) + four.to(tl.int64) * stride
    return tl.load(pointers, four < tl.expand_dims(limit, 3), other=0.0).to(tl.float32)


@triton.jit
def _store_four(pointers, step, stride, limit, tile):
    """Store a tile of four steps, up to ``limit``."""
    four = _four_steps(step)
    tl.store(tl.expand_dims(pointers, 3) + four.to(tl.int64) * stride, tile, four < tl.expand_dims(limit, 3))


@triton.jit
def _split_four(tile):
    """Split a tile into its four steps, without the last axis."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], 2, 2)))
    zero, two = tl.split(even)
    one, three = tl.split(odd)
    return zero, one, two, three


@triton.jit
def _join_four(four):
    """Join four steps into a tile, the inverse of ``_split_four``."""
    tile = tl.join(tl.join(four[0], four[2]), tl.join(four[1], four[3]))
    return tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], 4))


@triton.jit
def _join_four_reversed(four):
    return _join_four((four[3], four[2], four[1], four[0]))


@triton.jit
def _step_sizes(delta, step, limit, SOFTPLUS: tl.constexpr):
    """Return ``delta``, with SOFTPLUS its softplus, and 0 outside."""
    if SOFTPLUS:
        delta = tl.maximum(delta, 0.0) + _log1p(_accurate_exp(-tl.abs(delta)))
    return tl.where(_four_steps(step) < tl.expand_dims(limit, 3), delta, 0.0)


@triton.jit
def _accurate_exp(x):
    """Return exp(x), corrected for the rounding of x log2(e).

    Without the correction, one digit is lost at x = -10.
    """
    exponent = x * LOG2E
    return tl.exp2(exponent) * (1.0 + LN2 * tl.fma(x, LOG2E, -exponent))


@triton.jit
def _log1p(x):
    """Return log(1 + x) for x in [0, 1], exact to float32.

    Computed as 2 atanh(x / (2 + x)) by its series; the omitted terms are below 1.4e-8.
    """
    s = x / (2.0 + x)
    t = s * s
    series = 1.0 / 11.0 + t * (1.0 / 13.0)
    series = 1.0 / 7.0 + t * (1.0 / 9.0 + t * series)
    series = 1.0 / 3.0 + t * (1.0 / 5.0 + t * series)
    return 2.0 * (s + s * t * series)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _sum_channels(tile):
    return tl.sum(tl.sum(tile, axis=0, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def _join_segments(decay, end, later_decay, later_end):
    """Return decay and end state of two consecutive segments."""
    return decay * later_decay, end * later_decay + later_end
