// The math between the sweeps, on rows of one number per channel; the symbols are those of the Python
// side, which says the same in PyTorch. Rows are walked as they lie in memory.
//
// Included once per instruction set, inside its namespace.

// Rows of tables, padded to whole vectors; `step` from one instance to the next, with one for each chunk.
struct Table {
  float* at = nullptr;
  int64_t step = 0;
  float* operator[](int64_t n) const { return at + n * step; }
  float* of(const Grid& grid, const Area& a) const {
    return at + grid.instance(a) * step + (at ? a.i0 / grid.chunk * (step / grid.chunks) + a.c0 - grid.c0 : 0);
  }
};
inline Table take(Arena& arena, int64_t rows, int64_t channels, int64_t chunks = 1) {
  const int64_t ld = padded(channels);
  return {arena.take(rows * chunks * ld), chunks * ld};
}

// What is known of every channel, a row for each; `times` behind one another. Once the statistics
// are known, t = slope (m - center) + offset, where offset is what rounding left of the center.
struct Channels {
  enum Name { WEIGHT, BIAS, W_M, W_V, W_B, R, CENTER, SLOPE, OFFSET, NAMES };
  int64_t count, ld;
  float* rows;
  bool gated;
  int restriction;
  double eps;

  // A vector may begin anywhere in a row: the last one's end lies behind the last row.
  static int64_t size(int64_t count) { return NAMES * padded(count) + W; }
  Channels(Arena& arena, const Layer& layer, int64_t c0, int64_t count, int64_t times = 1)
      : count(count * times), ld(padded(count * times)), rows(arena.take(size(count * times))),
        gated(layer.scale_weight), restriction(layer.restriction), eps(layer.eps) {
    const float* given[] = {layer.weight, layer.bias, layer.center_weight, layer.scale_weight,
                            layer.scale_bias};
    for (int name = WEIGHT; name <= W_B; name++) set(Name(name), given[name] ? given[name] + c0 : nullptr,
                                                     count, times, name == WEIGHT ? 1 : 0);
  }
  float* operator[](Name name) const { return rows + name * ld; }
  Channels from(int64_t c) const {
    Channels part = *this;
    part.rows += c;
    return part;
  }
  INLINE V get(Name name, int64_t j) const { return load((*this)[name] + j); }
  INLINE void put(Name name, int64_t j, const V& v) const { store((*this)[name] + j, v); }
  INLINE V amplify(int64_t j) const { return get(W_M, j) + 1.f; }

  // From E and V, which are given for the channels once.
  void set_statistics(const float* E, const float* variance, int64_t times) const {
    const int64_t n = count / times;
    set(CENTER, E, n, times, 0), set(R, variance, n, times, 1);
    for (int64_t j = 0; j < ld; j += W) {
      const V by = amplify(j), size = select(by < V{}, -by, by), mean = get(CENTER, j);
      const V r = 1.f / sqrt(get(R, j) + float(eps));
      const V center = select(size > fill(0.25f), mean / by, mean);
      put(R, j, r), put(CENTER, j, center), put(SLOPE, j, by * r);
      put(OFFSET, j, (by * center - mean) * r);
    }
  }
  INLINE V standardised(const V& m, int64_t j) const {
    return get(SLOPE, j) * (m - get(CENTER, j)) + get(OFFSET, j);
  }
  // R(s), and where it is wanted R'(s), of strips of a table's rows.
  void gate(float* s, float* derivative, int64_t n) const {
    if (gated) return restrict_by[restriction](s, derivative, n);
    std::fill_n(s, n, 1.f);
    if (derivative) std::fill_n(derivative, n, 0.f);
  }

 private:
  void set(Name name, const float* given, int64_t n, int64_t times, float absent) const {
    float* row = (*this)[name];
    std::fill_n(row, ld, absent);
    if (!given) return;
    std::memcpy(row, given, n * sizeof(float));
    repeat_row(row, n, times);
  }
};

// A tile of means, standardised: t of m(r, j) in its rows, `width` apart, for channels that begin at j0;
// and R of it, where it is wanted with R'.
struct Standardised {
  alignas(64) float t[tile_numbers], gate[tile_numbers], derivative[tile_numbers];
  int64_t width;

