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

#include "headers.h"

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
  Type type = FLOAT32;
  Shape shape{};

  Arguments(PyObject* const* given, Py_ssize_t count) : given(given), left(count) {}
  Arguments(PyObject* const* given, Py_ssize_t count, Py_ssize_t input) : Arguments(given, count) {
    const bool is_plain = count > input && describe(given[input], x);
    type = x.is_float32() ? FLOAT32 : x.is_of(4, 16) ? BFLOAT16 : x.is_of(2, 16) ? FLOAT16 : TYPES;
    demand(is_plain && type != TYPES && x.rank > 1, "x must be (N, C, ...), plain, of one of the types");
    if (wrong) return;
    own = given[input];
    shape = {x.shape[0], x.shape[1], 1, !x.is_packed(false), 1};
    for (int k = 2; k < x.rank; k++) shape.L *= x.shape[k];
    demand(shape.N * shape.C * shape.L > 0, "x must not be empty");
    const bool is_map = x.rank == 4 || x.rank == 5;
    demand(!shape.last || (is_map && x.is_packed(true)), "x must have no gaps");
  }
  ~Arguments() {
    for (int k = 0; k < capsules; k++) Py_DECREF(kept[k]);
  }

  int64_t integer() {
    PyObject* next = take();
    const long long value = next ? PyLong_AsLongLong(next) : 0;
    return value;
  }
  double number() {
    PyObject* next = take();
    return next ? PyFloat_AsDouble(next) : 0;
  }
  // Of a tensor like x, of a table (N, C), of a vector (C,); null of None.
  template <class T>
  void data(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, [&](const Described& t) {
      return t.code == x.code && t.bits == x.bits && t.rank == x.rank &&
             std::equal(t.shape, t.shape + t.rank, x.shape) && t.is_packed(is_last());
    }));
  }
  template <class T>
  void table(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, [&](const Described& t) {
      return t.is_float32() && t.rank == 2 && t.shape[0] == shape.N && t.shape[1] == shape.C && t.is_packed(false);
    }));
  }
  template <class T>
  void vector(T*& to, bool needed = false) {
    to = static_cast<T*>(place(needed, [&](const Described& t) {
      return t.is_float32() && t.rank == 1 && t.shape[0] == shape.C && t.is_packed(false);
    }));
  }
  void demand(bool holds, const char* sentence) {
    if (!holds && !wrong) wrong = sentence;
  }
  template <int Count>
  int code(const Named (&table)[Count], const char* sentence) {
    const int64_t value = integer();
    for (const Named& entry : table)
      if (entry.code == value) return entry.code;
    demand(false, sentence);
    return 0;
  }
  void vectors(Layer& l) {
    vector(l.weight), vector(l.bias), vector(l.center_weight), vector(l.scale_weight);
    vector(l.scale_bias);
    demand(!l.scale_weight == !l.scale_bias, "vectors must come in pairs");
  }
  void options(Layer& l) {
    l.eps = number();
    demand(std::isfinite(l.eps) && (l.training ? l.eps > 0 : l.eps >= 0), "eps must be positive and finite");
    l.restriction = code(restrictions, "restrict must be one of the codes of rbnorm.elementwise");
  }
  void function(Epilogue& e) {
    e.activation = code(activations, "activation must be one of the codes of rbnorm.elementwise");
    e.slope = float(number());
  }
  // The last option, which outputs follow: new ones of the caller's, nowhere negative by a bit.
  void threads() {
    own = nullptr, is_output = true;
    shape.threads = integer();
    demand(0 < shape.threads && shape.threads <= 4096, "threads must be 1 to 4096");
  }
  // In memory: the channels of one position lie side by side in either layout.
  Shape memory() const {
    Shape s = shape;
    if (s.L == 1) s.last = true;
    return s;
  }

  // Runs a kernel on what was read, without the interpreter's lock; None, or null with an error.
  template <class Kernel, class Read>
  PyObject* run(Kernel kernel, const Read& read) {
    demand(left == 0, "there are more or fewer arguments than that");
    if (PyErr_Occurred()) return nullptr;
    if (wrong) return PyErr_SetString(refused, wrong), nullptr;
    bool has_memory = true;
    PyThreadState* state = PyEval_SaveThread();
    try {
      kernel(read);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
    PyEval_RestoreThread(state);
    if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
  }

 private:
  PyObject* const* given;
  Py_ssize_t left;
  const char* wrong = nullptr;
  Described x{};
  PyObject* own = nullptr;  // whose description is x
  bool is_output = false;
  int capsules = 0;
  PyObject* kept[24];  // no call has more tensors

  bool is_last() const { return shape.last; }
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
  template <class Fits>
  void* place(bool needed, Fits fits) {
    PyObject* next = take();
    if (!next || wrong) return nullptr;
    Described t = x;
    if (next == Py_None)
      demand(!needed, "a tensor must be given");
    else if ((next != own && !describe(next, t)) || !t.data || !fits(t))
      demand(false, "a tensor must be plain, and fit x");
    else
      return static_cast<char*>(t.data) + t.offset;
    return nullptr;
  }
  PyObject* take() {
    left--;
    return left < 0 || PyErr_Occurred() ? nullptr : *given++;
  }
};

