// The kernels for x86-64 with AVX2.
#define RBNORM_BACKEND avx2
#define RBNORM_TARGET "avx2,fma,f16c"
#define RBNORM_VECTOR_BYTES 32
#include "unit.h"
