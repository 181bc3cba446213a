#include "operation.h"

#include <cstdlib>
#include <cstring>

namespace fastconv {
namespace {

std::vector<Operation>& registry() {
  static std::vector<Operation> list;
  return list;
}

Argument parse_argument(const std::string& text) {
  const size_t space = text.find(' '), equals = text.find('=');
  const std::string type = text.substr(0, space);
  Argument argument;
  argument.name = text.substr(space + 1, equals == std::string::npos ? equals : equals - space - 1);
  argument.has_default = equals != std::string::npos;
  const std::string value = argument.has_default ? text.substr(equals + 1) : "";
  if (type == "Tensor") {
    argument.kind = ArgumentKind::kTensor;
  } else if (type == "Tensor?") {
    argument.kind = ArgumentKind::kOptionalTensor;
  } else if (type.find('[') != std::string::npos) {
    argument.kind = ArgumentKind::kIntList;  // int[2] and SymInt[]; "[]" is the empty list
    if (argument.has_default && value != "[]") argument.value = {std::atoll(value.c_str())};
  } else if (type == "bool") {
    argument.kind = ArgumentKind::kBool;
    argument.value = {value == "True"};
  } else if (type == "int?") {
    argument.kind = ArgumentKind::kOptionalInt;
  } else if (type == "float") {
    argument.kind = ArgumentKind::kFloat;
    argument.number = std::atof(value.c_str());
  } else if (type == "float?") {
    argument.kind = ArgumentKind::kOptionalFloat;
  } else {
    argument.kind = ArgumentKind::kInt;
    argument.value = {std::atoll(value.c_str())};
  }
  return argument;
}

}  // namespace

Operation parse_operation(const char* schema, void (*run)(Call& call)) {
  const char* open = std::strchr(schema, '(');
  const char* close = std::strchr(open, ')');
  Operation operation{schema, std::string(schema, open), {}, 1, run};
  for (const char* at = open + 1; at < close;) {
    const char* comma = std::strchr(at, ',');
    const char* end = comma && comma < close ? comma : close;
    operation.arguments.push_back(parse_argument(std::string(at, end)));
    at = end + 2;
  }
  for (const char* at = close + 1; *at; ++at) operation.results += *at == ',';
  return operation;
}

const std::vector<Operation>& operations() { return registry(); }

RegisterOperation::RegisterOperation(const char* schema, void (*run)(Call& call)) {
  registry().push_back(parse_operation(schema, run));
}

}  // namespace fastconv
