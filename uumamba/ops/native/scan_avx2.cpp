// Compiled for AVX2 and FMA.
#define SCAN_FORWARD scan_forward_avx2
#define SCAN_BACKWARD scan_backward_avx2
#define SCAN_EXP2 scan_exp2_avx2
#define CONVOLUTION_FORWARD convolution_forward_avx2
#define CONVOLUTION_BACKWARD convolution_backward_avx2
#include "convolution_kernel.h"
#include "scan_kernel.h"
