// The layer forward and backward, and its phases one by one.
//
// Included once per instruction set, inside its namespace.

void train(const Forward& f) {
  const Memory x{f.type, f.x}, y{f.type, f.y};
  const Tail tail(f.type, f.epilogue);
  for_units(f.type, f.shape, true, [&](const Grid& grid, Arena& arena) {
    const int64_t C = grid.channels(), N = grid.instances(), ld = padded(C);
    const Channels p(arena, f.layer, grid.c0, C);
    const Table mean = take(arena, N, C, grid.chunks), variance = take(arena, N, C, grid.chunks);
    const Table rest = take(arena, N, C, grid.chunks);
    grid.for_areas([&](const Area& a) {
      const int64_t at = grid.row(a) * ld + a.c0 - grid.c0;
      moments(grid.shape, a, x, {mean.at + at, variance.at + at, rest.at + at});
    });
    for (int64_t n = 0; n < N; n++) merge_chunks(grid, mean[n], variance[n], rest[n], ld);
    for_columns(grid, [&](int64_t j0, int64_t j1) {
      batch_statistics(f, grid, p, mean, variance, rest, j0, j1);
      const auto m = [=](int64_t n, int64_t j) FLAT { return load(mean[n] + j); };
      forward_tables(p, N, j0, j1, m, variance, rest);
      for (int64_t n = 0; f.m && n < N; n++)
        std::memcpy(f.m + n * f.shape.C + grid.c0 + j0, mean[n] + j0, (least(j1, C) - j0) * sizeof(float));
    });
    grid.for_areas([&](const Area& a) {
      const int64_t n = grid.instance(a), j = a.c0 - grid.c0;
      affine(grid.shape, a, {mean[n] + j, variance[n] + j, rest[n] + j}, x, tail, y);
    }, true);
  });
}

// Instances need not wait for one another. Those of few numbers are taken several at a time, as one
// instance with all their channels, where memory has them in this order: `first` counts channels.
void evaluate_part(const Forward& f, const Channels& all, const Shape& s, int64_t first) {
  const auto from = [&](const void* start) {
    const Memory memory{f.type, start};
    return Memory{f.type, start ? memory.place(first * s.L) : nullptr};
  };
  const Memory x = from(f.x), y = from(f.y);
  Tail tail(f.type, f.epilogue);
  tail.residual = from(f.epilogue.residual);
  for_units(f.type, s, false, [&](const Grid& grid, Arena& arena) {
    const int64_t C = grid.channels(), N = grid.instances(), ld = padded(C);
    const Channels p = all.from(grid.c0);
    const Table mean = take(arena, N, C, grid.chunks);
    const Table scale = take(arena, N, C), shift = take(arena, N, C);
    grid.for_areas([&](const Area& a) {
      moments(s, a, x, {mean.at + grid.row(a) * ld + a.c0 - grid.c0, nullptr, nullptr});
    });
    for (int64_t n = 0; n < N; n++) {
      merge_chunks(grid, mean[n], nullptr, nullptr, ld);
      if (f.m) std::memcpy(f.m + first + (grid.n0 + n) * s.C + grid.c0, mean[n], C * sizeof(float));
    }
    for_columns(ld, [&](int64_t j0, int64_t j1) {
      const auto m = [=](int64_t n, int64_t j) FLAT { return load(mean[n] + j); };
      forward_tables(p, N, j0, j1, m, scale, shift);
    });
    grid.for_areas([&](const Area& a) {
      const int64_t n = grid.instance(a), j = a.c0 - grid.c0;
      affine(s, a, {mean[n] + j, scale[n] + j, shift[n] + j}, x, tail, y);
    }, true);
  });
}

void evaluate(const Forward& f) {
  const Shape& s = f.shape;
  const int64_t times = s.last || s.C * s.L > merged_values ? 1 : rows_in_one(s.C, s.N);
  Arena arena;
  const Channels p(arena, f.layer, 0, s.C, times);
  p.set_statistics(f.running_mean, f.running_var, times);
  const int64_t whole = s.N / times, rest = s.N % times;
  evaluate_part(f, p, {whole, times * s.C, s.L, s.last, s.threads}, 0);
  if (rest) evaluate_part(f, p, {1, rest * s.C, s.L, false, s.threads}, whole * times * s.C);
}

void forward(const Forward& f) {
  if (f.E && !f.layer.training) {
    std::memcpy(f.E, f.running_mean, f.shape.C * sizeof(float));
    std::memcpy(f.V, f.running_var, f.shape.C * sizeof(float));
  }
  if (f.shape.L == 1) return forward_points(f);
  f.layer.training ? train(f) : evaluate(f);
}

