// Selective scan, forward and backward, for one instruction set. Include this file once per translation unit;
// SCAN_FORWARD, SCAN_BACKWARD and SCAN_EXP2 are the names of the three functions that it defines.
//
// A vector holds one state of LANES neighbouring channels, so only y, dB and dC need sums across a vector. The length
// is processed in tiles of kCheckpointSteps positions, whose rows stay in the first-level cache. Within a tile, each
// group of kUnroll states is computed separately, with decays and states in registers. Tiles are loaded from any
// strides: contiguous channels are read directly, contiguous positions are transposed in registers.
//
// One task is a batch row and a few blocks of LANES channels that read the same B and C. So dB and dC are summed over
// these blocks lane by lane, and across lanes only once per tile. With fewer tasks than a third of the threads, the
// length is also divided into spans: first the end states of all spans from zero, then the start state of each span,
// then each span from its start state.
#include <omp.h>
#include <string.h>

#include <initializer_list>

#include "tiles.h"

namespace {

constexpr int kSteps = kCheckpointSteps;
constexpr int kUnroll = 4;
constexpr int64_t kBlocksPerTask = 4;

inline int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

// ---- dividing the work

struct Plan {
    int64_t shared;         // neighbouring channels that read the same B and C
    int64_t blocks;         // vectors of these channels
    int64_t task_blocks;    // vectors per task
    int64_t tasks_per_run;  // a run is the channels that share B and C
    int64_t tasks;
    int64_t spans, span_length;
    int64_t padded_states;

    explicit Plan(const Scan &s) {
        shared = gcd(s.channels / s.B.groups, s.channels / s.C.groups);
        blocks = ceil_div(shared, LANES);
        const int64_t runs = s.channels / shared;
        task_blocks = least(kBlocksPerTask, blocks);
        while (task_blocks > 1 && s.batch * runs * ceil_div(blocks, task_blocks) < s.threads) task_blocks /= 2;
        tasks_per_run = ceil_div(blocks, task_blocks);
        tasks = s.batch * runs * tasks_per_run;
        const int64_t tiles = ceil_div(s.length, kSteps);
        spans = s.spans > 0 ? s.spans : (s.threads >= 3 * tasks ? s.threads / tasks : 1);
        spans = least(spans, s.spans > 0 ? tiles : (tiles + 15) / 16);
        span_length = ceil_div(tiles, spans) * kSteps;
        spans = ceil_div(s.length, span_length);
        padded_states = ceil_div(s.states, LANES) * LANES;
    }
};

struct Task {
    int64_t index, batch, group_b, group_c, channel, part;
    int64_t blocks, last_lanes;

    Task(const Scan &s, const Plan &p, int64_t index) : index(index) {
        const int64_t runs = s.channels / p.shared;
        part = index % p.tasks_per_run;
        const int64_t run = index / p.tasks_per_run % runs;
        batch = index / p.tasks_per_run / runs;
        const int64_t first = part * p.task_blocks;
        channel = run * p.shared + first * LANES;
        group_b = channel / (s.channels / s.B.groups);
        group_c = channel / (s.channels / s.C.groups);
        blocks = least(p.task_blocks, p.blocks - first);
        last_lanes = least(blocks * LANES, p.shared - first * LANES) - (blocks - 1) * LANES;
    }
    int64_t lanes(int64_t block) const { return block + 1 < blocks ? LANES : last_lanes; }
};

// ---- tiles

// Cache lines of the next tile, prefetched one per step of the current tile. Rows are kilobytes apart, which hardware
// prefetchers do not follow; if all lines were requested at once, they would delay each other.
struct Wanted {
    static constexpr int kMost = 4 * kSteps;
    const float *lines[kMost];

    void add(const Rows &rows, int64_t batch, int64_t channel, int64_t position, int64_t lanes, int64_t steps) {
        if (!rows.data) return;
        constexpr int64_t line = 64 / sizeof(float);
        const float *from = rows.data + batch * rows.batch + channel * rows.channel + position * rows.length;
        if (rows.length == 1) {
            for (int64_t lane = 0; lane < lanes; ++lane)
                for (int64_t step = 0; step < steps; step += line) put(from + lane * rows.channel + step);
        } else {
            for (int64_t step = 0; step < steps; ++step) put(from + step * rows.length);
        }
    }
    void put(const float *line) {
        if (count < kMost) lines[count++] = line;
    }
    void clear(const float *harmless) {
        count = 0;
        for (const float *&line : lines) line = harmless;
    }
    // Lines to prefetch while the states from n on are computed.
    const float *const *of(int64_t n) const { return lines + n / kUnroll % (kMost / kSteps) * kSteps; }

