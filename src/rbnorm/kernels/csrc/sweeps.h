// The sweeps over one area of a tensor, each read once, in order.
//
// Included once per instruction set, inside its namespace. Results per channel are written to
// tables of the area: one number for each of its channels.

// `count` vectors of sums that are under way at once.
constexpr int lanes = 4;

template <class T>
INLINE T first_of(const T* p) { return *p; }
INLINE float first_of(const BFloat16* p) { return static_cast<float>(*p); }
INLINE float first_of(const Half* p) { return static_cast<float>(*p); }

// The means over the positions of one channel, which lie in a row, of `Sums` terms.
template <class T, int Sums, class F>
INLINE std::array<double, Sums> mean_of_run(int64_t n, F terms) {
  Vec<T> total[lanes][Sums] = {};
  for_vectors<T, lanes>(n, [&](auto at) FLAT {
    repeat<at.count>([&](auto k) FLAT {
      const std::array<Vec<T>, Sums> values = terms(at, k);
      repeat<Sums>([&](auto s) FLAT { total[k][s] += at.keep(values[s]); });
    });
  });
  std::array<double, Sums> result;
  repeat<Sums>([&](auto s) FLAT {
    result[s] = double(sum<T>((total[0][s] + total[1][s]) + (total[2][s] + total[3][s]))) / n;
  });
  return result;
}

// Asks for a run's neighbour in the next instance: in training it is read next, but lies elsewhere,
// and the processor does not see it coming.
template <class S>
INLINE void fetch_next(const Shape& shape, const Area& a, const S* run) {
  if (a.n + 1 == shape.N || shape.L > 4096 / int64_t(sizeof(S))) return;
  const S* next = run + shape.C * shape.L;
  for (int64_t i = 0; i < shape.L; i += 64 / sizeof(S)) __builtin_prefetch(next + i, 0, 2);
}

// Sums of squares around a centre that lies `far` standard deviations from the mean cost the variance
// a factor 1 + far^2 of its precision; farther ones are taken again, around the mean.
constexpr double far = 4;

// Rows whose mean is the centre of the others: never farther than the root of rows / head.
constexpr int64_t least_head = 16, head_share = 16;
INLINE int64_t head_of(int64_t n) { return std::min(n, std::max(least_head, n / head_share)); }

// Rows that are read side by side.
constexpr int group_rows = 8;

template <class S, bool Variance>
void moments_of_runs(const Shape& shape, const Area& a, const S* x, table_t<S>* mean,
                     table_t<S>* variance) {
  using T = table_t<S>;
  const int64_t n = a.i1 - a.i0;
  for (int64_t c = a.c0; c < a.c1; c++) {
    const S* p = x + shape.offset(a.n, c, a.i0);
    if constexpr (Variance) fetch_next(shape, a, p);  // in evaluation it is not read next
    T center = first_of(p);
    const auto sweep = [&] {
      return mean_of_run<T, Variance ? 2 : 1>(n, [&](auto at, int k) FLAT {
        const Vec<T> d = at.load(p, k) - center;
        if constexpr (Variance)
          return std::array{d, d * d};
        else
          return std::array{d};
      });
    };
    auto means = sweep();
    if constexpr (Variance) {
      const auto spread = [&] { return std::max(means[1] - means[0] * means[0], 0.0); };
      if (means[0] * means[0] > far * far * spread()) {
        center = T(center + means[0]);
        means = sweep();
      }
      variance[c - a.c0] = T(spread());
    }
    mean[c - a.c0] = T(center + means[0]);
  }
}

// Calls f(at, offset, rows) for groups of rows, the first of which lies at `offset`; they share what
// f reads once per channel.
template <class T, int Rows, class F>
INLINE void for_rows(const Shape& shape, const Area& a, int64_t end, F f) {
  const int64_t channels = a.c1 - a.c0, C = shape.C;
  int64_t i = a.i0, offset = shape.offset(a.n, a.c0, i);
  for (; i + Rows <= end; i += Rows, offset += Rows * C)
    for_vectors<T, 1>(channels,
                      [&](auto at) { f(at, offset, std::integral_constant<int, Rows>{}); });
  for (; i < end; i++, offset += C)
    for_vectors<T, 1>(channels, [&](auto at) { f(at, offset, std::integral_constant<int, 1>{}); });
}

