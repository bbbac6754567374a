// How a tensor is cut into areas, and which of them are worked on together.
//
// Included once per instruction set, inside its namespace.

constexpr int64_t chunk_positions = 8192;  // a run stays in the first-level cache, a sum accurate
constexpr int64_t chunk_values = 1 << 17;  // of the rows of one chunk
constexpr int64_t unit_bytes = 1 << 17;    // of the channels that go through all phases together
constexpr int64_t part_rows = 2048;        // channels_last rows that are few enough to take part
constexpr int64_t part_channels = 128;     // of them at a time: more rows fall out of the cache
constexpr int64_t run_bytes = 1 << 14;     // of one instance: a few whole pages are read together
constexpr int64_t least_bytes = 1 << 10;   // of one instance: below this the visit costs most
constexpr int64_t task_values = 1 << 15;   // below this a second thread costs more than it gives

// Calls f(begin, end) for parts of the numbers up to `count`; `grain` of them are worth a thread.
template <class F>
INLINE void parallel(int64_t count, int64_t grain, F f) {
  if (count <= grain)  // a loop, at no other cost
    count > 0 ? f(0, count) : void();
  else
    torch::stable::parallel_for(0, count, grain, f);
}

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The areas of the instances [n0, n1) and channels [c0, c1): instances times blocks of channels
// times chunks of positions, numbered so that those of one instance follow one another.
class Grid {
 public:
  Shape shape;
  int64_t n0, n1, c0, c1, block, chunk, blocks, chunks;
  bool alone;

  // `alone` on its thread, or worked on by all of them.
  Grid(const Shape& s, int64_t n0, int64_t n1, int64_t c0, int64_t c1, int64_t block, bool alone)
      : shape(s), n0(n0), n1(n1), c0(c0), c1(c1), block(block), alone(alone) {
    blocks = ceil_div(c1 - c0, block);
    chunk = s.channels_last ? std::clamp(chunk_values / block, least_head, chunk_positions)
                            : chunk_positions;
    chunks = ceil_div(s.L, chunk);
    if (alone) return;
    // Few areas are shared evenly: as many for every thread.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t even = ceil_div(chunks, threads) * threads;
    if (s.channels_last && (n1 - n0) * blocks < threads && even * least_head <= s.L)
      chunk = ceil_div(s.L, even), chunks = ceil_div(s.L, chunk);
  }
  Grid(const Shape& s, int64_t block) : Grid(s, 0, s.N, 0, s.C, block, false) {}
  int64_t instances() const { return n1 - n0; }
  int64_t size() const { return instances() * blocks * chunks; }
  // Rows of tables: one per instance, or one per instance and chunk.
  int64_t instance(const Area& a) const { return a.n - n0; }
  int64_t row(const Area& a) const {
    return chunks == 1 ? instance(a) : instance(a) * chunks + a.i0 / chunk;
  }
  Area operator[](int64_t item) const {
    const int64_t k = item % chunks, b = item / chunks % blocks, n = item / chunks / blocks;
    Area a{n0 + n, c0 + b * block, 0, k * chunk, 0};
    end(a);
    return a;
  }
  int64_t positions(int64_t k) const { return std::min(shape.L, (k + 1) * chunk) - k * chunk; }

  // Calls f(begin, end) for parts of the numbers up to `count`; `grain` of them are worth a thread.
  template <class F>
  void share(int64_t count, int64_t grain, F f) const {
    alone && count > 0 ? f(0, count) : parallel(count, grain, f);
  }
  template <class F>
  void for_areas(F f) const {
    each([&](int64_t begin, int64_t end) {
      Area a = (*this)[begin];
      for (int64_t item = begin; item < end; item++, next(a)) f(a);
    });
  }
  // The same backwards: what a sweep before this one read last may still be in the cache.
  template <class F>
  void for_areas_back(F f) const {
    each([&](int64_t begin, int64_t end) {
      Area a = (*this)[end - 1];
      for (int64_t item = end; item-- > begin; previous(a)) f(a);
    });
  }

