// The functions of one number: restrictions R and activations act, each with its derivative.
//
// A new one is a name in kernels.h, and the two functions below with their place in the table of
// functions. Included once per instruction set, inside its namespace.

// e^x = 2^k (1 + p), |p| < 0.42, for x that is neither too low nor too high.
struct Power {
  V k, p;
  explicit INLINE Power(const V& x) {
    const V magic = fill(12582912);  // 1.5 2^23: adding it rounds to an integer
    k = (x * 1.44269504088896340736f + magic) - magic;
    const V r = (x - k * 0.693359375f) - k * -2.12194440e-4f;  // ln 2 in two parts
    V sum = fill(1 / 5040.f);
    constexpr float terms[] = {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1};
    for (const float term : terms) sum = sum * r + term;
    p = r * sum;
  }
  INLINE V times(const V& v) const {  // 2^k v; 2^k may overflow
#if RBNORM_VECTOR_BYTES == 64
    return _mm512_scalef_ps(v, k);
#else
    const V magic = fill(12582912);
    const Mask all = bits<Mask>(k + magic) - bits<Mask>(magic), half = all >> 1;
    return v * bits<V>((half + 127) << 23) * bits<V>((all - half + 127) << 23);
#endif
  }
};

// Relative error 8e-8 over the whole range, the largest of 2 10^7 against long double; results below
// the normal range lose bits.
INLINE V exp(const V& x) {
  const V low = fill(-104), high = fill(89);
  const Power power(select(x < low, low, select(x > high, high, x)));
  return power.times(power.p + 1.f);
}

// By e^(2|x|) - 1, which keeps its precision at 0. Relative error 2.4e-7.
INLINE V tanh(const V& x) {
  const V size = select(x < V{}, -x, x), end = fill(10);
  const Power power(2.f * select(size > end, end, size));
  const V lower = power.times(power.p) + (power.times(fill(1)) - 1.f), result = lower / (lower + 2.f);
  return select(x < V{}, -result, select(x == V{}, x, result));
}

INLINE V sigmoid(const V& x) { return 1.f / (1.f + exp(-x)); }

// The cumulative normal distribution, number by number.
INLINE V normal(const V& z) {
  float lane[W];
  store(lane, z);
  for (float& v : lane) v = 0.5f * std::erfc(-0.70710678f * v);
  return load(lane);
}

// Restrictions: R(s), and where `derivative` is given R'(s) in there.
struct Sigmoid {
  INLINE V operator()(const V& s, V& derivative) const {
    const V g = sigmoid(s);
    derivative = g * (1.f - g);
    return g;
  }
};
struct Tanh {
  INLINE V operator()(const V& s, V& derivative) const {
    const V g = tanh(s);
    derivative = 1.f - g * g;
    return g;
  }
};
struct HardSigmoid {
  INLINE V operator()(const V& s, V& derivative) const {
    const V g = s / 6.f + 0.5f, one = fill(1), size = select(s < V{}, -s, s);
    derivative = select(size < fill(3), fill(1 / 6.f), V{});
    return select(g < V{}, V{}, select(g > one, one, g));
  }
};
struct SoftSign {
  INLINE V operator()(const V& s, V& derivative) const {
    const V size = 1.f + select(s < V{}, -s, s);
    derivative = 1.f / (size * size);
    return s / size;
  }
};
struct Clip01 {
  INLINE V operator()(const V& s, V& derivative) const {
    const V one = fill(1);
    derivative = select(s >= V{}, select(s <= one, one, V{}), V{});
    return select(s < V{}, V{}, select(s > one, one, s));
  }
};
struct Identity {
  INLINE V operator()(const V& s, V& derivative) const {
    derivative = fill(1);
    return s;
  }
};

// Activations: act(z), and act'(z) with torch's choice at the kinks.
struct Relu {
  static INLINE V f(const V& z, float) { return select(z <= V{}, V{}, z); }
  static INLINE V grad(const V& z, float) { return select(z <= V{}, V{}, fill(1)); }
};
struct LeakyRelu {
  static INLINE V f(const V& z, float slope) { return select(z <= V{}, z * slope, z); }
  static INLINE V grad(const V& z, float slope) { return select(z <= V{}, fill(slope), fill(1)); }
};
// z R(z): of the sigmoid it is SiLU, of its piecewise form hardswish.
template <class R>
struct Gated {
  static INLINE V f(const V& z, float) {
    V slope;
    return z * R()(z, slope);
  }
  static INLINE V grad(const V& z, float) {
    V slope;
    const V gate = R()(z, slope);
    return gate + z * slope;
  }
};
struct Gelu {
  static INLINE V f(const V& z, float) { return z * normal(z); }
  static INLINE V grad(const V& z, float) {
    return normal(z) + z * exp(-0.5f * z * z) * 0.3989422804014327f;
  }
};
struct GeluTanh {
  static INLINE V exponent(const V& z) { return -1.5957691216057308f * (z + 0.044715f * z * z * z); }
  static INLINE V f(const V& z, float) { return z / (1.f + exp(exponent(z))); }
  static INLINE V grad(const V& z, float) {
    const V gate = 1.f / (1.f + exp(exponent(z)));
    return gate + z * gate * (1.f - gate) * 1.5957691216057308f * (1.f + 3 * 0.044715f * z * z);
  }
};

// Over a strip of numbers, in place; its tail by a padded vector.
template <class F>
INLINE void strip(float* z, const float* other, int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(z + i, f(load(z + i), load(other + i)));
  if (i < n) store_some(z + i, f(load_some(z + i, n - i), load_some(other + i, n - i)), n - i);
}

// s becomes R(s), and `derivative`, where it is given, R'(s).
template <class R>
void restricted(float* s, float* derivative, int64_t n) {
  int64_t i = 0;
  V slope;
  for (; i < n; i += W) {
    const V g = R()(load_some(s + i, n - i), slope);
    store_some(s + i, g, n - i);
    if (derivative) store_some(derivative + i, slope, n - i);
  }
}
// z becomes act(z), or act'(z) dy.
template <class A>
void activated(float* z, int64_t n, float slope) {
  strip(z, z, n, [=](const V& v, const V&) FLAT { return A::f(v, slope); });
}
template <class A>
void differentiated(float* z, const float* dy, int64_t n, float slope) {
  strip(z, dy, n, [=](const V& v, const V& d) FLAT { return A::grad(v, slope) * d; });
}

struct Act {
  void (*f)(float*, int64_t, float);
  void (*grad)(float*, const float*, int64_t, float);
};
template <class A>
constexpr Act act{activated<A>, differentiated<A>};

using Restrict = void (*)(float*, float*, int64_t);
constexpr Restrict restrict_by[] = {restricted<Sigmoid>,  restricted<Tanh>,     restricted<HardSigmoid>,
                                    restricted<SoftSign>, restricted<Identity>, restricted<Clip01>};
constexpr Act act_by[] = {{nullptr, nullptr}, act<Relu>, act<LeakyRelu>, act<Gated<Sigmoid>>,
                          act<Gated<HardSigmoid>>, act<Gelu>, act<GeluTanh>};
