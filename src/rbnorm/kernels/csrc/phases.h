// The phases: sweeps over whole tensors, for a layer whose tables are computed elsewhere, such as one
// with a collective between them.
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
  Arena<T> arena;
  arena.reserve(2 * rows * Workspace<T>::padded(C));
  const Workspace<T> mean(arena, rows, C), variance(arena, p.v ? rows : 0, C);
  const auto place = [&](void* out, const Workspace<T>& chunks, const Area& a) -> T* {
    if (!out) return nullptr;
    return (grid.chunks > 1 ? chunks[grid.row(a)] : static_cast<T*>(out) + a.n * C) + a.c0;
  };
  grid.for_areas([&](const Area& a) {
    moments<S>(p.shape, a, static_cast<const S*>(p.x), place(p.m, mean, a),
               place(p.v, variance, a));
  });
  for (int64_t n = 0; grid.chunks > 1 && n < p.shape.N; n++) {
    T *m = mean[n * grid.chunks], *v = p.v ? variance[n * grid.chunks] : nullptr;
    merge_chunks<T>(grid, m, v, nullptr, mean.ld);
    std::copy_n(m, C, static_cast<T*>(p.m) + n * C);
    if (v) std::copy_n(v, C, static_cast<T*>(p.v) + n * C);
  }
}

template <class S>
Tail<S> tail_of(const Epilogue& e) {
  return {static_cast<const S*>(e.residual), e.activation, static_cast<table_t<S>>(e.slope)};
}

// The row of a table for the instance and the channels of an area; null stays null.
template <class T>
const T* row_of(const void* table, const Shape& shape, const Area& a) {
  return table ? static_cast<const T*>(table) + a.n * shape.C + a.c0 : nullptr;
}

template <class S>
void affine(const Affine& p) {
  using T = table_t<S>;
  const Tail<S> tail = tail_of<S>(p.epilogue);
  whole<S>(p.shape).for_areas([&](const Area& a) {
    const auto row = [&](const void* table) { return row_of<T>(table, p.shape, a); };
    const Tables<T> tables{row(p.m), row(p.scale), row(p.shift)};
    affine<S>(p.shape, a, tables, static_cast<const S*>(p.x), tail, static_cast<S*>(p.y));
  });
}

template <class S>
void grad_moments(const GradMoments& p) {
  using T = table_t<S>;
  const Grid grid = whole<S>(p.shape);
  const Tail<S> tail = tail_of<S>(p.epilogue);
  const int64_t C = p.shape.C, rows = grid.chunks > 1 ? p.shape.N * grid.chunks : 0;
  Arena<T> arena;
  arena.reserve(2 * rows * Workspace<T>::padded(C));
  const Workspace<T> first(arena, rows, C), second(arena, rows, C);
  const auto place = [&](void* out, const Workspace<T>& chunks, const Area& a) {
    return (grid.chunks > 1 ? chunks[grid.row(a)] : static_cast<T*>(out) + a.n * C) + a.c0;
  };
  grid.for_areas([&](const Area& a) {
    const auto row = [&](const void* table) { return row_of<T>(table, p.shape, a); };
    const Tables<T> tables{row(p.m), row(p.scale), row(p.shift)};
    grad_moments<S>(p.shape, a, tables, static_cast<const S*>(p.dy), static_cast<const S*>(p.x),
                    tail, place(p.S1, first, a), place(p.S2, second, a));
  });
  for (int64_t n = 0; grid.chunks > 1 && n < p.shape.N; n++)
    for (auto [chunks, out] : {std::pair{&first, p.S1}, std::pair{&second, p.S2}}) {
      T* row = (*chunks)[n * grid.chunks];
      merge_chunks<T>(grid, row, nullptr, nullptr, chunks->ld);
      std::copy_n(row, C, static_cast<T*>(out) + n * C);
    }
}

template <class S>
void grad_affine(const GradAffine& p) {
  using T = table_t<S>;
  const Tail<S> tail = tail_of<S>(p.epilogue);
  whole<S>(p.shape).for_areas([&](const Area& a) {
    const auto row = [&](const void* table) { return row_of<T>(table, p.shape, a); };
    const T* x_scale = p.x_scale ? static_cast<const T*>(p.x_scale) + a.c0 : nullptr;
    const Tables<T> tables{row(p.m), row(p.scale), row(p.shift), x_scale, row(p.u)};
    grad_affine<S>(p.shape, a, tables, static_cast<const S*>(p.dy), static_cast<const S*>(p.x),
                   tail, static_cast<S*>(p.dx), static_cast<S*>(p.dresidual));
  });
}