 private:
  template <class F>
  void each(F f) const {
    const int64_t values = std::max<int64_t>(block * std::min(shape.L, chunk), 1);
    share(size(), ceil_div(task_values, values), f);
  }
  // The ends of an area that has its beginnings.
  void end(Area& a) const {
    a.c1 = std::min(c1, a.c0 + block), a.i1 = std::min(shape.L, a.i0 + chunk);
  }
  void next(Area& a) const {
    if ((a.i0 += chunk) >= shape.L) {
      a.i0 = 0;
      if ((a.c0 += block) >= c1) a.c0 = c0, a.n++;
    }
    end(a);
  }
  void previous(Area& a) const {
    if ((a.i0 -= chunk) < 0) {
      a.i0 = (chunks - 1) * chunk;
      if ((a.c0 -= block) < c0) a.c0 = c0 + (blocks - 1) * block, a.n--;
    }
    end(a);
  }
};

// Channels of one area, where `instances` (not 0) go through all phases together.
template <class S>
int64_t block_of(const Shape& shape, int64_t instances) {
  const int64_t C = std::max<int64_t>(shape.C, 1), threads = torch::stable::get_num_threads();
  if (shape.channels_last) {
    const int64_t part = std::clamp(C / (2 * threads), part_channels, 2 * part_channels);
    return instances > 1 && instances * shape.L <= part_rows && C >= part * threads ? part : C;
  }
  const int64_t run = std::max<int64_t>(shape.L * sizeof(S), 1);
  const int64_t wanted = std::max(unit_bytes / (instances * run), run_bytes / run);
  const int64_t shared = C * ceil_div(shape.N, instances) / (4 * threads);
  const int64_t block = std::min(wanted, std::max(shared, ceil_div(least_bytes, run)));
  constexpr int64_t w = width<table_t<S>>;  // whole vectors of channels
  return std::clamp<int64_t>(block < w ? block : block / w * w, 1, C);
}

// Memory for tables, which one thread's units use in turn.
template <class T>
class Arena {
 public:
  // Starts anew with room for that many numbers.
  void reserve(int64_t count) {
    if (int64_t(memory.size()) < count) memory.resize(count);
    used = 0;
  }
  T* take(int64_t count) {
    T* p = memory.data() + used;
    used += count;
    return p;
  }

 private:
  std::vector<T> memory;
  int64_t used = 0;
};

// Calls f(grid, arena) for all channels of all instances (not 0). Channels, and instances that need
// not wait for one another, go through all phases by themselves, so that they are still in the cache
// of their thread in the later ones. Where that gives too little to do in parallel, all threads go
// through the phases together.
template <class S, class F>
void for_units(const Shape& shape, bool together, F f) {
  const int64_t threads = torch::stable::get_num_threads(), share = ceil_div(shape.N, threads);
  const int64_t fitting = std::max<int64_t>(unit_bytes / (shape.C * shape.L * sizeof(S)), 1);
  const int64_t instances = together ? shape.N : std::min(fitting, share);
  const int64_t block = block_of<S>(shape, instances);
  const int64_t parts = ceil_div(shape.C, block), units = parts * ceil_div(shape.N, instances);
  if (units < threads) {
    Arena<table_t<S>> arena;
    f(Grid(shape, block), arena);
    return;
  }
  const int64_t values = std::max<int64_t>(block * instances * shape.L, 1);
  parallel(units, ceil_div(task_values, values), [&](int64_t begin, int64_t end) {
    Arena<table_t<S>> arena;
    for (int64_t u = begin; u < end; u++) {
      const int64_t n = u / parts * instances, c = u % parts * block;
      const int64_t n1 = std::min(shape.N, n + instances), c1 = std::min(shape.C, c + block);
      f(Grid(shape, n, n1, c, c1, block, true), arena);
    }
  });
}
