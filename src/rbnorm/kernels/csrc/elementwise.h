// The functions of one number: restrictions R and activations act, each with its derivative.
//
// A new one is a code, a line in the table of names, and a case in the functions below. Included
// once for the codes and names, then once per instruction set, inside its namespace.

#ifndef RBNORM_BACKEND

enum Restriction { SIGMOID = 0, TANH = 1, HARDSIGMOID = 2, SOFTSIGN = 3, IDENTITY = 4, CLIP01 = 5 };
enum Activation { NONE = 0, RELU = 1, LEAKY_RELU = 2, SILU = 3, HARDSWISH = 4, GELU = 5, GELU_TANH = 6 };

// What the Python side calls a function, and the number that the ops take for it.
struct Named {
  const char* name;
  int code;
};

constexpr Named restrictions[] = {{"sigmoid", SIGMOID},
                                  {"tanh", TANH},
                                  {"hardsigmoid", HARDSIGMOID},
                                  {"softsign", SOFTSIGN},
                                  {"clip01", CLIP01},
                                  {"identity", IDENTITY}};

constexpr Named activations[] = {{"none", NONE},
                                 {"relu", RELU},
                                 {"leaky_relu", LEAKY_RELU},
                                 {"silu", SILU},
                                 {"hardswish", HARDSWISH},
                                 {"gelu", GELU},
                                 {"gelu_tanh", GELU_TANH}};

template <int Count>
constexpr bool has_code(const Named (&table)[Count], int64_t code) {
  for (const Named& entry : table)
    if (entry.code == code) return true;
  return false;
}

#else

// R(s), and R'(s) where it is asked for.
template <class T>
INLINE Vec<T> restricted(const Vec<T>& s, int restriction, Vec<T>* derivative) {
  const Vec<T> one = fill(T(1)), size = select(s < Vec<T>{}, -s, s);
  Vec<T> g = s, slope = one;
  switch (restriction) {
    case SIGMOID:
      g = inverse<T>(one + exp(-s));
      slope = g * (one - g);
      break;
    case TANH:
      g = tanh(s);
      slope = one - g * g;
      break;
    case HARDSIGMOID:
      g = s / T(6) + T(0.5);
      g = select(g < Vec<T>{}, Vec<T>{}, select(g > one, one, g));
      slope = select(size < fill(T(3)), fill(T(1) / 6), Vec<T>{});
      break;
    case SOFTSIGN:
      g = s / (one + size);
      slope = one / ((one + size) * (one + size));
      break;
    case CLIP01:
      g = select(s < Vec<T>{}, Vec<T>{}, select(s > one, one, s));
      slope = select(s >= Vec<T>{}, select(s <= one, one, Vec<T>{}), Vec<T>{});
      break;
  }
  if (derivative) *derivative = slope;
  return g;
}

// The cumulative normal distribution, number by number; out of line, as it is long and seldom wanted.
template <class T>
__attribute__((noinline)) void to_normal(T* z) {
  for (int64_t k = 0; k < width<T>; k++) z[k] = T(0.5) * std::erfc(T(-0.7071067811865476) * z[k]);
}
template <class T>
INLINE Vec<T> normal(const Vec<T>& z) {
  T lanes[width<T>];
  store(lanes, z);
  to_normal(lanes);
  return load(lanes);
}

// -2 sqrt(2 / pi) (z + 0.044715 z^3).
template <class T>
INLINE Vec<T> gelu_exponent(const Vec<T>& z) {
  return T(-1.5957691216057308) * (z + T(0.044715) * z * z * z);
}

// act(z).
template <class T>
INLINE Vec<T> activate(const Vec<T>& z, int activation, T slope) {
  const Vec<T> zero{}, one = fill(T(1));
  switch (activation) {
    case RELU: return select(z <= zero, zero, z);
    case LEAKY_RELU: return select(z <= zero, z * slope, z);
    case SILU: return z / (one + exp(-z));
    case HARDSWISH: {
      const Vec<T> gate = z / T(6) + T(0.5);
      return z * select(gate <= zero, zero, select(gate >= one, one, gate));
    }
    case GELU: return z * normal<T>(z);
    case GELU_TANH: return z / (one + exp(gelu_exponent<T>(z)));
    default: return z;
  }
}

// act'(z).
template <class T>
INLINE Vec<T> activation_grad(const Vec<T>& z, int activation, T slope) {
  const Vec<T> zero{}, one = fill(T(1));
  switch (activation) {
    case RELU: return select(z <= zero, zero, one);
    case LEAKY_RELU: return select(z <= zero, fill(slope), one);
    case SILU: {
      const Vec<T> gate = one / (one + exp(-z));
      return gate * (one + z * (one - gate));
    }
    case HARDSWISH: {
      const Vec<T> inside = z / T(3) + T(0.5);
      return select(z <= fill(T(-3)), zero, select(z >= fill(T(3)), one, inside));
    }
    case GELU: return normal<T>(z) + z * exp(T(-0.5) * z * z) * T(0.3989422804014327);
    case GELU_TANH: {
      const Vec<T> gate = one / (one + exp(gelu_exponent<T>(z)));
      return gate + z * gate * (one - gate) * T(1.5957691216057308) * (one + T(3 * 0.044715) * z * z);
    }
    default: return one;
  }
}

#endif
