// The kernels for one instruction set. A file defines RBNORM_BACKEND, RBNORM_VECTOR_BYTES and, but for
// plain C++, what compilers call the instruction set, RBNORM_TARGET, and includes this. kernels.h
// comes before it is turned on because the linker keeps one copy of an inline function, for all
// instruction sets: it must be one for any.
#include "kernels.h"

#if !defined(RBNORM_TARGET) || defined(RBNORM_X86)

#define FLAT __attribute__((always_inline))  // of a lambda
#define INLINE inline FLAT
#define NAMESPACE RBNORM_BACKEND
#define STRING(...) #__VA_ARGS__
#define NAME_OF(backend) STRING(backend)
#define PRAGMA(...) _Pragma(STRING(__VA_ARGS__))
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")  // a short loop, so that what it indexes stays in registers
#endif

#ifdef RBNORM_TARGET
#ifdef __clang__
PRAGMA(clang attribute push(__attribute__((target(RBNORM_TARGET))), apply_to = function))
#else
PRAGMA(GCC push_options)
PRAGMA(GCC target(RBNORM_TARGET))
#endif
#endif

namespace rbnorm {
namespace RBNORM_BACKEND {
namespace {
#include "vec.h"
#include "elementwise.h"
#include "tiles.h"
#include "sweeps.h"
#include "moments.h"
#include "grid.h"
#include "tables.h"
#include "points.h"
#include "layer.h"
}  // namespace

const Kernels kernels{NAME_OF(RBNORM_BACKEND), forward, backward, moments, affine, grad_moments, grad_affine};
}  // namespace RBNORM_BACKEND
}  // namespace rbnorm

#if defined(RBNORM_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif
#endif
