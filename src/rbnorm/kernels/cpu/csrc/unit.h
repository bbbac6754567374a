// The kernels for one instruction set. A file includes headers.h, turns its instruction set on,
// defines RBNORM_BACKEND and RBNORM_VECTOR_BYTES, and includes this. headers.h comes first because
// the linker keeps one copy of an inline function, for all instruction sets: it must be one for any.

#define FLAT __attribute__((always_inline))  // of a lambda
#define INLINE inline FLAT
#define NAMESPACE RBNORM_BACKEND
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")  // a short loop, so that what it indexes stays in registers
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

const Kernels kernels{RBNORM_NAME, forward, backward, moments, affine, grad_moments, grad_affine};
}  // namespace RBNORM_BACKEND
}  // namespace rbnorm