 private:
    int count = 0;
};

// Load B or C of some positions as (steps, padded states).
void load_projection(float *tile, const Projection &from, int64_t batch, int64_t group, int64_t position,
                     int64_t states, int64_t steps, int64_t padded) {
    const float *base = from.data + batch * from.batch + group * from.group + position * from.length;
    for (int64_t n = 0; n < states; n += LANES)
        load_tile(tile + n, base + n * from.state, from.state, from.length, least(LANES, states - n), steps, padded);
}

// Load `numbers` numbers per channel as rows of LANES.
void load_channels(float *tile, const float *from, int64_t channel, int64_t lanes, int64_t numbers) {
    load_tile(tile, from + channel * numbers, numbers, 1, lanes, numbers);
}

// ---- memory of one thread

struct Memory {
    char *at;
    template <class T>
    T *take(int64_t count) {
        T *taken = reinterpret_cast<T *>(at);
        at += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
        return taken;
    }
};

struct Workspace {
    float *u, *delta, *drive, *y, *B, *C, *A, *state;                                   // both passes
    float *z, *raw, *grad, *grad_drive, *grad_delta, *carry, *start, *decays, *states;  // backward
    float *grad_B, *grad_C;
    double *grad_A, *grad_D, *grad_bias;
    Wanted wanted;

