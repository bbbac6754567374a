// Vectors of float32 at the width of the instruction set, and how data of each type becomes float32.
//
// Included once per instruction set, inside its namespace.

constexpr int64_t W = RBNORM_VECTOR_BYTES / 4;
typedef float V __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
typedef int32_t Mask __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(RBNORM_VECTOR_BYTES)));
typedef uint16_t Shorts __attribute__((vector_size(RBNORM_VECTOR_BYTES / 2)));

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t padded(int64_t n) { return ceil_div(n, W) * W; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }

template <class To, class From>
INLINE To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Of the type of float, which no address and no size is of: compilers then keep these in registers
// from store to store.
typedef float Anywhere __attribute__((vector_size(RBNORM_VECTOR_BYTES), aligned(4)));
INLINE V load(const float* p) { return *reinterpret_cast<const Anywhere*>(p); }
INLINE void store(float* p, const V& v) { *reinterpret_cast<Anywhere*>(p) = v; }

template <class T>
INLINE T read(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
INLINE void write(void* p, const Shorts& v) { std::memcpy(p, &v, sizeof(v)); }
INLINE V fill(float value) { return V{} + value; }
INLINE V select(const Mask& mask, const V& yes, const V& no) { return mask ? yes : no; }

// The first numbers of a vector where there are not enough for all; the others are 0.
INLINE V load_some(const float* p, int64_t n) {
  if (n >= W) return load(p);
  V v{};
  for (int64_t k = 0; k < n; k++) v[k] = p[k];
  return v;
}
INLINE void store_some(float* p, const V& v, int64_t n) {
  if (n >= W) return store(p, v);
  for (int64_t k = 0; k < n; k++) p[k] = v[k];
}

template <int... k>
INLINE Mask numbered(std::integer_sequence<int, k...>) { return Mask{k...}; }
using Lanes = std::make_integer_sequence<int, W>;

// Keeps of the last vector of a run of n numbers those that the vectors before have not; the others, and
// those behind a run that is shorter than a vector, become 0.
struct Keep {
  Mask mask;
  explicit INLINE Keep(int64_t n) {
    const int64_t from = n < W ? 0 : W - n % W, to = n < W ? n : W;
    const Mask lane = numbered(Lanes{});
    mask = (lane >= int32_t(from)) & (lane < int32_t(to));
  }
  INLINE V operator()(const V& v) const { return bits<V>(bits<Mask>(v) & mask); }
};
// Calls f(i, keep) for the vectors of a run of n numbers, each of which they keep once.
template <class F>
INLINE void once(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, [](const V& v) FLAT { return v; });
  if (i < n) f(most(n - W, 0), Keep(n));
}

// Calls f(i) for the vectors of a run of n >= W numbers; the last one may see some a second time.
template <class F>
INLINE void over(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i);
  if (i < n) f(n - W);
}