template <class S, bool Variance>
void moments_of_rows(const Shape& shape, const Area& a, const S* x, table_t<S>* mean,
                     table_t<S>* variance) {
  using T = table_t<S>;
  const int64_t channels = a.c1 - a.c0, rows = a.i1 - a.i0, C = shape.C;
  std::vector<T> scratch(2 * channels);
  T *center = scratch.data(), *total = center + channels;
  const S* first = x + shape.offset(a.n, a.c0, a.i0);
  for_vectors<T, 1>(channels, [&](auto at) {
    at.store(center, at.load(first));
    if constexpr (Variance) at.store(variance, Vec<T>{});
  });
  const auto sweep = [&](int64_t end, auto squares) {
    for_rows<T, group_rows>(shape, a, end, [&](auto at, int64_t offset, auto group) FLAT {
      const Vec<T> middle = at.load(center);
      Vec<T> s = at.load(total), q{};
      if constexpr (squares) q = at.load(variance);
      repeat<group>([&](auto g) FLAT {
        const Vec<T> d = at.keep(at.load(x + offset + g * C) - middle);
        s += d;
        if constexpr (squares) q += d * d;
      });
      at.store(total, s);
      if constexpr (squares) at.store(variance, q);
    });
  };
  if constexpr (Variance) {
    const int64_t head = head_of(rows);
    sweep(a.i0 + head, std::false_type{});
    for (int64_t j = 0; j < channels; j++) center[j] += total[j] / T(head), total[j] = 0;
  }
  sweep(a.i1, std::integral_constant<bool, Variance>{});
  for (int64_t j = 0; j < channels; j++) {
    const T rest = total[j] / T(rows);
    mean[j] = center[j] + rest;
    if constexpr (Variance) variance[j] = std::max(variance[j] / T(rows) - rest * rest, T(0));
  }
}

template <class S>
void moments(const Shape& shape, const Area& a, const S* x, table_t<S>* mean,
             table_t<S>* variance) {
  const auto sweep = shape.channels_last
                         ? (variance ? moments_of_rows<S, true> : moments_of_rows<S, false>)
                         : (variance ? moments_of_runs<S, true> : moments_of_runs<S, false>);
  sweep(shape, a, x, mean, variance);
}

// The numbers per channel that a sweep reads, for one instance and the first channel of the area;
// `at` reads them as vectors (channels last), [c] as one number for a whole run.
template <class T>
struct Tables {
  const T *center, *scale, *shift;
  const T *x_scale = nullptr, *dx_shift = nullptr;
};

// Calls f(at, k, factors, offset) for every vector of an area, which lies at `offset`. `factors` is
// what prepare(get) reads of the tables with get(table): once per run, or once per group of rows.
template <class S, class Prepare, class F>
INLINE void for_area(const Shape& shape, const Area& a, Prepare prepare, F f) {
  using T = table_t<S>;
  if (shape.channels_last) {
    const int64_t C = shape.C;
    for_rows<T, group_rows / 2>(shape, a, a.i1, [&](auto at, int64_t offset, auto group) FLAT {
      const auto factors = prepare([&](const T* table) { return at.load(table); });
      repeat<group>([&](auto g) FLAT { f(at, 0, factors, offset + g * C); });
    });
  } else {
    for (int64_t c = a.c0; c < a.c1; c++) {
      const auto factors = prepare([&](const T* table) { return fill(table[c - a.c0]); });
      const int64_t offset = shape.offset(a.n, c, a.i0);
      for_vectors<T, lanes>(a.i1 - a.i0, [&](auto at) FLAT {
        repeat<at.count>([&](auto k) FLAT { f(at, k, factors, offset); });
      });
    }
  }
}

template <class T>
struct Factors {
  Vec<T> center, scale, shift, x_scale, dx_shift;
};

template <class S>
struct Tail {
  const S* residual;
  int activation;
  table_t<S> slope;
  bool empty() const { return !residual && activation == NONE; }

  template <class At>
  INLINE Vec<table_t<S>> before(const At& at, int k, const Factors<table_t<S>>& f,
                                const Vec<table_t<S>>& centered, int64_t offset) const {
    const auto z = f.scale * centered + f.shift;
    return residual ? z + at.load(residual + offset, k) : z;
  }
};

template <class S, bool WithTail, bool WithCenter>
void affine_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* x,
                 const Tail<S>& tail, S* y) {
  using V = Vec<table_t<S>>;
  const auto prepare = [&](auto get) {
    return Factors<table_t<S>>{WithCenter ? get(t.center) : V{}, get(t.scale), get(t.shift)};
  };
  for_area<S>(shape, a, prepare, [&](auto at, int k, const auto& f, int64_t offset) FLAT {
    V centered = at.load(x + offset, k);
    if constexpr (WithCenter) centered -= f.center;
    if constexpr (WithTail) {
      const auto z = tail.before(at, k, f, centered, offset);
      at.store(y + offset, activate(z, tail.activation, tail.slope), k);
    } else {
      at.store(y + offset, f.scale * centered + f.shift, k);
    }
  });
}

// y = act(scale (x - center) + shift + residual).
template <class S>
void affine(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* x,
            const Tail<S>& tail, S* y) {
  const auto sweep =
      tail.empty() ? (t.center ? affine_area<S, false, true> : affine_area<S, false, false>)
                   : (t.center ? affine_area<S, true, true> : affine_area<S, true, false>);
  sweep(shape, a, t, x, tail, y);
}

