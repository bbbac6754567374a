// Vectors of the table type, at the width of the instruction set this file is compiled for.
//
// Included once per instruction set, inside its namespace. A storage type S is read as its table
// type T: float for the half types, itself otherwise.

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
};
template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Lanes<T>::Vec;
template <class T>
using Mask = typename Lanes<T>::Mask;
template <class T>
constexpr int64_t width = RBNORM_VECTOR_BYTES / sizeof(T);

typedef uint32_t Words __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
typedef uint16_t Shorts __attribute__((vector_size(RBNORM_VECTOR_BYTES / 2)));

template <class To, class From>
INLINE To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V, class P>
INLINE V read(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

INLINE Vec<float> load(const float* p) { return read<Vec<float>>(p); }
INLINE Vec<double> load(const double* p) { return read<Vec<double>>(p); }
INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

// A bfloat16 is the upper half of a float32.
INLINE Words widened(const BFloat16* p) {
#if RBNORM_VECTOR_BYTES == 64
  return bits<Words>(_mm512_cvtepu16_epi32(read<__m256i>(p)));
#elif RBNORM_VECTOR_BYTES == 32
  return bits<Words>(_mm256_cvtepu16_epi32(read<__m128i>(p)));
#else
  return __builtin_convertvector(read<Shorts>(p), Words);
#endif
}

INLINE Shorts narrowed(const Words& words) {
#if RBNORM_VECTOR_BYTES == 32
  const __m256i all = bits<__m256i>(words);
  return bits<Shorts>(
      _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
  return __builtin_convertvector(words, Shorts);
#endif
}

INLINE Vec<float> load(const BFloat16* p) { return bits<Vec<float>>(widened(p) << 16); }

INLINE void store(BFloat16* p, Vec<float> v) {
  const Words word = bits<Words>(v);
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Shorts half = narrowed(v != v ? Words{} + 0x7fc0 : rounded);
  std::memcpy(p, &half, sizeof(half));
}

#if RBNORM_VECTOR_BYTES == 64
INLINE Vec<float> load(const Half* p) { return _mm512_cvtph_ps(read<__m256i>(p)); }
INLINE void store(Half* p, Vec<float> v) {
  const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &half, sizeof(half));
}
#elif RBNORM_VECTOR_BYTES == 32
INLINE Vec<float> load(const Half* p) { return _mm256_cvtph_ps(read<__m128i>(p)); }
INLINE void store(Half* p, Vec<float> v) {
  const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &half, sizeof(half));
}
#else
INLINE Vec<float> load(const Half* p) {
  Vec<float> v = {};
  for (int64_t i = 0; i < width<float>; i++) v[i] = static_cast<float>(p[i]);
  return v;
}
INLINE void store(Half* p, Vec<float> v) {
  for (int64_t i = 0; i < width<float>; i++) p[i] = static_cast<Half>(v[i]);
}
#endif

template <class T>
INLINE Vec<T> fill(T value) {
  return Vec<T>{} + value;
}

template <class V>
INLINE V select(const decltype(V{} < V{})& mask, const V& yes, const V& no) {
  return mask ? yes : no;
}

// Calls f(0) ... f(Count - 1), the numbers known to the compiler, so that arrays which they index
// stay in registers.
template <class F, int... k>
INLINE void each(F& f, std::integer_sequence<int, k...>) {
  (f(std::integral_constant<int, k>{}), ...);
}
template <int Count, class F>
INLINE void repeat(F f) {
  each(f, std::make_integer_sequence<int, Count>{});
}

template <class T, int Bytes>
struct Part {
  typedef T Vec __attribute__((vector_size(Bytes)));
};

// The upper half of a vector. Through memory, where the compiler sees no better way, it is slow.
template <class T, int Bytes>
INLINE typename Part<T, Bytes / 2>::Vec upper(const typename Part<T, Bytes>::Vec& v) {
  typename Part<T, Bytes / 2>::Vec half;
#if RBNORM_VECTOR_BYTES == 64
  if constexpr (Bytes == 64)
    return bits<decltype(half)>(_mm512_extracti64x4_epi64(bits<__m512i>(v), 1));
#endif
#if RBNORM_VECTOR_BYTES >= 32
  if constexpr (Bytes == 32)
    return bits<decltype(half)>(_mm256_extracti128_si256(bits<__m256i>(v), 1));
#endif
  std::memcpy(&half, reinterpret_cast<const char*>(&v) + Bytes / 2, Bytes / 2);
  return half;
}

