// The layer over one position, (N, C) or (N, C, 1, 1): x is its own mean, and
//
//     t = (1 + w_m) r (x - mean_n x)    y = act(gamma R(w_v t + w_b) t + beta + residual)
//
// is a function of every number once E and V are known. They are sums over the rows of a matrix
// (N, C), as over the positions of one instance with its channels last.
//
// Included once per instruction set, inside its namespace.

// The matrix as one instance, and its areas.
template <class T>
Grid columns_of(const Shape& s) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = ceil_div(ceil_div(s.C, threads), width<T>) * width<T>;
  return Grid({1, s.C, s.N, true}, s.N < 16 * threads ? std::min(share, s.C) : s.C);
}

// Calls f(at, offset) for every vector of the matrix; `at` reads what stands `tile` times in a row.
// What f has captured by value is in registers, as no store can change it.
template <class T, class F>
void for_points(const Shape& s, int64_t tile, const F& each) {
  const int64_t all = s.N * s.C, row = tile * s.C;
  parallel(ceil_div(all, row), ceil_div(task_values, row), [=](int64_t begin, int64_t end) {
    const F f = each;
    for (int64_t i = begin; i < end; i++)
      for_vectors<T, 1>(std::min(row, all - i * row), [=](auto at) FLAT { f(at, i * row); });
  });
}

// E and V of the batch into f.E and f.V; moves the running statistics.
template <class S>
void statistics_of_points(const Forward& f) {
  using T = table_t<S>;
  const Grid grid = columns_of<T>(f.shape);
  const int64_t C = f.shape.C;
  Arena<T> arena;
  arena.reserve(3 * grid.chunks * Workspace<T>::padded(C));
  const Workspace<T> mean(arena, grid.chunks, C), variance(arena, grid.chunks, C);
  const Workspace<T> rest(arena, grid.chunks, C);
  grid.for_areas([&](const Area& a) {
    const int64_t row = grid.row(a);
    moments<S>(grid.shape, a, static_cast<const S*>(f.x), mean[row] + a.c0, variance[row] + a.c0,
               rest[row] + a.c0);
  });
  if (grid.chunks > 1) merge_chunks<T>(grid, mean[0], variance[0], rest[0], mean.ld);
  const double M = double(f.shape.N);
  for (int64_t i = 0; i < C; i += width<T>) {
    const Columns<T> at{i, std::min(width<T>, C - i)};
    const Vec<T> amplify = Channel<T>(f.layer, 0, at).w_m + T(1);
    const Vec<T> E = amplify * at.row(mean[0]) + amplify * at.row(rest[0]);
    const Vec<T> V = amplify * amplify * at.row(variance[0]);
    at.put(f.E, E), at.put(f.V, V);
    if (!f.running_mean) continue;
    update(at, static_cast<T*>(f.running_mean), E, f.momentum);
    update(at, static_cast<T*>(f.running_var), V * T(M / (M - 1)), f.momentum);
  }
}

template <class S, bool WithTail>
void forward_points(const Forward& f) {
  using T = table_t<S>;
  const bool training = f.layer.training;
  if (training) statistics_of_points<S>(f);
  const int64_t tile = tile_of<T>(f.shape.C, f.shape.N);
  Arena<T> arena;
  arena.reserve(Constants<T>::size(f.shape.C, tile));
  const Constants<T> constants(arena, f.layer, f.shape.C, tile, training ? f.E : f.running_mean,
                               training ? f.V : f.running_var);
  const auto x = static_cast<const S*>(f.x), residual = static_cast<const S*>(f.residual);
  const auto y = static_cast<S*>(f.y);
  const auto m = static_cast<T*>(f.m);
  const int activation = f.layer.activation;
  const T slope = T(f.layer.slope);
  for_points<T>(f.shape, tile, [=](auto at, int64_t offset) FLAT {
    const Vec<T> mean = at.load(x + offset);
    Vec<T> z = constants.tables([&](const T* row) FLAT { return at.load(row); }, mean).second;
    if (WithTail && residual) z += at.load(residual + offset);
    at.store(y + offset, WithTail ? activate(z, activation, slope) : z);
    if (m) at.store(m + offset, mean);
  });
}

template <class S>
void forward_points(const Forward& f) {
  f.residual || f.layer.activation != NONE ? forward_points<S, true>(f) : forward_points<S, false>(f);
}

template <class S>
struct Inputs {
  const S *x, *dy;
  Tail<S> tail;
  explicit Inputs(const Backward& b)
      : x(static_cast<const S*>(b.x)), dy(static_cast<const S*>(b.dy)),
        tail{static_cast<const S*>(b.residual), b.layer.activation, table_t<S>(b.layer.slope)} {}
};

// What backward computes again of a vector of numbers; x is around the center.
template <class T>
struct Point {
  Vec<T> x, t, gate, derivative, dz;

  template <class S, class At, class Get>
  INLINE static Point of(const Inputs<S>& in, const Constants<T>& constants, const At& at, Get get,
                         int64_t offset) {
    Point p;
    const Vec<T> value = at.load(in.x + offset);
    p.x = value - constants.of(Constants<T>::CENTER, get);
    p.t = constants.standardised(get, value);
    p.gate = constants.gate(get, p.t, &p.derivative);
    p.dz = at.load(in.dy + offset);
    if (in.tail.activation == NONE) return p;
    Vec<T> z = constants.of(Constants<T>::WEIGHT, get) * p.gate * p.t;
    z += constants.of(Constants<T>::BIAS, get);
    if (in.tail.residual) z += at.load(in.tail.residual + offset);
    p.dz *= activation_grad(z, in.tail.activation, in.tail.slope);
    return p;
  }
};

