// The sweeps over one area that write: y, and dx with the residual's gradient.
//
// Included once per instruction set, inside its namespace.

struct Tail {
  Memory residual;
  int activation;
  float slope;
  Tail(Type type, const Epilogue& e)
      : residual{type, e.residual}, activation(e.activation), slope(e.slope) {}
  bool empty() const { return !residual.start && activation == NONE; }
};

// Calls f(at, lane) for every vector of a tile, `at` in its rows, `lane` in its factors' row.
template <class F>
INLINE void for_vectors(const Piece& tile, F f) {
  const int64_t n = most(tile.width, W);
  for (int64_t r = 0; r < tile.rows; r++) over(n, [&](int64_t j) FLAT { f(r, j); });
}

// How factors are read: one for a row, or one for a lane.
struct OfRow {
  static INLINE V get(const float* table, int64_t row, int64_t) { return fill(table[row]); }
};
struct OfLane {
  static INLINE V get(const float* table, int64_t, int64_t lane) { return load(table + lane); }
};

// y = scale (x - center) + shift; center may be null.
template <class Of, class S>
void map_tile(const Piece& tile, const Tables& t, RowsOf<S> x, RowsOf<S> y) {
  const auto row = [&](auto centered) FLAT {
    for_vectors(tile, [=](int64_t r, int64_t j) FLAT {
      V v = x.get(r, j);
      if (centered) v -= Of::get(t.center, r, j);
      y.put(r, j, Of::get(t.scale, r, j) * v + Of::get(t.shift, r, j));
    });
  };
  t.center ? row(std::true_type{}) : row(std::false_type{});
}

// dx = scale dz + x_scale (x - center) + u; without x_scale x is not read.
template <class Of, class S>
void grad_tile(const Piece& tile, const Tables& t, RowsOf<S> dz, RowsOf<S> x, RowsOf<S> dx) {
  const auto row = [&](auto with_x) FLAT {
    for_vectors(tile, [=](int64_t r, int64_t j) FLAT {
      V v = Of::get(t.u, r, j);
      if (with_x)
        v += Of::get(t.x_scale, r, j) * (x.get(r, j) - Of::get(t.center, r, j));
      dx.put(r, j, Of::get(t.scale, r, j) * dz.get(r, j) + v);
    });
  };
  t.x_scale ? row(std::true_type{}) : row(std::false_type{});
}

// Calls f(at, other, n) for the rows of a tile, as one where nothing lies between them.
template <class F>
INLINE void for_rows(const Piece& tile, Rows z, Rows other, F f) {
  const int64_t n = most(tile.width, W);
  if (z.stride == n && other.stride == n) return f(z.at, other.at, tile.rows * n);
  for (int64_t r = 0; r < tile.rows; r++) f(z.at + r * z.stride, other.at + r * other.stride, n);
}

// z becomes act(z), or act'(z) dy.
INLINE void activate(const Piece& tile, const Tail& tail, Rows z) {
  if (tail.activation == NONE) return;
  for_rows(tile, z, z, [&](float* at, const float*, int64_t n) { act_by[tail.activation].f(at, n, tail.slope); });
}
INLINE void differentiate(const Piece& tile, const Tail& tail, Rows z, Rows dy) {
  for_rows(tile, z, dy, [&](float* at, const float* d, int64_t n) {
    act_by[tail.activation].grad(at, d, n, tail.slope);
  });
}
inline void add_strip(float* z, const float* other, int64_t n) {
  strip(z, other, n, [](const V& a, const V& b) FLAT { return a + b; });
}

// z = scale (x - center) + shift + residual.
INLINE void before_activation(const Piece& tile, const Tables& t, bool lanes, Rows x, const Tail& tail,
                              Rows z, float* room) {
  (lanes ? map_tile<OfLane, Float> : map_tile<OfRow, Float>)(tile, t, x, z);
  if (tail.residual.start)
    for_rows(tile, z, tail.residual.in(tile, room), add_strip);
}

// The gradient of what enters the activation: dy itself, or a tile in `room`.
INLINE Rows through(const Piece& tile, const Tables& t, bool lanes, Rows dy, Rows x, const Tail& tail,
                    float* room, float* other) {
  if (tail.activation == NONE) return dy;
  const Rows dz{room, most(tile.width, W)};
  before_activation(tile, t, lanes, x, tail, dz, other);
  differentiate(tile, tail, dz, dy);
  return dz;
}

// y = act(scale (x - center) + shift + residual).
void affine(const Shape& s, const Area& a, const Tables& tables, Memory x, const Tail& tail, Memory y) {
  Room room[3];
  const bool small = !tail.empty();
  for_pieces(s, a, tables, [&](const Tables& all, const Piece& piece, bool lanes) {
    for_tiles(piece, lanes, small, 1, [&](const Piece& tile, int64_t at) {
      const Tables t = all.from(at);
      if (!small && tile.width >= W)
        return by_type(x.type, [&](auto type) FLAT {
          using S = decltype(type);
          (lanes ? map_tile<OfLane, S> : map_tile<OfRow, S>)(tile, t, x.rows<S>(tile), y.rows<S>(tile));
        });
      const Rows z = y.out(tile, room[0].at);
      before_activation(tile, t, lanes, x.in(tile, room[1].at), tail, z, room[2].at);
      activate(tile, tail, z);
      y.put(tile, z);
    });
  });
}

// Puts a copy of a tile to where it belongs.
INLINE void write_tile(const Piece& tile, Rows from, Memory to, float* room) {
  const Rows out = to.out(tile, room);
  for (int64_t r = 0; r < tile.rows; r++)
    std::memcpy(out.at + r * out.stride, from.at + r * from.stride, tile.width * sizeof(float));
  to.put(tile, out);
}

// dx = scale dz + x_scale (x - center) + u, and dz itself as the residual's gradient.
void grad_affine(const Shape& s, const Area& a, const Tables& tables, Memory dy, Memory x,
                 const Tail& tail, Memory dx, Memory dresidual) {
  Room room[5];
  const bool plain = tail.activation == NONE, small = !plain;
  for_pieces(s, a, tables, [&](const Tables& all, const Piece& piece, bool lanes) {
    for_tiles(piece, lanes, small, 1, [&](const Piece& tile, int64_t at) {
      const Tables t = all.from(at);
      if (plain && tile.width >= W)
        return by_type(x.type, [&](auto type) FLAT {
          using S = decltype(type);
          (lanes ? grad_tile<OfLane, S> : grad_tile<OfRow, S>)(tile, t, dy.rows<S>(tile), x.rows<S>(tile),
                                                              dx.rows<S>(tile));
        });
      const Rows from = t.x_scale || !plain ? x.in(tile, room[0].at) : Rows{};
      const Rows dz =
          through(tile, t, lanes, dy.in(tile, room[1].at), from, tail, room[2].at, room[3].at);
      if (dresidual.start) write_tile(tile, dz, dresidual, room[4].at);
      if (!dx.start) return;
      const Rows out = dx.out(tile, room[4].at);
      (lanes ? grad_tile<OfLane, Float> : grad_tile<OfRow, Float>)(tile, t, dz, from, out);
      dx.put(tile, out);
    });
  });
}
