// The sweeps over one area of a tensor that sum: moments of x, and those that the gradient needs.
// Results per channel are written to tables of the area: one number for each of its channels.
//
// Included once per instruction set, inside its namespace.

template <class T>
INLINE T number(const T* p) { return *p; }
INLINE float number(const BFloat16* p) { return static_cast<float>(*p); }
INLINE float number(const Half* p) { return static_cast<float>(*p); }

// The moments of one channel where sums in T were not finite: in double, and scaled by a power of
// two, so that they are finite as long as the moments are.
template <class S>
__attribute__((noinline)) void moments_carefully(const Shape& shape, const Area& a, int64_t c,
                                                 const S* x, table_t<S>* mean,
                                                 table_t<S>* variance, table_t<S>* rest) {
  const int64_t n = a.i1 - a.i0;
  const double scale = std::ldexp(1.0, -std::ilogb(double(n)) - 1), share = n * scale;
  const auto sum = [&](auto term) {
    double total = 0;
    for (int64_t i = a.i0; i < a.i1; i++) total += term(number(x + shape.offset(a.n, c, i)));
    return total / share;
  };
  const double m = sum([&](double v) { return v * scale; });
  *mean = table_t<S>(m);
  if (rest) *rest = table_t<S>(std::isfinite(*mean) ? m - double(*mean) : 0);
  if (variance) *variance = table_t<S>(sum([&](double v) { return (v - m) * scale * (v - m); }));
}

// Where the moments of an area go; `rest` is what the mean lost when it was rounded to T. The last
// two are null where they are not wanted.
template <class T>
struct MomentTables {
  T *mean, *variance, *rest;
};

// Stores the moments of a vector of channels from `c` on, given the means of d = x - center and d^2.
template <class S, bool Variance, class At>
INLINE void store_moments(const Shape& shape, const Area& a, int64_t c, const At& at, const S* x,
                          const Vec<table_t<S>>& center, const Vec<table_t<S>>& first,
                          const Vec<table_t<S>>& second,
                          const MomentTables<table_t<S>>& out) {
  using V = Vec<table_t<S>>;
  const int64_t j = c - a.c0;
  const V mean = center + first, back = mean - center;
  at.store(out.mean + j, mean);
  if (out.rest) at.store(out.rest + j, (center - (mean - back)) + (first - back));
  V spread{};
  if constexpr (Variance) {
    spread = second - first * first;
    spread = select(spread < V{}, V{}, spread);
    at.store(out.variance + j, spread);
  }
  if (all_finite<table_t<S>>(at.keep(mean + spread))) return;
  for (int64_t k = 0; k < std::min(width<table_t<S>>, a.c1 - c); k++)
    moments_carefully(shape, a, c + k, x, out.mean + j + k,
                      Variance ? out.variance + j + k : nullptr,
                      out.rest ? out.rest + j + k : nullptr);
}

// Calls f(c, at) for every vector of channels of an area, the last one being a part of one.
template <class T, class F>
INLINE void for_channels(const Area& a, F f) {
  int64_t c = a.c0;
  for (; c + width<T> <= a.c1; c += width<T>) f(c, Whole<T, 1>{0});
  if (c < a.c1) f(c, Partial<T>{a.c1 - c});
}

// Contiguous runs -------------------------------------------------------------------------------

// Asks for a run's neighbour in the next instance: in training it is read next, but lies elsewhere,
// and the processor does not see it coming.
template <class S>
INLINE void fetch_next(const Shape& shape, const Area& a, const S* run) {
  if (a.n + 1 == shape.N || shape.L > 4096 / int64_t(sizeof(S))) return;
  const S* next = run + shape.C * shape.L;
  for (int64_t i = 0; i < shape.L; i += 64 / sizeof(S)) __builtin_prefetch(next + i, 0, 2);
}

// The means over the positions of `count` channels, lane for lane, of `Sums` terms: prepare(k) gives
// terms(at, j) of channel k.
template <class T, int Sums, class Prepare>
INLINE std::array<Vec<T>, Sums> means_of_runs(int64_t count, int64_t n, Prepare prepare) {
  Vec<T> rows[Sums][width<T>];
  for (int64_t k = 0; k < count; k++) {
    const auto terms = prepare(k);
    Vec<T> total[lanes][Sums] = {};
    for_vectors<T, lanes>(n, [&](auto at) FLAT {
      repeat<at.count>([&](auto j) FLAT {
        const std::array<Vec<T>, Sums> values = terms(at, j);
        repeat<Sums>([&](auto s) FLAT { total[j][s] += at.keep(values[s]); });
      });
    });
    repeat<Sums>([&](auto s) FLAT {
      rows[s][k] = (total[0][s] + total[1][s]) + (total[2][s] + total[3][s]);
    });
  }
  std::array<Vec<T>, Sums> result;
  repeat<Sums>([&](auto s) FLAT {
    for (int64_t k = count; k < width<T>; k++) rows[s][k] = Vec<T>{};
    result[s] = row_sums<T>(rows[s]) / T(n);
  });
  return result;
}

