// How the numbers of an area become tiles of float32 in the nearest cache: `rows` of `width` numbers.
// Numbers per channel, *factors*, go with the rows of a tile (runs: contiguous maps) or with its
// lanes (channels last, and whatever was arranged like it).
//
// Included once per instruction set, inside its namespace.

constexpr int64_t tile_numbers = 1024;    // of a tile that is copied, or swept more than once
constexpr int64_t group_rows = 8;         // of lanes that are added up side by side
constexpr int64_t block_channels = 1024;  // of an area, whose sums are under way at once
constexpr int64_t most_wide = 512;        // numbers of rows that are taken as one

// Some instances, a range of channels, a range of positions. Several instances only of a contiguous
// map with all its channels, whose runs and whose rows of tables then follow one another.
struct Area {
  int64_t n, c0, c1, i0, i1, instances = 1;
  int64_t channels() const { return (c1 - c0) * instances; }
  int64_t positions() const { return i1 - i0; }
};

// The numbers per channel that a sweep reads, for the first channel of an area; null where a sweep
// does not need them.
struct Tables {
  const float *center = nullptr, *scale = nullptr, *shift = nullptr, *x_scale = nullptr, *u = nullptr;

  template <class F>
  INLINE Tables map(F f) const {
    return {f(center), f(scale), f(shift), f(x_scale), f(u)};
  }
  INLINE Tables from(int64_t c) const {
    return map([=](const float* table) { return table ? table + c : nullptr; });
  }
};

// Rows of numbers in memory, `stride` apart, the first one at `offset`.
struct Piece {
  int64_t offset, rows, width, stride;
};

// How many of `count` rows of few channels fill whole vectors.
INLINE int64_t rows_in_one(int64_t channels, int64_t count) {
  const int64_t rows = W / std::gcd(channels, W);
  return channels < 2 * W && count >= rows ? rows : 1;
}

// Contiguous runs shorter than a vector.
INLINE bool has_short_runs(const Shape& s) { return !s.last && s.L < W; }

// `times` copies of the first n numbers behind one another; and the sums of such copies.
INLINE void repeat_row(float* row, int64_t n, int64_t times) {
  for (int64_t done = 1; done < times; done *= 2)
    std::memcpy(row + done * n, row, least(done, times - done) * n * sizeof(float));
}
INLINE void fold_row(float* row, int64_t n, int64_t times) {
  for (int64_t k = 1; k < times; k++)
    for (int64_t j = 0; j < n; j++) row[j] += row[k * n + j];
}

// For each length of run, which of a vector of channels stands where in its runs.
struct Repeats {
  int32_t lane[W][W][W] = {};
  constexpr Repeats() {
    for (int64_t length = 1; length < W; length++)
      for (int64_t i = 0; i < length * W; i++) lane[length][i / W][i % W] = int32_t(i / length);
  }
};
constexpr Repeats repeats;

// Room for tables in which every number stands as often as in a wide row, or in its channel's run.
class Wide {
 public:
  Tables tiled(const Tables& tables, int64_t n, int64_t times) {
    return tables.map([&](const float* table) -> const float* {
      if (!table) return table;
      float* row = rows[used++];
      std::memcpy(row, table, n * sizeof(float));
      if (n * times < W) std::fill_n(row + n * times, W - n * times, 0.f);
      repeat_row(row, n, times);
      return row;
    });
  }
  Tables repeated(const Tables& tables, int64_t n, int64_t length) {
    return tables.map([&](const float* table) -> const float* {
      if (!table) return table;
      float* row = rows[used++];
      for (int64_t c = 0; c < n; c += W) {
        const V v = load_some(table + c, n - c);
        for (int64_t k = 0; k < length; k++)
          store(row + c * length + k * W, permuted(v, v, read<Mask>(repeats.lane[length][k])));
      }
      return row;
    });
  }

 private:
  int used = 0;
  float rows[5][most_wide];
};

// Calls f(tables, piece, lanes) for the rows of an area; `lanes` tells what the factors go with.
template <class F>
INLINE void for_pieces(const Shape& s, const Area& a, const Tables& tables, F f) {
  const int64_t first = s.offset(a.n, a.c0, a.i0), channels = a.channels();
  if (s.last) {
    const int64_t n = a.positions(), times = channels == s.C ? rows_in_one(channels, n) : 1;
    const int64_t rows = n / times, rest = n % times;
    Wide wide;
    Tables wider;
    const Tables* t = &tables;  // no copy, whose loads would wait for stores
    if (times > 1 || channels < W) wider = wide.tiled(tables, channels, times), t = &wider;
    f(*t, Piece{first, rows, times * channels, times * s.C}, true);
    if (rest) f(*t, Piece{first + rows * times * s.C, 1, rest * channels, 0}, true);
  } else if (has_short_runs(s)) {
    const int64_t block = most_wide / s.L / W * W;
    for (int64_t c = 0; c < channels; c += block) {
      const int64_t n = least(block, channels - c);
      Wide wide;
      f(wide.repeated(tables.from(c), n, s.L), Piece{first + c * s.L, 1, n * s.L, 0}, true);
    }
  } else {
    f(tables, Piece{first, channels, a.positions(), s.L}, false);
  }
}

