// How the numbers of one area are visited, a vector at a time, in order.
//
// Included once per instruction set, inside its namespace.

// `count` vectors of a run that are under way at once.
constexpr int lanes = 4;

// Rows that are read side by side.
constexpr int group_rows = 8;

constexpr int64_t most_wide = 512;  // numbers of a row that is made wide

// How many of `count` rows of few channels fill whole vectors.
template <class T>
INLINE int64_t tile_of(int64_t channels, int64_t count) {
  const int64_t tile = width<T> / std::gcd(channels, width<T>);
  return channels < 2 * width<T> && count >= tile ? tile : 1;
}

// The rows of an area whose channels lie side by side. Few channels would leave a vector half empty:
// `tile` rows are taken as a wide one then, so that it is a multiple of a vector; what is left over
// at the end is the `rest`, shorter than a row.
struct Rows {
  int64_t tile, width, stride, count, rest, offset;

  template <class T>
  static Rows of(const Shape& shape, const Area& a) {
    const int64_t C = shape.C, channels = a.c1 - a.c0, positions = a.i1 - a.i0;
    const int64_t tile = channels == C ? tile_of<T>(C, positions) : 1;
    return {tile,          tile * channels,      tile * C,
            positions / tile, positions % tile * C, shape.offset(a.n, a.c0, a.i0)};
  }
};

// Calls f(at, offset, rows) for groups of rows, the first of which lies at `offset`; they share what
// f reads once per channel.
template <class T, int Group, class F>
INLINE void for_rows(const Rows& rows, F f) {
  int64_t i = 0, offset = rows.offset;
  for (; i + Group <= rows.count; i += Group, offset += Group * rows.stride)
    for_vectors<T, 1>(rows.width, [&](auto at) FLAT {
      f(at, offset, std::integral_constant<int, Group>{});
    });
  const auto row = [&](int64_t n) FLAT {
    for_vectors<T, 1>(n, [&](auto at) FLAT { f(at, offset, std::integral_constant<int, 1>{}); });
  };
  for (; i < rows.count; i++, offset += rows.stride) row(rows.width);
  if (rows.rest) row(rows.rest);
}

// `tile` copies of the first n numbers behind one another; and the sums of such copies.
template <class T>
void tile_row(T* row, int64_t n, int64_t tile) {
  for (int64_t done = 1; done < tile; done *= 2)
    std::memcpy(row + done * n, row, std::min(done, tile - done) * n * sizeof(T));
}
template <class T>
void fold_row(T* row, int64_t n, int64_t tile) {
  for (int64_t k = 1; k < tile; k++)
    for (int64_t j = 0; j < n; j++) row[j] += row[k * n + j];
}

// Contiguous runs of so few positions that several of them fit a vector.
template <class T>
INLINE bool has_short_runs(const Shape& shape) {
  return !shape.channels_last && shape.L < width<T> / 2;
}

// Lanes of a vector of channels, for each number of `length` vectors of their runs.
template <class T>
struct Repeats {
  using Lane = std::remove_reference_t<decltype(Mask<T>{}[0])>;
  Lane lane[width<T>][width<T>][width<T>] = {};
  constexpr Repeats() {
    for (int64_t length = 1; length < width<T>; length++)
      for (int64_t i = 0; i < length * width<T>; i++)
        lane[length][i / width<T>][i % width<T>] = Lane(i / length);
  }
};
template <class T>
constexpr Repeats<T> repeats;

// The numbers per channel that a sweep reads, for one instance and the first channel of the area;
// null where a sweep does not need them.
template <class T>
struct Tables {
  const T *center, *scale, *shift;
  const T *x_scale = nullptr, *dx_shift = nullptr;

  template <class F>
  INLINE Tables map(F f) const {
    return {f(center), f(scale), f(shift), f(x_scale), f(dx_shift)};
  }
  Tables from(int64_t c) const {
    return map([&](const T* table) { return table ? table + c : nullptr; });
  }
};

