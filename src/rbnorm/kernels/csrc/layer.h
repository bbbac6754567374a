// The layer forward and backward: sweep, table math, sweep.
//
// Included once per instruction set, inside its namespace.

template <class S>
void train(const Forward& f) {
  using T = table_t<S>;
  const auto x = static_cast<const S*>(f.x);
  const Tail<S> tail{static_cast<const S*>(f.residual), f.layer.activation, T(f.layer.slope)};
  for_units<S>(f.shape, true, [&](const Grid& grid, Arena<T>& arena) {
    const int64_t channels = grid.c1 - grid.c0, N = grid.instances(), rows = N * grid.chunks;
    arena.reserve(3 * rows * Workspace<T>::padded(channels));
    const Workspace<T> mean(arena, rows, channels), variance(arena, rows, channels);
    const Workspace<T> rest(arena, rows, channels);
    grid.for_areas([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, row = grid.row(a);
      moments<S>(grid.shape, a, x, mean[row] + j, variance[row] + j, rest[row] + j);
    });
    for (int64_t n = 0; grid.chunks > 1 && n < N; n++) {
      const int64_t row = n * grid.chunks;
      merge_chunks<T>(grid, mean[row], variance[row], rest[row], mean.ld);
    }
    training_tables<T>(f, grid, mean, variance, rest);
    grid.for_areas_back([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, row = grid.instance(a) * grid.chunks;
      const Tables<T> tables{mean[row] + j, variance[row] + j, rest[row] + j};
      affine<S>(grid.shape, a, tables, x, tail, static_cast<S*>(f.y));
    });
  });
}

// Instances need not wait for one another. Those of few channels are taken several at a time, as one
// instance with all their channels, where memory has them in this order.
template <class S>
void evaluate(const Forward& f, const Constants<table_t<S>>& constants, const Shape& shape,
              int64_t first) {
  using T = table_t<S>;
  const auto x = static_cast<const S*>(f.x) + first * shape.L;
  const auto y = static_cast<S*>(f.y) + first * shape.L;
  const auto residual = f.residual ? static_cast<const S*>(f.residual) + first * shape.L : nullptr;
  const Tail<S> tail{residual, f.layer.activation, T(f.layer.slope)};
  for_units<S>(shape, false, [&](const Grid& grid, Arena<T>& arena) {
    const int64_t channels = grid.c1 - grid.c0, N = grid.instances(), rows = N * grid.chunks;
    arena.reserve((rows + 2 * N) * Workspace<T>::padded(channels));
    const Workspace<T> mean(arena, rows, channels);
    const Workspace<T> scale(arena, N, channels), shift(arena, N, channels);
    grid.for_areas([&](const Area& a) {
      moments<S>(shape, a, x, mean[grid.row(a)] + (a.c0 - grid.c0), nullptr);
    });
    for (int64_t n = 0; n < N; n++) {
      T* m = mean[n * grid.chunks];
      if (grid.chunks > 1) merge_chunks<T>(grid, m, nullptr, nullptr, mean.ld);
      if (f.m)
        std::copy_n(m, channels,
                    static_cast<T*>(f.m) + first + (grid.n0 + n) * shape.C + grid.c0);
      for (int64_t j = 0; j < channels; j += width<T>) {
        const auto [by, to] = constants.tables(
            [&](const T* row) FLAT { return load(row + grid.c0 + j); }, load(m + j));
        store(scale[n] + j, by), store(shift[n] + j, to);
      }
    }
    grid.for_areas_back([&](const Area& a) {
      const int64_t j = a.c0 - grid.c0, n = grid.instance(a);
      const Tables<T> tables{mean[n * grid.chunks] + j, scale[n] + j, shift[n] + j};
      affine<S>(shape, a, tables, x, tail, y);
    });
  });
}

// Positions so few that the numbers of a vector of channels are read twice from the nearest cache.
template <class T>
bool few_in_evaluation(const Shape& s) {
  return s.channels_last ? s.L <= 16 && tile_of<T>(s.C, s.L) == 1 : s.L < width<T>;
}

// Such instances, each vector of channels from its numbers to its results without a table in memory.
template <class S, bool WithTail>
void evaluate_few(const Forward& f, const Constants<table_t<S>>& constants, const Shape& shape,
                  int64_t first) {
  using T = table_t<S>;
  const int64_t C = shape.C, L = shape.L, start = first * L;
  const auto x = static_cast<const S*>(f.x) + start;
  const auto y = static_cast<S*>(f.y) + start;
  const auto residual = f.residual ? static_cast<const S*>(f.residual) + start : nullptr;
  const Tail<S> tail{residual, f.layer.activation, T(f.layer.slope)};
  const auto m = f.m ? static_cast<T*>(f.m) + first : nullptr;
  const auto write = [=](const auto& at, const Factors<T>& factors, int64_t offset) FLAT {
    const Vec<T> centered = at.load(x + offset) - factors.center;
    if constexpr (WithTail) {
      const Vec<T> z = tail.before(at, 0, factors, centered, offset);
      at.store(y + offset, activate(z, tail.activation, tail.slope));
    } else {
      at.store(y + offset, factors.scale * centered + factors.shift);
    }
  };
  const auto visit = [=](const Area& a, int64_t c, const auto& at) FLAT {
    const Vec<T> mean = mean_of_few(shape, a, c, at, x);
    if (m) at.store(m + a.n * C + c, mean);
    const auto [by, to] =
        constants.tables([&](const T* row) FLAT { return at.load(row + c); }, mean);
    const Factors<T> factors{mean, by, to};
    const int64_t offset = shape.offset(a.n, c, 0), n = std::min(width<T>, C - c) * L;
    if (shape.channels_last) {
      for (int64_t i = 0; i < L; i++) write(at, factors, offset + i * C);
      return;
    }
    for (int64_t k = 0; k * width<T> < n; k++) {
      const auto from = read<Mask<T>>(repeats<T>.lane[L][k]);
      const Factors<T> own{permuted<T>(mean, from), permuted<T>(by, from), permuted<T>(to, from)};
      const int64_t rest = n - k * width<T>;
      if (rest >= width<T>)
        write(Whole<T, 1>{0}, own, offset + k * width<T>);
      else
        write(Partial<T>{rest}, own, offset + k * width<T>);
    }
  };
  const int64_t vectors = ceil_div(C, width<T>);
  parallel(shape.N * vectors, ceil_div(task_values, width<T> * L), [=](int64_t begin, int64_t end) {
    int64_t n = begin / vectors, c = begin % vectors * width<T>;
    for (int64_t i = begin; i < end; i++) {
      const Area a{n, 0, C, 0, L};
      c + width<T> <= C ? visit(a, c, Whole<T, 1>{0}) : visit(a, c, Partial<T>{C - c});
      if ((c += width<T>) >= C) c = 0, n++;
    }
  });
}

