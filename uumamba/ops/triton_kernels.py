r"""The Triton kernels of the selective scan; ``scan_triton`` launches them and imports this file at first use.

A program is one warp. It holds the states of a block of channels as a tile ``(OUTER, STATES, INNER)`` in registers,
channel = outer * INNER + inner, and walks along the length four steps at a time. Triton deals a tile out to lanes from
its last axis on, so the shape is the layout: INNER lanes side by side on channels, the rest of the warp on states, and
OUTER channels in each thread. Why so:

* The bound is one exp2 for each channel, state and step: 16 a clock on a multiprocessor, 8 cycles for a warp on its
  quarter. A step needs four multiplies and adds beside it. A scan across lanes needs about 15 instructions and half of
  them shuffles: two passes of a plain loop beat one pass of scans, and split the length as finely as the device wants.
* What belongs to a channel and step only (softplus, gate, their slopes) is computed on tiles of four steps,
  ``(OUTER, 1, INNER, 4)``, in which no two lanes hold the same; then each step is handed to the lanes of its states.
  These tiles are read in whichever order they lie in memory, 16 bytes a lane.
* Forward, INNER = 32 keeps all states of a channel in one thread, and y needs no shuffle.
* Backward sums over states (for u, delta and z) and over channels (for B and C). With INNER = 8 a lane holds 4 states
  of OUTER channels, and the butterflies take 2 and 3 shuffles a value; all states in a thread would take 0 and 5 for
  eight times as many values.

Steps beyond the length and channels beyond the block have step size 0: decay 1 and input 0, so the state stands still.
"""

# A kernel is a language of its own, with tuples that grow as its loops are unrolled; types are Triton's to check.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# ``zero`` is 0, which the compiler may not know, and hence not that tiles of states are aligned. Otherwise it would
# give each lane four neighbours to move at once, and that layout to all arithmetic on states: shuffles over states in
# the place of none (forward) and three times as many (backward), as counted in the compiled kernels.
zero_unknown = triton.jit(do_not_specialize=["zero"])


class Signal(NamedTuple):
    """A tensor ``(batch, channels, length)`` with its strides."""

    data: Tensor
    batch: int
    channel: int
    step: int


class Projection(NamedTuple):
    """B or C in any of its forms, with strides, and how many channels share a group."""

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
    """First forward phase: the state each chunk ends in when it starts from zero, and the sum of its step sizes."""
    row, chunk, _, first, channel, present = _place(chunks, blocks, band, OUTER, INNER)
    state, cell, reach, held, rate = _tile(
        A, A_channel, A_state, channel, present, channels, length, states, zero, STATES
    )
    shift = _per_channel(bias, channel, present)
    u_at, delta_at = _signal(u, row, channel), _signal(delta, row, channel)
    B_at, B_reach = _projection(B, row, first, channel, present, state, states, length, B_FIXED)

    h = tl.zeros((OUTER, STATES, INNER), tl.float32)
    total = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    for group in range(tl.cdiv(tl.minimum(chunk_steps, length - start), 4)):
        step = start + group * 4
        size = _step_sizes(_load_four(delta_at, step, delta.step, reach) + shift, step, reach, SOFTPLUS)
        total += size
        drives = _split_four(size * _load_four(u_at, step, u.step, reach))
        sizes, Bs = _split_four(size), _split_four(_load_four(B_at, step, B.step, B_reach))
        for i in tl.static_range(4):
            h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
    tl.store(_chunk_row(rows, row, chunk + 1, chunks, channels, states, cell), h, held)
    tl.store(sums + (row * chunks + chunk) * channels + channel, tl.sum(total, axis=3), present)