int64_t bytes(Type type, const Shape& s) { return s.N * s.C * s.L * bytes_of[type]; }

bool has_many(const Shape& s) { return s.N > 1 || s.L > 1; }
constexpr char many[] = "a channel must have more than one value in training";

// Whether nothing is read where the running statistics are written.
bool is_apart(const Forward& f) {
  const int64_t data = bytes(f.type, f.shape), vector = 4 * f.shape.C;
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
  Forward f;
  in.data(f.x, true), in.data(f.epilogue.residual), in.vectors(f.layer);
  in.vector(f.running_mean), in.vector(f.running_var);
  f.layer.training = in.integer() != 0, f.momentum = in.number();
  in.options(f.layer), in.function(f.epilogue), in.threads();
  f.type = in.type, f.shape = in.memory();
  in.data(f.y, true), in.table(f.m, f.layer.training), in.vector(f.E, f.m), in.vector(f.V, f.m);
  in.demand(!f.running_mean == !f.running_var, "vectors must come in pairs");
  in.demand(std::isfinite(f.momentum), "momentum must be a finite number");
  if (f.layer.training) {
    in.demand(has_many(f.shape), many);
    in.demand(is_apart(f), "running statistics must not share memory with what is read");
  } else {
    in.demand(f.running_mean, "running statistics must be given in evaluation");
  }
  return in.run([](const Forward& f) {
    use_huge_pages(f.y, bytes(f.type, f.shape)), use_huge_pages(f.m, 4 * f.shape.N * f.shape.C);
    kernels(f.shape).forward(f);
  }, f);
}

PyObject* backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Backward b;
  in.data(b.dy, true), in.data(b.x, true), in.data(b.epilogue.residual), in.table(b.m, true);
  in.vector(b.E, true), in.vector(b.V, true), in.vectors(b.layer), b.layer.training = in.integer() != 0;
  in.options(b.layer), in.function(b.epilogue), in.threads();
  b.type = in.type, b.shape = in.memory();
  in.demand(!b.layer.training || has_many(b.shape), many);
  in.data(b.dx), in.data(b.dresidual), in.vector(b.weight), in.vector(b.bias);
  in.vector(b.center_weight), in.vector(b.scale_weight), in.vector(b.scale_bias);
  in.demand(!b.dresidual || b.epilogue.activation != NONE, "the residual's gradient is dy");
  return in.run([](const Backward& b) {
    use_huge_pages(b.dx, bytes(b.type, b.shape)), use_huge_pages(b.dresidual, bytes(b.type, b.shape));
    kernels(b.shape).backward(b);
  }, b);
}

// A phase on what was read.
template <void (*Kernels::*phase)(const Phase&)>
PyObject* run_phase(Arguments& in, Phase& p) {
  p.type = in.type, p.shape = in.memory();
  in.demand(p.epilogue.activation == NONE || (p.scale && p.shift), "an activation needs scale and shift");
  in.demand(!p.dresidual || p.epilogue.activation != NONE, "the residual's gradient is dy");
  return in.run([](const Phase& p) {
    use_huge_pages(p.y, bytes(p.type, p.shape)), use_huge_pages(p.dresidual, bytes(p.type, p.shape));
    (kernels(p.shape).*phase)(p);
  }, p);
}

PyObject* moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 0);
  Phase p{};
  in.data(p.x, true), in.threads(), in.table(p.first, true), in.table(p.second);
  return run_phase<&Kernels::moments>(in, p);
}
PyObject* affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 0);
  Phase p{};
  in.data(p.x, true), in.table(p.m), in.table(p.scale, true), in.table(p.shift, true);
  in.data(p.epilogue.residual), in.function(p.epilogue), in.threads(), in.data(p.y, true);
  return run_phase<&Kernels::affine>(in, p);
}
PyObject* grad_moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Phase p{};
  in.data(p.dy, true), in.data(p.x, true), in.table(p.m, true), in.table(p.scale), in.table(p.shift);
  in.data(p.epilogue.residual), in.function(p.epilogue), in.threads();
  in.table(p.first, true), in.table(p.second, true);
  return run_phase<&Kernels::grad_moments>(in, p);
}
PyObject* grad_affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count, 1);
  Phase p{};
  in.data(p.dy, true), in.data(p.x, true), in.table(p.m, true), in.table(p.scale, true);
  in.table(p.shift), in.vector(p.x_scale), in.table(p.u, true);
  in.data(p.epilogue.residual), in.function(p.epilogue), in.threads();
  in.data(p.y), in.data(p.dresidual);
  in.demand(p.y || p.dresidual, "a gradient must be wanted");
  return run_phase<&Kernels::grad_affine>(in, p);
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
  return in.run([](const uintptr_t* at) {
    runtime = {reinterpret_cast<decltype(Runtime::run)>(at[0]),
               reinterpret_cast<decltype(Runtime::index)>(at[1]),
               reinterpret_cast<decltype(Runtime::size)>(at[2])};
  }, at);
}

template <int Count>
int add_codes(PyObject* module, const char* name, const Named (&table)[Count]) {
  PyObject* codes = PyDict_New();
  for (const Named& entry : table) {
    PyObject* code = PyLong_FromLong(entry.code);
    PyDict_SetItemString(codes, entry.name, code);
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
