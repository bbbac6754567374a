// The sweeps over one area that sum: moments of x, and those that the gradient needs. Results are
// written to tables, from the area's first channel on: one number for each of its channels.
//
// Included once per instruction set, inside its namespace.

// Two sums for each of a block of channels, or one where `second` is not wanted.
struct Sums {
  alignas(64) float first[block_channels + W], second[block_channels + W];
  void clear(int64_t n) {
    std::fill_n(first, padded(n), 0.f);
    std::fill_n(second, padded(n), 0.f);
  }
};

// What a sweep adds up of a vector at a place: two terms of dz and x - center, or of x - center alone.
struct Mean {
  static constexpr int sums = 1;
  template <class Rows, class R>
  static INLINE void at(Rows, Rows x, const R& r, int64_t j, const V& center, V* out) {
    out[0] = x.get(r, j) - center;
  }
};
struct Moment {
  static constexpr int sums = 2;
  template <class Rows, class R>
  static INLINE void at(Rows, Rows x, const R& r, int64_t j, const V& center, V* out) {
    const V d = x.get(r, j) - center;
    out[0] = d, out[1] = d * d;
  }
};
struct Gradient {
  static constexpr int sums = 2;
  template <class Rows, class R>
  static INLINE void at(Rows dz, Rows x, const R& r, int64_t j, const V& center, V* out) {
    const V d = dz.get(r, j);
    out[0] = d, out[1] = d * (x.get(r, j) - center);
  }
};

// Adds up a tile of runs: a vector of rows at a time, whose sums are turned into lanes.
template <class Term, class S, class Ahead>
void sum_runs(const Piece& tile, const float* center, RowsOf<S> dz, RowsOf<S> x, float* first, float* second,
              Ahead fetch) {
  constexpr int K = Term::sums;
  const int64_t n = tile.width, rest = n % W;
  const Keep keep(n);
  for (int64_t r0 = 0; r0 < tile.rows; r0 += W) {
    const int64_t count = least(W, tile.rows - r0);
    V rows[2][W];
    for (int64_t k = 0; k < count; k++) {
      const int64_t r = r0 + k;
      const V middle = fill(center[r]);
      fetch(r);
      V total[4][K] = {}, v[K];
      int64_t i = 0;
      for (; i + 4 * W <= n; i += 4 * W)
        UNROLLED
        for (int q = 0; q < 4; q++) {
          Term::at(dz, x, r, i + q * W, middle, v);
          UNROLLED
          for (int s = 0; s < K; s++) total[q][s] += v[s];
        }
      for (; i + W <= n; i += W) {
        Term::at(dz, x, r, i, middle, v);
        UNROLLED
        for (int s = 0; s < K; s++) total[0][s] += v[s];
      }
      if (rest) {
        Term::at(dz, x, r, most(n - W, 0), middle, v);
        UNROLLED
        for (int s = 0; s < K; s++) total[1][s] += keep(v[s]);
      }
      UNROLLED
      for (int s = 0; s < K; s++) rows[s][k] = (total[0][s] + total[1][s]) + (total[2][s] + total[3][s]);
    }
    UNROLLED
    for (int s = 0; s < K; s++) {
      for (int64_t k = count; k < W; k++) rows[s][k] = V{};
      float* to = (s ? second : first) + r0;
      store(to, load(to) + row_sums(rows[s]));
    }
  }
}

// Adds up the rows of a tile, lane by lane; some rows at once share what is read per lane.
template <class Term, int Group, class S>
INLINE void sum_group(const Piece& tile, const float* center, RowsOf<S> dz, RowsOf<S> x, int64_t r,
                      float* first, float* second) {
  constexpr int K = Term::sums;
  once(tile.width, [&](int64_t j, auto keep) FLAT {
    const V middle = load(center + j);
    V total[K] = {};
    UNROLLED
    for (int g = 0; g < Group; g++) {
      V v[K];
      Term::at(dz, x, r + g, j, middle, v);
      UNROLLED
      for (int s = 0; s < K; s++) total[s] += v[s];
    }
    UNROLLED
    for (int s = 0; s < K; s++) {
      float* to = (s ? second : first) + j;
      store(to, load(to) + keep(total[s]));
    }
  });
}
template <class Term, class S>
void sum_lanes(const Piece& tile, const float* center, RowsOf<S> dz, RowsOf<S> x, float* first,
               float* second) {
  int64_t r = 0;
  const auto groups_of = [&](auto group) FLAT {
    for (; r + group <= tile.rows; r += group)
      sum_group<Term, group>(tile, center, dz, x, r, first, second);
  };
  if constexpr (!std::is_same_v<Term, Gradient>) groups_of(std::integral_constant<int, 8>{});
  groups_of(std::integral_constant<int, 4>{});
  groups_of(std::integral_constant<int, 1>{});
}

