// The kernels for any CPU: vectors of 16 bytes, which the compiler maps to what there is.
#define RBNORM_BACKEND plain
#define RBNORM_VECTOR_BYTES 16
#include "unit.h"