void backward(const Backward& b) {
  if (b.shape.L == 1) return backward_points(b);
  const Memory x{b.type, b.x}, dy{b.type, b.dy}, dx{b.type, b.dx}, dresidual{b.type, b.dresidual};
  const Tail tail(b.type, b.epilogue);
  const Source source{dy, x, &tail};
  const bool activated = tail.activation != NONE;
  for_units(b.type, b.shape, true, [&](const Grid& grid, Arena& arena) {
    const int64_t C = grid.channels(), N = grid.instances(), ld = padded(C);
    const Channels p(arena, b.layer, grid.c0, C);
    const Table first = take(arena, N, C, grid.chunks), second = take(arena, N, C, grid.chunks);
    const Table scale = take(arena, N, C);
    const Table shift = activated ? take(arena, N, C) : Table{};
    const Table x_scale = take(arena, grid.merged, C);
    const float* means = b.m + grid.c0;
    const int64_t all = b.shape.C;
    const auto m = [=](int64_t n, int64_t j) FLAT { return load_some(means + n * all + j, C - j); };
    if (!b.layer.training) p.set_statistics(b.E + grid.c0, b.V + grid.c0, 1);
    for_columns(grid, [&](int64_t j0, int64_t j1) {
      if (b.layer.training) {
        find_center(p, N, j0, j1, m, [](int64_t, int64_t) FLAT { return V{}; });
        for_lanes(j0, j1, [&](int64_t j) FLAT {
          finish_center(p, j, load_some(b.V + grid.c0 + j, C - j));
        });
      }
      if (activated) forward_tables(p, N, j0, j1, m, scale, shift);
    });
    const auto tables = [&](const Area& a) {
      const int64_t n = grid.instance(a), j = a.c0 - grid.c0;
      return Tables{means + n * all + j, scale[n] + j, activated ? shift[n] + j : nullptr};
    };
    grid.for_areas([&](const Area& a) {
      const int64_t at = grid.row(a) * ld + a.c0 - grid.c0;
      grad_moments(grid.shape, a, tables(a), source, first.at + at, second.at + at);
    });
    for (int64_t n = 0; n < N; n++) {
      merge_chunks(grid, first[n], nullptr, nullptr, ld);
      merge_chunks(grid, second[n], nullptr, nullptr, ld);
    }
    for_columns(grid, [&](int64_t j0, int64_t j1) {
      backward_tables(b, grid, p, j0, j1, m, first, second, scale, x_scale.at);
    });
    if (!b.dx && !b.dresidual) return;
    repeat_row(x_scale.at, C, grid.merged);
    grid.for_areas([&](const Area& a) {
      const int64_t n = grid.instance(a), j = a.c0 - grid.c0;
      Tables t = tables(a);
      if (b.layer.training) t.x_scale = x_scale.at + j;
      t.u = second[n] + j;
      grad_affine(grid.shape, a, t, dy, x, tail, dx, dresidual);
    }, true);
  });
}

// The phases: sweeps over whole tensors, for a layer whose tables are computed elsewhere, such as one
// with a collective between them.

inline Grid whole(const Phase& p) {
  return Grid(p.shape, block_of(p.type, p.shape, most(p.shape.N, 1)));
}
// The tables of an area; x_scale has a row for each instance that is swept with it.
inline Tables tables_of(const Phase& p, const Area& a, const float* x_scale = nullptr) {
  Tables t = Tables{p.m, p.scale, p.shift, nullptr, p.u}.from(a.n * p.shape.C + a.c0);
  if (x_scale) t.x_scale = x_scale + a.c0;
  return t;
}

// Calls f(area, first, second) for the places of an area's results, then merges its chunks.
template <class F>
void sum_phase(const Phase& p, bool squares, const F& f) {
  const Grid grid = whole(p);
  const int64_t C = p.shape.C, ld = padded(C), chunks = grid.chunks, rows = chunks > 1 ? p.shape.N * chunks : 0;
  Arena arena;
  const Table first = take(arena, p.shape.N, rows ? C : 0, chunks), second = take(arena, p.shape.N, rows ? C : 0, chunks);
  grid.for_areas([&](const Area& a) {
    const int64_t at = rows ? grid.row(a) * ld + a.c0 : a.n * C + a.c0;
    f(a, (rows ? first.at : p.first) + at, p.second ? (rows ? second.at : p.second) + at : nullptr);
  });
  for (int64_t n = 0; rows && n < p.shape.N; n++) {
    merge_chunks(grid, first[n], squares && p.second ? second[n] : nullptr, nullptr, ld);
    if (!squares) merge_chunks(grid, second[n], nullptr, nullptr, ld);
    std::memcpy(p.first + n * C, first[n], C * sizeof(float));
    if (p.second) std::memcpy(p.second + n * C, second[n], C * sizeof(float));
  }
}

void moments(const Phase& p) {
  sum_phase(p, true, [&](const Area& a, float* mean, float* variance) {
    moments(p.shape, a, {p.type, p.x}, {mean, variance, nullptr});
  });
}

void grad_moments(const Phase& p) {
  const Tail tail(p.type, p.epilogue);
  const Source source{{p.type, p.dy}, {p.type, p.x}, &tail};
  sum_phase(p, false, [&](const Area& a, float* first, float* second) {
    grad_moments(p.shape, a, tables_of(p, a), source, first, second);
  });
}

void affine(const Phase& p) {
  const Tail tail(p.type, p.epilogue);
  whole(p).for_areas([&](const Area& a) {
    affine(p.shape, a, tables_of(p, a), {p.type, p.x}, tail, {p.type, p.y});
  });
}

void grad_affine(const Phase& p) {
  const Tail tail(p.type, p.epilogue);
  const Grid grid = whole(p);
  Arena arena;
  float* x_scale = nullptr;
  if (p.x_scale) {
    x_scale = arena.take(grid.merged * p.shape.C);
    std::memcpy(x_scale, p.x_scale, p.shape.C * sizeof(float));
    repeat_row(x_scale, p.shape.C, grid.merged);
  }
  grid.for_areas([&](const Area& a) {
    grad_affine(p.shape, a, tables_of(p, a, x_scale), {p.type, p.dy}, {p.type, p.x}, tail,
                {p.type, p.y}, {p.type, p.dresidual});
  });
}
