// Compiled for the base instruction set of the architecture.
#define SCAN_FORWARD scan_forward_plain
#define SCAN_BACKWARD scan_backward_plain
#define SCAN_EXP2 scan_exp2_plain
#define CONVOLUTION_FORWARD convolution_forward_plain
#define CONVOLUTION_BACKWARD convolution_backward_plain
#include "convolution_kernel.h"
#include "scan_kernel.h"