  template <class M>
  INLINE void take(const Channels& p, int64_t rows, int64_t columns, int64_t j0, M m, bool differentiated) {
    width = columns;
    for (int64_t r = 0; r < rows; r++)
      over(width, [&](int64_t j) FLAT {
        const V value = p.standardised(m(r, j), j0 + j);
        store(t + r * width + j, value);
        store(gate + r * width + j, p.get(Channels::W_V, j0 + j) * value + p.get(Channels::W_B, j0 + j));
      });
    p.gate(gate, differentiated ? derivative : nullptr, rows * width);
  }
};

// A mean over n rows whose sum must not overflow where the mean does not.
struct Share {
  float scale, rest;  // a power of two, and what is missing of n
  explicit Share(int64_t n) : scale(std::ldexp(1.f, -std::ilogb(double(n)) - 1)), rest(n * scale) {}
};

// Tables are worked on in tiles, so that the gate is one strip of each, and sums are in registers.
constexpr int64_t table_rows = 8, table_columns = tile_numbers / table_rows;

// Calls f(n0, n1) for the rows of tiles, below one another.
template <class F>
INLINE void for_rows(int64_t N, F f) {
  for (int64_t n = 0; n < N; n += table_rows) f(n, least(N, n + table_rows));
}
// Calls f(j) for the vectors of columns.
template <class F>
INLINE void for_lanes(int64_t j0, int64_t j1, F f) {
  for (int64_t j = j0; j < j1; j += W) f(j);
}

// Sums over the rows, for the columns [j0, j1) of tiles. Those of a tile are added plainly, and carry the
// rounding errors of their own sum along (Kahan), as long as it is finite.
template <int sums>
class Totals {
 public:
  explicit Totals(int64_t j0) : j0(j0) {}
  // Adds what f(n, j, out) adds to `out` in the rows of a tile.
  template <class F>
  INLINE void add(int64_t n0, int64_t n1, int64_t j1, F f) {
    for_lanes(j0, j1, [&](int64_t j) FLAT {
      V out[sums] = {};
      for (int64_t n = n0; n < n1; n++) f(n, j, out);
      UNROLLED
      for (int k = 0; k < sums; k++) {
        V &total = rows[0][k][(j - j0) / W], &lost = rows[1][k][(j - j0) / W];
        const V y = out[k] - lost, t = total + y;
        lost = select(t - t == V{}, (t - total) - y, V{});
        total = t;
      }
    });
  }
  INLINE V get(int sum, int64_t j) const { return rows[0][sum][(j - j0) / W]; }

 private:
  int64_t j0;
  V rows[2][sums][table_columns / W] = {};
};

// Merges the moments of the chunks of one instance into those of the first (Chan et al.). `variance`
// and `rest`, what the means lost when they were rounded, may be null.
inline void merge_chunks(const Grid& grid, float* mean, float* variance, float* rest, int64_t ld) {
  for (int64_t j = 0; grid.chunks > 1 && j < grid.channels(); j++) {
    const auto exact = [&](int64_t i) { return double(mean[i]) + (rest ? double(rest[i]) : 0); };
    double count = double(grid.positions(0)), m = exact(j), v = variance ? variance[j] : 0;
    for (int64_t k = 1; k < grid.chunks; k++) {
      const double more = double(grid.positions(k)), part = more / (count + more);
      const double difference = exact(k * ld + j) - m;
      if (variance)  // an infinite one stays so
        v = (1 - part) * v + part * (variance[k * ld + j] + (1 - part) * difference * difference);
      m += part * difference;
      count += more;
    }
    mean[j] = float(m);
    if (variance) variance[j] = float(v);
    if (rest) rest[j] = std::isfinite(mean[j]) ? float(m - double(mean[j])) : 0;
  }
}

// The moments of the instances of a grid, of which the means may be wanted alone; at first of its areas.
inline void moments(const Grid& grid, Memory x, const Table& mean, const Table& variance, const Table& rest) {
  grid.for_areas([&](const Area& a) {
    moments(grid.shape, a, x, {mean.of(grid, a), variance.of(grid, a), rest.of(grid, a)});
  });
  for (int64_t n = 0; n < grid.instances(); n++)
    merge_chunks(grid, mean[n], variance[n], rest[n], mean.step / grid.chunks);
}
// Likewise what the gradient needs, with the tables(area) of the first sweep.
template <class F>
void grad_moments(const Grid& grid, const Source& in, const F& tables, const Table& first, const Table& second) {
  grid.for_areas([&](const Area& a) {
    grad_moments(grid.shape, a, tables(a), in, first.of(grid, a), second.of(grid, a));
  });
  for (int64_t n = 0; n < grid.instances(); n++)
    for (float* sums : {first[n], second[n]}) merge_chunks(grid, sums, nullptr, nullptr, first.step / grid.chunks);
}

