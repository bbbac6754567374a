// Functions of vectors, over the whole range of their arguments, and sums that keep what rounding
// would lose. Relative errors are the largest of 2 10^7 float32 and 6 10^6 float64 against long double.
//
// Included once per instruction set, inside its namespace.

// What exp needs to know of a type: the bits and bias of its exponent, where the result overflows
// and where it is 0, ln 2 in two parts, and as many terms of the series as its precision needs.
template <class T>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr int mantissa = 23, bias = 127, terms = 7;
  static constexpr float low = -104, high = 89, magic = 12582912, upper = 0.693359375f,
                         lower = -2.12194440e-4f;
};
template <>
struct Exponent<double> {
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double low = -746, high = 710, magic = 6755399441055744,
                          upper = 6.93147180369123816490e-01, lower = 1.90821492927058770002e-10;
};

constexpr double factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

// e^x = 2^k (1 + p), |p| < 0.42, for x that is neither too low nor too high.
template <class T>
struct Power {
  Vec<T> k, p;
  INLINE explicit Power(const Vec<T>& x) {
    using E = Exponent<T>;
    const Vec<T> magic = fill(E::magic);  // 1.5 * 2^mantissa: adding it rounds to an integer
    k = (x * T(1.44269504088896340736) + magic) - magic;
    const Vec<T> r = (x - k * E::upper) - k * E::lower;
    Vec<T> sum = fill(T(1 / factorial(E::terms)));
    repeat<E::terms - 1>([&](auto i) FLAT { sum = sum * r + T(1 / factorial(E::terms - 1 - i)); });
    p = r * sum;
  }
  INLINE Vec<T> times(const Vec<T>& v) const {  // 2^k v; 2^k may overflow
#if RBNORM_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return _mm512_scalef_ps(v, k);
    else
      return _mm512_scalef_pd(v, k);
#else
    using E = Exponent<T>;
    const Vec<T> magic = fill(E::magic);
    const Mask<T> all = bits<Mask<T>>(k + magic) - bits<Mask<T>>(magic), half = all >> 1;
    const auto power = [](const Mask<T>& i) FLAT { return bits<Vec<T>>((i + E::bias) << E::mantissa); };
    return v * power(half) * power(all - half);
#endif
  }
};

// Relative error 8e-8 in float32 and 1.4e-16 in float64; results below the normal range lose bits.
template <class T>
INLINE Vec<T> exp_of(const Vec<T>& x) {
  const Vec<T> low = fill(Exponent<T>::low), high = fill(Exponent<T>::high);
  const Power<T> power(select(x < low, low, select(x > high, high, x)));
  return power.times(power.p + T(1));
}
INLINE Vec<float> exp(const Vec<float>& x) { return exp_of<float>(x); }
INLINE Vec<double> exp(const Vec<double>& x) { return exp_of<double>(x); }

// By e^(2|x|) - 1, which keeps its precision at 0. Relative error 2.4e-7 in float32, 4.4e-16 in float64.
template <class T>
INLINE Vec<T> tanh_of(const Vec<T>& x) {
  const Vec<T> size = select(x < Vec<T>{}, -x, x), one = fill(T(sizeof(T) == 4 ? 10 : 20));
  const Power<T> power(T(2) * select(size > one, one, size));
  const Vec<T> less = power.times(power.p) + (power.times(fill(T(1))) - T(1));
  const Vec<T> result = less / (less + T(2));
  return select(x < Vec<T>{}, -result, select(x == Vec<T>{}, x, result));
}
INLINE Vec<float> tanh(const Vec<float>& x) { return tanh_of<float>(x); }
INLINE Vec<double> tanh(const Vec<double>& x) { return tanh_of<double>(x); }

INLINE Vec<float> sqrt(const Vec<float>& x) {
#if RBNORM_VECTOR_BYTES == 64
  return _mm512_sqrt_ps(x);
#elif RBNORM_VECTOR_BYTES == 32
  return _mm256_sqrt_ps(x);
#else
  return lanewise(x, [](float v) { return std::sqrt(v); });
#endif
}
INLINE Vec<double> sqrt(const Vec<double>& x) {
#if RBNORM_VECTOR_BYTES == 64
  return _mm512_sqrt_pd(x);
#elif RBNORM_VECTOR_BYTES == 32
  return _mm256_sqrt_pd(x);
#else
  return lanewise(x, [](double v) { return std::sqrt(v); });
#endif
}

// 1 / v for v >= 1, to a unit in the last place: an estimate and a step of Newton's method cost less
// than a division of 16 numbers. What is below the normal range keeps 14 bits.
template <class T>
INLINE Vec<T> inverse(const Vec<T>& v) {
#if RBNORM_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const Vec<T> r = _mm512_rcp14_ps(v);
    return select(v < fill(T(0x1p126)), r + r * (T(1) - v * r), r);
  }
#endif
  return T(1) / v;
}

// A sum over many rows with the rounding errors carried along (Kahan), as long as it is finite.
template <class T>
struct Sum {
  Vec<T> total{}, lost{};
  INLINE void add(const Vec<T>& v) {
    const Vec<T> y = v - lost, t = total + y;
    lost = select(t - t == Vec<T>{}, (t - total) - y, Vec<T>{});
    total = t;
  }
};

// A mean over n rows whose sum must not overflow where the mean does not.
template <class T>
struct Mean {
  T scale, rest;  // a power of two, and what is missing of n
  explicit Mean(int64_t n) : scale(std::ldexp(T(1), -std::ilogb(double(n)) - 1)), rest(n * scale) {}
  INLINE Vec<T> share(const Vec<T>& v) const { return v * scale; }
  INLINE Vec<T> of(const Sum<T>& shares) const { return shares.total / rest; }
};
