// The layer over one position, (N, C) or (N, C, 1, 1): x is its own mean, and
//
//     t = (1 + w_m) r (x - mean_n x)    y = act(gamma R(w_v t + w_b) t + beta + residual)
//
// is a function of every number once E and V are known. They are sums over the rows of a matrix
// (N, C), as over the positions of one instance with its channels last.
//
// Included once per instruction set, inside its namespace.

// The matrix as one instance, and its areas.
inline Grid columns_of(const Shape& s) {
  const int64_t share = padded(ceil_div(s.C, s.threads));
  return Grid({1, s.C, s.N, true, s.threads}, s.N < 16 * s.threads ? least(share, s.C) : s.C);
}

// Calls f(tile, at) for the tiles of `rows` of a matrix of `width` columns, C in memory, `times` of
// which are taken as one; `at` counts columns of what stands `times` in a row.
template <class F>
INLINE void for_points(int64_t offset, int64_t rows, int64_t width, int64_t C, int64_t times, int64_t group, F f) {
  const int64_t whole = rows / times, rest = rows % times;
  for_tiles(Piece{offset, whole, times * width, times * C}, true, true, group, f);
  if (rest) for_tiles(Piece{offset + whole * times * C, 1, rest * width, 0}, true, true, group, f);
}
// The same for all of the matrix, by all threads.
template <class F>
void share_points(const Shape& s, int64_t times, const F& f) {
  const int64_t row = times * s.C;
  parallel(s.threads, ceil_div(s.N, times), ceil_div(task_values, row), [&](int64_t begin, int64_t end, int64_t) {
    const int64_t rows = least(s.N, end * times) - begin * times;
    for_points(begin * row, rows, s.C, s.C, times, 1, f);
  });
}

// E and V of the batch into f.E and f.V; moves the running statistics.
void statistics_of_points(const Call& f) {
  const Grid grid = columns_of(f.shape);
  const int64_t C = f.shape.C;
  Arena arena;
  const Table mean = take(arena, 1, C, grid.chunks), variance = take(arena, 1, C, grid.chunks);
  const Table rest = take(arena, 1, C, grid.chunks);
  moments(grid, {f.type, f.x}, mean, variance, rest);
  for_lanes(0, padded(C), [&](int64_t j) FLAT {
    const int64_t count = C - j;
    const float* given = f.layer.center_weight;
    const V by = (given ? load_some(given + j, count) : V{}) + 1.f;
    const V E = by * load(mean.at + j) + by * load(rest.at + j), value = by * by * load(variance.at + j);
    keep_statistics(f, j, count, E, value, double(f.shape.N));
  });
}

// x of a tile, standardised.
INLINE void take(Standardised& point, const Channels& p, const Piece& tile, int64_t at, Rows x, bool differentiated) {
  point.take(p, tile.rows, most(tile.width, W), at, [=](int64_t r, int64_t j) FLAT { return x.get(r, j); },
             differentiated);
}
// What enters the activation.
INLINE void output(const Standardised& point, const Channels& p, const Piece& tile, int64_t at, const Tail& tail,
                   Rows z, float* room) {
  for_vectors(tile, [&](int64_t r, int64_t j) FLAT {
    const int64_t k = r * point.width + j;
    const V value = p.get(Channels::WEIGHT, at + j) * load(point.gate + k) * load(point.t + k);
    z.put(r, j, value + p.get(Channels::BIAS, at + j));
  });
  if (tail.residual.start) for_rows(tile, z, tail.residual.in(tile, room), add_strip);
}

void forward_points(const Call& f) {
  const Shape& s = f.shape;
  const bool training = f.layer.training;
  if (training) statistics_of_points(f);
  const int64_t times = rows_in_one(s.C, s.N);
  Arena arena;
  const Channels p(arena, f.layer, 0, s.C, times);
  p.set_statistics(training ? f.E : f.running_mean, training ? f.V : f.running_var, times);
  const Memory x{f.type, f.x}, y{f.type, f.y};
  const Tail tail(f.type, f.epilogue);
  share_points(s, times, [&](const Piece& tile, int64_t at) {
    Standardised point;
    Room room[2];
    const Rows in = x.in(tile, room[0].at), z = y.out(tile, room[1].at);
    take(point, p, tile, at, in, false);
    for (int64_t r = 0; f.m && r < tile.rows; r++)
      std::memcpy(f.m + tile.offset + r * tile.stride, in.at + r * in.stride, tile.width * sizeof(float));
    output(point, p, tile, at, tail, z, room[0].at);
    activate(tile, tail, z);
    y.put(tile, z);
  });
}

// What backward computes again of a tile: a point, x, and what reaches the activation's input.
struct Past {
  Standardised point;
  Room room[4];
  Rows x, dz;

  INLINE void take(const Channels& p, const Piece& tile, int64_t at, const Source& in) {
    in.x.fetch_next(tile), in.dy.fetch_next(tile);
    x = in.x.in(tile, room[0].at), dz = in.dy.in(tile, room[1].at);
    NAMESPACE::take(point, p, tile, at, x, true);
    if (in.tail->activation == NONE) return;
    const Rows z{room[2].at, most(tile.width, W)};
    output(point, p, tile, at, *in.tail, z, room[3].at);
    differentiate(tile, *in.tail, z, dz);
    dz = z;
  }
};

// Sums over the rows, per channel: of dz, gate dz, derivative t dz, the last two times x around the
// center, and x around it.
constexpr int point_sums = 6;

