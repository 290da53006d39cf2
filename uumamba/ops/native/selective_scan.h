// Plain C interface of the native selective scan, called through ctypes. Strides are in elements. A null pointer is an
// argument that was not given. The library depends neither on torch nor on Python.
#pragma once
#include <cstdint>

extern "C" {

// (batch, channel, length)
struct Rows {
    float *data;
    int64_t batch, channel, length;
};

// (batch, group, state, length); an axis that is missing in a form of B or C has stride 0.
struct Projection {
    float *data;
    int64_t batch, group, state, length;
    int64_t groups;
};

struct Scan {
    int64_t batch, channels, states, length;
    int32_t softplus;
    int32_t threads;
    int32_t spans;            // pieces of the length, computed in parallel; 0 for an automatic choice
    int32_t instruction_set;  // 0 plain, 1 AVX2, 2 AVX-512
    Rows u, delta, z;
    Projection B, C;
    const float *A, *D, *delta_bias;  // contiguous: (channels, states), (channels,), (channels,)
};

// Steps between two checkpoints, which are the states (batch, ceil(length / kCheckpointSteps), states, channels).
enum { kCheckpointSteps = 32 };

struct ScanOutputs {
    Rows y;
    float *last_state;  // contiguous (batch, channels, states)
    float *carries;     // the checkpoints, or null
};

struct ScanGradients {
    Rows y;                   // input
    const float *last_state;  // input
    const float *carries;     // input, from the forward pass
    Rows u, delta, z;
    Projection B, C;
    float *A, *D, *delta_bias;
};

// silu(bias + sum_k weight[k] x[l - taps + 1 + k]) of each channel; positions before the first are 0.
enum { kMostTaps = 8 };
struct Convolution {
    int64_t batch, channels, length, taps;
    int32_t threads;
    int32_t instruction_set;
    Rows x;
    const float *weight, *bias;  // contiguous (channels, taps); (channels,)
};

struct ConvolutionGradients {
    Rows y;  // input
    Rows x;
    float *weight, *bias;
};

// Best instruction set of this processor, numbered as in Scan.
__attribute__((visibility("default"))) int32_t uumamba_instruction_set(void);

// Return 0 on success, 1 if memory could not be allocated.
__attribute__((visibility("default"))) int32_t uumamba_scan_forward(const Scan *, const ScanOutputs *);
__attribute__((visibility("default"))) int32_t uumamba_scan_backward(const Scan *, const ScanGradients *);

__attribute__((visibility("default"))) int32_t uumamba_convolution_forward(const Convolution *, const Rows *y);
__attribute__((visibility("default"))) int32_t uumamba_convolution_backward(const Convolution *,
                                                                            const ConvolutionGradients *);

// Benchmark of the scan's exponential. Each thread has 2 x count values and writes 2 ** the first half to the second
// half, `repeats` times.
__attribute__((visibility("default"))) void uumamba_exp2(float *values, int64_t count, int64_t repeats, int32_t threads,
                                                         int32_t instruction_set);
}
