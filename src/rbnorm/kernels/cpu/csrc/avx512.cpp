// The kernels for x86-64 with AVX-512.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's intrinsics leave a vector undefined on purpose, and GCC warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define RBNORM_BACKEND avx512
#define RBNORM_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define RBNORM_VECTOR_BYTES 64
#include "unit.h"