void sums_of_points(const Channels& p, const Grid& grid, const Source& in, float* sums) {
  const int64_t C = grid.shape.C, ld = p.ld + W;
  grid.for_areas([&](const Area& a) {
    float* own = sums + grid.row(a) * point_sums * ld;
    const int64_t width = a.c1 - a.c0, times = width == C ? p.count / C : 1;
    for (int s = 0; s < point_sums; s++)
      std::fill_n(own + s * ld + a.c0, times * width, 0.f);
    Past past;
    for_points(grid.shape.offset(0, a.c0, a.i0), a.positions(), width, C, times, group_rows, [&](const Piece& tile, int64_t at) {
      past.take(p, tile, a.c0 + at, in);
      const int64_t n = most(tile.width, W);
      once(tile.width, [&](int64_t j, auto keep) FLAT {
        V total[point_sums] = {};
        const V center = p.get(Channels::CENTER, a.c0 + at + j);
        for (int64_t r = 0; r < tile.rows; r++) {
          const V dz = past.dz.get(r, j);
          const V x = past.x.get(r, j) - center;
          const V gated = load(past.point.gate + r * n + j) * dz;
          const V moved = load(past.point.derivative + r * n + j) * load(past.point.t + r * n + j) * dz;
          total[0] += dz, total[1] += gated, total[2] += moved;
          total[3] += x * gated, total[4] += x * moved, total[5] += x;
        }
        UNROLLED
        for (int s = 0; s < point_sums; s++) {
          float* to = own + s * ld + a.c0 + at + j;
          store(to, load(to) + keep(total[s]));
        }
      });
    });
    for (int s = 0; s < point_sums && times > 1; s++) fold_row(own + s * ld, C, times);
  });
  for (int s = 0; s < point_sums; s++)
    for (int64_t j = 0; j < C; j++) {
      double total = 0;
      for (int64_t k = 0; k < grid.chunks; k++) total += sums[(k * point_sums + s) * ld + j];
      sums[s * ld + j] = float(total);
    }
}

// The gradients of the vectors; `common` and `slope` become what reaches x through E and V.
void gradients_of_points(const Call& b, const Channels& p, const float* sums, float* common,
                         float* slope) {
  using K = Channels;
  const int64_t C = b.shape.C, ld = p.ld + W;
  const float N = float(b.shape.N);
  for_lanes(0, padded(C), [&](int64_t j) FLAT {
    const auto sum = [&](int s) FLAT { return load(sums + s * ld + j); };
    const V gain = p.get(K::SLOPE, j), offset = p.get(K::OFFSET, j), r = p.get(K::R, j);
    const V weight = p.get(K::WEIGHT, j), w_v = p.get(K::W_V, j);
    const V h = weight * (sum(1) + w_v * sum(2)), hx = weight * (sum(3) + w_v * sum(4));
    const V ht = gain * hx + offset * h;
    const auto put = [&](float* to, const V& v) FLAT { if (to) store_some(to + j, v, C - j); };
    put(b.gradients.weight, gain * sum(3) + offset * sum(1)), put(b.gradients.bias, sum(0));
    put(b.gradients.scale_weight, weight * (gain * sum(4) + offset * sum(2)));
    put(b.gradients.scale_bias, weight * sum(2));
    // With V = (1 + w_m)^2 v, what reaches w_m through E and V leaves eps / (V + eps) of the rest.
    const bool training = b.layer.training;
    const V around = training ? (hx - sum(5) / N * h) * (float(b.layer.eps) * r * r)
                              : hx + p.get(K::CENTER, j) * h;
    put(b.gradients.center_weight, r * around);
    store(common + j, training ? h / N : V{}), store(slope + j, training ? ht / N : V{});
  });
}

void backward_points(const Call& b) {
  const Shape& s = b.shape;
  const Grid grid = columns_of(s);
  const int64_t times = rows_in_one(s.C, s.N), ld = padded(s.C * times) + W;
  Arena arena;
  const Channels p(arena, b.layer, 0, s.C, times);
  p.set_statistics(b.E, b.V, times);
  float *sums = arena.take(point_sums * grid.chunks * ld), *common = arena.take(ld), *slope = arena.take(ld);
  const Tail tail(b.type, b.epilogue);
  const Source in{{b.type, b.dy}, {b.type, b.x}, &tail};
  sums_of_points(p, grid, in, sums);
  gradients_of_points(b, p, sums, common, slope);
  repeat_row(common, s.C, times), repeat_row(slope, s.C, times);
  const Memory dx{b.type, b.dx}, dresidual{b.type, b.dresidual};
  if (!dx.start && !dresidual.start) return;
  share_points(s, times, [&](const Piece& tile, int64_t at) {
    Past past;
    past.take(p, tile, at, in);
    if (dresidual.start) write_tile(tile, past.dz, dresidual, past.room[3].at);
    if (!dx.start) return;
    const int64_t n = most(tile.width, W);
    const Rows out = dx.out(tile, past.room[3].at);
    for_vectors(tile, [&](int64_t r, int64_t j) FLAT {
      const int64_t k = at + j;
      const V t = load(past.point.t + r * n + j);
      const V moved = p.get(Channels::W_V, k) * load(past.point.derivative + r * n + j) * t;
      const V gain = p.get(Channels::WEIGHT, k) * (load(past.point.gate + r * n + j) + moved);
      const V h = gain * past.dz.get(r, j);
      store(out.at + r * out.stride + j, p.get(Channels::SLOPE, k) * (h - (load(common + k) + t * load(slope + k))));
    });
    dx.put(tile, out);
  });
}
