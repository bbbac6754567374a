// The Python module: tensors and options in, numbers written where they lie. What the kernels do not
// take is Refused, and who calls makes it fit, goes another way, or makes the sentence.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdlib>
#include <new>
#include <string>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace rbnorm {

Runtime runtime{};

void use_huge_pages(void* data, int64_t size) {
#ifdef __linux__
  constexpr uintptr_t worth = 4 << 20, page = 4096;
  if (!data || uintptr_t(size) < worth) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(size)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

namespace {

PyObject* refused;  // the module's exception

// A tensor as DLPack describes it, which every torch can do, and newer ones without an object for it.
struct Described {
  void* data;
  int32_t device, device_index, rank;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t offset;

  bool is_of(int kind, int size) const { return code == kind && bits == size && lanes == 1; }
  bool is_float32() const { return is_of(2, 32); }
  // Whether the numbers follow one another, with the channels last or in the order of the shape.
  bool is_packed(bool last) const {
    int64_t step = 1;
    for (int k = 0; k < rank; k++) {
      const int back = rank - k, at = !last ? back - 1 : k == 0 ? 1 : back == 1 ? 0 : back;
      if (strides && shape[at] != 1 && strides[at] != step) return false;
      step *= shape[at];
    }
    return true;
  }
};
struct Exchange {
  uint32_t major, minor;
  void* others[4];
  int (*describe)(void* tensor, Described* to);
};

// What is known of torch: the types of plain tensors, and the functions to ask one.
struct Torch {
  PyObject *tensor, *parameter, *is_neg, *to_dlpack;
  const Exchange* exchange;  // null in a torch that has none
} torch;

const Kernels& kernels(const Shape& s = {}) {
  static const Kernels& chosen = []() -> const Kernels& {
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
    if (has_avx512 && (at_most.empty() || at_most == "avx512")) return avx512::kernels;
    if (has_avx2 && at_most != "plain") return avx2::kernels;
#endif
    return plain::kernels;
  }();
#ifdef RBNORM_X86
  // Vectors that a run fills by more than half, and not once, are better half as wide.
  if (&chosen == &avx512::kernels && !s.last && 8 < s.L && s.L < 16) return avx2::kernels;
#endif
  return chosen;
}

// The arguments of a call, in order, of which the input is known before all others. What is wrong with
// one is kept until the end.
class Arguments {
 public:
  Call call{};

  Arguments(PyObject* const* given, Py_ssize_t count) : given(given), left(count) {}
  Arguments(PyObject* const* given, Py_ssize_t count, Py_ssize_t input) : Arguments(given, count) {
    const bool is_plain = count > input && describe(given[input], x);
    call.type = x.is_float32() ? FLOAT32 : x.is_of(4, 16) ? BFLOAT16 : x.is_of(2, 16) ? FLOAT16 : TYPES;
    demand(is_plain && call.type != TYPES && x.rank > 1, "x must be (N, C, ...), plain, of one of the types");
    if (wrong) return;
    own = given[input];
    Shape& s = call.shape = {x.shape[0], x.shape[1], 1, !x.is_packed(false), 1};
    for (int k = 2; k < x.rank; k++) s.L *= x.shape[k];
    demand(s.N * s.C * s.L > 0, "x must not be empty");
    const bool is_map = x.rank == 4 || x.rank == 5;
    demand(!s.last || (is_map && x.is_packed(true)), "x must have no gaps");
  }
  ~Arguments() {
    for (int k = 0; k < capsules; k++) Py_DECREF(kept[k]);
  }

  int64_t integer() {
    PyObject* next = take();
    return next ? PyLong_AsLongLong(next) : 0;
  }
  double number() {
    PyObject* next = take();
    return next ? PyFloat_AsDouble(next) : 0;
  }
  // Of a tensor like x, of a table (N, C), of a vector (C,); null of None.
  template <class T>
  void data(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, x, x.rank, x.shape, call.shape.last));
  }
  template <class T>
  void table(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, float32, 2, &call.shape.N));
  }
  template <class T>
  void vector(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, float32, 1, &call.shape.C));
  }
  void demand(bool holds, const char* sentence) {
    if (!holds && !wrong) wrong = sentence;
  }
  template <class Number>
  void vectors(Vectors<Number>& v) {
    vector(v.weight), vector(v.bias), vector(v.center_weight), vector(v.scale_weight);
    vector(v.scale_bias);
    demand(!v.scale_weight == !v.scale_bias, "vectors must come in pairs");
  }
  void options(Layer& l) {
    l.eps = number();
    demand(std::isfinite(l.eps) && (l.training ? l.eps > 0 : l.eps >= 0), "eps must be positive and finite");
    l.restriction = code(std::size(restrictions), "restrict must be one of the codes of rbnorm.elementwise");
  }
  // The last options, which outputs follow: new ones of the caller's, nowhere negative by a bit.
  void last_options() {
    call.epilogue.activation = code(std::size(activations), "activation must be one of the codes of rbnorm.elementwise");
    call.epilogue.slope = float(number());
    threads();
  }
  void threads() {
    own = nullptr, is_output = true;
    call.shape.threads = integer();
    demand(0 < call.shape.threads && call.shape.threads <= 4096, "threads must be 1 to 4096");
  }

  // Whether all were read, and rightly; if not, the error is set.
  bool are_right() {
    demand(left == 0, "there are more or fewer arguments than that");
    if (!PyErr_Occurred() && wrong) PyErr_SetString(refused, wrong);
    return !PyErr_Occurred();
  }
  // Runs a kernel on what was read, without the interpreter's lock; None, or null with an error.
  PyObject* run(Kernel* Kernels::* kernel) {
    Call& c = call;
    demand(!c.dresidual || c.epilogue.activation != NONE, "the residual's gradient is dy");
    if (!are_right()) return nullptr;
    if (c.shape.L == 1) c.shape.last = true;  // the channels of one position lie side by side
    const int64_t bytes = c.shape.numbers() * bytes_of[c.type];
    for (void* output : {c.y, c.dx, c.dresidual}) use_huge_pages(output, bytes);
    use_huge_pages(c.m, 4 * c.shape.N * c.shape.C);
    bool has_memory = true;
    PyThreadState* state = PyEval_SaveThread();
    try {
      (kernels(c.shape).*kernel)(c);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
    PyEval_RestoreThread(state);
    if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
  }

 private:
  static constexpr Described float32{nullptr, 0, 0, 0, 2, 32, 1, nullptr, nullptr, 0};
  PyObject* const* given;
  Py_ssize_t left;
  const char* wrong = nullptr;
  Described x{};
  PyObject* own = nullptr;  // whose description is x
  bool is_output = false;
  int capsules = 0;
  PyObject* kept[24];  // no call has more tensors

  PyObject* take() {
    left--;
    return left < 0 || PyErr_Occurred() ? nullptr : *given++;
  }
  int code(size_t count, const char* sentence) {
    const int64_t value = integer();
    demand(0 <= value && value < int64_t(count), sentence);
    return int(value);
  }
  // Whether a tensor is plain: what its memory says, of this processor.
  bool describe(PyObject* t, Described& to) {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(t));
    if (type != torch.tensor && type != torch.parameter) return false;
    bool found = false;
    if (torch.exchange) {
      found = !torch.exchange->describe(t, &to);
    } else if (PyObject* capsule = PyObject_CallFunctionObjArgs(torch.to_dlpack, t, nullptr)) {
      kept[capsules++] = capsule;
      const auto described = static_cast<const Described*>(PyCapsule_GetPointer(capsule, "dltensor"));
      if ((found = described)) to = *described;
    }
    if (found && !is_output) {
      PyObject* negative = PyObject_CallFunctionObjArgs(torch.is_neg, t, nullptr);
      found = negative == Py_False;
      Py_XDECREF(negative);
    }
    if (!found) PyErr_Clear();
    return found && to.device == 1;
  }
  // The memory of a tensor of a type and shape; null of None.
  void* place(bool needed, const Described& like, int rank, const int64_t* shape, bool last = false) {
    PyObject* next = take();
    if (!next || wrong) return nullptr;
    if (next == Py_None) return demand(!needed, "a tensor must be given"), nullptr;
    Described t = x;
    const bool is_plain = (next == own || describe(next, t)) && t.data;
    const bool fits = is_plain && t.is_of(like.code, like.bits) && t.rank == rank &&
                      std::equal(shape, shape + rank, t.shape) && t.is_packed(last);
    demand(fits, "a tensor must be plain, and fit x");
    return fits ? static_cast<char*>(t.data) + t.offset : nullptr;
  }
};

