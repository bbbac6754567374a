// The layer forward and backward: sweep, table math, sweep. The symbols are those of
// rbnorm/kernels/fused.py, which says the same in PyTorch.
//
// Included once per instruction set, inside its namespace.

// Tables of a unit: `rows` rows of one number per channel, padded to whole vectors.
template <class T>
struct Workspace {
  int64_t ld;
  std::vector<T> values;
  Workspace(int64_t rows, int64_t channels)
      : ld(ceil_div(channels, width<T>) * width<T>), values(rows * ld) {}
  T* operator[](int64_t row) { return values.data() + row * ld; }
};

// One vector of channels of a unit: whole in a workspace, as many lanes as there are elsewhere.
template <class T>
struct Columns {
  int64_t i, count;
  INLINE Vec<T> row(const T* p) const { return load(p + i); }
  INLINE void set_row(T* p, const Vec<T>& v) const { store(p + i, v); }
  INLINE Vec<T> get(const void* p) const {
    const T* from = static_cast<const T*>(p) + i;
    return count < width<T> ? Short<T>{count}.load(from) : load(from);
  }
  INLINE void put(void* p, const Vec<T>& v) const {
    T* to = static_cast<T*>(p) + i;
    count < width<T> ? Short<T>{count}.store(to, v) : store(to, v);
  }
};

constexpr int64_t task_rows = 1024;  // vectors of a table that are worth a second thread

template <class T, class F>
void for_columns(const Grid& grid, F f) {
  const int64_t channels = grid.c1 - grid.c0;
  const int64_t grain = ceil_div(task_rows, std::max<int64_t>(grid.instances(), 1));
  torch::stable::parallel_for(
      0, ceil_div(channels, width<T>), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * width<T>; i < std::min(channels, end * width<T>); i += width<T>)
          f(Columns<T>{i, std::min(width<T>, channels - i)});
      });
}

// Merges the moments of the chunks of one instance into those of the first (Chan et al.).
template <class T>
void merge_chunks(const Grid& grid, T* mean, T* variance, int64_t ld) {
  for (int64_t j = 0; j < grid.c1 - grid.c0; j++) {
    double count = grid.positions(0), m = mean[j], v = variance ? variance[j] : 0;
    for (int64_t k = 1; k < grid.chunks; k++) {
      const double more = grid.positions(k), share = more / (count + more);
      const double difference = mean[k * ld + j] - m;
      if (variance) v += share * (variance[k * ld + j] - v + (1 - share) * difference * difference);
      m += share * difference;
      count += more;
    }
    mean[j] = T(m);
    if (variance) variance[j] = T(v);
  }
}

// The vectors of a layer for a vector of channels, with what an absent one stands for.
template <class T>
struct Channel {
  Vec<T> weight, bias, w_m, w_v, w_b;
  bool gated;
  int restriction;

  INLINE Channel(const Layer& layer, int64_t c0, const Columns<T>& at)
      : gated(layer.scale_weight), restriction(layer.restriction) {
    const auto get = [&](const void* p, T absent) {
      return p ? at.get(static_cast<const T*>(p) + c0) : fill(absent);
    };
    weight = get(layer.weight, 1);
    bias = get(layer.bias, 0);
    w_m = get(layer.center_weight, 0);
    w_v = get(layer.scale_weight, 0);
    w_b = get(layer.scale_bias, 0);
  }
  INLINE Vec<T> gate(const Vec<T>& t, Vec<T>* derivative = nullptr) const {
    if (gated) return restricted<T>(w_v * t + w_b, restriction, derivative);
    if (derivative) *derivative = Vec<T>{};
    return fill(T(1));
  }
};

// d of each instance: how far the mean of z lies from E.
template <class T>
struct Deviation {
  Vec<T> first{}, offset{}, amplify, E{};

  // In training E = (1 + w_m) mean_n m, taken around the first instance so that a large common
  // mean cancels; in evaluation E is given.
  template <class Row>
  INLINE Deviation(int64_t N, const Vec<T>& w_m, const Vec<T>* given, Row m) : amplify(w_m + T(1)) {
    if (given) {
      E = *given;
      return;
    }
    first = m(0);
    Sum<T> sum;
    for (int64_t n = 1; n < N; n++) sum.add(m(n) - first);
    offset = sum.total / T(N);
  }
  INLINE Vec<T> mean() const { return amplify * (first + offset); }
  INLINE Vec<T> centered(const Vec<T>& m) const { return (m - first) - offset; }
  INLINE Vec<T> operator()(const Vec<T>& m) const { return amplify * centered(m) - E; }
};

template <class T>
INLINE Vec<T> rsqrt(const Vec<T>& v) {
  return T(1) / lanewise(v, [](T value) { return std::sqrt(value); });
}