// Sums of squares around a centre that lies `distant` standard deviations from the mean cost the variance
// a factor 1 + distant^2 of its precision; farther ones are taken again, around the mean.
constexpr double distant = 4;

template <class S, bool Variance>
void moments_of_runs(const Shape& shape, const Area& a, const S* x,
                     const MomentTables<table_t<S>>& out) {
  using T = table_t<S>;
  const int64_t n = a.i1 - a.i0, L = shape.L;
  for_channels<T>(a, [&](int64_t c, auto at) FLAT {
    const int64_t count = std::min(width<T>, a.c1 - c);
    const S* first = x + shape.offset(a.n, c, a.i0);
    T center[width<T>] = {};
    for (int64_t k = 0; k < count; k++) center[k] = number(first + k * L);
    const auto sweep = [&]() FLAT {
      return means_of_runs<T, Variance ? 2 : 1>(count, n, [&](int64_t k) FLAT {
        const S* p = first + k * L;
        if constexpr (Variance) fetch_next(shape, a, p);  // in evaluation it is not read next
        return [p, middle = fill(center[k])](auto at, int j) FLAT {
          const Vec<T> d = at.load(p, j) - middle;
          if constexpr (Variance)
            return std::array{d, d * d};
          else
            return std::array{d};
        };
      });
    };
    auto means = sweep();
    Vec<T> second{};
    if constexpr (Variance) {
      const Vec<T> distance = means[0] * means[0];
      if (any<T>(distance > T(distant * distant) * select(means[1] > distance, means[1] - distance, Vec<T>{}))) {
        store(center, load(center) + means[0]);
        means = sweep();
      }
      second = means[1];
    }
    store_moments<S, Variance>(shape, a, c, at, x, load(center), means[0], second, out);
  });
}

// Few positions --------------------------------------------------------------------------------

// Positions so few that those of a vector of channels stay in registers.
constexpr int64_t few_positions = 8;

template <class T>
INLINE bool has_few_positions(const Shape& shape, const Area& a) {
  return shape.channels_last ? a.i1 - a.i0 <= few_positions && tile_of<T>(shape.C, a.i1 - a.i0) == 1
                             : has_short_runs<T>(shape);
}

// Calls f(at, i, offset) for every position i of a vector of channels from c on, which `at` reads.
template <class T, class At, class F>
INLINE void for_few(const Shape& shape, const Area& a, int64_t c, const At& at, F f) {
  const int64_t first = shape.offset(a.n, c, a.i0), n = a.i1 - a.i0;
  if (shape.channels_last) {
    for (int64_t i = 0; i < n; i++) f(at, i, first + i * shape.C);
  } else {
    const Strided<T> of_each{std::min(width<T>, a.c1 - c), shape.L};
    for (int64_t i = 0; i < n; i++) f(of_each, i, first + i);
  }
}

// The means of a vector of channels from c on.
template <class S, class At>
INLINE Vec<table_t<S>> mean_of_few(const Shape& shape, const Area& a, int64_t c, const At& at,
                                   const S* x) {
  using T = table_t<S>;
  Vec<T> origin{}, sum{};
  for_few<T>(shape, a, c, at, [&](auto of_each, int64_t i, int64_t offset) FLAT {
    const Vec<T> value = of_each.load(x + offset);
    if (i == 0) origin = value;
    sum += value - origin;
  });
  const Vec<T> mean = origin + sum / T(a.i1 - a.i0);
  if (all_finite<T>(at.keep(mean))) return mean;
  T careful[width<T>] = {};
  for (int64_t k = 0; k < std::min(width<T>, a.c1 - c); k++)
    moments_carefully<S>(shape, a, c + k, x, careful + k, nullptr, nullptr);
  return load(careful);
}

