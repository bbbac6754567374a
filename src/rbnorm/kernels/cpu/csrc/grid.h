// Areas, how threads share them, and the units that go through all phases together.
//
// Included once per instruction set, inside its namespace.

constexpr int64_t chunk_positions = 8192;  // a sum stays accurate
constexpr int64_t chunk_values = 1 << 17;  // of the rows of one chunk
constexpr int64_t least_chunk = 8;         // rows
constexpr int64_t unit_bytes = 1 << 17;    // of the channels that go through all phases together
constexpr int64_t part_rows = 2048;        // channels_last rows that are few enough to take part
constexpr int64_t part_channels = 128;     // of them at a time: more rows fall out of the cache
constexpr int64_t run_bytes = 1 << 14;     // of one instance: a few whole pages are read together
constexpr int64_t least_bytes = 1 << 10;   // of one instance: below this the visit costs most
constexpr int64_t task_values = 1 << 15;   // below this a second thread costs more than it gives
constexpr int64_t merged_values = 4096;    // of instances that are swept as one

// Calls f(begin, end, part) for parts of the numbers up to `count`; `grain` of them are worth a thread.
template <class F>
void parallel(int64_t threads, int64_t count, int64_t grain, const F& f) {
  struct Task {
    const F& f;
    int64_t count, parts;
    static void enter(void* data) {
      const Task& task = *static_cast<Task*>(data);
      for (int64_t k = runtime.index(); k < task.parts; k += runtime.size())
        task.f(task.count * k / task.parts, task.count * (k + 1) / task.parts, k);
    }
  };
  const int64_t parts = runtime.run ? least(threads, ceil_div(count, most(grain, 1))) : 1;
  if (parts > 1) {
    Task task{f, count, parts};
    runtime.run(Task::enter, &task, unsigned(parts), 0);
  } else if (count > 0) {
    f(0, count, 0);
  }
}

// The areas of the instances [n0, n1) and channels [c0, c1): instances times blocks of channels
// times chunks of positions, numbered so that those of one instance follow one another.
class Grid {
 public:
  Shape shape;
  int64_t n0, n1, c0, c1, block, chunk, blocks, chunks, merged = 1;
  bool alone;

  // `alone` on its thread, or worked on by all of them.
  Grid(const Shape& s, int64_t n0, int64_t n1, int64_t c0, int64_t c1, int64_t wanted, bool alone)
      : shape(s), n0(n0), n1(n1), c0(c0), c1(c1), block(least(wanted, block_channels)), alone(alone) {
    blocks = ceil_div(c1 - c0, block);
    chunk = s.last ? least(most(chunk_values / block, least_chunk), chunk_positions) : chunk_positions;
    chunks = ceil_div(s.L, chunk);
    // Few areas are shared evenly: as many for every thread.
    const int64_t even = ceil_div(chunks, s.threads) * s.threads;
    if (!alone && s.last && (n1 - n0) * blocks < s.threads && even * least_chunk <= s.L) chunks = even;
    chunk = ceil_div(s.L, chunks), chunks = ceil_div(s.L, chunk);
    // Where rows of tables follow one another as the runs do, instances are swept as one.
    if (!s.last && chunks == 1 && block == s.C && s.C % W == 0)
      merged = most(least(merged_values / (s.C * s.L), block_channels / s.C), 1);
    groups = ceil_div(n1 - n0, merged);
  }
  Grid(const Shape& s, int64_t block) : Grid(s, 0, s.N, 0, s.C, block, false) {}
  int64_t instances() const { return n1 - n0; }
  int64_t channels() const { return c1 - c0; }
  // Rows of tables: one per instance and chunk.
  int64_t instance(const Area& a) const { return a.n - n0; }
  int64_t row(const Area& a) const { return instance(a) * chunks + a.i0 / chunk; }
  int64_t positions(int64_t k) const { return least(shape.L, (k + 1) * chunk) - k * chunk; }

