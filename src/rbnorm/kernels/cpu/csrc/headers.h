// Everything of the standard library that the kernels include.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RBNORM_X86
#include <cpuid.h>
#include <immintrin.h>
#endif