// Calls f(j0, j1) for the columns of tiles, whole vectors of the channels of a grid, by its threads.
template <class F>
void for_columns(const Grid& grid, const F& f) {
  const int64_t grain = ceil_div(16384, most(grid.instances() * W, 1));
  grid.share(padded(grid.channels()) / W, grain, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t j = begin * W; j < end * W; j += table_columns) f(j, least(end * W, j + table_columns));
  });
}

// The center of the instances' means m(n, j), and how far rounding left it from them: around the
// first instance, so that a large common mean cancels. `rest(n, j)` is what rounding took of m.
template <class M, class Rest>
INLINE void find_center(const Channels& p, int64_t N, int64_t j0, int64_t j1, M m, Rest rest) {
  const Share share(N);
  Totals<1> totals(j0);
  for_rows(N, [&](int64_t n0, int64_t n1) FLAT {
    totals.add(n0, n1, j1, [&](int64_t n, int64_t j, V* out) FLAT {
      out[0] += (m(n, j) - m(0, j) + rest(n, j)) * share.scale;
    });
  });
  for_lanes(j0, j1, [&](int64_t j) FLAT {
    const V first = m(0, j), offset = totals.get(0, j) / share.rest, center = first + offset;
    p.put(Channels::CENTER, j, center);
    p.put(Channels::OFFSET, j, (center - first) - offset);  // of which r is still to come
  });
}
INLINE void finish_center(const Channels& p, int64_t j, const V& variance) {
  const V r = 1.f / sqrt(variance + float(p.eps)), slope = p.amplify(j) * r;
  p.put(Channels::R, j, r), p.put(Channels::SLOPE, j, slope);
  p.put(Channels::OFFSET, j, slope * p.get(Channels::OFFSET, j));
}

// One step of the running statistics, as BatchNorm takes it: an infinite one stays infinite.
INLINE void update(float* running, const V& batch, double momentum, int64_t count) {
  store_some(running, float(1 - momentum) * load_some(running, count) + float(momentum) * batch, count);
}

// E and V over M numbers of a channel each, into f and the running statistics.
INLINE void keep_statistics(const Call& f, int64_t c, int64_t count, const V& E, const V& variance, double M) {
  store_some(f.E + c, E, count), store_some(f.V + c, variance, count);
  if (!f.running_mean) return;
  update(f.running_mean + c, E, f.momentum, count);
  update(f.running_var + c, variance * float(M / (M - 1)), f.momentum, count);
}

// E and V of the batch from the instances' moments, into f and the running statistics.
inline void batch_statistics(const Call& f, const Grid& grid, const Channels& p, const Table& mean,
                             const Table& variance, const Table& rest, int64_t j0, int64_t j1) {
  const int64_t N = grid.instances();
  const Share share(N);
  const auto m = [=](int64_t n, int64_t j) FLAT { return load(mean[n] + j); };
  const auto lost = [=](int64_t n, int64_t j) FLAT { return load(rest[n] + j); };
  find_center(p, N, j0, j1, m, lost);
  Totals<1> totals(j0);
  for_rows(N, [&](int64_t n0, int64_t n1) FLAT {
    totals.add(n0, n1, j1, [&](int64_t n, int64_t j, V* out) FLAT {
      const V d = p.amplify(j) * ((m(n, j) - p.get(Channels::CENTER, j)) + p.get(Channels::OFFSET, j) + lost(n, j));
      out[0] += (load(variance[n] + j) + d * d) * share.scale;
    });
  });
  const double M = double(N) * double(grid.shape.L);
  for_lanes(j0, j1, [&](int64_t j) FLAT {
    const V by = p.amplify(j), value = totals.get(0, j) / share.rest;
    const V E = by * (p.get(Channels::CENTER, j) - p.get(Channels::OFFSET, j));
    const int64_t c = grid.c0 + j, count = grid.channels() - j;
    keep_statistics(f, c, count, E, value, M);
    finish_center(p, j, value);
  });
}

