// The plain C interface of the native selective scan, called through ctypes. Strides count elements; a null pointer
// means that the argument was not given. Nothing here knows torch or Python.
#pragma once
#include <cstdint>

extern "C" {

// (batch, channel, length)
struct Rows {
    float *data;
    int64_t batch, channel, length;
};

// (batch, group, state, length); the axes that a form of B or C lacks have stride 0.
struct Projection {
    float *data;
    int64_t batch, group, state, length;
    int64_t groups;
};

struct Scan {
    int64_t batch, channels, states, length;
    int32_t softplus;
    int32_t threads;
    int32_t spans;            // pieces that the length is cut into, worked through side by side; 0 to choose
    int32_t instruction_set;  // 0 plain, 1 AVX2, 2 AVX-512
    Rows u, delta, z;
    Projection B, C;
    const float *A, *D, *delta_bias;  // contiguous: (channels, states), (channels,), (channels,)
};

// States at the start of every kCheckpointSteps-th position: (batch, ceil(length / kCheckpointSteps), states,
// channels).
enum { kCheckpointSteps = 32 };

struct ScanOutputs {
    Rows y;
    float *last_state;  // contiguous (batch, channels, states)
    float *carries;     // the checkpoints, or null
};

struct ScanGradients {
    Rows y;                   // given
    const float *last_state;  // given
    const float *carries;     // given, from the forward pass
    Rows u, delta, z;
    Projection B, C;
    float *A, *D, *delta_bias;
};

// silu(bias + sum_k weight[k] x[l - taps + 1 + k]) of each channel, positions before the first being 0.
enum { kMostTaps = 8 };
struct Convolution {
    int64_t batch, channels, length, taps;
    int32_t threads;
    int32_t instruction_set;
    Rows x;
    const float *weight, *bias;  // contiguous (channels, taps); (channels,)
};

struct ConvolutionGradients {
    Rows y;  // given
    Rows x;
    float *weight, *bias;
};

// Best instruction set that this processor has, numbered as above.
__attribute__((visibility("default"))) int32_t uumamba_instruction_set(void);

// 0 when done, 1 when out of memory.
__attribute__((visibility("default"))) int32_t uumamba_scan_forward(const Scan *, const ScanOutputs *);
__attribute__((visibility("default"))) int32_t uumamba_scan_backward(const Scan *, const ScanGradients *);

__attribute__((visibility("default"))) int32_t uumamba_convolution_forward(const Convolution *, const Rows *y);
__attribute__((visibility("default"))) int32_t uumamba_convolution_backward(const Convolution *,
                                                                            const ConvolutionGradients *);

// Of each thread's 2 x count values, writes 2 ** the first half to the second, repeats times over, with the exponential
// that the scan uses: the limit to measure by.
__attribute__((visibility("default"))) void uumamba_exp2(float *values, int64_t count, int64_t repeats, int32_t threads,
                                                         int32_t instruction_set);
}