    int64_t place(char *memory, const Scan &s, const Plan &p, bool backward) {
        Memory m{memory};
        const int64_t tile = kSteps * LANES, column = s.states * LANES;
        for (float **each : {&u, &delta, &drive, &y}) *each = m.take<float>(tile);
        for (float **each : {&B, &C}) *each = m.take<float>(kSteps * p.padded_states);
        for (float **each : {&A, &state}) *each = m.take<float>(p.task_blocks * column);
        if (backward) {
            for (float **each : {&z, &raw, &grad, &grad_drive, &grad_delta}) *each = m.take<float>(tile);
            carry = m.take<float>(p.task_blocks * column);
            start = m.take<float>(column);
            decays = m.take<float>(kUnroll * tile);
            states = m.take<float>(kUnroll * (tile + LANES));
            for (float **each : {&grad_B, &grad_C}) *each = m.take<float>(s.states * tile);
            grad_A = m.take<double>(p.task_blocks * column);
            for (double **each : {&grad_D, &grad_bias}) *each = m.take<double>(p.task_blocks * LANES);
        }
        return m.at - memory;
    }
};

// ---- parts of both passes

// Load the step sizes of a tile, after bias and softplus, and drive = delta u. `raw`, if given, receives the step sizes
// before softplus.
void load_steps(const Scan &s, const Task &task, Workspace &w, int64_t block, int64_t position, int64_t steps,
                float *raw) {
    const int64_t channel = task.channel + block * LANES, lanes = task.lanes(block);
    load_rows(w.u, s.u, task.batch, channel, position, lanes, steps);
    load_rows(w.delta, s.delta, task.batch, channel, position, lanes, steps);
    alignas(64) float bias_row[LANES] = {};
    if (s.delta_bias) memcpy(bias_row, s.delta_bias + channel, lanes * sizeof(float));
    const Vec bias = load(bias_row);
    // Four steps at a time; steps after the last are computed but never read.
    for (int64_t l = 0; l < steps * LANES; l += 4 * LANES) {
        Vec delta[4];
        for (int k = 0; k < 4; ++k) delta[k] = load(w.delta + l + k * LANES) + bias;
        if (raw)
            for (int k = 0; k < 4; ++k) store(raw + l + k * LANES, delta[k]);
        if (s.softplus) softplus<4>(delta);
        for (int k = 0; k < 4; ++k) {
            store(w.delta + l + k * LANES, delta[k]);
            store(w.drive + l + k * LANES, delta[k] * load(w.u + l + k * LANES));
        }
    }
}

void load_decay_rates(const Scan &s, const Task &task, Workspace &w) {
    const int64_t column = s.states * LANES;
    for (int64_t block = 0; block < task.blocks; ++block) {
        float *rates = w.A + block * column;
        load_channels(rates, s.A, task.channel + block * LANES, task.lanes(block), s.states);
        for (int64_t i = 0; i < column; i += LANES) store(rates + i, load(rates + i) * kLog2E);
    }
}

// Copy contiguous (states, LANES) from or to a (states, channels) array.
void copy_states_in(float *column, const float *from, int64_t pitch, int64_t states, int64_t lanes) {
    load_tile(column, from, 1, pitch, lanes, states);
}
void copy_states_out(const float *column, float *to, int64_t pitch, int64_t states, int64_t lanes) {
    store_tile(column, to, 1, pitch, lanes, states);
}

float *checkpoint(const Scan &s, const float *carries, const Task &task, int64_t block, int64_t position) {
    const int64_t row = task.batch * ceil_div(s.length, kSteps) + position / kSteps;
    return const_cast<float *>(carries) + row * s.states * s.channels + task.channel + block * LANES;
}

// Collect the cache lines of the next block of this tile, or of the first block of the next tile, `towards` positions
// away.
void want_next(const Task &task, Workspace &w, std::initializer_list<const Rows *> inputs, int64_t block,
               int64_t position, int64_t towards, int64_t from, int64_t to) {
    const bool last = block + 1 == task.blocks;
    const int64_t next_block = last ? 0 : block + 1, next = last ? position + towards : position;
    w.wanted.clear(w.u);
    if (next < from || next >= to) return;
    const int64_t channel = task.channel + next_block * LANES, lanes = task.lanes(next_block);
    for (const Rows *rows : inputs) w.wanted.add(*rows, task.batch, channel, next, lanes, least(kSteps, to - next));
}

// ---- forward

// Compute `Unroll` states of one block over a tile; with Output their part of y is added to w.y.
template <int Unroll, bool Output>
__attribute__((always_inline)) inline void sweep(Workspace &w, const float *rates, float *state, int64_t n,
                                                 int64_t padded, int64_t steps) {
    Vec A[Unroll], h[Unroll];
    for (int k = 0; k < Unroll; ++k) A[k] = load(rates + (n + k) * LANES), h[k] = load(state + (n + k) * LANES);
    const float *B = w.B + n, *C = w.C + n;
    const float *const *wanted = w.wanted.of(n);
    for (int64_t l = 0; l < steps; ++l, B += padded, C += padded) {
        __builtin_prefetch(wanted[l]);
        const Vec delta = load(w.delta + l * LANES), drive = load(w.drive + l * LANES);
        Vec y = Output ? load(w.y + l * LANES) : Vec{};
        Vec decay[Unroll];
        for (int k = 0; k < Unroll; ++k) decay[k] = delta * A[k];
        exp2<Unroll>(decay);
        for (int k = 0; k < Unroll; ++k) {
            h[k] = decay[k] * h[k] + drive * B[k];
            if (Output) y += h[k] * C[k];
        }
        if (Output) store(w.y + l * LANES, y);
    }
    for (int k = 0; k < Unroll; ++k) store(state + (n + k) * LANES, h[k]);
}

template <bool Output>
void sweep_states(const Scan &s, const Plan &p, Workspace &w, int64_t block, int64_t steps) {
    const float *rates = w.A + block * s.states * LANES;
    float *state = w.state + block * s.states * LANES;
    int64_t n = 0;
    for (; n + kUnroll <= s.states; n += kUnroll) sweep<kUnroll, Output>(w, rates, state, n, p.padded_states, steps);
    for (; n < s.states; ++n) sweep<1, Output>(w, rates, state, n, p.padded_states, steps);
}

void finish_outputs(const Scan &s, const Task &task, Workspace &w, int64_t block, int64_t position, int64_t steps,
                    const Rows &out) {
    const int64_t channel = task.channel + block * LANES, lanes = task.lanes(block);
    if (s.D) {
        alignas(64) float skip_row[LANES] = {};
        memcpy(skip_row, s.D + channel, lanes * sizeof(float));
        const Vec skip = load(skip_row);
        for (int64_t l = 0; l < steps * LANES; l += LANES) store(w.y + l, load(w.y + l) + skip * load(w.u + l));
    }
    if (s.z.data) {
        load_rows(w.drive, s.z, task.batch, channel, position, lanes, steps);  // drive is not needed any more
        for (int64_t l = 0; l < steps * LANES; l += LANES) {
            const Vec z = load(w.drive + l);
            store(w.y + l, load(w.y + l) * z * sigmoid(z));
        }
    }
    store_rows(w.y, out, task.batch, channel, position, lanes, steps);
}

// Compute one span of a task from w.state, which becomes the state at its end. Without outputs only this state is
// computed, and `total`, the sum of step sizes, one row per block.
void forward_span(const Scan &s, const Plan &p, const Task &task, Workspace &w, int64_t from, int64_t to,
                  const ScanOutputs *out, float *total) {
    load_decay_rates(s, task, w);
    for (int64_t position = from; position < to; position += kSteps) {
        const int64_t steps = least(kSteps, to - position);
        load_projection(w.B, s.B, task.batch, task.group_b, position, s.states, steps, p.padded_states);
        if (out) load_projection(w.C, s.C, task.batch, task.group_c, position, s.states, steps, p.padded_states);
        for (int64_t block = 0; block < task.blocks; ++block) {
            if (out)
                want_next(task, w, {&s.u, &s.delta, &s.z, &out->y}, block, position, kSteps, from, to);
            else
                want_next(task, w, {&s.u, &s.delta}, block, position, kSteps, from, to);
            load_steps(s, task, w, block, position, steps, nullptr);
            if (!out) {
                Vec sum = load(total + block * LANES);
                for (int64_t l = 0; l < steps; ++l) sum += load(w.delta + l * LANES);
                store(total + block * LANES, sum);
                sweep_states<false>(s, p, w, block, steps);
                continue;
            }
            if (out->carries)
                copy_states_out(w.state + block * s.states * LANES, checkpoint(s, out->carries, task, block, position),
                                s.channels, s.states, task.lanes(block));
            memset(w.y, 0, steps * LANES * sizeof(float));
            sweep_states<true>(s, p, w, block, steps);
            finish_outputs(s, task, w, block, position, steps, out->y);
        }
    }
}

// Replace the end states of spans that start from 0 by the start states of the spans; `running` is the start state of
// the first span. Arrays are (spans, task blocks, states, LANES); totals (spans, task blocks, LANES).
void carry_between_spans(const Scan &s, const Plan &p, const Task &task, Workspace &w, float *running, float *ends,
                         const float *totals, bool forwards) {
    load_decay_rates(s, task, w);
    const int64_t column = s.states * LANES, size = p.task_blocks * column;
    for (int64_t k = 0; k < p.spans; ++k) {
        const int64_t span = forwards ? k : p.spans - 1 - k;
        for (int64_t i = 0; i < task.blocks * column; i += LANES) {
            const Vec total = load(totals + (span * p.task_blocks + i / column) * LANES);
            const Vec begin = load(running + i);
            store(running + i, exp2(total * load(w.A + i)) * begin + load(ends + span * size + i));
            store(ends + span * size + i, begin);
        }
    }
}

void write_last_state(const Scan &s, const Task &task, const Workspace &w, float *last_state) {
    for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t channel = task.channel + block * LANES;
        store_tile(w.state + block * s.states * LANES, last_state + (task.batch * s.channels + channel) * s.states,
                   s.states, 1, task.lanes(block), s.states);
    }
}

