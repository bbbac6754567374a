// The kernels for x86-64 with AVX2.
#include "headers.h"

#ifdef RBNORM_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define RBNORM_BACKEND avx2
#define RBNORM_NAME "avx2"
#define RBNORM_VECTOR_BYTES 32
#include "unit.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