// Calls f(tile, at) for the tiles of a piece: all of it, or as many numbers as a tile that is `small`
// may have. The tile's factors begin `at` numbers behind those of the piece. Rows are cut where less than
// `group` of them would fit.
template <class F>
INLINE void for_tiles(const Piece& p, bool lanes, bool small, int64_t group, F f) {
  if (!small && p.width >= W) return f(p, 0);
  const int64_t longest = tile_numbers / most(least(group, p.rows), 1);
  const int64_t parts = ceil_div(p.width, longest), width = ceil_div(p.width, parts);
  const int64_t rows = tile_numbers / most(width, W);
  for (int64_t i = 0; i < p.rows; i += rows)
    for (int64_t j = 0; j < p.width; j += width) {
      const Piece tile{p.offset + i * p.stride + j, least(rows, p.rows - i),
                       least(width, p.width - j), p.stride};
      f(tile, lanes ? j : i);
    }
}

// Rows of numbers of a type; of float32 they are what a tile that is copied has.
template <class S>
struct RowsOf {
  typename S::Stored* at;
  int64_t stride;
  INLINE V get(int64_t r, int64_t j) const { return S::get(at + r * stride + j); }
  INLINE void put(int64_t r, int64_t j, const V& v) const { S::put(at + r * stride + j, v); }
};
using Rows = RowsOf<Float>;

struct Memory {
  Type type;
  const void* start;

  void* place(int64_t offset) const {
    return static_cast<char*>(const_cast<void*>(start)) + offset * bytes_of[type];
  }
  bool is_copied(const Piece& tile) const { return type != FLOAT32 || tile.width < W; }
  template <class S>
  INLINE RowsOf<S> rows(const Piece& tile) const {
    return {static_cast<typename S::Stored*>(place(tile.offset)), tile.stride};
  }
  // The numbers of a tile as float32, at least a vector in a row: where they lie, or in `room`.
  INLINE Rows out(const Piece& tile, float* room) const {
    if (is_copied(tile)) return {room, most(tile.width, W)};
    return {static_cast<float*>(place(tile.offset)), tile.stride};
  }
  // Asks for numbers that are read soon, but lie where the processor does not see them coming.
  INLINE void fetch(int64_t offset, int64_t n) const {
    const char* next = static_cast<const char*>(place(offset));
    for (int64_t i = 0; i < n * bytes_of[type]; i += 64) __builtin_prefetch(next + i, 0, 2);
  }
  INLINE void fetch_next(const Piece& tile) const {
    for (int64_t r = tile.rows; r < 2 * tile.rows; r++) fetch(tile.offset + r * tile.stride, tile.width);
  }
  // `copied` where they lie, too.
  INLINE Rows in(const Piece& tile, float* room, bool copied = false) const {
    if (!copied && !is_copied(tile)) return out(tile, room);
    const Rows rows{room, most(tile.width, W)};
    if (tile.width < W) std::memset(room, 0, tile.rows * W * sizeof(float));
    each_row(tile, [&](int64_t offset, int64_t row, int64_t n) {
      ways[type].widen(place(offset), room + row * rows.stride, n);
    });
    return rows;
  }
  // Puts what was written in `room` where it belongs.
  INLINE void put(const Piece& tile, const Rows& rows) const {
    if (!is_copied(tile)) return;
    each_row(tile, [&](int64_t offset, int64_t row, int64_t n) {
      ways[type].narrow(rows.at + row * rows.stride, place(offset), n);
    });
  }

 private:
  template <class F>
  INLINE static void each_row(const Piece& tile, F f) {
    if (tile.stride == tile.width && tile.width >= W) return f(tile.offset, 0, tile.rows * tile.width);
    for (int64_t r = 0; r < tile.rows; r++) f(tile.offset + r * tile.stride, r, tile.width);
  }
};

// What a tile that is copied has room in.
struct Room {
  alignas(64) float at[tile_numbers + W];
};
