// The kernels for one instruction set. A file includes headers.h, turns its instruction set on,
// defines RBNORM_BACKEND and RBNORM_VECTOR_BYTES, and includes this. headers.h comes first because
// the linker keeps one copy of an inline function, for all backends: it must be one for any CPU.

#define FLAT __attribute__((always_inline))  // of a lambda
#define INLINE inline FLAT
#define NAMESPACE RBNORM_BACKEND

namespace rbnorm {
namespace RBNORM_BACKEND {
#include "vec.h"
#include "vecmath.h"
#include "elementwise.h"
#include "areas.h"
#include "moments.h"
#include "sweeps.h"
#include "grid.h"
#include "tables.h"
#include "points.h"
#include "layer.h"
#include "phases.h"

template <class S>
constexpr Kernels kernels{forward<S>, backward<S>,     moments<S>,
                          affine<S>,  grad_moments<S>, grad_affine<S>};

const Backend backend{RBNORM_NAME, kernels<float>, kernels<double>, kernels<BFloat16>,
                             kernels<Half>};
}  // namespace RBNORM_BACKEND
}  // namespace rbnorm
