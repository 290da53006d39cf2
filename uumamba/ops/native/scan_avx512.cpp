// Compiled for AVX-512 (F, DQ, VL) and FMA.
#define SCAN_FORWARD scan_forward_avx512
#define SCAN_BACKWARD scan_backward_avx512
#define SCAN_EXP2 scan_exp2_avx512
#define CONVOLUTION_FORWARD convolution_forward_avx512
#define CONVOLUTION_BACKWARD convolution_backward_avx512
#include "convolution_kernel.h"
#include "scan_kernel.h"