// Workspaces of all threads, and the states and sums between spans.
struct Scratch {
    Block memory, between;
    Workspace *at(Workspace &w, const Scan &s, const Plan &p, bool backward, int64_t bytes) const {
        w.place(memory.data + omp_get_thread_num() * bytes, s, p, backward);
        return &w;
    }
};

int32_t forward(const Scan &s, const ScanOutputs &out) {
    const Plan p(s);
    const int64_t bytes = Workspace().place(nullptr, s, p, false);
    const int64_t state_size = p.task_blocks * s.states * LANES, total_size = p.task_blocks * LANES;
    Scratch scratch;
    if (!scratch.memory.allocate(bytes * s.threads)) return 1;
    if (!scratch.between.allocate(p.tasks * p.spans * (state_size + total_size) * int64_t(sizeof(float)))) return 1;
    float *const starts = reinterpret_cast<float *>(scratch.between.data);
    float *const totals = starts + p.tasks * p.spans * state_size;
#pragma omp parallel num_threads(s.threads)
    {
        Workspace w;
        scratch.at(w, s, p, false, bytes);
        if (p.spans > 1) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < p.tasks * p.spans; ++i) {
                const Task task(s, p, i / p.spans);
                const int64_t from = i % p.spans * p.span_length;
                memset(w.state, 0, state_size * sizeof(float));
                memset(totals + i * total_size, 0, total_size * sizeof(float));
                forward_span(s, p, task, w, from, least(s.length, from + p.span_length), nullptr,
                             totals + i * total_size);
                memcpy(starts + i * state_size, w.state, state_size * sizeof(float));
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < p.tasks; ++i) {
                memset(w.state, 0, state_size * sizeof(float));
                carry_between_spans(s, p, Task(s, p, i), w, w.state, starts + i * p.spans * state_size,
                                    totals + i * p.spans * total_size, true);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p.tasks * p.spans; ++i) {
            const Task task(s, p, i / p.spans);
            const int64_t span = i % p.spans, from = span * p.span_length;
            if (p.spans > 1)
                memcpy(w.state, starts + i * state_size, state_size * sizeof(float));
            else
                memset(w.state, 0, state_size * sizeof(float));
            forward_span(s, p, task, w, from, least(s.length, from + p.span_length), &out, nullptr);
            if (span + 1 == p.spans) write_last_state(s, task, w, out.last_state);
        }
    }
    return 0;
}

// ---- backward
//
// dy is the gradient before the gate, carry the gradient of a state from later positions, G = dy C + carry the gradient
// of h:
//   dC += dy h;  dB += G drive;  ddrive += G B;  carry' = a G;  q = carry' h_before;  ddelta += q A;  dA += q delta

// Compute `Unroll` states of a tile again and store decays and states; with Gate also y, which dz needs.
template <int Unroll, bool Gate>
__attribute__((always_inline)) inline void recompute(Workspace &w, const float *rates, int64_t n, int64_t padded,
                                                     int64_t steps) {
    Vec A[Unroll], h[Unroll];
    for (int k = 0; k < Unroll; ++k) {
        A[k] = load(rates + (n + k) * LANES), h[k] = load(w.start + (n + k) * LANES);
        store(w.states + k * LANES, h[k]);
    }
    const float *B = w.B + n, *C = w.C + n;
    const float *const *wanted = w.wanted.of(n);
    for (int64_t l = 0; l < steps; ++l, B += padded, C += padded) {
        __builtin_prefetch(wanted[l]);
        const Vec delta = load(w.delta + l * LANES), drive = load(w.drive + l * LANES);
        Vec y = Gate ? load(w.y + l * LANES) : Vec{};
        Vec decay[Unroll];
        for (int k = 0; k < Unroll; ++k) decay[k] = delta * A[k];
        exp2<Unroll>(decay);
        for (int k = 0; k < Unroll; ++k) {
            h[k] = decay[k] * h[k] + drive * B[k];
            if (Gate) y += h[k] * C[k];
            store(w.decays + (l * Unroll + k) * LANES, decay[k]);
            store(w.states + ((l + 1) * Unroll + k) * LANES, h[k]);
        }
        if (Gate) store(w.y + l * LANES, y);
    }
}

