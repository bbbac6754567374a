// torch.ops.rbnorm.* on the CPU: checks, layouts, outputs; then the kernels.
#include "headers.h"

#include <Python.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rbnorm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

const Backend& backend() {
  static const Backend& chosen = [&]() -> const Backend& {
#ifdef RBNORM_X86
    const char* limit = std::getenv("RBNORM_CPU");  // plain or avx2: at most this
    const std::string at_most = limit ? limit : "";
    __builtin_cpu_init();
    unsigned a, b, c, d;  // clang's builtin does not know f16c before its release 19
    const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
    if (has_avx512 && at_most.empty()) return avx512::backend;
    if (has_avx2 && at_most != "plain") return avx2::backend;
#endif
    return plain::backend;
  }();
  return chosen;
}

const Kernels& kernels(ScalarType dtype) {
  const Backend& b = backend();
  switch (dtype) {
    case ScalarType::Float: return b.float32;
    case ScalarType::Double: return b.float64;
    case ScalarType::BFloat16: return b.bfloat16;
    default: return b.float16;
  }
}

ScalarType table_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

bool is_channels_last(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  if (x.dim() != 4 && x.dim() != 5) return false;
  int64_t expected = sizes[1];
  if (sizes[1] != 1 && strides[1] != 1) return false;
  for (int64_t d = x.dim() - 1; d >= 2; d--) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return sizes[0] == 1 || strides[0] == expected;
}

Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
             ScalarType dtype) {
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), code,
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor nothing(ScalarType dtype) { return empty({0}, {1}, dtype); }

int64_t bytes(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// Memory that is new from the system costs more to touch page by page than to compute with.
void use_huge_pages(void* data, int64_t size) {
#ifdef __linux__
  constexpr int64_t worth = 4 << 20, page = 4096;
  if (size < worth) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A shape as Python shows it.
std::string shown(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); d++) text += (d ? ", " : "") + std::to_string(t.sizes()[d]);
  return text + (t.dim() == 1 ? ",)" : ")");
}

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    default: return "float16";
  }
}

// An input (N, C, ...) as the kernels see it; copied once where it is neither contiguous nor
// channels_last.
struct Input {
  Tensor tensor;
  Shape shape;
  ScalarType dtype;

  explicit Input(const Tensor& x) : tensor(x), dtype(x.scalar_type()) {
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                        dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                    "x must be float16, bfloat16, float32 or float64, got another dtype");
    STD_TORCH_CHECK(x.dim() >= 2, "x must have shape (N, C, ...), got ", shown(x));
    int64_t L = 1;
    for (int64_t d = 2; d < x.dim(); d++) L *= x.sizes()[d];
    const bool contiguous = x.is_contiguous(), rows = !contiguous && is_channels_last(x);
    if (!contiguous && !rows) tensor = torch::stable::contiguous(x);
    // One position only: the channels of an instance lie side by side in either layout.
    shape = {x.sizes()[0], x.sizes()[1], L, rows || L == 1};
  }
  Tensor like() const {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    const Tensor y = empty({sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}, dtype);
    use_huge_pages(y.mutable_data_ptr(), y.numel() * bytes(dtype));
    return y;
  }
  Tensor like_or_nothing(bool wanted) const { return wanted ? like() : nothing(dtype); }
  Tensor table() const {
    const Tensor t = empty({shape.N, shape.C}, {shape.C, 1}, table_dtype(dtype));
    use_huge_pages(t.mutable_data_ptr(), t.numel() * bytes(table_dtype(dtype)));
    return t;
  }
  Tensor vector() const { return empty({shape.C}, {1}, table_dtype(dtype)); }

  // The sentences are those of rbnorm/kernels/checks.py.
  template <class F>
  void check(const Tensor& t, const char* name, bool fits, ScalarType wanted, F accepted) const {
    STD_TORCH_CHECK(fits, name, " must have shape ", accepted(), " to match x of shape ",
                    shown(tensor), ", got ", shown(t));
    STD_TORCH_CHECK(t.scalar_type() == wanted, name, " must be ", name_of(wanted),
                    ", got another dtype");
    STD_TORCH_CHECK(t.is_cpu(), name, " must be on the device of x, cpu, got another one");
  }
  // Another tensor of the shape and dtype of x, in the layout of x.
  Tensor same(const Tensor& other, const char* name) const {
    check(other, name, other.sizes().equals(tensor.sizes()), dtype, [&] { return shown(tensor); });
    for (int64_t d = 0; d < tensor.dim(); d++)
      if (tensor.sizes()[d] != 1 && other.strides()[d] != tensor.strides()[d]) {
        Tensor copy = like();
        torch::stable::copy_(copy, other);
        return copy;
      }
    return other;
  }
  // A table (N, C), or a vector (C,), that belongs to x.
  Tensor fitting(const Tensor& t, const char* name, bool table) const {
    const auto sizes = t.sizes();
    const bool fits = table ? t.dim() == 2 && sizes[0] == shape.N && sizes[1] == shape.C
                            : t.dim() == 1 && sizes[0] == shape.C;
    check(t, name, fits, table_dtype(dtype), [&] {
      const std::string C = std::to_string(shape.C);
      return table ? "(" + std::to_string(shape.N) + ", " + C + ")" : "(" + C + ",)";
    });
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
};