// The tables of the second sweep, for the instances' means m and variances.
template <class T>
void forward_tables(const Forward& f, const Grid& grid, Workspace<T>& mean, Workspace<T>& variance,
                    Workspace<T>& scale, Workspace<T>& shift) {
  const int64_t N = grid.instances(), c0 = grid.c0;
  const bool training = f.layer.training;
  const double M = double(N) * grid.shape.L;
  const auto from = [&](void* p) { return static_cast<T*>(p) + c0; };
  for_columns<T>(grid, [&](const Columns<T>& at) {
    const Channel<T> p(f.layer, c0, at);
    const auto m = [&](int64_t n) { return at.row(mean[n * grid.chunks]); };
    Vec<T> E, V;
    if (!training) E = at.get(from(f.running_mean)), V = at.get(from(f.running_var));
    const Deviation<T> deviation(N, p.w_m, training ? nullptr : &E, m);
    if (training) {
      Sum<T> sum;
      for (int64_t n = 0; n < N; n++) {
        const Vec<T> d = deviation(m(n));
        sum.add(at.row(variance[n * grid.chunks]) + d * d);
      }
      E = deviation.mean(), V = sum.total / T(N);
      const auto update = [&](T* running, const Vec<T>& batch) {
        const Vec<T> old = at.get(running);
        at.put(running, old + (batch - old) * T(f.momentum));
      };
      if (f.running_mean) {
        update(from(f.running_mean), E);
        update(from(f.running_var), V * T(M / (M - 1)));
      }
    }
    if (f.m && grid.n0 == 0) at.put(from(f.E), E), at.put(from(f.V), V);
    const Vec<T> r = rsqrt<T>(V + T(f.layer.eps));
    for (int64_t n = 0; n < N; n++) {
      if (f.m) at.put(from(f.m) + (grid.n0 + n) * grid.shape.C, m(n));
      const Vec<T> t = deviation(m(n)) * r, gain = p.weight * p.gate(t);
      at.set_row(scale[n], gain * r);
      at.set_row(shift[n], gain * t + p.bias);
    }
  });
}

template <class S>
void forward(const Forward& f) {
  using T = table_t<S>;
  const auto x = static_cast<const S*>(f.x);
  const bool training = f.layer.training;  // which is when instances wait for one another
  const Tail<S> tail{static_cast<const S*>(f.residual), f.layer.activation, T(f.layer.slope)};
  for_units<S>(f.shape, training, [&](const Grid& grid) {
    const int64_t channels = grid.c1 - grid.c0, N = grid.instances(), rows = N * grid.chunks;
    Workspace<T> mean(rows, channels), variance(training ? rows : 0, channels);
    Workspace<T> scale(N, channels), shift(N, channels);
    grid.for_areas([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, row = grid.row(a);
      moments<S>(grid.shape, a, x, mean[row] + j, training ? variance[row] + j : nullptr);
    });
    for (int64_t n = 0; grid.chunks > 1 && n < N; n++)
      merge_chunks<T>(grid, mean[n * grid.chunks], training ? variance[n * grid.chunks] : nullptr,
                      mean.ld);
    forward_tables<T>(f, grid, mean, variance, scale, shift);
    grid.for_areas_back([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, n = grid.instance(a);
      const Tables<T> tables{mean[n * grid.chunks] + j, scale[n] + j, shift[n] + j};
      affine<S>(grid.shape, a, tables, x, tail, static_cast<S*>(f.y));
    });
  });
}

// What backward recomputes of the forward pass, for a vector of channels.
template <class T>
struct Past {
  const Backward& b;
  const Grid& grid;
  Columns<T> at;
  Channel<T> p;
  Vec<T> E, r;
  Deviation<T> deviation;

  INLINE Past(const Backward& b, const Grid& grid, const Columns<T>& at)
      : b(b), grid(grid), at(at), p(b.layer, grid.c0, at), E(at.get(from(b.E))),
        r(rsqrt<T>(at.get(from(b.V)) + T(b.layer.eps))),
        deviation(grid.shape.N, p.w_m, b.layer.training ? nullptr : &E,
                  [&](int64_t n) { return m(n); }) {}
  INLINE const T* from(const void* p) const { return static_cast<const T*>(p) + grid.c0; }
  INLINE Vec<T> m(int64_t n) const { return at.get(from(b.m) + n * grid.shape.C); }
  INLINE Vec<T> t(int64_t n) const { return deviation(m(n)) * r; }
};

// The forward pass's scale and shift, which an activation's derivative needs.
template <class T>
void recompute_tables(const Backward& b, const Grid& grid, Workspace<T>& scale,
                      Workspace<T>& shift) {
  for_columns<T>(grid, [&](const Columns<T>& at) {
    const Past<T> past(b, grid, at);
    for (int64_t n = 0; n < grid.shape.N; n++) {
      const Vec<T> t = past.t(n), gain = past.p.weight * past.p.gate(t);
      at.set_row(scale[n], gain * past.r);
      at.set_row(shift[n], gain * t + past.p.bias);
    }
  });
}