template <class S, bool Variance>
void moments_of_few(const Shape& shape, const Area& a, const S* x,
                    const MomentTables<table_t<S>>& out) {
  using T = table_t<S>;
  const T n = T(a.i1 - a.i0);
  for_channels<T>(a, [&](int64_t c, auto at) FLAT {
    if constexpr (!Variance) {
      at.store(out.mean + (c - a.c0), mean_of_few(shape, a, c, at, x));
    } else {
      Vec<T> values[few_positions], sum{}, first{}, second{};
      values[0] = sum;  // compilers cannot tell that there is a position
      for_few<T>(shape, a, c, at, [&](auto of_each, int64_t i, int64_t offset) FLAT {
        values[i] = of_each.load(x + offset);
        sum += values[i] - values[0];
      });
      const Vec<T> center = values[0] + sum / n;
      for (int64_t i = 0; i < a.i1 - a.i0; i++) {
        const Vec<T> d = values[i] - center;
        first += d, second += d * d;
      }
      store_moments<S, true>(shape, a, c, at, x, center, first / n, second / n, out);
    }
  });
}

// Rows ------------------------------------------------------------------------------------------

// Rows whose mean is the centre of the others: never farther than the root of rows / head, and so
// than `distant` standard deviations.
constexpr int64_t least_head = 8, head_share = 16;
INLINE int64_t head_of(int64_t n) { return std::min(n, std::max(least_head, n / head_share)); }

constexpr int64_t block_channels = 1024;  // whose sums are under way at once
static_assert(block_channels >= most_wide);

// Calls f(area) for blocks of an area's channels.
template <class F>
INLINE void for_blocks(const Area& a, F f) {
  for (Area part = a; part.c0 < a.c1; part.c0 = part.c1) {
    part.c1 = std::min(a.c1, part.c0 + block_channels);
    f(part);
  }
}

// Adds up terms(at, factors, offset) over the rows in `sums`, folded to one number per channel;
// prepare(at) gives the factors of a group of rows.
template <class T, int Sums, int Group, class Prepare, class Terms>
INLINE void sum_rows(const Rows& rows, T (&sums)[Sums][block_channels], Prepare prepare,
                     Terms terms) {
  for (T* sum : sums) std::fill_n(sum, rows.width, T(0));
  for_rows<T, Group>(rows, [&](auto at, int64_t offset, auto group) FLAT {
    const auto factors = prepare(at);
    std::array<Vec<T>, Sums> total;
    repeat<Sums>([&](auto s) FLAT { total[s] = at.load(sums[s]); });
    repeat<group>([&](auto g) FLAT {
      const std::array<Vec<T>, Sums> values = terms(at, factors, offset + g * rows.stride);
      repeat<Sums>([&](auto s) FLAT { total[s] += at.keep(values[s]); });
    });
    repeat<Sums>([&](auto s) FLAT { at.store(sums[s], total[s]); });
  });
  for (T* sum : sums) fold_row(sum, rows.width / rows.tile, rows.tile);
}

template <class S, bool Variance>
void moments_of_rows(const Shape& shape, const Area& all, const S* x,
                     const MomentTables<table_t<S>>& out) {
  using T = table_t<S>;
  const T n = T(all.i1 - all.i0);
  for_blocks(all, [&](const Area& a) FLAT {
    const Rows rows = Rows::of<T>(shape, a);
    const int64_t channels = a.c1 - a.c0;
    T center[block_channels], sums[2][block_channels], firsts[1][block_channels];
    const auto middle = [&](auto at) FLAT { return at.load(center); };
    const auto sum = [&](const Rows& some) FLAT {
      sum_rows<T, 1, group_rows>(some, firsts, middle,
                                 [&](auto at, const Vec<T>& middle, int64_t offset) FLAT {
                                   return std::array{at.load(x + offset) - middle};
                                 });
    };
    for_vectors<T, 1>(channels, [&](auto at) FLAT { at.store(center, at.load(x + rows.offset)); });
    tile_row(center, channels, rows.tile);
    if constexpr (Variance) {
      Area head = a;
      head.i1 = a.i0 + head_of(a.i1 - a.i0);
      sum(Rows::of<T>(shape, head));
      for (int64_t j = 0; j < channels; j += width<T>)
        store(center + j, load(center + j) + load(firsts[0] + j) / T(head.i1 - head.i0));
      tile_row(center, channels, rows.tile);
      sum_rows<T, 2, group_rows>(rows, sums, middle,
                                 [&](auto at, const Vec<T>& middle, int64_t offset) FLAT {
                                   const Vec<T> d = at.load(x + offset) - middle;
                                   return std::array{d, d * d};
                                 });
    } else {
      sum(rows);
    }
    const T *first = Variance ? sums[0] : firsts[0], *second = sums[1];
    const MomentTables<T> part{out.mean + (a.c0 - all.c0),
                               Variance ? out.variance + (a.c0 - all.c0) : nullptr,
                               out.rest ? out.rest + (a.c0 - all.c0) : nullptr};
    for_channels<T>(a, [&](int64_t c, auto at) FLAT {
      const int64_t j = c - a.c0;
      store_moments<S, Variance>(shape, a, c, at, x, at.load(center + j), at.load(first + j) / n,
                                 Variance ? at.load(second + j) / n : Vec<T>{}, part);
    });
  });
}