// dy behind the activation: the gradient of what enters it.
template <class S, bool WithTail, class At>
INLINE Vec<table_t<S>> through(const At& at, int k, const Factors<table_t<S>>& f, const S* dy,
                               const Vec<table_t<S>>& centered, const Tail<S>& tail,
                               int64_t offset) {
  const auto given = at.load(dy + offset, k);
  if constexpr (!WithTail) return given;
  const auto z = tail.before(at, k, f, centered, offset);
  return given * activation_slope(z, tail.activation, tail.slope);
}

template <class S, bool WithTail>
void grad_moments_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                       const S* x, const Tail<S>& tail, table_t<S>* first, table_t<S>* second) {
  using T = table_t<S>;
  const int64_t n = a.i1 - a.i0, C = shape.C;
  const auto prepare = [&](auto get) {
    return WithTail ? Factors<T>{get(t.center), get(t.scale), get(t.shift)}
                    : Factors<T>{get(t.center)};
  };
  const auto terms = [&](auto at, int k, const Factors<T>& f, int64_t offset) FLAT {
    const Vec<T> centered = at.load(x + offset, k) - f.center;
    const Vec<T> dz = through<S, WithTail>(at, k, f, dy, centered, tail, offset);
    return std::array{dz, dz * centered};
  };
  if (shape.channels_last) {
    std::fill_n(first, a.c1 - a.c0, T(0));
    std::fill_n(second, a.c1 - a.c0, T(0));
    for_rows<T, group_rows / 2>(shape, a, a.i1, [&](auto at, int64_t offset, auto group) FLAT {
      const Factors<T> f = prepare([&](const T* table) { return at.load(table); });
      Vec<T> s1 = at.load(first), s2 = at.load(second);
      repeat<group>([&](auto g) FLAT {
        const auto [dz, product] = terms(at, 0, f, offset + g * C);
        s1 += at.keep(dz), s2 += at.keep(product);
      });
      at.store(first, s1), at.store(second, s2);
    });
    for (int64_t j = 0; j < a.c1 - a.c0; j++) first[j] /= T(n), second[j] /= T(n);
    return;
  }
  for (int64_t c = a.c0; c < a.c1; c++) {
    const Factors<T> f = prepare([&](const T* table) { return fill(table[c - a.c0]); });
    const int64_t offset = shape.offset(a.n, c, a.i0);
    fetch_next(shape, a, x + offset), fetch_next(shape, a, dy + offset);
    const auto means =
        mean_of_run<T, 2>(n, [&](auto at, int k) FLAT { return terms(at, k, f, offset); });
    first[c - a.c0] = T(means[0]);
    second[c - a.c0] = T(means[1]);
  }
}

// The means of dz and dz (x - center) over the positions of the area.
template <class S>
void grad_moments(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                  const S* x, const Tail<S>& tail, table_t<S>* first, table_t<S>* second) {
  (tail.activation == NONE ? grad_moments_area<S, false> : grad_moments_area<S, true>)(
      shape, a, t, dy, x, tail, first, second);
}

template <class S, bool WithTail, bool WithX>
void grad_affine_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                      const S* x, const Tail<S>& tail, S* dx, S* dresidual) {
  using V = Vec<table_t<S>>;
  const auto prepare = [&](auto get) {
    return Factors<table_t<S>>{WithTail || WithX ? get(t.center) : V{}, get(t.scale),
                               WithTail ? get(t.shift) : V{}, WithX ? get(t.x_scale) : V{},
                               get(t.dx_shift)};
  };
  for_area<S>(shape, a, prepare, [&](auto at, int k, const auto& f, int64_t offset) FLAT {
    V centered{};
    if constexpr (WithX || WithTail) centered = at.load(x + offset, k) - f.center;
    const V dz = through<S, WithTail>(at, k, f, dy, centered, tail, offset);
    if (WithTail && dresidual) at.store(dresidual + offset, dz, k);
    if (WithTail && !dx) return;
    V shifted = f.dx_shift;
    if constexpr (WithX) shifted += f.x_scale * centered;
    at.store(dx + offset, f.scale * dz + shifted, k);
  });
}

// dx = scale dz + x_scale (x - center) + dx_shift, and dz itself as the residual's gradient.
template <class S>
void grad_affine(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                 const S* x, const Tail<S>& tail, S* dx, S* dresidual) {
  const auto sweep =
      tail.activation == NONE
          ? (t.x_scale ? grad_affine_area<S, false, true> : grad_affine_area<S, false, false>)
          : (t.x_scale ? grad_affine_area<S, true, true> : grad_affine_area<S, true, false>);
  sweep(shape, a, t, dy, x, tail, dx, dresidual);
}
