// The Python module: addresses, sizes and options in, numbers written where they lie. Who calls has
// allocated, and looked at shapes and types. What is looked at here are numbers; what they do not allow
// is Refused, and who calls makes the sentence.
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

const Kernels& kernels() {
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
  return chosen;
}

// The arguments of a call, in order. What is wrong with one is kept until the end.
class Arguments {
 public:
  Arguments(PyObject* const* given, Py_ssize_t count) : given(given), left(count) {}

  int64_t integer() {
    PyObject* next = take();
    const long long value = next ? PyLong_AsLongLong(next) : 0;
    return value;
  }
  double number() {
    PyObject* next = take();
    return next ? PyFloat_AsDouble(next) : 0;
  }
  template <class T>
  void address(T*& to, bool needed = false) {
    to = reinterpret_cast<T*>(static_cast<uintptr_t>(integer()));
    demand(to || !needed, "an address must not be null");
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
  Type type() {
    const int64_t value = integer();
    demand(0 <= value && value < TYPES, "the type must be one of the module's");
    return wrong ? FLOAT32 : Type(value);
  }
  Shape shape() {
    Shape s;
    s.N = integer(), s.C = integer(), s.L = integer(), s.last = integer() != 0;
    s.threads = integer();
    demand(0 < s.threads && s.threads <= 4096, "threads must be 1 to 4096");
    int64_t numbers = 8;
    for (const int64_t size : {s.N, s.C, s.L})
      if (size <= 0 || __builtin_mul_overflow(numbers, size, &numbers))
        demand(false, "N, C and L must be positive, and their product no more than memory");
    if (s.L == 1) s.last = true;  // the channels of an instance lie side by side in either layout
    return s;
  }
  // With the running statistics, or E and V.
  template <class T>
  Layer layer(T*& mean, T*& variance) {
    Layer l;
    address(l.weight), address(l.bias), address(l.center_weight), address(l.scale_weight);
    address(l.scale_bias), address(mean), address(variance);
    demand(!l.scale_weight == !l.scale_bias && !mean == !variance, "addresses must come in pairs");
    l.training = integer() != 0, l.eps = number();
    demand(std::isfinite(l.eps) && (l.training ? l.eps > 0 : l.eps >= 0), "eps must be positive and finite");
    l.restriction = code(restrictions, "restrict must be one of the codes of rbnorm.elementwise");
    return l;
  }
  Epilogue epilogue() {
    Epilogue e;
    address(e.residual);
    e.activation = code(activations, "activation must be one of the codes of rbnorm.elementwise");
    e.slope = float(number());
    return e;
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
  Arguments in(given, count);
  Forward f;
  f.type = in.type(), f.shape = in.shape(), f.layer = in.layer(f.running_mean, f.running_var);
  f.epilogue = in.epilogue(), f.momentum = in.number();
  in.address(f.x, true), in.address(f.y, true);
  in.address(f.m, f.layer.training), in.address(f.E, f.m), in.address(f.V, f.m);
  in.demand(std::isfinite(f.momentum), "momentum must be a finite number");
  if (f.layer.training) {
    in.demand(has_many(f.shape), many);
    in.demand(is_apart(f), "running statistics must not share memory with what is read");
  } else {
    in.demand(f.running_mean, "running statistics must be given in evaluation");
  }
  return in.run([](const Forward& f) {
    use_huge_pages(f.y, bytes(f.type, f.shape)), use_huge_pages(f.m, 4 * f.shape.N * f.shape.C);
    kernels().forward(f);
  }, f);
}

PyObject* backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Arguments in(given, count);
  Backward b;
  b.type = in.type(), b.shape = in.shape(), b.layer = in.layer(b.E, b.V), b.epilogue = in.epilogue();
  in.address(b.dy, true), in.address(b.x, true), in.address(b.m, true);
  in.demand(b.E, "an address must not be null");
  in.demand(!b.layer.training || has_many(b.shape), many);
  in.address(b.dx), in.address(b.dresidual);
  in.address(b.weight), in.address(b.bias), in.address(b.center_weight), in.address(b.scale_weight);
  in.address(b.scale_bias);
  return in.run([](const Backward& b) {
    use_huge_pages(b.dx, bytes(b.type, b.shape)), use_huge_pages(b.dresidual, bytes(b.type, b.shape));
    kernels().backward(b);
  }, b);
}

// A phase, whose fields come in the order of the structure; those that it needs must be there.
template <void (*Kernels::*phase)(const Phase&), class Needed>
PyObject* run_phase(PyObject* const* given, Py_ssize_t count, Needed needed) {
  Arguments in(given, count);
  Phase p;
  p.type = in.type(), p.shape = in.shape(), p.epilogue = in.epilogue();
  in.address(p.dy), in.address(p.x, true), in.address(p.m), in.address(p.scale);
  in.address(p.shift), in.address(p.x_scale), in.address(p.u), in.address(p.y);
  in.address(p.dresidual), in.address(p.first), in.address(p.second);
  in.demand(needed(p), "an address must not be null");
  return in.run([](const Phase& p) {
    use_huge_pages(p.y, bytes(p.type, p.shape)), use_huge_pages(p.dresidual, bytes(p.type, p.shape));
    (kernels().*phase)(p);
  }, p);
}
bool has_map(const Phase& p) { return p.epilogue.activation == NONE || (p.scale && p.shift); }

PyObject* moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run_phase<&Kernels::moments>(given, count, [](const Phase& p) { return p.first != nullptr; });
}
PyObject* affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run_phase<&Kernels::affine>(given, count, [](const Phase& p) {
    return p.scale && p.shift && p.y;
  });
}
PyObject* grad_moments(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run_phase<&Kernels::grad_moments>(given, count, [](const Phase& p) {
    return p.dy && p.m && has_map(p) && p.first && p.second;
  });
}
PyObject* grad_affine(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run_phase<&Kernels::grad_affine>(given, count, [](const Phase& p) {
    return p.dy && p.m && p.scale && p.u && has_map(p) && (p.y || p.dresidual);
  });
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
                         method<use_threads>("use_threads"),   {nullptr, nullptr, 0, nullptr}};

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