// The lanes of two vectors, in the order of `from`.
INLINE V permuted(const V& a, const V& b, const Mask& from) {
#if defined(__clang__)
  V result;
  for (int64_t k = 0; k < W; k++) result[k] = (from[k] & W ? b : a)[from[k] % W];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// a + b where the lanes of a that differ by `step` are summed, likewise of b: in a's place where
// the bit `step` of the lane is clear, in b's place where it is set.
template <int step, int... lane>
INLINE V sum_pairs(const V& a, const V& b, std::integer_sequence<int, lane...>) {
  return permuted(a, b, Mask{(lane & step ? int(W) + lane : lane)...}) +
         permuted(a, b, Mask{(lane & step ? int(W) + (lane ^ step) : lane ^ step)...});
}

// The vector whose lane k is the sum of rows[k]; the rows are overwritten.
template <int step = W / 2>
INLINE V row_sums(V* rows) {
  UNROLLED
  for (int i = 0; i < step; i++) rows[i] = sum_pairs<step>(rows[i], rows[i + step], Lanes{});
  if constexpr (step == 1)
    return rows[0];
  else
    return row_sums<step / 2>(rows);
}

INLINE bool any(const Mask& mask) {
  uint64_t set = 0, words[RBNORM_VECTOR_BYTES / 8];
  std::memcpy(words, &mask, sizeof(words));
  for (const uint64_t word : words) set |= word;
  return set != 0;
}

INLINE V sqrt(const V& x) {
#if RBNORM_VECTOR_BYTES == 64
  return _mm512_sqrt_ps(x);
#elif RBNORM_VECTOR_BYTES == 32
  return _mm256_sqrt_ps(x);
#else
  V result;
  for (int64_t k = 0; k < W; k++) result[k] = std::sqrt(x[k]);
  return result;
#endif
}

// Types -----------------------------------------------------------------------------------------

struct Float {
  using Stored = float;
  static INLINE V get(const float* p) { return load(p); }
  static INLINE void put(float* p, const V& v) { store(p, v); }
  static INLINE float number(const float* p) { return *p; }
};

// A type of 16 bits, by its conversions of vectors.
template <class Type>
struct Short {
  using Stored = uint16_t;
  static INLINE V get(const uint16_t* p) { return Type::wide(read<Shorts>(p)); }
  static INLINE void put(uint16_t* p, const V& v) { write(p, Type::narrow(v)); }
  static INLINE float number(const uint16_t* p) { return Type::wide(Shorts{*p})[0]; }
};

// A bfloat16 is the upper half of a float32.
struct BFloat : Short<BFloat> {
  static INLINE V wide(const Shorts& half) {
#if RBNORM_VECTOR_BYTES == 64
    return bits<V>(bits<Words>(_mm512_cvtepu16_epi32(bits<__m256i>(half))) << 16);
#elif RBNORM_VECTOR_BYTES == 32
    return bits<V>(bits<Words>(_mm256_cvtepu16_epi32(bits<__m128i>(half))) << 16);
#else
    return bits<V>(__builtin_convertvector(half, Words) << 16);
#endif
  }
  static INLINE Shorts narrow(const V& v) {  // to nearest, ties to even
    const Words word = bits<Words>(v), rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    const Words words = v != v ? Words{} + 0x7fc0 : rounded;
#if RBNORM_VECTOR_BYTES == 32
    const __m256i all = bits<__m256i>(words);
    return bits<Shorts>(
        _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
    return __builtin_convertvector(words, Shorts);
#endif
  }
};

struct Half : Short<Half> {
#if RBNORM_VECTOR_BYTES == 64
  static INLINE V wide(const Shorts& half) { return _mm512_cvtph_ps(bits<__m256i>(half)); }
  static INLINE Shorts narrow(const V& v) {
    return bits<Shorts>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#elif RBNORM_VECTOR_BYTES == 32
  static INLINE V wide(const Shorts& half) { return _mm256_cvtph_ps(bits<__m128i>(half)); }
  static INLINE Shorts narrow(const V& v) {
    return bits<Shorts>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static INLINE V wide(const Shorts& half) {
    const Words h = __builtin_convertvector(half, Words), size = (h & 0x7fff) << 13;
    const V tiny = bits<V>(Words{} + 0x38800000);  // 2^-14: below it the exponent is 0
    const V finite = bits<V>(size + 0x38000000), below = bits<V>(size + 0x38800000) - tiny;
    const V large = bits<V>(size + 0x70000000);  // infinite, or not a number
    const V value = size < 0x00800000u ? below : size < 0x0f800000u ? finite : large;
    return bits<V>(bits<Words>(value) | (h & 0x8000) << 16);
  }
  static INLINE Shorts narrow(const V& v) {
    const Words word = bits<Words>(v), size = word & 0x7fffffff;
    const V lifted = bits<V>(size) + 0.5f;  // adding 2^-1 rounds to a multiple of 2^-24
    const Words below = bits<Words>(lifted) - 0x3f000000;
    const Words rounded = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
    const Words large = size > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
    const Words value = size < 0x38800000u ? below : size < 0x477ff000u ? rounded : large;
    return __builtin_convertvector(value | (word >> 16 & 0x8000), Shorts);
  }
#endif
};

// Calls f(S) for the type of data.
template <class F>
INLINE void by_type(Type type, F f) {
  type == FLOAT32 ? f(Float{}) : type == BFLOAT16 ? f(BFloat{}) : f(Half{});
}

template <class S>
void widen(const void* from, float* to, int64_t n) {
  const auto p = static_cast<const typename S::Stored*>(from);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, S::get(p + i));
  if (i == n) return;
  typename S::Stored rest[W] = {};
  std::memcpy(rest, p + i, (n - i) * sizeof(*p));
  store_some(to + i, S::get(rest), n - i);
}
template <class S>
void narrow(const float* from, void* to, int64_t n) {
  const auto p = static_cast<typename S::Stored*>(to);
  int64_t i = 0;
  for (; i + W <= n; i += W) S::put(p + i, load(from + i));
  if (i == n) return;
  typename S::Stored rest[W];
  S::put(rest, load_some(from + i, n - i));
  std::memcpy(p + i, rest, (n - i) * sizeof(*p));
}

// How numbers come in and go out, by type.
struct Way {
  void (*widen)(const void*, float*, int64_t);
  void (*narrow)(const float*, void*, int64_t);
};
constexpr Way ways[TYPES] = {
    {widen<Float>, narrow<Float>}, {widen<BFloat>, narrow<BFloat>}, {widen<Half>, narrow<Half>}};