// Gradients of the same tile, last step first. With First, grad_B and grad_C are overwritten, else added to.
template <int Unroll, bool First>
__attribute__((always_inline)) inline void retrace(Workspace &w, const float *rates, float *carries, double *grad_A,
                                                   int64_t n, int64_t padded, int64_t steps) {
    Vec A[Unroll], carry[Unroll], sum_A[Unroll] = {};
    for (int k = 0; k < Unroll; ++k) A[k] = load(rates + (n + k) * LANES), carry[k] = load(carries + (n + k) * LANES);
    for (int64_t l = steps - 1; l >= 0; --l) {
        const Vec delta = load(w.delta + l * LANES), drive = load(w.drive + l * LANES), grad = load(w.grad + l * LANES);
        Vec grad_drive = load(w.grad_drive + l * LANES), grad_delta = load(w.grad_delta + l * LANES);
        for (int k = 0; k < Unroll; ++k) {
            const Vec G = grad * w.C[l * padded + n + k] + carry[k];
            const Vec h = load(w.states + ((l + 1) * Unroll + k) * LANES);
            const Vec before = load(w.states + (l * Unroll + k) * LANES);
            float *const grad_C = w.grad_C + ((n + k) * kSteps + l) * LANES;
            float *const grad_B = w.grad_B + ((n + k) * kSteps + l) * LANES;
            store(grad_C, First ? grad * h : grad * h + load(grad_C));
            store(grad_B, First ? G * drive : G * drive + load(grad_B));
            grad_drive += G * w.B[l * padded + n + k];
            carry[k] = load(w.decays + (l * Unroll + k) * LANES) * G;
            const Vec q = carry[k] * before;
            grad_delta += q * A[k];
            sum_A[k] += q * delta;
        }
        store(w.grad_drive + l * LANES, grad_drive);
        store(w.grad_delta + l * LANES, grad_delta);
    }
    for (int k = 0; k < Unroll; ++k) {
        store(carries + (n + k) * LANES, carry[k]);
        add_to_doubles(grad_A + (n + k) * LANES, sum_A[k]);  // float sums over a long sequence lose two digits
    }
}

template <int Unroll>
inline void both_ways(const Scan &s, const Plan &p, Workspace &w, int64_t block, int64_t n, int64_t steps) {
    const int64_t column = block * s.states * LANES;
    const float *rates = w.A + column;
    if (s.z.data)
        recompute<Unroll, true>(w, rates, n, p.padded_states, steps);
    else
        recompute<Unroll, false>(w, rates, n, p.padded_states, steps);
    if (block == 0)
        retrace<Unroll, true>(w, rates, w.carry + column, w.grad_A + column, n, p.padded_states, steps);
    else
        retrace<Unroll, false>(w, rates, w.carry + column, w.grad_A + column, n, p.padded_states, steps);
}

// Load the gradient of y before the gate into w.grad. The gradient of the gate needs y and is computed later.
void load_gradient(const Scan &s, const ScanGradients &g, const Task &task, Workspace &w, int64_t block,
                   int64_t position, int64_t steps) {
    const int64_t channel = task.channel + block * LANES, lanes = task.lanes(block);
    load_rows(w.grad, g.y, task.batch, channel, position, lanes, steps);
    if (!s.z.data) return;
    load_rows(w.z, s.z, task.batch, channel, position, lanes, steps);
    for (int64_t l = 0; l < steps * LANES; l += LANES) {
        const Vec z = load(w.z + l);
        store(w.grad + l, load(w.grad + l) * z * sigmoid(z));
    }
}

// d gate(z) = out_grad * y * sigmoid(z) (1 + z (1 - sigmoid(z))), with y after the skip.
void store_gate_gradient(const ScanGradients &g, const Task &task, Workspace &w, int64_t block, int64_t position,
                         int64_t steps, Vec skip) {
    const int64_t channel = task.channel + block * LANES, lanes = task.lanes(block);
    load_rows(w.decays, g.y, task.batch, channel, position, lanes, steps);  // decays are not needed any more
    for (int64_t l = 0; l < steps * LANES; l += LANES) {
        const Vec z = load(w.z + l), open = sigmoid(z);
        const Vec y = load(w.y + l) + skip * load(w.u + l);
        store(w.z + l, load(w.decays + l) * y * open * (1.0f + z * (1.0f - open)));
    }
    store_rows(w.z, g.z, task.batch, channel, position, lanes, steps);
}