// The tables of the second sweep, scale and shift, from the instances' means m(n, j).
template <class M>
INLINE void forward_tables(const Channels& p, int64_t N, int64_t j0, int64_t j1, M m, const Table& scale,
                           const Table& shift) {
  using C = Channels;
  for_rows(N, [&](int64_t n0, int64_t n1) FLAT {
    Standardised tile;
    tile.take(p, n1 - n0, j1 - j0, j0, [=](int64_t r, int64_t j) FLAT { return m(n0 + r, j0 + j); }, false);
    for (int64_t n = n0; n < n1; n++)
      for_lanes(j0, j1, [&](int64_t j) FLAT {
        const int64_t at = (n - n0) * tile.width + j - j0;
        const V gain = p.get(C::WEIGHT, j) * load(tile.gate + at);
        store(scale[n] + j, gain * p.get(C::R, j));
        store(shift[n] + j, gain * load(tile.t + at) + p.get(C::BIAS, j));
      });
  });
}

// From `first` and `second`, the means of dz and dz (x - m): the tables of the second sweep and
// the vectors' gradients. `first` is overwritten, `second` ends as u.
template <class M>
INLINE void backward_tables(const Call& b, const Grid& grid, const Channels& p, int64_t j0, int64_t j1, M m,
                            const Table& first, const Table& second, const Table& scale, float* x_scale) {
  using C = Channels;
  enum { WEIGHT, BIAS, SCALE_WEIGHT, SCALE_BIAS, H, HO, SUMS };
  const int64_t N = grid.instances();
  const bool training = b.layer.training;
  Totals<SUMS> totals(j0);
  for_rows(N, [&](int64_t n0, int64_t n1) FLAT {
    Standardised tile;
    tile.take(p, n1 - n0, j1 - j0, j0, [=](int64_t r, int64_t j) FLAT { return m(n0 + r, j0 + j); }, true);
    totals.add(n0, n1, j1, [&](int64_t n, int64_t j, V* out) FLAT {
      const int64_t at = (n - n0) * tile.width + j - j0;
      const V t = load(tile.t + at), r = p.get(C::R, j), weight = p.get(C::WEIGHT, j);
      const V g = load(tile.gate + at), gain = weight * g, S1 = load(first[n] + j);
      const V D = r * load(second[n] + j) + t * S1;  // dz o
      const V ds = weight * D * load(tile.derivative + at), u = ds * p.get(C::W_V, j), h = gain * S1 + u;
      out[WEIGHT] += g * D, out[BIAS] += S1, out[SCALE_WEIGHT] += ds * t, out[SCALE_BIAS] += ds;
      out[H] += h, out[HO] += gain * D + u * t;
      store(scale[n] + j, gain * r), store(first[n] + j, h), store(second[n] + j, u);
    });
  });
  // What reaches x through E and V; they are constants in evaluation.
  const float share = training ? 1.f / float(N) : 0.f;
  Totals<1> center_weight(j0);
  for_rows(N, [&](int64_t n0, int64_t n1) FLAT {
    center_weight.add(n0, n1, j1, [&](int64_t n, int64_t j, V* out) FLAT {
      const V mean = m(n, j), t = p.standardised(mean, j), r = p.get(C::R, j);
      const V both = training ? (totals.get(H, j) + totals.get(HO, j) * t) * share : V{};
      const V Z = r * (load(first[n] + j) - both);
      store(second[n] + j, r * (load(second[n] + j) - both) + p.get(C::W_M, j) * Z);
      // In training Z sums to 0 over the instances, so the common mean drops out.
      out[0] += (training ? mean - p.get(C::CENTER, j) : mean) * Z;
    });
  });
  for_lanes(j0, j1, [&](int64_t j) FLAT {
    const V r = p.get(C::R, j);
    store(x_scale + j, -r * r * totals.get(HO, j) * share);
    const auto put = [&](float* to, const V& sum) FLAT {
      if (to) store_some(to + grid.c0 + j, sum * float(grid.shape.L), grid.channels() - j);
    };
    put(b.gradients.weight, totals.get(WEIGHT, j)), put(b.gradients.bias, totals.get(BIAS, j));
    put(b.gradients.scale_weight, totals.get(SCALE_WEIGHT, j)), put(b.gradients.scale_bias, totals.get(SCALE_BIAS, j));
    put(b.gradients.center_weight, center_weight.get(0, j));
  });
}
