// The layer forward and backward: sweep, table math, sweep. The symbols are those of
// rbnorm/engine/tables.py, which says the same in PyTorch.
//
// Included once per instruction set, inside its namespace.

// Tables of a unit: rows of one number per channel, padded to whole vectors.
template <class T>
struct Workspace {
  int64_t ld;
  T* values;
  static int64_t padded(int64_t channels) { return ceil_div(channels, width<T>) * width<T>; }
  Workspace(Arena<T>& arena, int64_t rows, int64_t channels)
      : ld(padded(channels)), values(arena.take(rows * ld)) {}
  T* operator[](int64_t row) const { return values + row * ld; }
};

// One vector of channels of a unit: whole in a workspace, as many lanes as there are elsewhere.
template <class T>
struct Columns {
  int64_t i, count;
  INLINE Vec<T> row(const T* p) const { return load(p + i); }
  INLINE void set_row(T* p, const Vec<T>& v) const { store(p + i, v); }
  INLINE Vec<T> get(const void* p) const {
    const T* from = static_cast<const T*>(p) + i;
    return count < width<T> ? Partial<T>{count}.load(from) : load(from);
  }
  INLINE void put(void* p, const Vec<T>& v) const {
    T* to = static_cast<T*>(p) + i;
    count < width<T> ? Partial<T>{count}.store(to, v) : store(to, v);
  }
};

constexpr int64_t task_rows = 1024;  // vectors of a table that are worth a second thread

template <class T, class F>
void for_columns(const Grid& grid, F f) {
  const int64_t channels = grid.c1 - grid.c0;
  const int64_t grain = ceil_div(task_rows, std::max<int64_t>(grid.instances(), 1));
  grid.share(ceil_div(channels, width<T>), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width<T>; i < std::min(channels, end * width<T>); i += width<T>)
      f(Columns<T>{i, std::min(width<T>, channels - i)});
  });
}