void finish_gradients(const Scan &s, const ScanGradients &g, const Task &task, Workspace &w, int64_t block,
                      int64_t position, int64_t steps) {
    const int64_t channel = task.channel + block * LANES, lanes = task.lanes(block);
    alignas(64) float skip_row[LANES] = {};
    if (s.D) memcpy(skip_row, s.D + channel, lanes * sizeof(float));
    const Vec skip = load(skip_row);
    if (s.z.data) store_gate_gradient(g, task, w, block, position, steps, skip);
    Vec sum_D = {}, sum_bias = {};
    for (int64_t l = 0; l < steps * LANES; l += LANES) {
        const Vec grad = load(w.grad + l), u = load(w.u + l), grad_drive = load(w.grad_drive + l);
        Vec grad_delta = load(w.grad_delta + l) * kLn2 + grad_drive * u;  // the decay rates contain a factor log2(e)
        if (s.softplus) grad_delta *= sigmoid(load(w.raw + l));
        sum_D += grad * u;
        sum_bias += grad_delta;
        store(w.grad_delta + l, grad_delta);
        store(w.grad_drive + l, grad_drive * load(w.delta + l) + grad * skip);
    }
    add_to_doubles(w.grad_D + block * LANES, sum_D);
    add_to_doubles(w.grad_bias + block * LANES, sum_bias);
    store_rows(w.grad_drive, g.u, task.batch, channel, position, lanes, steps);
    store_rows(w.grad_delta, g.delta, task.batch, channel, position, lanes, steps);
}

// Sum (states, steps, LANES) over lanes into `to`, (states, length) of one task.
void sum_projection_gradient(const float *sums, float *to, int64_t states, int64_t length, int64_t position,
                             int64_t steps) {
    for (int64_t n = 0; n < states; ++n) {
        for (int64_t l = 0; l < steps; l += LANES) {
            Vec rows[LANES];
            for (int i = 0; i < LANES; ++i) rows[i] = load(sums + (n * kSteps + l + i) * LANES);
            const Vec total = sum_lanes(rows);
            float *const row = to + n * length + position + l;
            if (l + LANES <= steps)
                store_unaligned(row, total);
            else
                for (int64_t i = 0; i < steps - l; ++i) row[i] = total[i];
        }
    }
}

// Compute only the carry of a span to the previous span, and its sum of step sizes.
void backward_carry(const Scan &s, const ScanGradients &g, const Plan &p, const Task &task, Workspace &w, int64_t from,
                    int64_t to, float *total) {
    load_decay_rates(s, task, w);
    for (int64_t position = from + (to - from - 1) / kSteps * kSteps; position >= from; position -= kSteps) {
        const int64_t steps = least(kSteps, to - position);
        load_projection(w.C, s.C, task.batch, task.group_c, position, s.states, steps, p.padded_states);
        for (int64_t block = 0; block < task.blocks; ++block) {
            load_steps(s, task, w, block, position, steps, nullptr);
            load_gradient(s, g, task, w, block, position, steps);
            Vec sum = load(total + block * LANES);
            for (int64_t l = 0; l < steps; ++l) sum += load(w.delta + l * LANES);
            store(total + block * LANES, sum);
            for (int64_t n = 0; n < s.states; ++n) {
                float *const at = w.carry + (block * s.states + n) * LANES;
                const Vec rate = load(w.A + (block * s.states + n) * LANES);
                Vec carry = load(at);
                for (int64_t l = steps - 1; l >= 0; --l) {
                    const Vec G = load(w.grad + l * LANES) * w.C[l * p.padded_states + n] + carry;
                    carry = exp2(load(w.delta + l * LANES) * rate) * G;
                }
                store(at, carry);
            }
        }
    }
}

