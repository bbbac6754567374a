// Vectors of the table type, at the width of the instruction set this file is compiled for.
//
// What returns a vector, or a struct of them, must be inlined (INLINE, and FLAT for a lambda): GCC 12
// may clear the upper half of a vector in a struct before it returns it.
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

// How a vector of S lies in memory: half types as the words of half a vector.
template <class S>
struct PackedType {
  using type = Vec<S>;
};
template <>
struct PackedType<BFloat16> {
  using type = Shorts;
};
template <>
struct PackedType<Half> {
  using type = Shorts;
};
template <class S>
using Packed = typename PackedType<S>::type;

template <class S>
INLINE Vec<S> unpacked(const Vec<S>& v, const S*) { return v; }
template <class S>
INLINE Vec<S> packed(const Vec<S>& v, const S*) { return v; }

// A bfloat16 is the upper half of a float32.
INLINE Vec<float> unpacked(const Shorts& half, const BFloat16*) {
#if RBNORM_VECTOR_BYTES == 64
  const Words words = bits<Words>(_mm512_cvtepu16_epi32(bits<__m256i>(half)));
#elif RBNORM_VECTOR_BYTES == 32
  const Words words = bits<Words>(_mm256_cvtepu16_epi32(bits<__m128i>(half)));
#else
  const Words words = __builtin_convertvector(half, Words);
#endif
  return bits<Vec<float>>(words << 16);
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

INLINE Shorts packed(const Vec<float>& v, const BFloat16*) {
  const Words word = bits<Words>(v);
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;  // to nearest, ties to even
  return narrowed(v != v ? Words{} + 0x7fc0 : rounded);
}

INLINE Vec<float> unpacked(const Shorts& half, const Half*) {
#if RBNORM_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(bits<__m256i>(half));
#elif RBNORM_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(bits<__m128i>(half));
#else
  Vec<float> v = {};
  for (int64_t i = 0; i < width<float>; i++)
    v[i] = static_cast<float>(Half(half[i], Half::from_bits()));
  return v;
#endif
}

INLINE Shorts packed(const Vec<float>& v, const Half*) {
#if RBNORM_VECTOR_BYTES == 64
  return bits<Shorts>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif RBNORM_VECTOR_BYTES == 32
  return bits<Shorts>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  Shorts half = {};
  for (int64_t i = 0; i < width<float>; i++) half[i] = static_cast<Half>(v[i]).x;
  return half;
#endif
}

template <class S>
INLINE Vec<table_t<S>> load(const S* p) { return unpacked(read<Packed<S>>(p), p); }
template <class S>
INLINE void store(S* p, const Vec<table_t<S>>& v) {
  const Packed<S> all = packed(v, p);
  std::memcpy(p, &all, sizeof(all));
}

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

#if defined(__clang__)
template <int... lane, class V>
INLINE V shuffled(const V& a, const V& b) { return __builtin_shufflevector(a, b, lane...); }
#else
template <int... lane, class V>
INLINE V shuffled(const V& a, const V& b) { return __builtin_shuffle(a, b, decltype(a < b){lane...}); }
#endif

// a + b where the lanes of a that differ by `step` are summed, likewise of b: in a's place where
// the bit `step` of the lane is clear, in b's place where it is set.
template <int step, class V, int... lane>
INLINE V sum_pairs(const V& a, const V& b, std::integer_sequence<int, lane...>) {
  constexpr int w = sizeof...(lane);
  return shuffled<(lane & step ? w + lane : lane)...>(a, b) +
         shuffled<(lane & step ? w + (lane ^ step) : lane ^ step)...>(a, b);
}

template <class T, int step>
INLINE Vec<T> sum_halves(const Vec<T>* rows) {
  Vec<T> sums[step];
  repeat<step>([&](auto i) FLAT {
    sums[i] = sum_pairs<step>(rows[i], rows[i + step], std::make_integer_sequence<int, width<T>>{});
  });
  if constexpr (step == 1)
    return sums[0];
  else
    return sum_halves<T, step / 2>(sums);
}

// The vector whose lane c is the sum of rows[c], of which there are as many as lanes.
template <class T>
INLINE Vec<T> row_sums(const Vec<T>* rows) {
  return sum_halves<T, width<T> / 2>(rows);
}

// The lanes of v in the order of `from`.
template <class T>
INLINE Vec<T> permuted(const Vec<T>& v, const Mask<T>& from) {
#if defined(__clang__)
  return lanewise(from, [&](auto lane) { return v[lane]; });
#else
  return __builtin_shuffle(v, from);
#endif
}

template <class T>
INLINE bool all_finite(const Vec<T>& v) {
  const Vec<T> zero = v - v;
#if RBNORM_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return !_mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q);
  if constexpr (sizeof(T) == 8) return !_mm512_cmp_pd_mask(zero, zero, _CMP_UNORD_Q);
#endif
  uint64_t set = 0;
  const auto words = bits<std::array<uint64_t, RBNORM_VECTOR_BYTES / 8>>(zero != Vec<T>{});
  for (const uint64_t word : words) set |= word;
  return set == 0;
}
template <class T>
INLINE bool any(const Mask<T>& mask) {
  uint64_t set = 0;
  for (const uint64_t word : bits<std::array<uint64_t, RBNORM_VECTOR_BYTES / 8>>(mask)) set |= word;
  return set != 0;
}

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

// The first `n` numbers of a vector; the other lanes are 0.
template <class T>
struct Partial {
  static constexpr int count = 1;
  int64_t n;
  template <class S>
  INLINE Vec<T> load(const S* p, int = 0) const {
#if RBNORM_VECTOR_BYTES == 64
    if constexpr (sizeof(S) == 8) return _mm512_maskz_loadu_pd(lanes(), p);
    if constexpr (sizeof(S) == 4) return _mm512_maskz_loadu_ps(lanes(), p);
    if constexpr (sizeof(S) == 2)
      return unpacked(bits<Shorts>(_mm256_maskz_loadu_epi16(lanes(), p)), p);
#endif
    S all[width<T>] = {};
    for (int64_t k = 0; k < n; k++) all[k] = p[k];
    return NAMESPACE::load(all);
  }
  template <class S>
  INLINE void store(S* p, const Vec<T>& v, int = 0) const {
#if RBNORM_VECTOR_BYTES == 64
    if constexpr (sizeof(S) == 8) return _mm512_mask_storeu_pd(p, lanes(), v);
    if constexpr (sizeof(S) == 4) return _mm512_mask_storeu_ps(p, lanes(), v);
    if constexpr (sizeof(S) == 2)
      return _mm256_mask_storeu_epi16(p, lanes(), bits<__m256i>(packed(v, p)));
#endif
    S all[width<T>];
    NAMESPACE::store(all, v);
    for (int64_t k = 0; k < n; k++) p[k] = all[k];
  }
  INLINE Vec<T> keep(const Vec<T>& v) const {
    return bits<Vec<T>>(bits<Mask<T>>(v) & ~read<Mask<T>>(window<T>.bits + width<T> - n));
  }
#if RBNORM_VECTOR_BYTES == 64
  INLINE uint16_t lanes() const { return uint16_t((1u << n) - 1); }
#endif
};

// One number of each of `n` channels, whose runs of `length` numbers follow one another.
template <class T>
struct Strided {
  static constexpr int count = 1;
  int64_t n, length;
  template <class S>
  INLINE Vec<T> load(const S* p, int = 0) const {
#if RBNORM_VECTOR_BYTES == 64
    if constexpr (sizeof(S) == 4) {
      const auto lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const auto places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int(length)));
      const auto wanted = uint16_t((1u << n) - 1);
      return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), wanted, places, p, 4);
    }
#endif
    S all[width<T>] = {};
    for (int64_t k = 0; k < n; k++) all[k] = p[k * length];
    return NAMESPACE::load(all);
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
    f(Partial<T>{n});
}