// Sums over the rows, per channel: of dz, gate dz, derivative t dz, the last two times x, and x.
constexpr int point_sums = 6;

template <class S>
void sums_of_points(const Backward& b, const Constants<table_t<S>>& constants, const Grid& grid,
                    const Workspace<table_t<S>>& sums) {
  using T = table_t<S>;
  const Inputs<S> in(b);
  grid.for_areas([&](const Area& all) {
    for_blocks(all, [&](const Area& a) FLAT {
      T block[point_sums][block_channels];
      sum_rows<T, point_sums, group_rows / 4>(
          Rows::of<T>(grid.shape, a), block, [](auto) FLAT { return 0; },
          [=, c0 = a.c0](auto at, int, int64_t offset) FLAT {
            const auto get = [&](const T* row) FLAT { return at.load(row + c0); };
            const Point<T> p = Point<T>::of(in, constants, at, get, offset);
            const Vec<T> gated = p.gate * p.dz, moved = p.derivative * p.t * p.dz;
            return std::array<Vec<T>, point_sums>{p.dz, gated, moved, p.x * gated, p.x * moved, p.x};
          });
      for (int s = 0; s < point_sums; s++)
        std::copy_n(block[s], a.c1 - a.c0, sums[grid.row(a) * point_sums + s] + a.c0);
    });
  });
  for (int s = 0; s < point_sums; s++)
    for (int64_t j = 0; j < grid.shape.C; j++) {
      double total = 0;
      for (int64_t k = 0; k < grid.chunks; k++) total += sums[k * point_sums + s][j];
      sums[s][j] = T(total);
    }
}

// The gradients of the vectors; `common` and `slope` become what reaches x through E and V.
template <class T>
void gradients_of_points(const Backward& b, const Constants<T>& constants, const Workspace<T>& sums,
                         T* common, T* slope) {
  const int64_t C = b.shape.C, N = b.shape.N;
  using K = Constants<T>;
  for (int64_t i = 0; i < C; i += width<T>) {
    const Columns<T> at{i, std::min(width<T>, C - i)};
    const Channel<T> p(b.layer, 0, at);
    const auto constant = [&](typename K::Name name) FLAT { return at.get(constants.row(name)); };
    const auto sum = [&](int s) FLAT { return at.row(sums[s]); };
    const Vec<T> gain = constant(K::SLOPE), offset = constant(K::OFFSET), r = constant(K::R);
    const Vec<T> h = p.weight * (sum(1) + p.w_v * sum(2));
    const Vec<T> hx = p.weight * (sum(3) + p.w_v * sum(4)), ht = gain * hx + offset * h;
    const auto put = [&](void* to, const Vec<T>& v) FLAT { if (to) at.put(to, v); };
    put(b.weight, gain * sum(3) + offset * sum(1)), put(b.bias, sum(0));
    put(b.scale_weight, p.weight * (gain * sum(4) + offset * sum(2)));
    put(b.scale_bias, p.weight * sum(2));
    // With V = (1 + w_m)^2 v, what reaches w_m through E and V leaves eps / (V + eps) of the rest.
    const bool training = b.layer.training;
    const Vec<T> around = training ? (hx - sum(5) / T(N) * h) * (T(b.layer.eps) * r * r)
                                   : hx + constant(K::CENTER) * h;
    put(b.center_weight, r * around);
    at.put(common, training ? h / T(N) : Vec<T>{}), at.put(slope, training ? ht / T(N) : Vec<T>{});
  }
}

template <class S>
void backward_points(const Backward& b) {
  using T = table_t<S>;
  const Grid grid = columns_of<T>(b.shape);
  const int64_t C = b.shape.C, tile = tile_of<T>(C, b.shape.N), most = std::max<int64_t>(tile, 1);
  Arena<T> arena;
  arena.reserve(Constants<T>::size(C, tile) + point_sums * grid.chunks * Workspace<T>::padded(C) +
                2 * Workspace<T>::padded(most * C));
  const Constants<T> constants(arena, b.layer, C, tile, b.E, b.V);
  const Workspace<T> sums(arena, point_sums * grid.chunks, C), through(arena, 2, most * C);
  sums_of_points<S>(b, constants, grid, sums);
  gradients_of_points<T>(b, constants, sums, through[0], through[1]);
  tile_row(through[0], C, tile), tile_row(through[1], C, tile);
  const Inputs<S> in(b);
  const auto dx = static_cast<S*>(b.dx), dresidual = static_cast<S*>(b.dresidual);
  if (!dx && !dresidual) return;
  for_points<T>(b.shape, tile, [=](auto at, int64_t offset) FLAT {
    using K = Constants<T>;
    const auto get = [&](const T* row) FLAT { return at.load(row); };
    const Point<T> p = Point<T>::of(in, constants, at, get, offset);
    if (dresidual) at.store(dresidual + offset, p.dz);
    if (!dx) return;
    const Vec<T> moved = constants.of(K::SCALE_WEIGHT, get) * p.derivative * p.t;
    const Vec<T> h = constants.of(K::WEIGHT, get) * (p.gate + moved) * p.dz;
    const Vec<T> both = get(through[0]) + p.t * get(through[1]);
    at.store(dx + offset, constants.of(K::SLOPE, get) * (h - both));
  });
}