// Short runs of L numbers that follow one another: of those from `j` on, the numbers at the places `from`,
// one for each of a vector of channels.
struct ShortRuns {
  const float* at;
  int64_t L;
  INLINE V get(const Mask& from, int64_t j) const {
    const float* runs = at + j * L;
    V v = permuted(load(runs), load(runs + W), from);
    for (int64_t k = 2; k < L; k += 2)
      v = select(from < int32_t(k * W), v, permuted(load(runs + k * W), load(runs + (k + 1) * W), from));
    return v;
  }
};
// Adds them up: a vector of channels at a time, position by position.
template <class Term>
INLINE void sum_short_runs(int64_t channels, const float* center, ShortRuns dz, ShortRuns x, float* first,
                           float* second) {
  for (int64_t c = 0; c < channels; c += W) {
    const V middle = load_some(center + c, channels - c);
    V total[Term::sums] = {}, v[Term::sums];
    Mask from = numbered(Lanes{}) * int32_t(x.L);
    for (int64_t i = 0; i < x.L; i++, from += 1) {
      Term::at(dz, x, from, c, middle, v);
      UNROLLED
      for (int s = 0; s < Term::sums; s++) total[s] += v[s];
    }
    UNROLLED
    for (int s = 0; s < Term::sums; s++) store_some((s ? second : first) + c, total[s], channels - c);
  }
}

// What is summed over, and how it is read.
struct Source {
  Memory dy, x;
  const Tail* tail;
};

// Sums over an area, of terms around a center for each of them.
template <class Term>
void sum_area(const Shape& s, const Area& a, const Tables& tables, const Source& in, Sums& sums) {
  constexpr bool gradient = std::is_same_v<Term, Gradient>;
  const bool small = gradient && in.tail->activation != NONE;
  // In evaluation the next instance's run is not read next.
  const bool is_next = Term::sums > 1 && a.n + a.instances < s.N && s.L * bytes_of[in.x.type] <= 4096;
  const bool is_short = has_short_runs(s);
  Room room[4];
  const int64_t channels = a.channels();
  const int64_t times = s.last && channels == s.C ? rows_in_one(channels, a.positions()) : 1;
  sums.clear(times * channels);
  int64_t done = 0;
  for_pieces(s, a, tables, [&](const Tables& all, const Piece& piece, bool lanes) {
    for_tiles(piece, lanes, small, lanes ? group_rows : 1, [&](const Piece& tile, int64_t at) {
      const Tables t = all.from(at);
      float *first = sums.first + at, *second = sums.second + at;
      const auto add = [&](auto dz, auto x) FLAT {
        if (lanes) return sum_lanes<Term>(tile, t.center, dz, x, first, second);
        sum_runs<Term>(tile, t.center, dz, x, first, second, [&](int64_t r) FLAT {
          if (!is_next) return;
          in.x.fetch(tile.offset + r * tile.stride + s.C * s.L, tile.width);
          if (gradient) in.dy.fetch(tile.offset + r * tile.stride + s.C * s.L, tile.width);
        });
      };
      if (!small && tile.width >= W && !is_short)
        return by_type(in.x.type, [&](auto type) FLAT {
          using S = decltype(type);
          add(gradient ? in.dy.rows<S>(tile) : RowsOf<S>{}, in.x.rows<S>(tile));
        });
      Rows x = in.x.in(tile, room[0].at, is_short), dz{};
      if constexpr (gradient)
        dz = through(tile, t, lanes, in.dy.in(tile, room[1].at, is_short), x, *in.tail, room[2].at, room[3].at);
      if (!is_short) return add(dz, x);
      const int64_t n = tile.width / s.L;
      sum_short_runs<Term>(n, tables.center + done, {dz.at, s.L}, {x.at, s.L}, sums.first + done,
                           sums.second + done);
      done += n;
    });
  });
  if (times > 1) fold_row(sums.first, channels, times), fold_row(sums.second, channels, times);
}

