// What is read once for every file that uses LibTorch: in the library, the trainer and the tests.
#define FLASHOPTIM_LIGHT_LIBTORCH
#include "flashoptim/libtorch_headers.h"
