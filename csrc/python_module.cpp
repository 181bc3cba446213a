// Door 1: every operation as a function of the Python module fastconv._core, for NumPy arrays and
// any array that speaks DLPack (CuPy on CUDA). Needs no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "array_door.h"
#include "kernels/conv2d_choice.h"
#include "kernels/cpu/isa.h"
#include "kernels/parallel.h"
#ifdef FASTCONV_HAS_CUDA
#include "kernels/cuda/info.h"
#endif

namespace py = pybind11;

namespace fastconv {
namespace {

void set_python_error(const Error& error) {
  PyObject* type = PyExc_RuntimeError;
  if (error.kind == ErrorKind::kType) type = PyExc_TypeError;
  if (error.kind == ErrorKind::kValue) type = PyExc_ValueError;
  if (error.kind == ErrorKind::kNotImplemented) type = PyExc_NotImplementedError;
  PyErr_SetString(type, error.what());
}

[[noreturn]] void fail_type(const Operation& operation, const Argument& argument, const char* law,
                            py::handle got) {
  throw Error(ErrorKind::kType, operation.name + ": expected " + argument.name + " to be " + law +
                                    ", got " + Py_TYPE(got.ptr())->tp_name);
}

// As torch's own argument parser: an int or a NumPy integer, but no bool and no float. An int that
// 64 bits cannot hold is a ValueError, in a tuple a TypeError.
int64_t read_int(const Operation& operation, const Argument& argument, py::handle object,
                 ErrorKind overflow_kind = ErrorKind::kValue) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr()))
    fail_type(operation, argument,
              argument.kind == ArgumentKind::kIntList ? "an int or ints" : "an int", object);
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) throw py::error_already_set();
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow)
    fail(operation.name.c_str(), argument.name + " below 2^63 in size",
         std::string(py::str(object)), overflow_kind);
  return value;
}

// A float, an int, or what says that it is one; a bool and a word are none.
double read_float(const Operation& operation, const Argument& argument, py::handle object) {
  if (PyBool_Check(object.ptr()) || !PyNumber_Check(object.ptr()))
    fail_type(operation, argument, "a float", object);
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

void read_value(const Operation& operation, const Argument& argument, py::handle object,
                ArrayDoor& door, Value& value) {
  switch (argument.kind) {
    case ArgumentKind::kOptionalTensor:
      if (object.is_none()) return;
      [[fallthrough]];
    case ArgumentKind::kTensor:
      if (!door.read(operation.name.c_str(), object, value.tensor))
        fail_type(operation, argument, "an array", object);
      value.present = true;
      return;
    case ArgumentKind::kIntList:
      if (object.is_none() && argument.has_default && argument.value.empty()) return;
      if (PyTuple_Check(object.ptr()) || PyList_Check(object.ptr())) {
        // A list could be changed by the __index__ of what it holds: its items are kept first.
        const py::tuple items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(object.ptr()));
        if (!items) throw py::error_already_set();
        const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
        if (count > kMaxDims)
          fail(operation.name.c_str(), argument.name + " of at most 8 values",
               std::to_string(count) + " values");
        for (Py_ssize_t i = 0; i < count; ++i)
          value.ints[i] =
              read_int(operation, argument, PyTuple_GET_ITEM(items.ptr(), i), ErrorKind::kType);
        value.count = static_cast<int>(count);
      } else {
        value.ints[0] = read_int(operation, argument, object);
        value.count = 1;
      }
      return;
    case ArgumentKind::kOptionalInt:
      if (object.is_none()) return;
      [[fallthrough]];
    case ArgumentKind::kInt:
      value.ints[0] = read_int(operation, argument, object);
      value.present = true;
      return;
    case ArgumentKind::kBool:
      if (!PyBool_Check(object.ptr())) fail_type(operation, argument, "a bool", object);
      value.ints[0] = object.ptr() == Py_True;
      return;
    case ArgumentKind::kOptionalFloat:
      if (object.is_none()) return;
      [[fallthrough]];
    case ArgumentKind::kFloat:
      value.number = read_float(operation, argument, object);
      value.present = true;
      return;
  }
}

// The object given for each argument, by place or by name; null where there is none.
void match_arguments(const Operation& operation, const py::args& args, const py::kwargs& kwargs,
                     py::handle* objects) {
  const size_t count = operation.arguments.size(), positional = args.size();
  if (positional > count)
    throw Error(ErrorKind::kType, operation.name + ": expected at most " + std::to_string(count) +
                                      " arguments, got " + std::to_string(positional));
  size_t named = 0;
  for (size_t i = 0; i < count; ++i) {
    const Argument& argument = operation.arguments[i];
    if (i < positional) {
      objects[i] = PyTuple_GET_ITEM(args.ptr(), i);
    } else if (kwargs.size() && kwargs.contains(argument.name.c_str())) {
      objects[i] = kwargs[argument.name.c_str()];
      ++named;
    } else if (!argument.has_default) {
      throw Error(ErrorKind::kType,
                  operation.name + ": expected the argument " + argument.name + ", got none");
    }
  }
  if (named != kwargs.size())
    throw Error(ErrorKind::kType, operation.name +
                                      ": expected arguments by their names and once, got " +
                                      std::string(py::repr(kwargs)));
}