constexpr char many[] = "a channel must have more than one value in training";

// Whether nothing is read where the running statistics are written.
bool is_apart(const Call& f) {
  const int64_t data = f.shape.numbers() * bytes_of[f.type], vector = 4 * f.shape.C;
  const auto apart = [](const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
    const auto first = reinterpret_cast<uintptr_t>(a), second = reinterpret_cast<uintptr_t>(b);
    return !a || !b || first + uintptr_t(a_bytes) <= second || second + uintptr_t(b_bytes) <= first;
  };
  const Layer& l = f.layer;
  for (const float* written : {f.running_mean, f.running_var}) {
    if (!apart(written, vector, f.x, data) || !apart(written, vector, f.epilogue.residual, data))
      return false;
    for (const float* read : {l.weight, l.bias, l.center_weight, l.scale_weight, l.scale_bias})
      if (!apart(written, vector, read, vector)) return false;
  }
  return apart(f.running_mean, vector, f.running_var, vector);
}

PyObject* forward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 0);
  Call& f = in.call;
  in.data(f.x, true), in.data(f.epilogue.residual), in.vectors(f.layer);
  in.vector(f.running_mean), in.vector(f.running_var);
  f.layer.training = in.integer() != 0, f.momentum = in.number();
  in.options(f.layer), in.last_options();
  in.data(f.y, true), in.table(f.m, f.layer.training), in.vector(f.E, f.m), in.vector(f.V, f.m);
  in.demand(!f.running_mean == !f.running_var, "vectors must come in pairs");
  in.demand(std::isfinite(f.momentum), "momentum must be a finite number");
  if (f.layer.training) {
    in.demand(f.shape.has_many(), many);
    in.demand(is_apart(f), "running statistics must not share memory with what is read");
  } else {
    in.demand(f.running_mean, "running statistics must be given in evaluation");
  }
  return in.run(&Kernels::forward);
}