// Tables in which every number stands as often as in a wide row, or in the runs of its channel.
template <class T>
class Wide {
 public:
  INLINE Tables<T> tiled(const Tables<T>& tables, int64_t n, int64_t tile) {
    return tables.map([&](const T* table) -> const T* {
      if (tile == 1 || !table) return table;
      T* row = next();
      std::memcpy(row, table, n * sizeof(T));
      tile_row(row, n, tile);
      return row;
    });
  }
  INLINE Tables<T> repeated(const Tables<T>& tables, int64_t n, int64_t length) {
    return tables.map([&](const T* table) -> const T* {
      if (!table) return table;
      T* row = next();
      for (int64_t c = 0; c < n; c += width<T>) {
        const Vec<T> v = n - c < width<T> ? Partial<T>{n - c}.load(table + c) : load(table + c);
        for (int64_t k = 0; k < length; k++)
          store(row + c * length + k * width<T>,
                permuted<T>(v, read<Mask<T>>(repeats<T>.lane[length][k])));
      }
      return row;
    });
  }

 private:
  INLINE T* next() { return rows[used++]; }
  int used = 0;
  T rows[5][most_wide];
};

// Calls f(at, k, factors, offset) for every vector of an area, which lies at `offset`. `factors` is
// what prepare(tables, get) reads of the tables with get(table): once per run, or per group of rows.
template <class S, class Prepare, class F>
INLINE void for_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& tables,
                     Prepare prepare, F f) {
  using T = table_t<S>;
  if (shape.channels_last) {
    const Rows rows = Rows::of<T>(shape, a);
    Wide<T> wide;
    const Tables<T> all = wide.tiled(tables, shape.C, rows.tile);
    for_rows<T, group_rows / 2>(rows, [&](auto at, int64_t offset, auto group) FLAT {
      const auto factors = prepare(all, [&](const T* table) FLAT { return at.load(table); });
      repeat<group>([&](auto g) FLAT { f(at, 0, factors, offset + g * rows.stride); });
    });
  } else if (has_short_runs<T>(shape)) {
    const int64_t L = shape.L, block = most_wide / L / width<T> * width<T>;
    for (int64_t c = a.c0; c < a.c1; c += block) {
      const int64_t n = std::min(block, a.c1 - c);
      Wide<T> wide;
      const Tables<T> all = wide.repeated(tables.from(c - a.c0), n, L);
      for_vectors<T, 1>(n * L, [&](auto at) FLAT {
        const auto factors = prepare(all, [&](const T* table) FLAT { return at.load(table); });
        f(at, 0, factors, shape.offset(a.n, c, 0));
      });
    }
  } else {
    for (int64_t c = a.c0; c < a.c1; c++) {
      const auto factors =
          prepare(tables, [&](const T* table) FLAT { return fill(table[c - a.c0]); });
      const int64_t offset = shape.offset(a.n, c, a.i0);
      for_vectors<T, lanes>(a.i1 - a.i0, [&](auto at) FLAT {
        repeat<at.count>([&](auto k) FLAT { f(at, k, factors, offset); });
      });
    }
  }
}

template <class T>
struct Factors {
  Vec<T> center, scale, shift, x_scale, dx_shift;
};

template <class S>
struct Tail {
  const S* residual;
  int activation;
  table_t<S> slope;
  bool empty() const { return !residual && activation == NONE; }

  template <class At>
  INLINE Vec<table_t<S>> before(const At& at, int k, const Factors<table_t<S>>& f,
                                const Vec<table_t<S>>& centered, int64_t offset) const {
    const auto z = f.scale * centered + f.shift;
    return residual ? z + at.load(residual + offset, k) : z;
  }
};

// dy behind the activation: the gradient of what enters it.
template <class S, bool WithTail, class At>
INLINE Vec<table_t<S>> through(const At& at, int k, const Factors<table_t<S>>& f, const S* dy,
                               const Vec<table_t<S>>& centered, const Tail<S>& tail,
                               int64_t offset) {
  const auto given = at.load(dy + offset, k);
  if constexpr (!WithTail) return given;
  const auto z = tail.before(at, k, f, centered, offset);
  return given * activation_grad(z, tail.activation, tail.slope);
}
