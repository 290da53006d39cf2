// Calls the kernel of the given instruction set. uumamba_instruction_set returns the best set of this processor.
#include "selective_scan.h"

#define DECLARE(name)                                                                       \
    int32_t scan_forward_##name(const Scan *, const ScanOutputs *);                         \
    int32_t scan_backward_##name(const Scan *, const ScanGradients *);                      \
    int32_t convolution_forward_##name(const Convolution *, const Rows *);                  \
    int32_t convolution_backward_##name(const Convolution *, const ConvolutionGradients *); \
    void scan_exp2_##name(float *, int64_t, int64_t, int32_t);

DECLARE(plain)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
#define CHOOSE(set, function, ...)                 \
    switch (set) {                                 \
        case 2:                                    \
            return function##_avx512(__VA_ARGS__); \
        case 1:                                    \
            return function##_avx2(__VA_ARGS__);   \
        default:                                   \
            return function##_plain(__VA_ARGS__);  \
    }
#else
#define CHOOSE(set, function, ...) return function##_plain(__VA_ARGS__);
#endif

extern "C" {

int32_t uumamba_instruction_set(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int32_t uumamba_scan_forward(const Scan *scan,
                             const ScanOutputs *outputs){CHOOSE(scan -> instruction_set, scan_forward, scan, outputs)}

int32_t uumamba_scan_backward(const Scan *scan, const ScanGradients *gradients){
    CHOOSE(scan->instruction_set, scan_backward, scan, gradients)}

int32_t uumamba_convolution_forward(const Convolution *convolution, const Rows *y){
    CHOOSE(convolution->instruction_set, convolution_forward, convolution, y)}

int32_t uumamba_convolution_backward(const Convolution *convolution, const ConvolutionGradients *gradients) {
    CHOOSE(convolution->instruction_set, convolution_backward, convolution, gradients)
}

void uumamba_exp2(float *values, int64_t count, int64_t repeats, int32_t threads, int32_t instruction_set) {
    CHOOSE(instruction_set, scan_exp2, values, count, repeats, threads)
}
}
