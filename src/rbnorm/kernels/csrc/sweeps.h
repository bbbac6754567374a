// The sweeps over one area of a tensor that write: y, and dx with the residual's gradient.
//
// Included once per instruction set, inside its namespace.

template <class S, bool WithTail, bool WithCenter>
void affine_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* x,
                 const Tail<S>& tail, S* y) {
  using V = Vec<table_t<S>>;
  const auto prepare = [](const auto& t, auto get) FLAT {
    return Factors<table_t<S>>{WithCenter ? get(t.center) : V{}, get(t.scale), get(t.shift)};
  };
  for_area<S>(shape, a, t, prepare, [&](auto at, int k, const auto& f, int64_t offset) FLAT {
    V centered = at.load(x + offset, k);
    if constexpr (WithCenter) centered -= f.center;
    if constexpr (WithTail) {
      const auto z = tail.before(at, k, f, centered, offset);
      at.store(y + offset, activate(z, tail.activation, tail.slope), k);
    } else {
      at.store(y + offset, f.scale * centered + f.shift, k);
    }
  });
}

// y = act(scale (x - center) + shift + residual).
template <class S>
void affine(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* x,
            const Tail<S>& tail, S* y) {
  const auto sweep =
      tail.empty() ? (t.center ? affine_area<S, false, true> : affine_area<S, false, false>)
                   : (t.center ? affine_area<S, true, true> : affine_area<S, true, false>);
  sweep(shape, a, t, x, tail, y);
}

template <class S, bool WithTail, bool WithX>
void grad_affine_area(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                      const S* x, const Tail<S>& tail, S* dx, S* dresidual) {
  using V = Vec<table_t<S>>;
  const auto prepare = [](const auto& t, auto get) FLAT {
    return Factors<table_t<S>>{WithTail || WithX ? get(t.center) : V{}, get(t.scale),
                               WithTail ? get(t.shift) : V{}, WithX ? get(t.x_scale) : V{},
                               get(t.dx_shift)};
  };
  for_area<S>(shape, a, t, prepare, [&](auto at, int k, const auto& f, int64_t offset) FLAT {
    V centered{};
    if constexpr (WithX || WithTail) centered = at.load(x + offset, k) - f.center;
    const V dz = through<S, WithTail>(at, k, f, dy, centered, tail, offset);
    if (WithTail && dresidual) at.store(dresidual + offset, dz, k);
    if (WithTail && !dx) return;
    V shifted = f.dx_shift;
    if constexpr (WithX) shifted += f.x_scale * centered;
    at.store(dx + offset, f.scale * dz + shifted, k);
  });
}

// dx = scale dz + x_scale (x - center) + dx_shift, and dz itself as the residual's gradient.
template <class S>
void grad_affine(const Shape& shape, const Area& a, const Tables<table_t<S>>& t, const S* dy,
                 const S* x, const Tail<S>& tail, S* dx, S* dresidual) {
  const auto sweep =
      tail.activation == NONE
          ? (t.x_scale ? grad_affine_area<S, false, true> : grad_affine_area<S, false, false>)
          : (t.x_scale ? grad_affine_area<S, true, true> : grad_affine_area<S, true, false>);
  sweep(shape, a, t, dy, x, tail, dx, dresidual);
}
