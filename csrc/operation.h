// The list of operations that both doors offer. An operation's own file adds it, with its arguments
// in torch's schema language, so that a door needs to know kinds of arguments only, and a new
// operation edits no file but its own.
#pragma once
#include <string>
#include <vector>

#include "tensor.h"

#pragma GCC visibility push(default)
namespace fastconv {

constexpr int kMaxArguments = 16;
constexpr int kMaxResults = 4;

enum class ArgumentKind {
  kTensor,
  kOptionalTensor,
  kIntList,
  kInt,
  kOptionalInt,
  kBool,
  kFloat,
  kOptionalFloat,
};

struct Argument {
  ArgumentKind kind;
  std::string name;
  bool has_default = false;
  std::vector<int64_t> value;  // the default of integers, lists and flags
  double number = 0;           // the default of a float
};

// What a caller gave for one argument.
struct Value {
  TensorView tensor;
  bool present = false;    // of an optional tensor or number
  int count = 0;           // of `ints`
  int64_t ints[kMaxDims];  // the first `count`, or the one of a number or flag
  double number = 0;       // of a float
};

// One call on its way from a door to a kernel and back.
struct Call {
  Door& door;
  const Value* arguments;
  TensorView results[kMaxResults];

  const TensorView& tensor(int i) const { return arguments[i].tensor; }
  const TensorView* optional_tensor(int i) const {
    return arguments[i].present ? &arguments[i].tensor : nullptr;
  }
  const Value& ints(int i) const { return arguments[i]; }
  int64_t integer(int i) const { return arguments[i].ints[0]; }
  const int64_t* optional_integer(int i) const {
    return arguments[i].present ? arguments[i].ints : nullptr;
  }
  double number(int i) const { return arguments[i].number; }
  const double* optional_number(int i) const {
    return arguments[i].present ? &arguments[i].number : nullptr;
  }
};

struct Operation {
  std::string schema;
  std::string name;
  std::vector<Argument> arguments;
  int results;
  void (*run)(Call& call);
};

// "name(Tensor input, Tensor? bias=None, int[2] stride=1, int groups=1, int? divisor=None, float
// p=0.0) -> Tensor"; understands what stands in it.
Operation parse_operation(const char* schema, void (*run)(Call& call));

const std::vector<Operation>& operations();

struct RegisterOperation {
  RegisterOperation(const char* schema, void (*run)(Call& call));
};

}  // namespace fastconv
#pragma GCC visibility pop