// Compute one span of a task from the carry in w.carry, last tile first. The sums are in w.grad_A, grad_D and grad_bias
// at the end, those of dB and dC in `partial`, (2, states, length) of one task.
void backward_span(const Scan &s, const ScanGradients &g, const Plan &p, const Task &task, Workspace &w, int64_t from,
                   int64_t to, float *partial) {
    load_decay_rates(s, task, w);
    memset(w.grad_A, 0, p.task_blocks * s.states * LANES * sizeof(double));
    memset(w.grad_D, 0, p.task_blocks * LANES * sizeof(double));
    memset(w.grad_bias, 0, p.task_blocks * LANES * sizeof(double));
    for (int64_t position = from + (to - from - 1) / kSteps * kSteps; position >= from; position -= kSteps) {
        const int64_t steps = least(kSteps, to - position);
        if (steps % LANES != 0) {  // the sums below read full vectors
            memset(w.grad_B, 0, s.states * kSteps * LANES * sizeof(float));
            memset(w.grad_C, 0, s.states * kSteps * LANES * sizeof(float));
        }
        load_projection(w.B, s.B, task.batch, task.group_b, position, s.states, steps, p.padded_states);
        load_projection(w.C, s.C, task.batch, task.group_c, position, s.states, steps, p.padded_states);
        for (int64_t block = 0; block < task.blocks; ++block) {
            want_next(task, w, {&s.u, &s.delta, &s.z, &g.y}, block, position, -kSteps, from, to);
            load_steps(s, task, w, block, position, steps, w.raw);
            load_gradient(s, g, task, w, block, position, steps);
            copy_states_in(w.start, checkpoint(s, g.carries, task, block, position), s.channels, s.states,
                           task.lanes(block));
            for (float *each : {w.y, w.grad_drive, w.grad_delta}) memset(each, 0, steps * LANES * sizeof(float));
            int64_t n = 0;
            for (; n + kUnroll <= s.states; n += kUnroll) both_ways<kUnroll>(s, p, w, block, n, steps);
            for (; n < s.states; ++n) both_ways<1>(s, p, w, block, n, steps);
            finish_gradients(s, g, task, w, block, position, steps);
        }
        sum_projection_gradient(w.grad_B, partial, s.states, s.length, position, steps);
        sum_projection_gradient(w.grad_C, partial + s.states * s.length, s.states, s.length, position, steps);
    }
}

// Parts of the gradients of the weights, (batch x spans, channels, ...) in double, to be summed over their first axis.
struct WeightSums {
    double *A, *D, *bias;
    void add(const Scan &s, const Plan &p, const Task &task, const Workspace &w, int64_t span) const {
        const int64_t row = task.batch * p.spans + span;
        for (int64_t block = 0; block < task.blocks; ++block) {
            for (int64_t lane = 0; lane < task.lanes(block); ++lane) {
                const int64_t at = row * s.channels + task.channel + block * LANES + lane;
                for (int64_t n = 0; n < s.states; ++n)
                    A[at * s.states + n] = w.grad_A[(block * s.states + n) * LANES + lane];
                D[at] = w.grad_D[block * LANES + lane];
                bias[at] = w.grad_bias[block * LANES + lane];
            }
        }
    }
};

void sum_weights(float *to, const double *from, int64_t rows, int64_t size) {
    if (!to) return;
    for (int64_t i = 0; i < size; ++i) {
        double sum = 0;
        for (int64_t row = 0; row < rows; ++row) sum += from[row * size + i];
        to[i] = static_cast<float>(sum);
    }
}

// dB or dC of one group and batch row, one part per task. The tasks of a group and batch row are consecutive.
struct Partials {
    const float *data;
    int64_t tasks, first, size, which;  // count; index; floats of dB or dC of one task; 0 for dB, 1 for dC

    Partials(const Scan &s, const Plan &p, const float *data, int64_t which, const Projection &to, int64_t batch,
             int64_t group)
        : data(data),
          tasks(s.channels / to.groups / p.shared * p.tasks_per_run),
          first(batch * (p.tasks / s.batch) + group * tasks),
          size(s.states * s.length),
          which(which) {}
    const float *of(int64_t task) const { return data + ((first + task) * 2 + which) * size; }
};

// Sum dB or dC with a length axis over the tasks, in a fixed order.
void sum_projections(const Scan &s, const Plan &p, const float *partial, int64_t which, const Projection &to) {
    const int64_t tiles = ceil_div(s.length, kSteps);
#pragma omp parallel for num_threads(s.threads) collapse(3)
    for (int64_t batch = 0; batch < s.batch; ++batch) {
        for (int64_t group = 0; group < to.groups; ++group) {
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const Partials parts(s, p, partial, which, to, batch, group);
                const int64_t position = tile * kSteps, steps = least(kSteps, s.length - position);
                float *const out = to.data + batch * to.batch + group * to.group + position * to.length;
                for (int64_t n = 0; n < s.states; ++n) {
                    float sums[kSteps] = {};
                    for (int64_t task = 0; task < parts.tasks; ++task) {
                        const float *const from = parts.of(task) + n * s.length + position;
                        for (int64_t l = 0; l < steps; ++l) sums[l] += from[l];
                    }
                    for (int64_t l = 0; l < steps; ++l) out[n * to.state + l * to.length] = sums[l];
                }
            }
        }
    }
}

// Sum dB or dC in the form without batch and length also over batch and length.
void sum_constant_projections(const Scan &s, const Plan &p, const float *partial, int64_t which, const Projection &to) {
#pragma omp parallel for num_threads(s.threads) collapse(2)
    for (int64_t group = 0; group < to.groups; ++group) {
        for (int64_t n = 0; n < s.states; ++n) {
            double sum = 0;
            for (int64_t batch = 0; batch < s.batch; ++batch) {
                const Partials parts(s, p, partial, which, to, batch, group);
                for (int64_t task = 0; task < parts.tasks; ++task)
                    for (int64_t l = 0; l < s.length; ++l) sum += parts.of(task)[n * s.length + l];
            }
            to.data[group * to.group + n * to.state] = static_cast<float>(sum);
        }
    }
}

