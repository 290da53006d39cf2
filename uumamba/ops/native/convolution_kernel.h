// Causal depthwise convolution of the Mamba block with its activation, forward and backward, for one instruction set.
// Include this file once per translation unit; CONVOLUTION_FORWARD and CONVOLUTION_BACKWARD are the names of the
// functions that it defines.
#include <string.h>

#include "tiles.h"

namespace {

constexpr int kPiece = 64;              // positions of a tile
constexpr int64_t kPiecesPerTask = 16;  // sums of tasks are added in a fixed order for any number of threads
constexpr int kHalo = kMostTaps - 1;

struct ConvolutionTask {
    int64_t batch, from, to;
    ConvolutionTask(const Convolution &c, int64_t index) {
        const int64_t length = kPiece * kPiecesPerTask, per_row = ceil_div(c.length, length);
        batch = index / per_row;
        from = index % per_row * length;
        to = least(c.length, from + length);
    }
    static int64_t count(const Convolution &c) { return c.batch * ceil_div(c.length, kPiece * kPiecesPerTask); }
};

struct Taps {
    Vec weight[kMostTaps], bias;
    Taps(const Convolution &c, int64_t channel, int64_t lanes) {
        alignas(64) float rows[kMostTaps * LANES], bias_row[LANES] = {};
        load_tile(rows, c.weight + channel * c.taps, c.taps, 1, lanes, c.taps);
        for (int64_t k = 0; k < c.taps; ++k) weight[k] = load(rows + k * LANES);
        if (c.bias) memcpy(bias_row, c.bias + channel, lanes * sizeof(float));
        bias = load(bias_row);
    }
};

// Load positions `from` to `to` of x. Positions before the first or after the last are 0.
void load_around(float *tile, const Convolution &c, const Rows &rows, int64_t batch, int64_t channel, int64_t lanes,
                 int64_t from, int64_t to) {
    const int64_t first = from < 0 ? 0 : from, last = least(to, c.length);
    if (from < first) memset(tile, 0, least(first - from, to - from) * LANES * sizeof(float));
    if (first < last) load_rows(tile + (first - from) * LANES, rows, batch, channel, first, lanes, last - first);
    const int64_t done = last > first ? last : first;
    if (done < to) memset(tile + (done - from) * LANES, 0, (to - done) * LANES * sizeof(float));
}

// Input of the activation at one position; `x` is the position of its first tap.
inline Vec convolve(const Taps &taps, const float *x, int64_t count) {
    Vec sum = taps.bias;
    for (int64_t k = 0; k < count; ++k) sum += taps.weight[k] * load(x + k * LANES);
    return sum;
}

int32_t convolution_forward(const Convolution &c, const Rows &y) {
    const int64_t before = c.taps - 1;
#pragma omp parallel for num_threads(c.threads)
    for (int64_t i = 0; i < ConvolutionTask::count(c); ++i) {
        const ConvolutionTask task(c, i);
        alignas(64) float x[(kHalo + kPiece) * LANES], out[kPiece * LANES];
        for (int64_t channel = 0; channel < c.channels; channel += LANES) {
            const int64_t lanes = least(LANES, c.channels - channel);
            const Taps taps(c, channel, lanes);
            for (int64_t from = task.from; from < task.to; from += kPiece) {
                const int64_t steps = least(kPiece, task.to - from);
                load_around(x, c, c.x, task.batch, channel, lanes, from - before, from + steps);
                for (int64_t l = 0; l < steps; ++l) {
                    const Vec sum = convolve(taps, x + l * LANES, c.taps);
                    store(out + l * LANES, sum * sigmoid(sum));
                }
                store_rows(out, y, task.batch, channel, from, lanes, steps);
            }
        }
    }
    return 0;
}

// Gradients of one piece. Gradients of weight and bias are added to `sums`, (taps + 1, LANES).
void convolution_piece(const Convolution &c, const ConvolutionGradients &g, const Taps &taps, int64_t batch,
                       int64_t channel, int64_t lanes, int64_t from, int64_t steps, double *sums) {
    alignas(64) float x[(kPiece + 2 * kHalo) * LANES], inner[(kPiece + kHalo) * LANES], out[kPiece * LANES];
    const int64_t before = c.taps - 1, reach = steps + before;  // number of outputs that depend on this piece
    load_around(x, c, c.x, batch, channel, lanes, from - before, from + reach);
    load_around(inner, c, g.y, batch, channel, lanes, from, from + reach);
    for (int64_t l = 0; l < reach; ++l) {
        const Vec sum = convolve(taps, x + l * LANES, c.taps), open = sigmoid(sum);
        store(inner + l * LANES, load(inner + l * LANES) * open * (1.0f + sum * (1.0f - open)));
    }
    Vec weight[kMostTaps] = {}, bias = {};
    for (int64_t l = 0; l < steps; ++l) {
        const Vec grad = load(inner + l * LANES);
        Vec grad_x = {};
        bias += grad;
        for (int64_t k = 0; k < c.taps; ++k) {
            weight[k] += grad * load(x + (l + k) * LANES);
            grad_x += taps.weight[k] * load(inner + (l + before - k) * LANES);
        }
        store(out + l * LANES, grad_x);
    }
    for (int64_t k = 0; k < c.taps; ++k) add_to_doubles(sums + k * LANES, weight[k]);
    add_to_doubles(sums + c.taps * LANES, bias);
    store_rows(out, g.x, batch, channel, from, lanes, steps);
}

int32_t convolution_backward(const Convolution &c, const ConvolutionGradients &g) {
    const int64_t tasks = ConvolutionTask::count(c), numbers = c.taps + 1;
    Block block;
    if (!block.allocate(tasks * c.channels * numbers * int64_t(sizeof(double)))) return 1;
    double *const partial = reinterpret_cast<double *>(block.data);
#pragma omp parallel for num_threads(c.threads)
    for (int64_t i = 0; i < tasks; ++i) {
        const ConvolutionTask task(c, i);
        for (int64_t channel = 0; channel < c.channels; channel += LANES) {
            const int64_t lanes = least(LANES, c.channels - channel);
            const Taps taps(c, channel, lanes);
            double sums[(kMostTaps + 1) * LANES] = {};
            for (int64_t from = task.from; from < task.to; from += kPiece)
                convolution_piece(c, g, taps, task.batch, channel, lanes, from, least(kPiece, task.to - from), sums);
            for (int64_t lane = 0; lane < lanes; ++lane)
                for (int64_t k = 0; k < numbers; ++k)
                    partial[(i * c.channels + channel + lane) * numbers + k] = sums[k * LANES + lane];
        }
    }
    for (int64_t channel = 0; channel < c.channels; ++channel) {
        for (int64_t k = 0; k < numbers; ++k) {
            double sum = 0;
            for (int64_t i = 0; i < tasks; ++i) sum += partial[(i * c.channels + channel) * numbers + k];
            if (k < c.taps)
                g.weight[channel * c.taps + k] = static_cast<float>(sum);
            else if (g.bias)
                g.bias[channel] = static_cast<float>(sum);
        }
    }
    return 0;
}

}  // namespace

int32_t CONVOLUTION_FORWARD(const Convolution *c, const Rows *y) { return convolution_forward(*c, *y); }
int32_t CONVOLUTION_BACKWARD(const Convolution *c, const ConvolutionGradients *g) {
    return convolution_backward(*c, *g);
}