// Merges the moments of the chunks of one instance into those of the first (Chan et al.). `variance`
// and `rest`, what the means lost when they were rounded, may be null.
template <class T>
void merge_chunks(const Grid& grid, T* mean, T* variance, T* rest, int64_t ld) {
  for (int64_t j = 0; j < grid.c1 - grid.c0; j++) {
    const auto exact = [&](int64_t i) { return double(mean[i]) + (rest ? double(rest[i]) : 0); };
    double count = grid.positions(0), m = exact(j), v = variance ? variance[j] : 0;
    for (int64_t k = 1; k < grid.chunks; k++) {
      const double more = grid.positions(k), share = more / (count + more);
      const double difference = exact(k * ld + j) - m;
      if (variance)  // an infinite one stays so
        v = (1 - share) * v + share * (variance[k * ld + j] + (1 - share) * difference * difference);
      m += share * difference;
      count += more;
    }
    mean[j] = T(m);
    if (variance) variance[j] = T(v);
    if (rest) rest[j] = std::isfinite(mean[j]) ? T(m - double(mean[j])) : T(0);
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
    const auto get = [&](const void* p, T absent) FLAT {
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

// How far the mean of each instance lies from that of all, and d: how far the mean of z from E.
template <class T>
struct Deviation {
  Vec<T> first{}, offset{}, amplify, E{};

  // In training E = (1 + w_m) mean_n m, taken around the first instance so that a large common
  // mean cancels; in evaluation E is given. m(n) and rest(n) are an instance's mean in two parts.
  template <class Row, class Rest>
  INLINE Deviation(int64_t N, const Vec<T>& w_m, const Vec<T>* given, Row m, Rest rest)
      : amplify(w_m + T(1)) {
    if (given) {
      E = *given;
      return;
    }
    first = m(0);
    const Mean<T> mean(N);
    Sum<T> sum;
    for (int64_t n = 0; n < N; n++) sum.add(mean.share(m(n) - first + rest(n)));
    offset = mean.of(sum);
  }
  INLINE Vec<T> mean() const { return amplify * (first + offset); }
  INLINE Vec<T> centered(const Vec<T>& m) const { return (m - first) - offset; }
  INLINE Vec<T> operator()(const Vec<T>& m) const { return amplify * centered(m) - E; }
};

template <class T>
INLINE Vec<T> rsqrt(const Vec<T>& v) { return T(1) / sqrt(v); }

// One step of the running statistics, as BatchNorm takes it: an infinite one stays infinite.
template <class T>
INLINE void update(const Columns<T>& at, T* running, const Vec<T>& batch, double momentum) {
  at.put(running, T(1 - momentum) * at.get(running) + T(momentum) * batch);
}

// E and V of the batch, from the instances' moments; moves the running statistics.
template <class T>
INLINE void batch_statistics(const Forward& f, const Grid& grid, const Columns<T>& at,
                             const Deviation<T>& deviation, const Workspace<T>& mean,
                             const Workspace<T>& variance, const Workspace<T>& rest, Vec<T>& E,
                             Vec<T>& V) {
  const int64_t N = grid.instances();
  const Mean<T> share(N);
  Sum<T> sum;
  for (int64_t n = 0; n < N; n++) {
    const int64_t row = n * grid.chunks;
    const Vec<T> d = deviation(at.row(mean[row])) + deviation.amplify * at.row(rest[row]);
    sum.add(share.share(at.row(variance[row]) + d * d));
  }
  E = deviation.mean(), V = share.of(sum);
  if (!f.running_mean) return;
  const double M = double(N) * grid.shape.L;
  update(at, static_cast<T*>(f.running_mean) + grid.c0, E, f.momentum);
  update(at, static_cast<T*>(f.running_var) + grid.c0, V * T(M / (M - 1)), f.momentum);
}

// The tables of the second sweep in training, from the instances' moments: scale and shift take the
// place of `variance` and `rest`.
template <class T>
void training_tables(const Forward& f, const Grid& grid, const Workspace<T>& mean,
                     const Workspace<T>& variance, const Workspace<T>& rest) {
  const int64_t N = grid.instances(), c0 = grid.c0;
  const auto from = [&](void* p) { return static_cast<T*>(p) + c0; };
  for_columns<T>(grid, [&](const Columns<T>& at) {
    const Channel<T> p(f.layer, c0, at);
    const auto m = [&](int64_t n) FLAT { return at.row(mean[n * grid.chunks]); };
    const Deviation<T> deviation(N, p.w_m, nullptr, m,
                                 [&](int64_t n) FLAT { return at.row(rest[n * grid.chunks]); });
    Vec<T> E, V;
    batch_statistics(f, grid, at, deviation, mean, variance, rest, E, V);
    if (f.m) at.put(from(f.E), E), at.put(from(f.V), V);
    const Vec<T> r = rsqrt<T>(V + T(f.layer.eps));
    for (int64_t n = 0; n < N; n++) {
      if (f.m) at.put(from(f.m) + n * grid.shape.C, m(n));
      const Vec<T> t = deviation(m(n)) * r, gain = p.weight * p.gate(t);
      at.set_row(variance[n * grid.chunks], gain * r);
      at.set_row(rest[n * grid.chunks], gain * t + p.bias);
    }
  });
}

// What a layer does to every instance once E and V are known, per channel; `tile` times behind one
// another. t = slope (mean - center) + offset, where offset is what rounding left of the center.
//
// A view, to be copied to where a loop runs: what it holds by value stays in registers there.
template <class T>
struct Constants {
  enum Name { CENTER, SLOPE, OFFSET, R, SCALE_WEIGHT, SCALE_BIAS, WEIGHT, BIAS, NAMES };
  int64_t ld;
  T* values;
  bool gated;
  int restriction;

  // A vector of channels may begin anywhere in a row: the last one's end lies behind the last row.
  static int64_t size(int64_t C, int64_t tile) {
    return NAMES * Workspace<T>::padded(C * tile) + width<T>;
  }
  Constants(Arena<T>& arena, const Layer& layer, int64_t C, int64_t tile, const void* E,
            const void* V)
      : ld(Workspace<T>::padded(C * tile)), values(arena.take(NAMES * ld)),
        gated(layer.scale_weight), restriction(layer.restriction) {
    for (int64_t i = 0; i < C; i += width<T>) {
      const Columns<T> at{i, std::min(width<T>, C - i)};
      const Channel<T> p(layer, 0, at);
      const auto set = [&](Name name, const Vec<T>& v) FLAT { at.put(row(name), v); };
      const Vec<T> amplify = p.w_m + T(1), size = select(amplify < Vec<T>{}, -amplify, amplify);
      const Vec<T> mean = at.get(E), r = rsqrt<T>(at.get(V) + T(layer.eps));
      const Vec<T> center = select(size > fill(T(0.25)), mean / amplify, mean);
      set(CENTER, center), set(SLOPE, amplify * r), set(OFFSET, (amplify * center - mean) * r);
      set(R, r), set(SCALE_WEIGHT, p.w_v), set(SCALE_BIAS, p.w_b);
      set(WEIGHT, p.weight), set(BIAS, p.bias);
    }
    for (int name = 0; name < NAMES; name++) tile_row(row(Name(name)), C, tile);
  }
  INLINE T* row(Name name) const { return values + name * ld; }

  // get(row) reads a vector of channels.
  template <class Get>
  INLINE Vec<T> of(Name name, Get get) const { return get(row(name)); }
  template <class Get>
  INLINE Vec<T> standardised(Get get, const Vec<T>& mean) const {
    return of(SLOPE, get) * (mean - of(CENTER, get)) + of(OFFSET, get);
  }
  template <class Get>
  INLINE Vec<T> gate(Get get, const Vec<T>& t, Vec<T>* derivative = nullptr) const {
    if (gated)
      return restricted<T>(of(SCALE_WEIGHT, get) * t + of(SCALE_BIAS, get), restriction, derivative);
    if (derivative) *derivative = Vec<T>{};
    return fill(T(1));
  }
  // Scale and shift of the second sweep, for instances' means.
  template <class Get>
  INLINE std::pair<Vec<T>, Vec<T>> tables(Get get, const Vec<T>& mean) const {
    const Vec<T> t = standardised(get, mean), gain = of(WEIGHT, get) * gate(get, t);
    return {gain * of(R, get), gain * t + of(BIAS, get)};
  }
};