@zero_unknown
def chunk_gradients(
    grad_y, delta, z, A, A_channel, A_state, C, bias, rows, sums,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, C_FIXED: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """First backward phase: what each chunk hands to the one before it when nothing comes from the one after it."""
    row, chunk, _, first, channel, present = _place(chunks, blocks, band, OUTER, INNER)
    state, cell, reach, held, rate = _tile(
        A, A_channel, A_state, channel, present, channels, length, states, zero, STATES
    )
    shift = _per_channel(bias, channel, present)
    grad_at, delta_at = _signal(grad_y, row, channel), _signal(delta, row, channel)
    C_at, C_reach = _projection(C, row, first, channel, present, state, states, length, C_FIXED)

    passed = tl.zeros((OUTER, STATES, INNER), tl.float32)
    total = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    groups = tl.cdiv(tl.minimum(chunk_steps, length - start), 4)
    for group in range(groups):
        step = start + (groups - 1 - group) * 4
        size = _step_sizes(_load_four(delta_at, step, delta.step, reach) + shift, step, reach, SOFTPLUS)
        total += size
        grad = _load_four(grad_at, step, grad_y.step, reach)
        if z is not None:
            gate = _load_four(_signal(z, row, channel), step, z.step, reach)
            grad *= gate * _sigmoid(gate)
        sizes, grads = _split_four(size), _split_four(grad)
        Cs = _split_four(_load_four(C_at, step, C.step, C_reach))
        for i in tl.static_range(3, -1, -1):
            passed = tl.exp2(rate * sizes[i]) * (Cs[i] * grads[i] + passed)
    place = _chunk_row(rows, row, chunk, chunks, channels, states, cell)
    tl.store(place, passed, held)
    tl.store(sums + (row * chunks + chunk) * channels + channel, tl.sum(total, axis=3), present)


@triton.jit
def carry(
    rows, sums, A, A_channel, A_state, chunks, channels, states,
    REVERSE: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Second phase: from what chunks end in alone to what they end in after all before (REVERSE: after) them."""
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
        place = base + (chunk if REVERSE else chunk + 1) * size
        decay = tl.exp2(rate * tl.load(sums + (row * chunks + chunk) * channels + channel, exists, other=0.0))
        decay, end = tl.associative_scan((decay, tl.load(place, exists, other=0.0)), 0, _two_stretches)
        end += decay * value
        tl.store(place, end, exists)
        value = tl.sum(tl.where(within == CHUNKS - 1, end, 0.0), axis=0, keep_dims=True)


@zero_unknown
def outputs(
    u, delta, A, A_channel, A_state, B, C, D, z, bias, rows, y, carries,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, LAST: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Third forward phase: y from the true start of each chunk, and the state before every 16 steps for ``carries``.

    With one chunk this is the whole scan; LAST says to write the state it ends in.
    """
    row, chunk, _, first, channel, present = _place(chunks, blocks, band, OUTER, INNER)
    state, cell, reach, held, rate = _tile(
        A, A_channel, A_state, channel, present, channels, length, states, zero, STATES
    )
    shift, skip = _per_channel(bias, channel, present), _per_channel(D, channel, present)
    u_at, delta_at, y_at = _signal(u, row, channel), _signal(delta, row, channel), _signal(y, row, channel)
    B_at, B_reach = _projection(B, row, first, channel, present, state, states, length, B_FIXED)
    C_at, C_reach = _projection(C, row, first, channel, present, state, states, length, C_FIXED)

    start = chunk * chunk_steps
    h = tl.load(_chunk_row(rows, row, chunk, chunks, channels, states, cell), held, other=0.0)
    for group in range(tl.cdiv(tl.minimum(chunk_steps, length - start), 4)):
        step = start + group * 4
        if carries is not None:  # noqa: SIM102  # known to the compiler, and the condition below is not
            if step % 16 == 0:
                tl.store(_carry(carries, row, step // 16, length, channels, states, cell), h, held)
        u_tile = _load_four(u_at, step, u.step, reach)
        size = _step_sizes(_load_four(delta_at, step, delta.step, reach) + shift, step, reach, SOFTPLUS)
        sizes, drives = _split_four(size), _split_four(size * u_tile)
        Bs = _split_four(_load_four(B_at, step, B.step, B_reach))
        Cs = _split_four(_load_four(C_at, step, C.step, C_reach))
        values = ()
        for i in tl.static_range(4):
            h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
            values += (tl.sum(Cs[i] * h, axis=1, keep_dims=True),)
        value = _join_four(values) + skip * u_tile
        if z is not None:
            gate = _load_four(_signal(z, row, channel), step, z.step, reach)
            value *= gate * _sigmoid(gate)
        _store_four(y_at, step, y.step, reach, value)
    if LAST:
        tl.store(_chunk_row(rows, row, chunk + 1, chunks, channels, states, cell), h, held)


@zero_unknown
def gradients(  # noqa: C901  # a loop over what stays in registers; parts of it would need all of that
    grad_y, u, delta, A, A_channel, A_state, B, C, D, z, bias, rows, carries,
    grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_bias,
    chunks, blocks, band, channels, length, states, chunk_steps, zero,
    SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr, C_FIXED: tl.constexpr,
    STATES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Third backward phase: every gradient; those of B and C a part for each block of channels, those of the other
    parameters a part for each chunk.

    Stretches of 16 steps are taken from the last to the first. In each the states before its groups of four steps are
    computed from the saved one; then group after group, again from the last, its states forwards and its gradients
    backwards. exp2 is taken 1.75 times a step, and no state but the saved ones goes through memory.
    """
    row, chunk, block, first, channel, present = _place(chunks, blocks, band, OUTER, INNER)
    state, cell, reach, held, rate = _tile(
        A, A_channel, A_state, channel, present, channels, length, states, zero, STATES
    )
    shift, skip = _per_channel(bias, channel, present), _per_channel(D, channel, present)
    u_at, delta_at, grad_at = _signal(u, row, channel), _signal(delta, row, channel), _signal(grad_y, row, channel)
    B_at, B_reach = _projection(B, row, first, channel, present, state, states, length, B_FIXED)
    C_at, C_reach = _projection(C, row, first, channel, present, state, states, length, C_FIXED)
    shared_at = (block * (tl.num_programs(0) // (chunks * blocks)) + row) * length * states + state
    shared_reach = tl.where(state < states, length, 0)

    A_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    B_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    C_sum = tl.zeros((OUTER, STATES, INNER), tl.float32)
    D_sum = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    bias_sum = tl.zeros((OUTER, 1, INNER, 4), tl.float32)
    start = chunk * chunk_steps
    passed = tl.load(_chunk_row(rows, row, chunk + 1, chunks, channels, states, cell), held, other=0.0)
    stretches = tl.cdiv(tl.minimum(chunk_steps, length - start), 16)
    for stretch_back in range(stretches):
        stretch = start // 16 + stretches - 1 - stretch_back
        h = tl.load(_carry(carries, row, stretch, length, channels, states, cell), held, other=0.0)
        before_0, before_1, before_2, before_3 = h, h, h, h
        for group in range(3):
            step = stretch * 16 + group * 4
            size = _step_sizes(_load_four(delta_at, step, delta.step, reach) + shift, step, reach, SOFTPLUS)
            drives = _split_four(size * _load_four(u_at, step, u.step, reach))
            sizes, Bs = _split_four(size), _split_four(_load_four(B_at, step, B.step, B_reach))
            for i in tl.static_range(4):
                h = tl.exp2(rate * sizes[i]) * h + Bs[i] * drives[i]
            # Each overwritten until its turn has come: a register cannot be chosen by number.
            before_1 = tl.where(group < 1, h, before_1)
            before_2 = tl.where(group < 2, h, before_2)
            before_3 = h

        for group in range(4):
            step = stretch * 16 + 12 - group * 4
            h = before_3
            before_3, before_2, before_1 = before_2, before_1, before_0
            u_tile, grad = _load_four(u_at, step, u.step, reach), _load_four(grad_at, step, grad_y.step, reach)
            raw = _load_four(delta_at, step, delta.step, reach) + shift
            size = _step_sizes(raw, step, reach, SOFTPLUS)
            sizes, drives = _split_four(size), _split_four(size * u_tile)
            Bs = _split_four(_load_four(B_at, step, B.step, B_reach))
            Cs = _split_four(_load_four(C_at, step, C.step, C_reach))
            through_value = grad
            if z is not None:
                gate = _load_four(_signal(z, row, channel), step, z.step, reach)
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
                slope = grad * sigmoid * (1.0 + gate * (1.0 - sigmoid))
                to_z = slope * (_join_four(values) + skip * u_tile)
                _store_four(_signal(grad_z, row, channel), step, grad_z.step, reach, to_z)
            to_input = _join_four_reversed(to_inputs)
            to_size = u_tile * to_input + LN2 * _join_four_reversed(to_decays)
            if SOFTPLUS:
                to_size *= _sigmoid(raw)
            to_size = tl.where(_steps(step) < tl.expand_dims(reach, 3), to_size, 0.0)
            D_sum += through_value * u_tile
            bias_sum += to_size
            _store_four(_signal(grad_delta, row, channel), step, grad_delta.step, reach, to_size)
            to_u = size * to_input + skip * through_value
            _store_four(_signal(grad_u, row, channel), step, grad_u.step, reach, to_u)
            if not B_FIXED:
                _store_four(grad_B + shared_at, step, states, shared_reach, _join_four_reversed(to_Bs))
            if not C_FIXED:
                _store_four(grad_C + shared_at, step, states, shared_reach, _join_four_reversed(to_Cs))

    part = (row * chunks + chunk) * channels
    matrix = part * states + cell
    tl.store(grad_A + matrix, A_sum, held)
    if B_FIXED:
        tl.store(grad_B + matrix, B_sum, held)
    if C_FIXED:
        tl.store(grad_C + matrix, C_sum, held)
    tl.store(grad_D + part + channel, tl.sum(D_sum, axis=3), present)
    tl.store(grad_bias + part + channel, tl.sum(bias_sum, axis=3), present)


@triton.jit
def _place(chunks, blocks, band, OUTER: tl.constexpr, INNER: tl.constexpr):
    """Row of the batch, chunk and block of channels of this program, neighbours in channels side by side.

    A band is a run of channels that share their groups of B and C; no block reaches beyond its band.
    """
    program = tl.program_id(0)
    block = program % blocks
    chunk = (program // blocks) % chunks
    row = (program // blocks // chunks).to(tl.int64)
    blocks_in_band = tl.cdiv(band, OUTER * INNER)
    number = block // blocks_in_band
    first = number * band + (block % blocks_in_band) * (OUTER * INNER)
    channel = first + tl.arange(0, OUTER)[:, None, None] * INNER + tl.arange(0, INNER)[None, None, :]
    return row, chunk, block, first, channel, channel < (number + 1) * band


@triton.jit
def _tile(A, A_channel, A_state, channel, present, channels, length, states, zero, STATES: tl.constexpr):
    """States of a tile, their place in a row of states, reach along the length, mask, and A in units of log 2."""
    state = tl.arange(0, STATES)[None, :, None]
    held = present & (state < states)
    rate = tl.load(A + channel * A_channel + state * A_state, held, other=0.0).to(tl.float32) * LOG2E
    return state, state * channels + channel + zero, tl.where(present, length, 0), held, rate


@triton.jit
def _per_channel(values, channel, present):
    """A number of each channel, to broadcast over tiles of four steps; 0 where there is none."""
    if values is None:
        return tl.zeros((channel.shape[0], 1, channel.shape[2], 1), tl.float32)
    else:  # noqa: RET505  # Triton drops the branch not taken only where both are written
        return tl.expand_dims(tl.load(values + channel, present, other=0.0).to(tl.float32), 3)


@triton.jit
def _signal(signal, row, channel):
    """Pointers to step 0 of each channel."""
    return signal.data + row * signal.batch + channel.to(tl.int64) * signal.channel


@triton.jit
def _projection(projection, row, first, channel, present, state, states, length, FIXED: tl.constexpr):
    """Pointers to step 0 of B or C, and up to which step they may be read."""
    if FIXED:
        places = projection.data + channel * projection.group + state * projection.state
        return places, tl.where(present & (state < states), length, 0)
    else:  # noqa: RET505  # as above
        group = (first // projection.width).to(tl.int64)
        places = projection.data + row * projection.batch + group * projection.group
        return places + state.to(tl.int64) * projection.state, tl.where(state < states, length, 0)


@triton.jit
def _chunk_row(rows, row, number, chunks, channels, states, cell):
    return rows + (row * (chunks + 1) + number) * (channels * states) + cell


@triton.jit
def _carry(carries, row, stretch, length, channels, states, cell):
    return carries + (row * tl.cdiv(length, 16) + stretch) * (channels * states) + cell


@triton.jit
def _steps(step):
    """Four steps from ``step`` on, along the last axis of a tile."""
    return step + tl.arange(0, 4)[None, None, None, :]


@triton.jit
def _load_four(places, step, stride, reach):
    """Four steps of each place as one tile in float32, 0 from ``reach`` on."""
    four = _steps(step)
    places = tl.expand_dims(places, 3) + four.to(tl.int64) * stride
    return tl.load(places, four < tl.expand_dims(reach, 3), other=0.0).to(tl.float32)


@triton.jit
def _store_four(places, step, stride, reach, tile):
    """What ``_load_four`` reads, in the type of the tensor."""
    four = _steps(step)
    tl.store(tl.expand_dims(places, 3) + four.to(tl.int64) * stride, tile, four < tl.expand_dims(reach, 3))


@triton.jit
def _split_four(tile):
    """The four steps of a tile, each as a tile without the last axis."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], 2, 2)))
    zero, two = tl.split(even)
    one, three = tl.split(odd)
    return zero, one, two, three


@triton.jit
def _join_four(four):
    """The inverse of ``_split_four``."""
    tile = tl.join(tl.join(four[0], four[2]), tl.join(four[1], four[3]))
    return tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], 4))


@triton.jit
def _join_four_reversed(four):
    return _join_four((four[3], four[2], four[1], four[0]))


@triton.jit
def _step_sizes(delta, step, reach, SOFTPLUS: tl.constexpr):
    """``delta``, through softplus where asked for, and 0 outside."""
    if SOFTPLUS:
        delta = tl.maximum(delta, 0.0) + _log1p(_exp(-tl.abs(delta)))
    return tl.where(_steps(step) < tl.expand_dims(reach, 3), delta, 0.0)


@triton.jit
def _exp(x):
    """The exponential with the rounding of x log2(e) put right, which would cost a digit at x = -10."""
    exponent = x * LOG2E
    return tl.exp2(exponent) * (1.0 + LN2 * tl.fma(x, LOG2E, -exponent))


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1] to full relative precision: 2 atanh(x / (2 + x)) by its series, cut at 1.4e-8."""
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
def _two_stretches(decay, end, later_decay, later_end):
    """Decay and end of two stretches of steps as one."""
    return decay * later_decay, end * later_decay + later_end