  template <class F>
  void share(int64_t count, int64_t grain, const F& f) const {
    parallel(alone ? 1 : shape.threads, count, grain, f);
  }
  // Backwards where a sweep before this one read last what may still be in the cache.
  template <class F>
  void for_areas(const F& f, bool backwards = false) const {
    const int64_t values = most(block * least(shape.L, chunk) * merged, 1);
    share(groups * blocks * chunks, ceil_div(task_values, values), [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t k = begin; k < end; k++) f((*this)[backwards ? begin + end - 1 - k : k]);
    });
  }

 private:
  int64_t groups;

  Area operator[](int64_t item) const {
    const int64_t k = item % chunks, b = item / chunks % blocks, g = item / chunks / blocks;
    const int64_t n = n0 + g * merged, c = c0 + b * block;
    return {n, c, least(c1, c + block), k * chunk, least(shape.L, (k + 1) * chunk), least(merged, n1 - n)};
  }
};

// Channels of one area, where `instances` (not 0) go through all phases together.
inline int64_t block_of(Type type, const Shape& s, int64_t instances) {
  const int64_t C = most(s.C, 1);
  if (s.last) {
    const int64_t part = least(most(C / (2 * s.threads), part_channels), 2 * part_channels);
    return instances > 1 && instances * s.L <= part_rows && C >= part * s.threads ? part / W * W : C;
  }
  const int64_t run = most(s.L * bytes_of[type], 1);
  const int64_t wanted = most(unit_bytes / (instances * run), run_bytes / run);
  const int64_t shared = C * ceil_div(s.N, instances) / (4 * s.threads);
  const int64_t vector = C >= W * s.threads ? W : 1;
  const int64_t block = least(wanted, most(most(shared, vector), ceil_div(least_bytes, run)));
  return most(least(block < W ? block : block / W * W, C), 1);  // whole vectors of channels
}

// Memory for tables, which begin at cache lines: what two threads write to lies in none together.
class Arena {
 public:
  float* take(int64_t count) {
    constexpr int64_t line = 16, least_block = 1 << 14;
    const int64_t size = ceil_div(count, line) * line;
    if (left < size) {
      whole = most(most(size, 2 * whole), least_block);
      blocks[++last].reset(new float[whole + line]);
      use_huge_pages(blocks[last].get(), whole * 4);
      reset();
    }
    left -= size;
    return std::exchange(free, free + size);
  }
  // Takes back what was given of the last block, the largest.
  void reset() {
    if (last < 0) return;
    left = whole;
    free = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(blocks[last].get()) + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<float[]> blocks[48];  // each at least twice as large as the one before
  int last = -1;
  int64_t whole = 0, left = 0;
  float* free = nullptr;
};

// Calls f(grid, arena) for all channels of all instances (not 0). Channels, and instances that need
// not wait for one another, go through all phases by themselves, so that they are still in the cache
// of their thread in the later ones. Where that gives too little to do in parallel, all threads go
// through the phases together.
template <class F>
void for_units(Type type, const Shape& s, bool together, const F& f) {
  const int64_t share = ceil_div(s.N, s.threads);
  const int64_t fitting = most(unit_bytes / (s.C * s.L * bytes_of[type]), 1);
  const int64_t instances = together ? s.N : least(fitting, share), block = block_of(type, s, instances);
  const int64_t parts = ceil_div(s.C, block), units = parts * ceil_div(s.N, instances);
  if (units < s.threads) {
    Arena arena;
    return f(Grid(s, block), arena);
  }
  const int64_t values = most(block * instances * s.L, 1);
  parallel(s.threads, units, ceil_div(task_values, values), [&](int64_t begin, int64_t end, int64_t) {
    Arena arena;
    for (int64_t u = begin; u < end; u++, arena.reset()) {
      const int64_t n = u / parts * instances, c = u % parts * block;
      f(Grid(s, n, least(s.N, n + instances), c, least(s.C, c + block), block, true), arena);
    }
  });
}