// The means over the positions of the area, and the variances where they are wanted.
template <class S>
void moments(const Shape& shape, const Area& a, const S* x, table_t<S>* mean, table_t<S>* variance,
             table_t<S>* rest = nullptr) {
  using T = table_t<S>;
  const auto sweep =
      has_few_positions<T>(shape, a)
          ? (variance ? moments_of_few<S, true> : moments_of_few<S, false>)
      : shape.channels_last
          ? (variance ? moments_of_rows<S, true> : moments_of_rows<S, false>)
          : (variance ? moments_of_runs<S, true> : moments_of_runs<S, false>);
  sweep(shape, a, x, {mean, variance, rest});
}

// Gradients -------------------------------------------------------------------------------------

template <class S, bool WithTail>
void grad_moments_area(const Shape& shape, const Area& all, const Tables<table_t<S>>& tables,
                       const S* dy, const S* x, const Tail<S>& tail, table_t<S>* first,
                       table_t<S>* second) {
  using T = table_t<S>;
  const int64_t n = all.i1 - all.i0;
  const auto prepare = [](const Tables<T>& t, auto get) FLAT {
    return WithTail ? Factors<T>{get(t.center), get(t.scale), get(t.shift)}
                    : Factors<T>{get(t.center)};
  };
  const auto terms = [&](auto at, int k, const Factors<T>& f, int64_t offset) FLAT {
    const Vec<T> centered = at.load(x + offset, k) - f.center;
    const Vec<T> dz = through<S, WithTail>(at, k, f, dy, centered, tail, offset);
    return std::array{dz, dz * centered};
  };
  if (shape.channels_last && !has_few_positions<T>(shape, all)) {
    for_blocks(all, [&](const Area& a) FLAT {
      const Rows rows = Rows::of<T>(shape, a);
      const int64_t done = a.c0 - all.c0;
      Wide<T> wide;
      const Tables<T> t = wide.tiled(tables.from(done), shape.C, rows.tile);
      T sums[2][block_channels];
      sum_rows<T, 2, group_rows / 2>(
          rows, sums,
          [&](auto at) FLAT {
            return prepare(t, [&](const T* table) FLAT { return at.load(table); });
          },
          [&](auto at, const Factors<T>& f, int64_t offset) FLAT { return terms(at, 0, f, offset); });
      for_vectors<T, 1>(a.c1 - a.c0, [&](auto at) FLAT {
        at.store(first + done, at.load(sums[0]) / T(n));
        at.store(second + done, at.load(sums[1]) / T(n));
      });
    });
    return;
  }
  for_channels<T>(all, [&](int64_t c, auto at) FLAT {
    const int64_t count = std::min(width<T>, all.c1 - c), offset = shape.offset(all.n, c, all.i0);
    std::array<Vec<T>, 2> means{};
    if (has_few_positions<T>(shape, all)) {
      const Factors<T> f = prepare(tables.from(c - all.c0),
                                   [&](const T* table) FLAT { return at.load(table); });
      for_few<T>(shape, all, c, at, [&](auto of_each, int64_t, int64_t place) FLAT {
        const auto values = terms(of_each, 0, f, place);
        repeat<2>([&](auto s) FLAT { means[s] += values[s]; });
      });
      repeat<2>([&](auto s) FLAT { means[s] = means[s] / T(n); });
    } else {
      means = means_of_runs<T, 2>(count, n, [&](int64_t k) FLAT {
        const int64_t run = offset + k * shape.L;
        fetch_next(shape, all, x + run), fetch_next(shape, all, dy + run);
        const Factors<T> f = prepare(
            tables, [&](const T* table) FLAT { return fill(table[c - all.c0 + k]); });
        return [&terms, f, run](auto at, int j) FLAT { return terms(at, j, f, run); };
      });
    }
    at.store(first + (c - all.c0), means[0]), at.store(second + (c - all.c0), means[1]);
  });
}

// The means of dz and dz (x - center) over the positions of the area.
template <class S>
void grad_moments(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                  const S* x, const Tail<S>& tail, table_t<S>* first, table_t<S>* second) {
  (tail.activation == NONE ? grad_moments_area<S, false> : grad_moments_area<S, true>)(
      shape, a, t, dy, x, tail, first, second);
}