void sum_any_projections(const Scan &s, const Plan &p, const float *partial, int64_t which, const Projection &to) {
    if (to.length == 0)
        sum_constant_projections(s, p, partial, which, to);
    else
        sum_projections(s, p, partial, which, to);
}

void load_last_gradient(const Scan &s, const Task &task, const ScanGradients &g, float *carry) {
    for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t channel = task.channel + block * LANES;
        load_tile(carry + block * s.states * LANES, g.last_state + (task.batch * s.channels + channel) * s.states,
                  s.states, 1, task.lanes(block), s.states);
    }
}

int32_t backward(const Scan &s, const ScanGradients &g) {
    const Plan p(s);
    const int64_t bytes = Workspace().place(nullptr, s, p, true);
    const int64_t state_size = p.task_blocks * s.states * LANES, total_size = p.task_blocks * LANES;
    const int64_t rows = s.batch * p.spans, partial_size = 2 * s.states * s.length;
    Scratch scratch;
    Block partials, weights;
    if (!scratch.memory.allocate(bytes * s.threads)) return 1;
    if (!scratch.between.allocate(p.tasks * p.spans * (state_size + total_size) * int64_t(sizeof(float)))) return 1;
    if (!partials.allocate(p.tasks * partial_size * int64_t(sizeof(float)))) return 1;
    if (!weights.allocate(rows * s.channels * (s.states + 2) * int64_t(sizeof(double)))) return 1;
    float *const starts = reinterpret_cast<float *>(scratch.between.data);
    float *const totals = starts + p.tasks * p.spans * state_size;
    float *const partial = reinterpret_cast<float *>(partials.data);
    double *const sums = reinterpret_cast<double *>(weights.data);
    const WeightSums weight_sums{sums, sums + rows * s.channels * s.states, sums + rows * s.channels * (s.states + 1)};
#pragma omp parallel num_threads(s.threads)
    {
        Workspace w;
        scratch.at(w, s, p, true, bytes);
        if (p.spans > 1) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < p.tasks * p.spans; ++i) {
                const int64_t from = i % p.spans * p.span_length;
                memset(w.carry, 0, state_size * sizeof(float));
                memset(totals + i * total_size, 0, total_size * sizeof(float));
                backward_carry(s, g, p, Task(s, p, i / p.spans), w, from, least(s.length, from + p.span_length),
                               totals + i * total_size);
                memcpy(starts + i * state_size, w.carry, state_size * sizeof(float));
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < p.tasks; ++i) {
                const Task task(s, p, i);
                memset(w.carry, 0, state_size * sizeof(float));
                load_last_gradient(s, task, g, w.carry);
                carry_between_spans(s, p, task, w, w.carry, starts + i * p.spans * state_size,
                                    totals + i * p.spans * total_size, false);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p.tasks * p.spans; ++i) {
            const Task task(s, p, i / p.spans);
            const int64_t span = i % p.spans, from = span * p.span_length;
            if (p.spans > 1)
                memcpy(w.carry, starts + i * state_size, state_size * sizeof(float));
            else
                load_last_gradient(s, task, g, w.carry);
            backward_span(s, g, p, task, w, from, least(s.length, from + p.span_length),
                          partial + task.index * partial_size);
            weight_sums.add(s, p, task, w, span);
        }
    }
    sum_any_projections(s, p, partial, 0, g.B);
    sum_any_projections(s, p, partial, 1, g.C);
    sum_weights(g.A, weight_sums.A, rows, s.channels * s.states);
    sum_weights(g.D, weight_sums.D, rows, s.channels);
    sum_weights(g.delta_bias, weight_sums.bias, rows, s.channels);
    return 0;
}

}  // namespace

int32_t SCAN_FORWARD(const Scan *scan, const ScanOutputs *outputs) { return forward(*scan, *outputs); }
int32_t SCAN_BACKWARD(const Scan *scan, const ScanGradients *gradients) { return backward(*scan, *gradients); }

void SCAN_EXP2(float *values, int64_t count, int64_t repeats, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t thread = 0; thread < threads; ++thread) {
        float *const own = values + thread * count * 2;
        for (int64_t repeat = 0; repeat < repeats; ++repeat) {
            for (int64_t i = 0; i < count; i += 4 * LANES) {
                Vec four[4];
                for (int k = 0; k < 4; ++k) four[k] = load_unaligned(own + i + k * LANES);
                exp2<4>(four);
                for (int k = 0; k < 4; ++k) store_unaligned(own + count + i + k * LANES, four[k]);
            }
            asm volatile("" ::: "memory");  // prevents the compiler from removing equal repeats
        }
    }
}
