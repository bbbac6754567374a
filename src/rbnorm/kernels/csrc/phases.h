// The sweeps by themselves, over whole tensors: what a layer needs that does something of its own,
// such as a collective, between them.
//
// Included once per instruction set, inside its namespace.

template <class S>
Grid whole(const Shape& shape) {
  return Grid(shape, block_of<S>(shape, std::max<int64_t>(shape.N, 1)));
}

template <class S>
void moments(const Moments& p) {
  using T = table_t<S>;
  const Grid grid = whole<S>(p.shape);
  const int64_t C = p.shape.C, rows = grid.chunks > 1 ? p.shape.N * grid.chunks : 0;
  Workspace<T> mean(rows, C), variance(p.variance ? rows : 0, C);
  const auto place = [&](void* out, Workspace<T>& chunks, const Area& a) -> T* {
    if (!out) return nullptr;
    return (grid.chunks > 1 ? chunks[grid.row(a)] : static_cast<T*>(out) + a.n * C) + a.c0;
  };
  grid.for_areas([&](const Area& a) {
    moments<S>(p.shape, a, static_cast<const S*>(p.x), place(p.mean, mean, a),
               place(p.variance, variance, a));
  });
  for (int64_t n = 0; grid.chunks > 1 && n < p.shape.N; n++) {
    T *m = mean[n * grid.chunks], *v = p.variance ? variance[n * grid.chunks] : nullptr;
    merge_chunks<T>(grid, m, v, mean.ld);
    std::copy_n(m, C, static_cast<T*>(p.mean) + n * C);
    if (v) std::copy_n(v, C, static_cast<T*>(p.variance) + n * C);
  }
}

template <class S>
void affine(const Affine& p) {
  using T = table_t<S>;
  const auto row = [&](const void* table, const Area& a) {
    return table ? static_cast<const T*>(table) + a.n * p.shape.C + a.c0 : nullptr;
  };
  whole<S>(p.shape).for_areas([&](const Area& a) {
    const Tables<T> tables{row(p.center, a), row(p.scale, a), row(p.shift, a)};
    affine<S>(p.shape, a, tables, static_cast<const S*>(p.x), Tail<S>{nullptr, NONE, 0},
              static_cast<S*>(p.y));
  });
}

template <class S>
void grad_moments(const GradMoments& p) {
  using T = table_t<S>;
  const Grid grid = whole<S>(p.shape);
  const int64_t C = p.shape.C, rows = grid.chunks > 1 ? p.shape.N * grid.chunks : 0;
  Workspace<T> first(rows, C), second(rows, C);
  const auto place = [&](void* out, Workspace<T>& chunks, const Area& a) {
    return (grid.chunks > 1 ? chunks[grid.row(a)] : static_cast<T*>(out) + a.n * C) + a.c0;
  };
  grid.for_areas([&](const Area& a) {
    const Tables<T> tables{static_cast<const T*>(p.center) + a.n * C + a.c0, nullptr, nullptr};
    grad_moments<S>(p.shape, a, tables, static_cast<const S*>(p.dy), static_cast<const S*>(p.x),
                    Tail<S>{nullptr, NONE, 0}, place(p.first, first, a),
                    place(p.second, second, a));
  });
  for (int64_t n = 0; grid.chunks > 1 && n < p.shape.N; n++)
    for (auto [chunks, out] : {std::pair{&first, p.first}, std::pair{&second, p.second}}) {
      T* row = (*chunks)[n * grid.chunks];
      merge_chunks<T>(grid, row, nullptr, chunks->ld);
      std::copy_n(row, C, static_cast<T*>(out) + n * C);
    }
}

template <class S>
void grad_affine(const GradAffine& p) {
  using T = table_t<S>;
  const auto row = [&](const void* table, int64_t n, int64_t c) {
    return static_cast<const T*>(table) + n * p.shape.C + c;
  };
  whole<S>(p.shape).for_areas([&](const Area& a) {
    const Tables<T> tables{row(p.center, a.n, a.c0), row(p.dy_scale, a.n, a.c0), nullptr,
                           row(p.x_scale, 0, a.c0), row(p.shift, a.n, a.c0)};
    grad_affine<S>(p.shape, a, tables, static_cast<const S*>(p.dy), static_cast<const S*>(p.x),
                   Tail<S>{nullptr, NONE, 0}, static_cast<S*>(p.dx), nullptr);
  });
}