py::object call_operation(const Operation& operation, const py::args& args,
                          const py::kwargs& kwargs) {
  const size_t count = operation.arguments.size();
  py::handle objects[kMaxArguments];
  match_arguments(operation, args, kwargs, objects);
  ArrayDoor door(objects[0]);
  Value values[kMaxArguments];
  // NumPy arrays last: what comes before may run code of the caller's, which could move them.
  const auto turn_of = [&](size_t i) {
    const ArgumentKind kind = operation.arguments[i].kind;
    if (kind != ArgumentKind::kTensor && kind != ArgumentKind::kOptionalTensor) return 0;
    return py::isinstance<py::array>(objects[i]) ? 2 : 1;
  };
  for (int turn = 0; turn < 3; ++turn) {
    for (size_t i = 0; i < count; ++i) {
      const Argument& argument = operation.arguments[i];
      if (objects[i] && turn_of(i) == turn) {
        read_value(operation, argument, objects[i], door, values[i]);
      } else if (!objects[i] && turn == 0) {
        values[i].count = static_cast<int>(argument.value.size());
        if (values[i].count) values[i].ints[0] = argument.value[0];
        values[i].number = argument.number;
      }
    }
  }
  Call call{door, values, {}};
  door.run(operation, call);
  if (operation.results == 1) return door.take(0);
  py::tuple results(operation.results);
  for (int i = 0; i < operation.results; ++i) results[i] = door.take(i);
  return results;
}

std::vector<std::string> isa_names(bool available_only) {
  std::vector<std::string> names;
  for (int i = 0; i < static_cast<int>(cpu::Isa::count); ++i)
    if (!available_only || is_available(static_cast<cpu::Isa>(i)))
      names.emplace_back(name_of(static_cast<cpu::Isa>(i)));
  return names;
}

std::vector<std::string> algorithm_names() {
  std::vector<std::string> names;
  for (int i = 0; i < static_cast<int>(Conv2dAlgorithm::kCount); ++i)
    names.emplace_back(name_of(static_cast<Conv2dAlgorithm>(i)));
  return names;
}

#ifdef FASTCONV_HAS_CUDA
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}
#endif

}  // namespace
}  // namespace fastconv

PYBIND11_MODULE(_core, m) {
  using namespace fastconv;
  m.doc() = "fastconv's compiled operations on NumPy arrays and arrays that speak DLPack.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      set_python_error(error);
    }
  });

  py::class_<Exporter>(m, "Exporter", "A result, for a package's from_dlpack.")
      .def("__dlpack__", [](const Exporter& self, const py::kwargs&) { return self.dlpack(); })
      .def("__dlpack_device__",
           [](const Exporter&) { return py::make_tuple(static_cast<int>(dlpack::kCpu), 0); });

  py::list schemas;
  for (const Operation& operation : operations()) {
    m.def(
        operation.name.c_str(),
        [&operation](const py::args& args, const py::kwargs& kwargs) {
          return call_operation(operation, args, kwargs);
        },
        operation.schema.c_str());
    schemas.append(operation.schema);
  }
  m.attr("schemas") = py::tuple(schemas);

  m.def("version", [] { return FASTCONV_VERSION; }, "Version of the compiled part.");
  m.def("isa", [] { return name_of(cpu::active_isa()); }, "Name of the instruction set in use.");
  m.def(
      "set_isa", [](const std::string& name) { cpu::set_isa(name.c_str()); }, py::arg("name"),
      "Uses another instruction set of this machine; ValueError for any other name.");
  m.def(
      "available_isas", [] { return isa_names(true); },
      "Instruction sets of this machine, slowest first.");
  m.def(
      "compiled_isas", [] { return isa_names(false); },
      "Instruction sets in this build, slowest first.");
  m.def("num_threads", [] { return num_threads(); }, "Threads that a call may use.");
  m.def(
      "set_num_threads",
      [](int count) {
        if (count < 1) fail("set_num_threads", "a count >= 1", std::to_string(count));
        set_num_threads(count);
      },
      py::arg("count"), "Sets the threads of the pool that serves where torch's does not.");
  m.def("allow_winograd", allow_winograd, py::arg("allowed"),
        "Whether conv2d may use Winograd's algorithm.");
  m.def("winograd_is_allowed", winograd_is_allowed, "What allow_winograd was told last.");
  m.def("conv2d_algorithms", algorithm_names,
        "Names of conv2d's algorithms on the CPU, by number.");
  m.def(
      "forced_algorithm",
      [] {
        const Conv2dAlgorithm forced = forced_algorithm();
        return forced == Conv2dAlgorithm::kCount ? std::string("auto") : name_of(forced);
      },
      "The algorithm of conv2d that is used wherever it can be, or auto.");
  m.def(
      "force_algorithm", force_algorithm, py::arg("name"),
      "Uses an algorithm of conv2d wherever it can be; auto for the rule; ValueError if unknown.");
#ifdef FASTCONV_HAS_CUDA
  m.def(
      "cuda_archs", [] { return split(FASTCONV_CUDA_ARCHS, ','); },
      "CUDA architectures in this build.");
  m.def(
      "cuda_device_count", [] { return cuda::device_count(); },
      "CUDA devices that can be used now.");
  m.def(
      "cuda_obstacle",
      [](int device) -> py::object {
        const char* text = cuda::probe(device);
        return text ? py::object(py::str(text)) : py::object(py::none());
      },
      py::arg("device"),
      "Why kernels cannot run on a CUDA device, None if they can; makes its context.");
#else
  m.def(
      "cuda_archs", [] { return std::vector<std::string>(); },
      "CUDA architectures in this build: none.");
  m.def(
      "cuda_device_count", [] { return 0; },
      "CUDA devices that can be used now: this build has no CUDA.");
  m.def(
      "cuda_obstacle",
      [](int) { return "expected a build of fastconv with CUDA, got one without"; },
      py::arg("device"), "Why kernels cannot run on a CUDA device: this build has none.");
#endif
}