// Where moments go; `rest` is what the mean lost when it was rounded. The last two may be null.
struct MomentTables {
  float *mean, *variance, *rest;
};

// The moments of one channel where sums in float32 were not finite: in double.
__attribute__((noinline)) void moments_carefully(const Shape& s, const Area& a, int64_t c, Memory x,
                                                 const MomentTables& out) {
  const auto mean_of = [&](auto term) {
    double total = 0;
    for (int64_t i = a.i0; i < a.i1; i++) {
      float v;
      ways[x.type].widen(x.place(s.offset(a.n, a.c0 + c, i)), &v, 1);
      total += term(v);
    }
    return total / double(a.positions());
  };
  const double m = mean_of([](double v) { return v; });
  out.mean[c] = float(m);
  if (out.rest) out.rest[c] = std::isfinite(out.mean[c]) ? float(m - double(out.mean[c])) : 0;
  if (out.variance) out.variance[c] = float(mean_of([&](double v) { return (v - m) * (v - m); }));
}

// Sums of squares around a centre that lies `distant` standard deviations from the mean cost the variance
// a factor 1 + distant^2 of its precision; farther ones are taken again, around the mean.
constexpr float distant = 4;

template <class Term>
void moments_of(const Shape& s, const Area& a, Memory x, const MomentTables& out) {
  constexpr bool with_variance = Term::sums == 2;
  const int64_t channels = a.channels();
  const float n = float(a.positions());
  alignas(64) float center[block_channels + W];
  Sums sums;
  // The first position of each channel.
  if (s.last) {
    ways[x.type].widen(x.place(s.offset(a.n, a.c0, a.i0)), center, channels);
  } else {
    by_type(x.type, [&](auto type) FLAT {
      const auto p = static_cast<const typename decltype(type)::Stored*>(x.place(s.offset(a.n, a.c0, a.i0)));
      for (int64_t c = 0; c < channels; c++) center[c] = decltype(type)::number(p + c * s.L);
    });
  }
  std::fill_n(center + channels, padded(channels) - channels, 0.f);
  sum_area<Term>(s, a, {center, nullptr, nullptr}, {{}, x, nullptr}, sums);
  if constexpr (with_variance) {
    Mask far{};
    for (int64_t j = 0; j < channels; j += W) {
      const V first = load_some(sums.first + j, channels - j) / n, square = first * first;
      const V spread = load_some(sums.second + j, channels - j) / n - square;
      far |= square > distant * distant * select(spread > V{}, spread, V{});
    }
    if (any(far)) {
      for (int64_t j = 0; j < channels; j++) {
        const float moved = center[j] + sums.first[j] / n;
        center[j] = std::isfinite(moved) ? moved : center[j];
      }
      sum_area<Term>(s, a, {center, nullptr, nullptr}, {{}, x, nullptr}, sums);
    }
  }
  for (int64_t j = 0; j < channels; j += W) {
    const int64_t count = channels - j;
    const V middle = load(center + j), first = load_some(sums.first + j, count) / n;
    const V mean = middle + first, back = mean - middle;
    V spread{};
    store_some(out.mean + j, mean, count);
    if (out.rest) store_some(out.rest + j, (middle - (mean - back)) + (first - back), count);
    if constexpr (with_variance) {
      spread = load_some(sums.second + j, count) / n - first * first;
      spread = select(spread < V{}, V{}, spread);
      store_some(out.variance + j, spread, count);
    }
    const V zero = (mean + spread) - (mean + spread);
    if (!any(zero != V{})) continue;
    for (int64_t k = j; k < least(channels, j + W); k++)
      if (!(zero[k - j] == 0)) moments_carefully(s, a, k, x, out);
  }
}

// The means over the positions of the area, and the variances where they are wanted.
void moments(const Shape& s, const Area& a, Memory x, const MomentTables& out) {
  (out.variance ? moments_of<Moment> : moments_of<Mean>)(s, a, x, out);
}

// The means of dz and dz (x - center) over the positions of the area.
void grad_moments(const Shape& s, const Area& a, const Tables& tables, const Source& in, float* first,
                  float* second) {
  const float n = float(a.positions());
  const int64_t channels = a.channels();
  Sums sums;
  sum_area<Gradient>(s, a, tables, in, sums);
  for (int64_t j = 0; j < channels; j += W) {
    store_some(first + j, load(sums.first + j) / n, channels - j);
    store_some(second + j, load(sums.second + j) / n, channels - j);
  }
}