template <class S>
void evaluate_part(const Forward& f, const Constants<table_t<S>>& constants, const Shape& shape,
                   int64_t first) {
  const bool with_tail = f.residual || f.layer.activation != NONE;
  const auto run = !few_in_evaluation<table_t<S>>(shape) ? evaluate<S>
                   : with_tail                           ? evaluate_few<S, true>
                                                         : evaluate_few<S, false>;
  run(f, constants, shape, first);
}

template <class S>
void evaluate(const Forward& f) {
  using T = table_t<S>;
  const Shape& s = f.shape;
  const int64_t tile = s.channels_last ? 1 : tile_of<T>(s.C, s.N);
  Arena<T> arena;
  arena.reserve(Constants<T>::size(s.C, tile));
  const Constants<T> constants(arena, f.layer, s.C, tile, f.running_mean, f.running_var);
  const int64_t whole = s.N / tile, rest = s.N % tile;
  evaluate_part<S>(f, constants, {whole, tile * s.C, s.L, s.channels_last}, 0);
  if (rest) evaluate_part<S>(f, constants, {1, rest * s.C, s.L, false}, whole * tile * s.C);
}

template <class S>
void forward(const Forward& f) {
  using T = table_t<S>;
  if (f.m && !f.layer.training) {
    std::copy_n(static_cast<T*>(f.running_mean), f.shape.C, static_cast<T*>(f.E));
    std::copy_n(static_cast<T*>(f.running_var), f.shape.C, static_cast<T*>(f.V));
  }
  if (f.shape.L == 1)
    forward_points<S>(f);
  else
    f.layer.training ? train<S>(f) : evaluate<S>(f);
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
                  [&](int64_t n) FLAT { return m(n); }, [](int64_t) FLAT { return Vec<T>{}; }) {}
  INLINE const T* from(const void* p) const { return static_cast<const T*>(p) + grid.c0; }
  INLINE Vec<T> m(int64_t n) const { return at.get(from(b.m) + n * grid.shape.C); }
  INLINE Vec<T> t(int64_t n) const { return deviation(m(n)) * r; }
};

// The forward pass's scale and shift, which an activation's derivative needs.
template <class T>
void recompute_tables(const Backward& b, const Grid& grid, const Workspace<T>& scale,
                      const Workspace<T>& shift) {
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
void backward_tables(const Backward& b, const Grid& grid, const Workspace<T>& first,
                     const Workspace<T>& second, const Workspace<T>& scale,
                     const Workspace<T>& x_scale) {
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
    const auto put = [&](void* to, const Sum<T>& sum) FLAT {
      if (to) at.put(static_cast<T*>(to) + grid.c0, sum.total * T(grid.shape.L));
    };
    put(b.weight, weight), put(b.bias, bias), put(b.center_weight, center_weight);
    put(b.scale_weight, scale_weight), put(b.scale_bias, scale_bias);
  });
}

template <class S>
void backward(const Backward& b) {
  using T = table_t<S>;
  if (b.shape.L == 1) return backward_points<S>(b);
  const auto x = static_cast<const S*>(b.x), dy = static_cast<const S*>(b.dy);
  const auto m = static_cast<const T*>(b.m);
  const bool activated = b.layer.activation != NONE;
  const Tail<S> tail{static_cast<const S*>(b.residual), b.layer.activation, T(b.layer.slope)};
  for_units<S>(b.shape, true, [&](const Grid& grid, Arena<T>& arena) {
    const int64_t channels = grid.c1 - grid.c0, N = grid.instances(), rows = N * grid.chunks;
    arena.reserve((2 * rows + 2 * N + 1) * Workspace<T>::padded(channels));
    const Workspace<T> first(arena, rows, channels), second(arena, rows, channels);
    const Workspace<T> scale(arena, N, channels), shift(arena, activated ? N : 0, channels);
    const Workspace<T> x_scale(arena, 1, channels);
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
      merge_chunks<T>(grid, first[n * grid.chunks], nullptr, nullptr, first.ld);
      merge_chunks<T>(grid, second[n * grid.chunks], nullptr, nullptr, second.ld);
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
