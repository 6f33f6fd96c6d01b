// Errors that the bindings turn into Python's: TypeError for the wrong kind, ValueError for the wrong shape or value.
#pragma once
#include <stdexcept>
#include <string>

namespace nf {

struct TypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ValueError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// "matmul: bias must have shape (32,), got (31,)"
[[noreturn]] void fail_value(const char *operation, const std::string &message);
[[noreturn]] void fail_type(const char *operation, const std::string &message);

} // namespace nf