// The sum of all lanes, by halves.
template <class T, int Bytes = RBNORM_VECTOR_BYTES>
INLINE T sum(const typename Part<T, Bytes>::Vec& v) {
  if constexpr (Bytes == 2 * sizeof(T)) {
    return v[0] + v[1];
  } else {
    typename Part<T, Bytes / 2>::Vec low;
    std::memcpy(&low, &v, Bytes / 2);
    return sum<T, Bytes / 2>(low + upper<T, Bytes>(v));
  }
}

template <class V, class F>
INLINE V lanewise(const V& v, F f) {
  V result;
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); i++) result[i] = f(v[i]);
  return result;
}

// exp by 2^k e^r with |r| <= ln(2)/2 and the Taylor polynomial of e^r: relative error below 2e-7.
INLINE Vec<float> exp(const Vec<float>& x) {
  const Vec<float> low = fill(-87.f), high = fill(88.f), magic = fill(12582912.f);  // 1.5 * 2^23
  const Vec<float> bounded = select(x < low, low, select(x > high, high, x));
  const Vec<float> shifted = bounded * 1.44269504f + magic, k = shifted - magic;
  const Vec<float> r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec<float> e = fill(1.f / 5040);
  for (const float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) e = e * r + c;
  const Words exponent = (bits<Words>(shifted) - bits<Words>(magic)) << 23;
  const Vec<float> result = bits<Vec<float>>(bits<Words>(e) + exponent);
  return select(x != x, x, result);
}
INLINE Vec<double> exp(const Vec<double>& x) {
  return lanewise(x, [](double v) { return std::exp(v); });
}

// A sum over many rows with the rounding errors carried along (Kahan).
template <class T>
struct Sum {
  Vec<T> total{}, lost{};
  INLINE void add(const Vec<T>& v) {
    const Vec<T> y = v - lost, t = total + y;
    lost = (t - total) - y;
    total = t;
  }
};

// Where vectors stand in a run of numbers: `count` whole ones in a row; the last one, moved back
// over numbers that were seen already; or the only one of a run shorter than itself.
template <class T, int Count>
struct Whole {
  static constexpr int count = Count;
  int64_t i;
  template <class S>
  INLINE Vec<T> load(const S* p, int k = 0) const { return NAMESPACE::load(p + i + k * width<T>); }
  template <class S>
  INLINE void store(S* p, const Vec<T>& v, int k = 0) const {
    NAMESPACE::store(p + i + k * width<T>, v);
  }
  INLINE Vec<T> keep(const Vec<T>& v) const { return v; }  // zero what was seen already
};

// One vector of zeros, then one of ones: a window on it masks the last lanes.
template <class T>
struct Window {
  std::remove_reference_t<decltype(Mask<T>{}[0])> bits[2 * width<T>] = {};
  constexpr Window() {
    for (int64_t k = width<T>; k < 2 * width<T>; k++) bits[k] = -1;
  }
};
template <class T>
constexpr Window<T> window;

template <class T>
struct Last : Whole<T, 1> {
  Mask<T> fresh;
  INLINE Last(int64_t n, int64_t rest)
      : Whole<T, 1>{n - width<T>}, fresh(read<Mask<T>>(window<T>.bits + rest)) {}
  INLINE Vec<T> keep(const Vec<T>& v) const { return bits<Vec<T>>(bits<Mask<T>>(v) & fresh); }
};

template <class T>
struct Short {
  static constexpr int count = 1;
  int64_t n;
  template <class S>
  INLINE Vec<T> load(const S* p, int = 0) const {
    S all[width<T>] = {};
    for (int64_t k = 0; k < n; k++) all[k] = p[k];
    return NAMESPACE::load(all);
  }
  template <class S>
  INLINE void store(S* p, const Vec<T>& v, int = 0) const {
    S all[width<T>];
    NAMESPACE::store(all, v);
    for (int64_t k = 0; k < n; k++) p[k] = all[k];
  }
  INLINE Vec<T> keep(const Vec<T>& v) const {
    Vec<T> kept{};
    for (int64_t k = 0; k < n; k++) kept[k] = v[k];
    return kept;
  }
};

// Calls f(at) until all of a run of n numbers is covered, `Count` vectors at once where they fit.
template <class T, int Count, class F>
INLINE void for_vectors(int64_t n, F f) {
  constexpr int64_t w = width<T>;
  int64_t i = 0;
  if constexpr (Count > 1)
    for (; i + Count * w <= n; i += Count * w) f(Whole<T, Count>{i});
  for (; i + w <= n; i += w) f(Whole<T, 1>{i});
  if (i == n) return;
  if (n >= w)
    f(Last<T>(n, n - i));
  else
    f(Short<T>{n});
}
