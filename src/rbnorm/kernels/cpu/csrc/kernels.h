// What the kernels take and who provides them: one table of functions per instruction set.
#pragma once

#include <cstdint>

namespace rbnorm {

#include "elementwise.h"

enum Type { FLOAT32, BFLOAT16, FLOAT16, TYPES };
constexpr int64_t bytes_of[TYPES + 1] = {4, 2, 2, 0};  // at last of what is none of them

// N instances of C channels of L positions; with the channels `last` memory is (N, L, C).
struct Shape {
  int64_t N, C, L;
  bool last;
  int64_t threads;
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

// The vectors (C,) of a layer, null where absent, and its options.
struct Layer {
  const float *weight, *bias, *center_weight, *scale_weight, *scale_bias;
  bool training;
  double eps;
  int restriction;
};

struct Forward {
  Type type;
  Shape shape;
  Layer layer;
  Epilogue epilogue;
  double momentum;
  const void* x;
  float *running_mean, *running_var;  // updated in training, read in evaluation
  void* y;
  float *m, *E, *V;  // null where nothing will be differentiated
};

struct Backward {
  Type type;
  Shape shape;
  Layer layer;
  Epilogue epilogue;
  const void *dy, *x;
  const float *m, *E, *V;
  void *dx, *dresidual;  // null where not wanted
  float *weight, *bias, *center_weight, *scale_weight, *scale_bias;  // gradients, null where absent
};

// One phase over whole tensors; tables are (N, C), x_scale is (C,), each null where there is none.
struct Phase {
  Type type;
  Shape shape;
  Epilogue epilogue;
  const void *dy, *x;
  const float *m, *scale, *shift, *x_scale, *u;
  void *y, *dresidual;   // of the phases that write
  float *first, *second;  // of those that sum
};

struct Kernels {
  const char* name;
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
  void (*moments)(const Phase&);
  void (*affine)(const Phase&);
  void (*grad_moments)(const Phase&);
  void (*grad_affine)(const Phase&);
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