// From `first` and `second`, the means of dz and dz (x - m): the tables of the second sweep and
// the vectors' gradients. Both are overwritten; `second` ends as dx_shift.
template <class T>
void backward_tables(const Backward& b, const Grid& grid, Workspace<T>& first, Workspace<T>& second,
                     Workspace<T>& scale, Workspace<T>& x_scale) {
  const int64_t N = grid.shape.N;
  const bool training = b.layer.training;
  for_columns<T>(grid, [&](const Columns<T>& at) {
    const Past<T> past(b, grid, at);
    const Channel<T>& p = past.p;
    Sum<T> weight, bias, center_weight, scale_weight, scale_bias, h_sum, ho_sum;
    for (int64_t n = 0; n < N; n++) {
      T *s1 = first[n * grid.chunks], *s2 = second[n * grid.chunks];
      const Vec<T> t = past.t(n);
      Vec<T> derivative;
      const Vec<T> g = p.gate(t, &derivative), gain = p.weight * g;
      const Vec<T> S1 = at.row(s1), D = past.r * at.row(s2) + t * S1;  // dz, and dz o
      const Vec<T> ds = p.weight * D * derivative, u = ds * p.w_v, h = gain * S1 + u;
      weight.add(g * D), bias.add(S1), scale_weight.add(ds * t), scale_bias.add(ds);
      h_sum.add(h), ho_sum.add(gain * D + u * t);
      at.set_row(scale[n], gain * past.r), at.set_row(s1, h), at.set_row(s2, u);
    }
    // What reaches x through E and V; they are constants in evaluation.
    const Vec<T> common = training ? h_sum.total / T(N) : Vec<T>{};
    const Vec<T> slope = training ? ho_sum.total / T(N) : Vec<T>{};
    for (int64_t n = 0; n < N; n++) {
      T *s1 = first[n * grid.chunks], *s2 = second[n * grid.chunks];
      const Vec<T> both = common + past.t(n) * slope, Z = past.r * (at.row(s1) - both);
      at.set_row(s2, past.r * (at.row(s2) - both) + p.w_m * Z);
      // In training Z sums to 0 over the instances, so the common mean drops out.
      center_weight.add((training ? past.deviation.centered(past.m(n)) : past.m(n)) * Z);
    }
    at.set_row(x_scale[0], -past.r * past.r * slope);
    const auto put = [&](void* to, const Sum<T>& sum) {
      if (to) at.put(static_cast<T*>(to) + grid.c0, sum.total * T(grid.shape.L));
    };
    put(b.weight, weight), put(b.bias, bias), put(b.center_weight, center_weight);
    put(b.scale_weight, scale_weight), put(b.scale_bias, scale_bias);
  });
}

template <class S>
void backward(const Backward& b) {
  using T = table_t<S>;
  const auto x = static_cast<const S*>(b.x), dy = static_cast<const S*>(b.dy);
  const auto m = static_cast<const T*>(b.m);
  const bool activated = b.layer.activation != NONE;
  const Tail<S> tail{static_cast<const S*>(b.residual), b.layer.activation, T(b.layer.slope)};
  for_units<S>(b.shape, true, [&](const Grid& grid) {
    const int64_t channels = grid.c1 - grid.c0, N = grid.instances(), rows = N * grid.chunks;
    Workspace<T> first(rows, channels), second(rows, channels);
    Workspace<T> scale(N, channels), shift(activated ? N : 0, channels), x_scale(1, channels);
    if (activated) recompute_tables<T>(b, grid, scale, shift);
    const auto tables = [&](const Area& a) {
      const int64_t j = a.c0 - grid.c0;
      return Tables<T>{m + a.n * grid.shape.C + a.c0, scale[a.n] + j,
                       activated ? shift[a.n] + j : nullptr};
    };
    grid.for_areas([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, row = grid.row(a);
      grad_moments<S>(grid.shape, a, tables(a), dy, x, tail, first[row] + j, second[row] + j);
    });
    for (int64_t n = 0; grid.chunks > 1 && n < N; n++) {
      merge_chunks<T>(grid, first[n * grid.chunks], nullptr, first.ld);
      merge_chunks<T>(grid, second[n * grid.chunks], nullptr, second.ld);
    }
    backward_tables<T>(b, grid, first, second, scale, x_scale);
    if (!b.dx && !b.dresidual) return;
    grid.for_areas_back([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0;
      Tables<T> all = tables(a);
      if (b.layer.training) all.x_scale = x_scale[0] + j;
      all.dx_shift = second[a.n * grid.chunks] + j;
      grad_affine<S>(grid.shape, a, all, dy, x, tail, static_cast<S*>(b.dx),
                     static_cast<S*>(b.dresidual));
    });
  });
}
