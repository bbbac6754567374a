// The kernels for x86-64 with AVX-512.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's intrinsics leave a vector undefined on purpose, and GCC warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "headers.h"

#ifdef RBNORM_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define RBNORM_BACKEND avx512
#define RBNORM_NAME "avx512"
#define RBNORM_VECTOR_BYTES 64
#include "unit.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
