// The layer forward and backward, and its phases one by one.
//
// Included once per instruction set, inside its namespace.

// Instances of shape `s`, the first of which begins `first` channels behind that of the call. In evaluation
// the channels are known; then instances need not wait for one another.
void normalise(const Call& f, const Shape& s, const Channels* known = nullptr, int64_t first = 0) {
  const auto from = [&](const void* start) {
    const Memory memory{f.type, start};
    return Memory{f.type, start ? memory.place(first * s.L) : nullptr};
  };
  const Memory x = from(f.x), y = from(f.y);
  Tail tail(f.type, f.epilogue);
  tail.residual = from(f.epilogue.residual);
  for_units(f.type, s, !known, [&](const Grid& grid, Arena& arena) {
    const int64_t C = grid.channels(), N = grid.instances();
    const Channels p = known ? known->from(grid.c0) : Channels(arena, f.layer, grid.c0, C);
    const Table mean = take(arena, N, C, grid.chunks);
    // At first the variance, and what the mean lost when it was rounded.
    const Table scale = take(arena, N, C, grid.chunks), shift = take(arena, N, C, grid.chunks);
    moments(grid, x, mean, known ? Table{} : scale, known ? Table{} : shift);
    for_columns(grid, [&](int64_t j0, int64_t j1) {
      if (!known) batch_statistics(f, grid, p, mean, scale, shift, j0, j1);
      const auto m = [=](int64_t n, int64_t j) FLAT { return load(mean[n] + j); };
      forward_tables(p, N, j0, j1, m, scale, shift);
      for (int64_t n = 0; f.m && n < N; n++)
        std::memcpy(f.m + first + (grid.n0 + n) * s.C + grid.c0 + j0, mean[n] + j0, (least(j1, C) - j0) * sizeof(float));
    });
    grid.for_areas([&](const Area& a) {
      const int64_t n = grid.instance(a), j = a.c0 - grid.c0;
      affine(s, a, {mean[n] + j, scale[n] + j, shift[n] + j}, x, tail, y);
    }, true);
  });
}

void forward(const Call& f) {
  const Shape& s = f.shape;
  if (f.E && !f.layer.training) {
    std::memcpy(f.E, f.running_mean, s.C * sizeof(float));
    std::memcpy(f.V, f.running_var, s.C * sizeof(float));
  }
  if (s.L == 1) return forward_points(f);
  if (f.layer.training) return normalise(f, s);
  // Instances of few numbers are taken several at a time, as one instance with all their channels, where
  // memory has them in this order.
  const int64_t times = s.last || s.C * s.L > merged_values ? 1 : rows_in_one(s.C, s.N);
  Arena arena;
  const Channels p(arena, f.layer, 0, s.C, times);
  p.set_statistics(f.running_mean, f.running_var, times);
  const int64_t whole = s.N / times, rest = s.N % times;
  normalise(f, {whole, times * s.C, s.L, s.last, s.threads}, &p);
  if (rest) normalise(f, {1, rest * s.C, s.L, false, s.threads}, &p, whole * times * s.C);
}

void backward(const Call& b) {
  if (b.shape.L == 1) return backward_points(b);
  const Memory x{b.type, b.x}, dy{b.type, b.dy}, dx{b.type, b.dx}, dresidual{b.type, b.dresidual};
  const Tail tail(b.type, b.epilogue);
  const Source source{dy, x, &tail};
  const bool activated = tail.activation != NONE;
  for_units(b.type, b.shape, true, [&](const Grid& grid, Arena& arena) {
    const int64_t C = grid.channels(), N = grid.instances();
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
    grad_moments(grid, source, tables, first, second);
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

inline Grid whole(const Call& p) {
  return Grid(p.shape, block_of(p.type, p.shape, most(p.shape.N, 1)));
}
// The tables of an area; x_scale has a row for each instance that is swept with it.
inline Tables tables_of(const Call& p, const Area& a, const float* x_scale = nullptr) {
  Tables t = Tables{p.m, p.scale, p.shift, nullptr, p.u}.from(a.n * p.shape.C + a.c0);
  if (x_scale) t.x_scale = x_scale + a.c0;
  return t;
}

// Where the phase's sums go, if anywhere: to the table itself where no chunks are to be merged.
inline Table sums_for(float* table, const Grid& grid, Arena& arena) {
  if (grid.chunks == 1 || !table) return {table, table ? grid.channels() : 0};
  return take(arena, grid.instances(), grid.channels(), grid.chunks);
}
inline void put(const Table& sums, const Grid& grid, float* table) {
  for (int64_t n = 0; sums.at != table && n < grid.instances(); n++)
    std::memcpy(table + n * grid.channels(), sums[n], grid.channels() * sizeof(float));
}

void moments(const Call& p) {
  const Grid grid = whole(p);
  Arena arena;
  const Table mean = sums_for(p.first, grid, arena), variance = sums_for(p.second, grid, arena);
  moments(grid, {p.type, p.x}, mean, variance, {});
  put(mean, grid, p.first), put(variance, grid, p.second);
}

void grad_moments(const Call& p) {
  const Tail tail(p.type, p.epilogue);
  const Grid grid = whole(p);
  Arena arena;
  const Table first = sums_for(p.first, grid, arena), second = sums_for(p.second, grid, arena);
  const auto tables = [&](const Area& a) { return tables_of(p, a); };
  grad_moments(grid, {{p.type, p.dy}, {p.type, p.x}, &tail}, tables, first, second);
  put(first, grid, p.first), put(second, grid, p.second);
}

void affine(const Call& p) {
  const Tail tail(p.type, p.epilogue);
  whole(p).for_areas([&](const Area& a) {
    affine(p.shape, a, tables_of(p, a), {p.type, p.x}, tail, {p.type, p.y});
  });
}

void grad_affine(const Call& p) {
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
                {p.type, p.dx}, {p.type, p.dresidual});
  });
}