PyObject* backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Call& b = in.call;
  in.data(b.dy, true), in.data(b.x, true), in.data(b.epilogue.residual), in.table(b.m, true);
  in.vector(b.E, true), in.vector(b.V, true), in.vectors(b.layer), b.layer.training = in.integer() != 0;
  in.options(b.layer), in.last_options();
  in.demand(!b.layer.training || b.shape.has_many(), many);
  in.data(b.dx), in.data(b.dresidual), in.vectors(b.gradients);
  return in.run(&Kernels::backward);
}

PyObject* moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 0);
  Call& p = in.call;
  in.data(p.x, true), in.threads(), in.table(p.first, true), in.table(p.second);
  return in.run(&Kernels::moments);
}
PyObject* affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 0);
  Call& p = in.call;
  in.data(p.x, true), in.table(p.m), in.table(p.scale, true), in.table(p.shift, true);
  in.data(p.epilogue.residual), in.last_options(), in.data(p.y, true);
  return in.run(&Kernels::affine);
}
constexpr char tables[] = "an activation needs scale and shift";
PyObject* grad_moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Call& p = in.call;
  in.data(p.dy, true), in.data(p.x, true), in.table(p.m, true), in.table(p.scale), in.table(p.shift);
  in.data(p.epilogue.residual), in.last_options();
  in.demand(p.epilogue.activation == NONE || (p.scale && p.shift), tables);
  in.table(p.first, true), in.table(p.second, true);
  return in.run(&Kernels::grad_moments);
}
PyObject* grad_affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Call& p = in.call;
  in.data(p.dy, true), in.data(p.x, true), in.table(p.m, true), in.table(p.scale, true);
  in.table(p.shift), in.vector(p.x_scale), in.table(p.u, true);
  in.data(p.epilogue.residual), in.last_options();
  in.demand(p.epilogue.activation == NONE || p.shift, tables);
  in.data(p.dx), in.data(p.dresidual);
  in.demand(p.dx || p.dresidual, "a gradient must be wanted");
  return in.run(&Kernels::grad_affine);
}

// Takes torch's types of plain tensors, Tensor.is_neg, the function that makes a DLPack capsule of a
// tensor, and the capsule of the functions that do without one, or None.
PyObject* use_torch(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 5) return PyErr_SetString(refused, "there are more or fewer arguments than that"), nullptr;
  for (int k = 0; k < 4; k++) Py_INCREF(given[k]);
  torch = {given[0], given[1], given[2], given[3], nullptr};
  if (given[4] != Py_None) {
    const void* found = PyCapsule_GetPointer(given[4], "dlpack_exchange_api");
    if (!found) return nullptr;
    const auto exchange = static_cast<const Exchange*>(found);
    if (exchange->major == 1 && exchange->describe) torch.exchange = exchange;
  }
  Py_RETURN_NONE;
}

// Takes the addresses of the OpenMP runtime's functions, in the order of Runtime; 0 for none.
PyObject* use_threads(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count);
  uintptr_t at[3];
  for (uintptr_t& address : at) address = static_cast<uintptr_t>(in.integer());
  if (!in.are_right()) return nullptr;
  runtime = {reinterpret_cast<decltype(Runtime::run)>(at[0]), reinterpret_cast<decltype(Runtime::index)>(at[1]),
             reinterpret_cast<decltype(Runtime::size)>(at[2])};
  Py_RETURN_NONE;
}

template <int Count>
int add_codes(PyObject* module, const char* name, const char* const (&functions)[Count]) {
  PyObject* codes = PyDict_New();
  for (int k = 0; k < Count; k++) {
    PyObject* code = PyLong_FromLong(k);
    PyDict_SetItemString(codes, functions[k], code);
    Py_DECREF(code);
  }
  return PyModule_AddObject(module, name, codes);  // takes the reference
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL,
          nullptr};
}
PyMethodDef methods[] = {method<forward>("forward"),           method<backward>("backward"),
                         method<moments>("moments"),           method<affine>("affine"),
                         method<grad_moments>("grad_moments"), method<grad_affine>("grad_affine"),
                         method<use_threads>("use_threads"),   method<use_torch>("use_torch"),
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace rbnorm

// The module has the name of the instruction set that was chosen, and the functions' codes.
PyMODINIT_FUNC PyInit__kernels() {
  static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, rbnorm::methods,
                                nullptr,               nullptr,    nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  rbnorm::refused = PyErr_NewException("rbnorm.kernels.cpu.Refused", nullptr, nullptr);
  PyModule_AddObject(module, "Refused", rbnorm::refused);  // takes the reference
  PyModule_AddStringConstant(module, "instruction_set", rbnorm::kernels().name);
  rbnorm::add_codes(module, "restrictions", rbnorm::restrictions);
  rbnorm::add_codes(module, "activations", rbnorm::activations);
  return module;
}
