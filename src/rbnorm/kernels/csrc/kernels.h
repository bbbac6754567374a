// What the kernels take and who provides them: one table of functions per instruction set.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace rbnorm {

#include "elementwise.h"

using c10::BFloat16;
using c10::Half;

// The dtype of statistics and tables for a tensor of S.
template <class S>
using table_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

// N instances of C channels of L positions; channels_last is (N, L, C) in memory.
struct Shape {
  int64_t N, C, L;
  bool channels_last;
  int64_t offset(int64_t n, int64_t c, int64_t i) const {
    return channels_last ? (n * L + i) * C + c : (n * C + c) * L + i;
  }
};

// One instance, a range of channels, a range of positions.
struct Area {
  int64_t n, c0, c1, i0, i1;
};

// The vectors (C,) of a layer in the table dtype, null where absent, and its options.
struct Layer {
  const void *weight, *bias, *center_weight, *scale_weight, *scale_bias;
  bool training;
  double eps;
  int restriction, activation;
  double slope;
};

struct Forward {
  Shape shape;
  Layer layer;
  double momentum;
  const void *x, *residual;
  void *running_mean, *running_var;  // updated in training, read in evaluation
  void *y, *m, *E, *V;  // the last three are null where nothing will be differentiated
};

struct Backward {
  Shape shape;
  Layer layer;
  const void *dy, *x, *residual, *m, *E, *V;
  void *dx, *dresidual;  // null where not wanted
  void *weight, *bias, *center_weight, *scale_weight, *scale_bias;  // gradients, null where absent
};

// The phases, over whole tensors; tables are (N, C), x_scale is (C,).
struct Epilogue {
  const void* residual;  // may be null
  int activation;
  double slope;
};

struct Moments {
  Shape shape;
  const void* x;
  void *m, *v;  // v is null where only the mean is wanted
};

struct Affine {
  Shape shape;
  const void *x, *m, *scale, *shift;  // m may be null
  Epilogue epilogue;
  void* y;
};

struct GradMoments {
  Shape shape;
  const void *dy, *x, *m, *scale, *shift;  // the last two are null without an activation
  Epilogue epilogue;
  void *S1, *S2;
};

struct GradAffine {
  Shape shape;
  const void *dy, *x, *m, *scale, *shift, *x_scale, *u;  // shift as before; x_scale may be null
  Epilogue epilogue;
  void *dx, *dresidual;  // null where not wanted
};

// The kernels for one storage type.
struct Kernels {
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
  void (*moments)(const Moments&);
  void (*affine)(const Affine&);
  void (*grad_moments)(const GradMoments&);
  void (*grad_affine)(const GradAffine&);
};

struct Backend {
  const char* name;
  Kernels float32, float64, bfloat16, float16;
};

namespace plain { extern const Backend backend; }
namespace avx2 { extern const Backend backend; }
namespace avx512 { extern const Backend backend; }

}  // namespace rbnorm
