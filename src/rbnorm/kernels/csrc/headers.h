// Everything of the standard library and of torch that the kernels include.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RBNORM_X86
#include <cpuid.h>
#include <immintrin.h>
#endif