// Refuses memory that would be read after it is written; both tensors are without gaps.
void check_apart(const Tensor& written, const char* name, const Optional& read,
                 const char* read_name) {
  const auto begin = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) { return begin(t) + t.numel() * bytes(t.scalar_type()); };
  STD_TORCH_CHECK(!read || begin(written) >= end(*read) || begin(*read) >= end(written), name,
                  " must not share memory with ", read_name, ", which is read after it changes");
}

const void* pointer(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }
void* target(const Optional& t) { return t ? t->mutable_data_ptr() : nullptr; }
void* place(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

void check_dresidual(bool wanted, int64_t activation) {
  STD_TORCH_CHECK(!wanted || activation != NONE,
                  "without an activation the gradient of the residual is dy, got no other");
}

template <int Count>
void check_code(const Named (&table)[Count], int64_t code, const char* name) {
  STD_TORCH_CHECK(has_code(table, code), name, " must be one of the codes of rbnorm.elementwise, got ",
                  code);
}

// The vectors of a layer, checked; absent ones stay absent.
struct Vectors {
  Optional weight, bias, center_weight, scale_weight, scale_bias;

  Vectors(const Input& x, const Optional& weight, const Optional& bias,
          const Optional& center_weight, const Optional& scale_weight, const Optional& scale_bias)
      : weight(fitting(x, weight, "weight")),
        bias(fitting(x, bias, "bias")),
        center_weight(fitting(x, center_weight, "center_weight")),
        scale_weight(fitting(x, scale_weight, "scale_weight")),
        scale_bias(fitting(x, scale_bias, "scale_bias")) {
    STD_TORCH_CHECK(scale_weight.has_value() == scale_bias.has_value(),
                    "scale_weight and scale_bias must be given together, got only one of them");
  }
  static Optional fitting(const Input& x, const Optional& t, const char* name) {
    return t ? Optional(x.fitting(*t, name, false)) : std::nullopt;
  }
  void check_apart_from(const Tensor& written, const char* name) const {
    check_apart(written, name, weight, "weight"), check_apart(written, name, bias, "bias");
    check_apart(written, name, center_weight, "center_weight");
    check_apart(written, name, scale_weight, "scale_weight");
    check_apart(written, name, scale_bias, "scale_bias");
  }
  Layer layer(const Input& x, bool training, double eps, int64_t restriction, int64_t activation,
              double slope) const {
    check_code(restrictions, restriction, "restrict");
    check_code(activations, activation, "activation");
    STD_TORCH_CHECK(x.shape.N * x.shape.C * x.shape.L > 0, "x must not be empty");
    STD_TORCH_CHECK(std::isfinite(eps) && (training ? eps > 0 : eps >= 0), "eps must be ",
                    training ? "positive and finite in training" : "non-negative and finite",
                    ", got ", eps);
    STD_TORCH_CHECK(!training || x.shape.N * x.shape.L > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    shown(x.tensor));
    return {pointer(weight),       pointer(bias),       pointer(center_weight),
            pointer(scale_weight), pointer(scale_bias), training,
            eps,                   static_cast<int>(restriction),
            static_cast<int>(activation), slope};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& input, const Optional& residual, const Optional& weight, const Optional& bias,
    const Optional& center_weight, const Optional& scale_weight, const Optional& scale_bias,
    const Optional& running_mean, const Optional& running_var, bool training, double momentum,
    double eps, int64_t restriction, int64_t activation, double slope) {
  const Input x(input);
  const Vectors vectors(x, weight, bias, center_weight, scale_weight, scale_bias);
  const Layer layer = vectors.layer(x, training, eps, restriction, activation, slope);
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                  "running_mean and running_var must be given together, got only one of them");
  STD_TORCH_CHECK(training || running_mean, "running_mean and running_var must be given in evaluation, got None");
  STD_TORCH_CHECK(std::isfinite(momentum), "momentum must be a finite number, got ", momentum);
  const auto running = [&](const Optional& t, const char* name) {
    if (!t) return t;
    x.fitting(*t, name, false);
    STD_TORCH_CHECK(t->is_contiguous(), name, " must be contiguous");
    return t;
  };
  const Optional mean = running(running_mean, "running_mean");
  const Optional var = running(running_var, "running_var");
  const Optional other = residual ? Optional(x.same(*residual, "residual")) : std::nullopt;
  if (training && mean) {
    check_apart(*mean, "running_mean", var, "running_var");
    const auto from_inputs = [&](const Tensor& t, const char* name) {
      check_apart(t, name, x.tensor, "x"), check_apart(t, name, other, "residual");
      vectors.check_apart_from(t, name);
    };
    from_inputs(*mean, "running_mean"), from_inputs(*var, "running_var");
  }
  const Tensor y = x.like(), m = x.table(), E = x.vector(), V = x.vector();
  kernels(x.dtype).forward({x.shape, layer, momentum, x.tensor.const_data_ptr(), pointer(other),
                            target(mean), target(var), y.mutable_data_ptr(), m.mutable_data_ptr(),
                            E.mutable_data_ptr(), V.mutable_data_ptr()});
  return {y, m, E, V};
}

Tensor inference(const Tensor& input, const Optional& residual, const Optional& weight,
                 const Optional& bias, const Optional& center_weight, const Optional& scale_weight,
                 const Optional& scale_bias, const Tensor& running_mean, const Tensor& running_var,
                 double eps, int64_t restriction, int64_t activation, double slope) {
  const Input x(input);
  const Vectors vectors(x, weight, bias, center_weight, scale_weight, scale_bias);
  const Layer layer = vectors.layer(x, false, eps, restriction, activation, slope);
  const Tensor mean = x.fitting(running_mean, "running_mean", false);
  const Tensor var = x.fitting(running_var, "running_var", false);
  const Optional other = residual ? Optional(x.same(*residual, "residual")) : std::nullopt;
  const Tensor y = x.like();
  kernels(x.dtype).forward({x.shape, layer, 0, x.tensor.const_data_ptr(), pointer(other),
                            mean.mutable_data_ptr(), var.mutable_data_ptr(), y.mutable_data_ptr(),
                            nullptr, nullptr, nullptr});
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& input, const Optional& residual, const Tensor& m,
    const Tensor& E, const Tensor& V, const Optional& weight, const Optional& bias,
    const Optional& center_weight, const Optional& scale_weight, const Optional& scale_bias,
    bool training, double eps, int64_t restriction, int64_t activation, double slope, bool want_dx,
    bool want_dresidual) {
  const Input x(input);
  const Vectors vectors(x, weight, bias, center_weight, scale_weight, scale_bias);
  const Layer layer = vectors.layer(x, training, eps, restriction, activation, slope);
  const Tensor dy = x.same(grad, "dy");
  const Optional other = residual ? Optional(x.same(*residual, "residual")) : std::nullopt;
  const Tensor means = x.fitting(m, "m", true);
  const Tensor mean = x.fitting(E, "E", false), variance = x.fitting(V, "V", false);
  check_dresidual(want_dresidual, activation);
  const auto optional = [&](const Optional& t) {
    return t ? x.vector() : nothing(table_dtype(x.dtype));
  };
  const Tensor dx = x.like_or_nothing(want_dx), dresidual = x.like_or_nothing(want_dresidual);
  const std::array<Tensor, 5> grads{optional(weight), optional(bias), optional(center_weight),
                                    optional(scale_weight), optional(scale_bias)};
  kernels(x.dtype).backward({x.shape, layer, dy.const_data_ptr(), x.tensor.const_data_ptr(),
                             pointer(other), means.const_data_ptr(), mean.const_data_ptr(),
                             variance.const_data_ptr(), place(dx), place(dresidual),
                             place(grads[0]), place(grads[1]), place(grads[2]), place(grads[3]),
                             place(grads[4])});
  return {dx, dresidual, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

Input positions(const Tensor& tensor) {
  const Input x(tensor);
  STD_TORCH_CHECK(x.shape.L > 0, "x must have at least one position");
  return x;
}

Tensor mean(const Tensor& input) {
  const Input x = positions(input);
  const Tensor result = x.table();
  kernels(x.dtype).moments(
      {x.shape, x.tensor.const_data_ptr(), result.mutable_data_ptr(), nullptr});
  return result;
}

std::tuple<Tensor, Tensor> moments(const Tensor& input) {
  const Input x = positions(input);
  const Tensor first = x.table(), second = x.table();
  kernels(x.dtype).moments({x.shape, x.tensor.const_data_ptr(), first.mutable_data_ptr(),
                            second.mutable_data_ptr()});
  return {first, second};
}

// What follows the affine map; the checks of a phase that takes one.
struct Tail {
  Optional scale, shift, residual;  // residual in the layout of x
  Epilogue epilogue;

  Tail(const Input& x, const Optional& scale, const Optional& shift, const Optional& residual,
       int64_t activation, double slope)
      : scale(optional(x, scale, "scale")), shift(optional(x, shift, "shift")),
        residual(residual ? Optional(x.same(*residual, "residual")) : std::nullopt),
        epilogue{pointer(this->residual), static_cast<int>(activation), slope} {
    check_code(activations, activation, "activation");
    STD_TORCH_CHECK(activation == NONE || (scale && shift),
                    "scale and shift must be given with an activation, got None");
  }
  static Optional optional(const Input& x, const Optional& t, const char* name) {
    return t ? Optional(x.fitting(*t, name, true)) : std::nullopt;
  }
};

Tensor affine(const Tensor& input, const Optional& m, const Tensor& scale, const Tensor& shift,
              const Optional& residual, int64_t activation, double slope) {
  const Input x(input);
  const Optional middle = Tail::optional(x, m, "m");
  const Tail tail(x, scale, shift, residual, activation, slope);
  const Tensor y = x.like();
  kernels(x.dtype).affine({x.shape, x.tensor.const_data_ptr(), pointer(middle), pointer(tail.scale),
                           pointer(tail.shift), tail.epilogue, y.mutable_data_ptr()});
  return y;
}

std::tuple<Tensor, Tensor> grad_moments(const Tensor& grad, const Tensor& input, const Tensor& m,
                                        const Optional& scale, const Optional& shift,
                                        const Optional& residual, int64_t activation,
                                        double slope) {
  const Input x = positions(input);
  const Tensor dy = x.same(grad, "dy"), middle = x.fitting(m, "m", true);
  const Tail tail(x, scale, shift, residual, activation, slope);
  const Tensor S1 = x.table(), S2 = x.table();
  kernels(x.dtype).grad_moments({x.shape, dy.const_data_ptr(), x.tensor.const_data_ptr(),
                                 middle.const_data_ptr(), pointer(tail.scale), pointer(tail.shift),
                                 tail.epilogue, S1.mutable_data_ptr(), S2.mutable_data_ptr()});
  return {S1, S2};
}

std::tuple<Tensor, Tensor> grad_affine(const Tensor& grad, const Tensor& input, const Tensor& m,
                                       const Tensor& scale, const Optional& shift,
                                       const Optional& x_scale, const Tensor& u,
                                       const Optional& residual, int64_t activation, double slope,
                                       bool want_dx, bool want_dresidual) {
  const Input x(input);
  const Tensor dy = x.same(grad, "dy"), middle = x.fitting(m, "m", true);
  const Optional p = Vectors::fitting(x, x_scale, "x_scale");
  const Tensor offset = x.fitting(u, "u", true);
  const Tail tail(x, scale, shift, residual, activation, slope);
  check_dresidual(want_dresidual, activation);
  const Tensor dx = x.like_or_nothing(want_dx), dresidual = x.like_or_nothing(want_dresidual);
  if (want_dx || want_dresidual)
    kernels(x.dtype).grad_affine({x.shape, dy.const_data_ptr(), x.tensor.const_data_ptr(),
                                  middle.const_data_ptr(), pointer(tail.scale),
                                  pointer(tail.shift), pointer(p), offset.const_data_ptr(),
                                  tail.epilogue, place(dx), place(dresidual)});
  return {dx, dresidual};
}

}  // namespace
}  // namespace rbnorm

STABLE_TORCH_LIBRARY_IMPL(rbnorm, CPU, library) {
  library.impl("forward", TORCH_BOX(&rbnorm::forward));
  library.impl("inference", TORCH_BOX(&rbnorm::inference));
  library.impl("backward", TORCH_BOX(&rbnorm::backward));
  library.impl("mean", TORCH_BOX(&rbnorm::mean));
  library.impl("moments", TORCH_BOX(&rbnorm::moments));
  library.impl("affine", TORCH_BOX(&rbnorm::affine));
  library.impl("grad_moments", TORCH_BOX(&rbnorm::grad_moments));
  library.impl("grad_affine", TORCH_BOX(&rbnorm::grad_affine));
}

template <int Count>
void add_codes(PyObject* module, const char* name, const rbnorm::Named (&table)[Count]) {
  PyObject* codes = PyDict_New();
  for (const rbnorm::Named& entry : table) {
    PyObject* code = PyLong_FromLong(entry.code);
    PyDict_SetItemString(codes, entry.name, code);
    Py_DECREF(code);
  }
  PyModule_AddObject(module, name, codes);  // takes the reference
}

// The module itself has the name of the instruction set that was chosen, and the functions' codes.
PyMODINIT_FUNC PyInit__cpu() {
  static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, nullptr,
                                nullptr,               nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyModule_AddStringConstant(module, "instruction_set", rbnorm::backend().name);
  add_codes(module, "restrictions", rbnorm::restrictions);
  add_codes(module, "activations", rbnorm::activations);
  return module;
}
