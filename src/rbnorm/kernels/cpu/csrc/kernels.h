// What the kernels take and who provides them, one table of functions per instruction set; and all that
// they include.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__)
#define RBNORM_X86
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace rbnorm {

// What the Python side calls a function; the number that the kernels take for it is its place, here and
// in the table of functions.
constexpr const char* restrictions[] = {"sigmoid", "tanh", "hardsigmoid", "softsign", "identity", "clip01"};
constexpr const char* activations[] = {"none", "relu", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh"};
constexpr int NONE = 0;  // of the activations

enum Type { FLOAT32, BFLOAT16, FLOAT16, TYPES };
constexpr int64_t bytes_of[TYPES + 1] = {4, 2, 2, 0};  // at last of what is none of them

// N instances of C channels of L positions; with the channels `last` memory is (N, L, C).
struct Shape {
  int64_t N, C, L;
  bool last;
  int64_t threads;
  int64_t numbers() const { return N * C * L; }
  bool has_many() const { return N > 1 || L > 1; }  // numbers of a channel
  int64_t offset(int64_t n, int64_t c, int64_t i) const {
    return last ? (n * L + i) * C + c : (n * C + c) * L + i;
  }
};

// What follows the affine map. Data is of one type and layout; null where there is none.
struct Epilogue {
  const void* residual;
  int activation;
  float slope;
};

// The vectors (C,) of a layer, or their gradients; null where absent.
template <class Number>
struct Vectors {
  Number *weight, *bias, *center_weight, *scale_weight, *scale_bias;
};
struct Layer : Vectors<const float> {
  bool training;
  double eps;
  int restriction;
};

// The layer forward or backward, or one of its phases, over whole tensors. Null is what a call has no
// use for, and of the outputs what is not wanted.
struct Call {
  Type type;
  Shape shape;
  Layer layer;
  Epilogue epilogue;
  double momentum;
  const void *dy, *x;
  float *running_mean, *running_var;  // updated in training, read in evaluation
  float *m, *E, *V;                   // (N, C) and (C,), of `forward` outputs
  const float *scale, *shift, *x_scale, *u;  // tables of a phase, (N, C) but for x_scale (C,)
  void *y, *dx, *dresidual;
  float *first, *second;  // (N, C), of the phases that sum
  Vectors<float> gradients;
};

using Kernel = void(const Call&);
struct Kernels {
  const char* name;
  Kernel *forward, *backward, *moments, *affine, *grad_moments, *grad_affine;
};

namespace plain { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

// Memory that is new from the system costs more to touch page by page than to compute with.
void use_huge_pages(void* data, int64_t bytes);

// The OpenMP runtime that is loaded already: `run` starts a function on a team of threads.
struct Runtime {
  void (*run)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*index)();
  int (*size)();
};
extern Runtime runtime;

}  // namespace rbnorm
